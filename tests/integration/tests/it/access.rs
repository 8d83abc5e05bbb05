//! Access tokens with real programs: the first one, roles, agents, streams that are cut, the audit log.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    binaries,
    ctl::{Ctl, finish},
    daemon::Daemon,
    etcd::{self, Etcd},
    skip::skip,
    wait::{self, Look},
};
use serde_json::Value;
use tempfile::TempDir;

fn controller(folder: &Path, n: usize, arguments: &[&str]) -> Result<(String, Daemon)> {
    let mut command = Command::new(binaries::path("muster-controller")?);
    command.args(["--listen", "127.0.0.1:0", "--require-token"]).args(arguments);
    command.arg("--data").arg(folder.join(format!("controller{n}")));
    // A log of its own for each life: the last one's address is not this one's.
    static LIVES: AtomicU32 = AtomicU32::new(0);
    let name = format!("controller{n}-{}", LIVES.fetch_add(1, Ordering::Relaxed));
    let mut daemon = Daemon::start(&name, &mut command, folder)?;
    let address = daemon.address(0)?;
    Ok((address, daemon))
}

fn folder() -> Result<TempDir> {
    tempfile::Builder::new().prefix("muster-it-").tempdir().context("could not make a folder")
}

/// The admin's token that a controller left in its folder.
fn admin_token(folder: &Path) -> Result<PathBuf> {
    wait::until("the admin's token", || {
        let found =
            (0..2).map(|n| folder.join(format!("controller{n}")).join("admin.token")).find(|path| path.exists());
        Ok(found.map_or(Look::not_yet("no file"), Look::Done))
    })
}

/// Makes a token and puts it into a file.
fn create(ctl: &Ctl, folder: &Path, arguments: &[&str]) -> Result<String> {
    let ran = ctl.run(&[&["admin", "token", "create"], arguments].concat())?.expect(0)?;
    let name = arguments.iter().skip_while(|word| **word != "--name").nth(1).context("a name")?;
    let path = folder.join(format!("{name}.token"));
    fs::write(&path, ran.text())?;
    Ok(path.to_string_lossy().into_owned())
}

/// `ctl` that shows the token in this file.
fn with(address: &str, path: &Path) -> Result<Ctl> {
    Ok(Ctl::of(address).env("MUSTER_TOKEN", fs::read_to_string(path)?.trim()))
}

/// A command in a task that runs, by who may and by who may not.
fn looks_beside(ctl: &Ctl, job: &str, (may, may_not): (&str, &str)) -> Result<()> {
    let exec = |token: &str| ctl.run(&["--token-file", token, "exec", &format!("{job}.0"), "--", "echo", "beside"]);
    wait::until("a command in the task", || {
        let ran = exec(may)?;
        Ok(Look::when(ran.code == 0 && ran.text() == "beside\n", ran.to_string()))
    })?;
    exec(may_not)?.expect(5)?;
    Ok(())
}

#[test]
fn a_controller_that_asks_is_used_with_the_token_it_left_for_its_owner_and_with_no_other() -> Result<()> {
    let folder = folder()?;
    let (address, mut daemon) = controller(folder.path(), 0, &[])?;
    let path = admin_token(folder.path())?;
    let secret = fs::read_to_string(&path)?;
    let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the file is for its owner, and has mode {mode:o}");
    let nobody = Ctl::of(&address);
    let ran = nobody.run(&["list"])?.expect(5)?;
    ensure!(ran.stderr.contains("MUSTER_TOKEN") && ran.stderr.contains("ctl admin token create"), "{ran}");
    let slip = nobody.clone().env("MUSTER_TOKEN", "muster_abcd2345_x").run(&["list"])?.expect(2)?;
    ensure!(slip.stderr.contains("cut or mistyped") && !slip.stderr.contains("abcd2345_x"), "{slip}");

    let admin = with(&address, &path)?;
    let agent_token = create(&admin, folder.path(), &["--name", "machines", "--role", "agent"])?;
    let mut command = Command::new(binaries::path("muster-agent")?);
    command.args(["--controller", &format!("http://{address}"), "--name", "worker", "--cpus", "2"]);
    command.args(["--token-file", &agent_token, "--data"]).arg(folder.path().join("agent"));
    let mut agent = Daemon::start("agent", &mut command, folder.path())?;
    wait::until("the agent to be connected", || {
        let agents = admin.json(&["agents"])?;
        Ok(Look::when(agents["agents"][0]["state"] == "connected", &agents))
    })?;

    let viewer = create(&admin, folder.path(), &["--name", "eye", "--role", "viewer", "--ttl", "1h"])?;
    let operator = create(&admin, folder.path(), &["--name", "op", "--role", "operator", "--queue", "default"])?;
    let ran =
        nobody.run(&["--token-file", &operator, "run", "--", "sh", "-c", "echo $MUSTER_TOKEN; exit 3"])?.expect(3)?;
    ensure!(ran.text().trim().parse::<u64>().is_ok(), "a task has its lease's number, not our secret:\n{ran}");
    let denied = nobody.run(&["--token-file", &viewer, "cancel", "1"])?.expect(5)?;
    ensure!(denied.stderr.contains("this token (eye) has the role viewer; cancel needs operator"), "{denied}");
    nobody.run(&["--token-file", &viewer, "show", "1"])?.expect(0)?;

    // What it follows ends when it is revoked.
    let shell = "echo its word; exec sleep 600";
    let long = nobody.run(&["--token-file", &operator, "submit", "--", "sh", "-c", shell])?.expect(0)?;
    let job = long.text().trim().to_owned();
    looks_beside(&nobody, &job, (&operator, &viewer))?;
    let execs = admin.json(&["audit", "--action", "exec"])?;
    let who = |record: &Value| format!("{} {} {}", record["actor"], record["object"], record["detail"]);
    let execs: Vec<String> = execs["records"].as_array().context("records")?.iter().map(who).collect();
    ensure!(execs.contains(&format!("\"op\" \"{job}.0\" \"echo beside\"")), "who ran it is not told: {execs:?}");
    let refused = admin.json(&["audit", "--refused", "--action", "exec"])?;
    ensure!(refused["records"][0]["actor"] == "eye", "{refused}");
    let followed = folder.path().join("followed");
    let mut follow = nobody.command(&["--token-file", &operator, "logs", "-f", &job])?;
    let follow = follow.stdin(Stdio::null()).stdout(fs::File::create(&followed)?).stderr(Stdio::piped()).spawn()?;
    wait::until("the follower to be answered", || {
        let said = fs::read_to_string(&followed)?;
        Ok(Look::when(said.contains("its word"), said))
    })?;
    wait::until("its token's use to be known", || {
        let used = admin.json(&["admin", "token", "list"])?;
        let tokens = used["tokens"].as_array().cloned().unwrap_or_default();
        Ok(Look::when(tokens.iter().any(|token| token["name"] == "op" && token["last_used_at"].is_string()), &used))
    })?;
    admin.run(&["admin", "token", "revoke", "op"])?.expect(0)?;
    let ended = finish(follow, &[], wait::LIMIT)?.expect(5)?;
    ensure!(ended.stderr.contains("revoked"), "{ended}");

    let verified = admin.json(&["audit", "--verify"])?;
    ensure!(verified["problem"].is_null() && verified["records"].as_u64() > Some(6), "{verified}");
    let anchor = format!("{}:{}", verified["newest"], verified["hash"].as_str().unwrap_or_default());
    admin.run(&["cancel", &job])?.expect(0)?;
    admin.run(&["audit", "--verify", "--expect", &anchor])?.expect(0)?;
    let forged = anchor.replace(['a', '1'], "7");
    admin.run(&["audit", "--verify", "--expect", &forged])?.expect(1)?;
    let refused = admin.json(&["audit", "--refused", "--actor", "eye", "--action", "cancel"])?;
    ensure!(refused["records"][0]["action"] == "cancel" && refused["records"][0]["outcome"] == "refused", "{refused}");

    agent.stop()?;
    daemon.stop()?;
    daemon.expect_no_errors()?;
    for daemon in [&agent, &daemon] {
        ensure!(!daemon.log().contains(secret.trim()), "a secret is in a log");
    }
    Ok(())
}

#[test]
fn who_lost_every_token_gets_another_at_the_next_start() -> Result<()> {
    let folder = folder()?;
    let (_, mut daemon) = controller(folder.path(), 0, &[])?;
    let path = admin_token(folder.path())?;
    let first = fs::read_to_string(&path)?;
    daemon.stop()?;
    let (_, mut daemon) = controller(folder.path(), 0, &[])?;
    daemon.stop()?;
    ensure!(fs::read_to_string(&path)? == first, "an admin has one, and no other was asked for");
    let (address, mut daemon) = controller(folder.path(), 0, &["--new-admin-token"])?;
    let second = fs::read_to_string(&path)?;
    ensure!(second != first);
    for token in [&first, &second] {
        Ctl::of(&address).env("MUSTER_TOKEN", token.trim()).run(&["list"])?.expect(0)?;
    }
    daemon.stop()
}

#[test]
fn a_controller_that_does_not_lead_passes_on_who_asks_and_decides_nothing() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("access::a_controller_that_does_not_lead_passes_on_who_asks_and_decides_nothing", &why);
    }
    let folder = folder()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let store = etcd.address();
    let controllers =
        [controller(folder.path(), 0, &["--store", &store])?, controller(folder.path(), 1, &["--store", &store])?];
    let path = admin_token(folder.path())?;
    for (address, _) in &controllers {
        let admin = with(address, &path)?;
        wait::until("the leader to answer", || {
            let ran = admin.run(&["status"])?;
            Ok(Look::when(ran.code == 0, ran.to_string()))
        })?;
        Ctl::of(address).run(&["list"])?.expect(5)?;
    }
    let all = with(&controllers[0].0, &path)?.json(&["audit", "--refused"])?;
    let from: Vec<_> =
        all["records"].as_array().context("records")?.iter().map(|record| record["peer"].to_string()).collect();
    ensure!(from.iter().any(|peer| peer.contains(" through ")), "nobody came through the other: {from:?}");
    Ok(())
}
