//! Who machines are, on real programs: agents join, renew, are sent away; plain text stays on this machine.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    binaries,
    certificates::Authority,
    ctl::{self, Ctl, Ran},
    daemon::Daemon,
    etcd::{self, Etcd},
    secure::{Secure, quiet},
    skip::skip,
    system::System,
    wait::{self, Look},
};

/// Runs a program that is expected to end by itself.
fn ends(command: &mut Command) -> Result<Ran> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    ctl::finish(child, &[], Duration::from_secs(30))
}

fn says(ran: &Ran, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(ran.stderr.contains(word), "it does not say {word:?}:\n{ran}");
    }
    ensure!(!ran.stderr.contains("panicked"), "it panics:\n{ran}");
    Ok(())
}

#[test]
fn an_agent_joins_once_with_a_token_and_nobody_else_does() -> Result<()> {
    let mut secure = Secure::start("")?;
    let token = secure.token(&[])?;
    let agent = Daemon::start("north", &mut secure.agent_command("north", Some(&token))?, secure.folder())?;
    secure.agents.push(("north".to_owned(), agent));
    secure.agent_is("north", "connected")?;
    secure.works()?;
    let kept = secure.agent_data("north").join("identity.pem");
    ensure!(fs::metadata(&kept)?.permissions().mode() & 0o777 == 0o600, "others can read {}", kept.display());

    let refused = |name: &str, token: Option<&str>, words: &[&str]| -> Result<()> {
        says(&ends(&mut secure.agent_command(name, token)?)?.expect(1)?, words)
    };
    refused("south", Some(&token), &["used already", "ctl admin join-token"])?;
    refused("south", None, &["no certificate yet", "--join"])?;
    // Right in form, of an authority that is not ours: nobody is believed, so that it goes on looking; not ours to wait for.
    let unknown = format!("{}{}", &token[..token.len() - 64], "0".repeat(64));
    refused("south", Some(&unknown), &["not known"])?;
    let expired = secure.token(&["--ttl", "1ms"])?;
    refused("south", Some(&expired), &["expired"])?;
    let named = secure.token(&["--name", "west"])?;
    refused("south", Some(&named), &["`west`", "`south`"])?;
    let again = secure.token(&[])?;
    let mut thief = Command::new(binaries::path("muster-agent")?);
    thief.args(["--controller", &format!("https://{}", secure.address()), "--name", "north", "--join", &again]);
    thief.arg("--data").arg(secure.folder().join("thief"));
    says(&ends(quiet(&mut thief, secure.folder()))?.expect(1)?, &["has joined already", "--name north"])?;
    ensure!(secure.ctl().run(&["admin", "join-token", "--ttl", "0s"])?.expect(2)?.stderr.contains("ttl_ms"));

    // What was joined is there after a restart of both, without the token.
    secure.agent("north")?.stop()?;
    secure.agents.clear();
    secure.controller.as_mut().context("it runs")?.stop()?;
    secure.start_controller()?;
    let agent = Daemon::start("north", &mut secure.agent_command("north", Some(&token))?, secure.folder())?;
    secure.agents.push(("north".to_owned(), agent));
    secure.agent_is("north", "connected")?;
    let refused = ends(&mut secure.agent_command("south", Some(&token))?)?.expect(1)?;
    says(&refused, &["used already"])?;
    secure.works()?;
    secure.finish()
}

#[test]
fn certificates_are_renewed_while_work_runs_and_new_connections_show_the_new_ones() -> Result<()> {
    let mut secure = Secure::start("life = '12s'")?;
    secure.join("north")?;
    let gate = secure.folder().join("gate");
    let shell = format!("until test -e {}; do sleep 0.05; done", gate.display());
    let file =
        secure.file("gated.toml", &format!("name = \"gated\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n"))?;
    let job = secure.ctl().submit(&file)?;
    let kept = secure.agent_data("north").join("identity.pem");
    let mut seen = vec![fs::read_to_string(&kept)?];
    // Longer than any one certificate of both sides lasts.
    wait::until("three more certificates of the agent, and of the controller", || {
        let now = fs::read_to_string(&kept)?;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        let own = secure.log().matches("this controller has a new certificate").count();
        Ok(Look::when(seen.len() > 3 && own >= 3, (seen.len(), own)))
    })?;
    ensure!(secure.ctl().json(&["show", &job.to_string()])?["job"]["state"] == "running", "it did not go on");
    // A controller that is started again is a new connection, long after the first certificate was over.
    secure.controller.as_mut().context("it runs")?.kill9()?;
    secure.start_controller()?;
    secure.agent_is("north", "connected")?;
    fs::write(&gate, "")?;
    let shown = secure.ctl().finished(job, Duration::from_secs(30))?;
    ensure!(shown["state"] == "succeeded" && shown["tasks"]["succeeded"] == 1, "{shown}");
    let tasks = secure.ctl().json(&["show", &job.to_string(), "--tasks"])?;
    let attempts = tasks["tasks"][0]["attempts"].as_array().map(Vec::len);
    ensure!(attempts == Some(1), "the task was tried again: {tasks}");
    secure.works()?;
    secure.finish()
}

#[test]
fn a_revoked_agent_is_cut_off_and_comes_back_with_a_new_token_only() -> Result<()> {
    let mut secure = Secure::start("")?;
    secure.join("north")?;
    secure.join("south")?;
    let ctl = secure.ctl();
    ensure!(ctl.json(&["admin", "revoke-agent", "north"])?["already"] == false);
    wait::until("north to be cut off", || {
        let agents = ctl.json(&["agents"])?;
        let north = agents["agents"].as_array().into_iter().flatten().find(|agent| agent["name"] == "north");
        Ok(Look::when(north.is_some_and(|agent| agent["state"] != "connected"), &agents))
    })?;
    ensure!(ctl.json(&["admin", "revoke-agent", "north"])?["already"] == true);
    ctl.run(&["admin", "revoke-agent", "nobody"])?.expect(3)?;
    let log = secure.agent("north")?.log();
    wait::until("north to hear why", || {
        Ok(Look::when(secure_log(&mut secure, "north")?.contains("is revoked"), &log))
    })?;
    // Started again it shows the same certificate, and is refused.
    secure.agent("north")?.stop()?;
    secure.agents.retain(|(name, _)| name != "north");
    let again = Daemon::start("again", &mut secure.agent_command("north", None)?, secure.folder())?;
    wait::until("it to be refused again", || Ok(Look::when(again.log().contains("is revoked"), again.log())))?;
    drop(again);
    secure.works()?;
    // A token of its own brings it back, in the same folder.
    let token = secure.token(&["--name", "north"])?;
    let agent = Daemon::start("third", &mut secure.agent_command("north", Some(&token))?, secure.folder())?;
    secure.agents.push(("north".to_owned(), agent));
    secure.agent_is("north", "connected")?;
    secure.works()?;
    secure.finish()
}

fn secure_log(secure: &mut Secure, name: &str) -> Result<String> {
    Ok(secure.agent(name)?.log())
}

#[test]
fn who_cannot_be_trusted_is_told_with_what_to_do() -> Result<()> {
    let secure = Secure::start("")?;
    let folder = secure.folder().to_owned();
    let other = Authority::new(&folder.join("other"))?;
    let url = format!("https://{}", secure.address());
    let ctl = |url: &str, ca: Option<&str>| {
        let ctl = Ctl::alone().env("MUSTER_CONTROLLER", url);
        ca.map_or(ctl.clone(), |ca| ctl.env("MUSTER_CA", ca)).run(&["list"])
    };
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let (ca, wrong) = (text(secure.ca()), text(other.certificate()));
    ctl(&url, Some(&ca))?.expect(0)?;
    says(&ctl(&url, Some(&wrong))?.expect(4)?, &["another CA signed", "ca.pem"])?;
    says(&ctl(&url, None)?.expect(2)?, &["--ca FILE"])?;
    says(&ctl(&url, Some("/nonexistent.pem"))?.expect(2)?, &["/nonexistent.pem"])?;
    says(&ctl("http://192.0.2.1:7717", None)?.expect(2)?, &["--insecure", "https://"])?;
    // Plain text to a port that speaks TLS, and the other way round.
    ctl(&format!("http://{}", secure.address()), None)?.expect(4)?;
    let plain = System::plain()?;
    says(&ctl(&format!("https://{}", plain.address()), Some(&ca))?.expect(4)?, &["does not speak TLS"])?;
    says(&plain.ctl().run(&["admin", "join-token"])?.expect(5)?, &["--tls"])?;
    plain.finish()?;

    let controller = |arguments: &[&str]| -> Result<Ran> {
        let mut command = Command::new(binaries::path("muster-controller")?);
        command.args(arguments).arg("--data").arg(folder.join("second"));
        ends(quiet(&mut command, &folder))
    };
    says(&controller(&["--listen", "0.0.0.0:0"])?.expect(1)?, &["0.0.0.0:0", "--tls", "--insecure"])?;
    says(&controller(&["--listen", "0.0.0.0:0", "--tls", "--insecure"])?.expect(2)?, &["--tls"])?;
    let mut agent = Command::new(binaries::path("muster-agent")?);
    agent.args(["--controller", "http://192.0.2.1:7717", "--data"]).arg(folder.join("third"));
    says(&ends(quiet(&mut agent, &folder))?.expect(1)?, &["192.0.2.1:7717", "--insecure", "--join"])?;
    secure.finish()
}

#[test]
fn controllers_of_a_cluster_share_an_authority_and_pass_agents_on() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("identity::controllers_of_a_cluster_share_an_authority_and_pass_agents_on", &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let start = |n: usize| -> Result<(String, Daemon)> {
        let config = folder.path().join(format!("c{n}.toml"));
        fs::write(&config, format!("session_ttl = '2s'\nlease_ttl = '30s'\nlease_margin = '1s'\nname = 'c{n}'\n"))?;
        let mut command = Command::new(binaries::path("muster-controller")?);
        command.args(["--tls", "--listen", "127.0.0.1:0", "--store", &etcd.address(), "--config"]).arg(config);
        command.arg("--data").arg(folder.path().join("shared"));
        let mut daemon = Daemon::start(&format!("c{n}"), quiet(&mut command, folder.path()), folder.path())?;
        Ok((daemon.address(0)?, daemon))
    };
    let (first, mut leader) = start(0)?;
    let ca = folder.path().join("shared/ca.pem");
    wait::until("an authority", || Ok(Look::when(ca.is_file(), leader.log())))?;
    let (second, standby) = start(1)?;
    let of = |address: &str| {
        let ca = ca.to_string_lossy().into_owned();
        Ctl::alone().env("MUSTER_CONTROLLER", &format!("https://{address}")).env("MUSTER_CA", &ca)
    };
    // The standby makes tokens, lets agents join, and carries their work: all of it is the leader's.
    let token = wait::until("the standby to pass calls on", || {
        let ran = of(&second).run(&["admin", "join-token", "-o", "json"])?;
        let made: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        Ok(made["token"].as_str().map_or(Look::NotYet(ran.to_string()), |token| Look::Done(token.to_owned())))
    })?;
    let mut agent = Command::new(binaries::path("muster-agent")?);
    agent.args(["--controller", &format!("https://{second}"), "--controller", &format!("https://{first}")]);
    agent.args(["--name", "north", "--join", &token, "--data"]).arg(folder.path().join("agent"));
    let mut agent = Daemon::start("agent", quiet(&mut agent, folder.path()), folder.path())?;
    for address in [&second, &first] {
        let ran = of(address).run(&["run", "--", "sh", "-c", "echo passed on"])?.expect(0)?;
        ensure!(ran.text().contains("passed on"), "{ran}");
    }
    ensure!(etcd.ctl(&["get", "/muster/v1/leader", "--print-value-only"])?.contains(&first), "the other one leads");
    leader.kill9()?;
    let ran = wait::until("the other controller to lead", || {
        let ran = of(&second).run(&["run", "--", "sh", "-c", "echo still here"])?;
        Ok(if ran.code == 0 { Look::Done(ran) } else { Look::NotYet(ran.to_string()) })
    })?;
    ensure!(ran.text().contains("still here"), "{ran}");
    // Sent away at one controller is sent away everywhere.
    of(&second).run(&["admin", "revoke-agent", "north"])?.expect(0)?;
    wait::until("the agent to be cut off", || Ok(Look::when(agent.log().contains("is revoked"), agent.log())))?;
    agent.stop()?;
    let mut standby = standby;
    standby.stop()?;
    standby.expect_no_errors()
}
