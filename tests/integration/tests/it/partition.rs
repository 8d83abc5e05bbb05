//! An agent that is cut off from its controller, with real processes and a line that breaks.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    binaries,
    ctl::Ctl,
    daemon::Daemon,
    proxy::{Mode, Proxy},
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;

/// Writes its process number, then lasts until `gate` is there.
fn lasting(name: &str, pid: &Path, gate: &Path, more: &str) -> String {
    let shell = format!("echo $$ > {}; until test -e {}; do sleep 0.01; done", pid.display(), gate.display());
    format!("name = \"{name}\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n{more}\n")
}

fn task(ctl: &Ctl, job: u64) -> Result<Value> {
    let ran = ctl.run(&["show", &job.to_string(), "--tasks", "-o", "json"])?;
    let shown: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
    Ok(shown["tasks"][0].clone())
}

fn reaches(ctl: &Ctl, job: u64, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(&format!("job {job}: {what}"), || {
        let task = task(ctl, job)?;
        Ok(if is(&task) { Look::Done(task) } else { Look::not_yet(task) })
    })
}

#[test]
fn a_task_that_may_go_on_alone_outlives_a_partition_and_its_report_counts() -> Result<()> {
    let options = Options { lease_ttl: Duration::from_secs(6), ..Options::default() };
    System::unless_late(&options, |system| {
        system.agent()?.stop()?;
        let proxy = Proxy::start(system.address().parse()?)?;
        let _agent = far(system, &proxy)?;

        let at = |name: &str| system.folder().join(name);
        let gate = at("gate");
        let keeps = "on_lost = \"fail\"\non_disconnect = \"continue\"\nmax_disconnect = \"10m\"";
        let ends = system.submit("ends.toml", &lasting("ends", &at("pid1"), &gate, "on_lost = \"fail\""))?;
        let stays = system.submit("stays.toml", &lasting("stays", &at("pid2"), &gate, keeps))?;
        let ctl = system.ctl();
        for job in [ends, stays] {
            reaches(&ctl, job, "it runs", |task| task["attempts"][0]["started_at"].is_string())?;
        }
        wait::until("both to have begun", || Ok(Look::when(at("pid1").exists() && at("pid2").exists(), "no")))?;

        proxy.set(Mode::Hole);
        reaches(&ctl, ends, "it is lost with its lease", |task| task["state"] == "failed")?;
        ensure!(task(&ctl, stays)?["state"] == "running", "{}", task(&ctl, stays)?);
        let explained = ctl.run(&["explain", &stays.to_string()])?;
        let text = String::from_utf8_lossy(&explained.stdout).into_owned();
        ensure!(text.contains("has been away for") && text.contains("is kept for"), "{explained}");
        let alive = |name: &str| -> Result<bool> {
            let pid = fs::read_to_string(at(name))?;
            Ok(Path::new(&format!("/proc/{}/stat", pid.trim())).exists_alive())
        };
        // Away is not lost, and both places where a person looks say so.
        let agents = ctl.json(&["agents"])?;
        let far = agents["agents"].as_array().and_then(|all| all.iter().find(|agent| agent["name"] == "far"));
        let far = far.with_context(|| format!("{agents}"))?;
        ensure!(far["state"] == "away" && far["kept_until"].is_string(), "{agents}");
        let shown = ctl.run(&["show", &stays.to_string()])?.expect(0)?;
        ensure!(shown.text().contains("agent far is away; what may go on there is kept"), "{shown}");
        wait::until("the one without leave to be ended", || Ok(Look::when(!alive("pid1")?, "it lives")))?;
        ensure!(alive("pid2")?, "the one that may go on was ended");

        // It ends while nobody can hear of it.
        fs::write(&gate, "")?;
        wait::until("it to end by itself", || Ok(Look::when(!alive("pid2")?, "it lives")))?;
        ensure!(task(&ctl, stays)?["state"] == "running", "{}", task(&ctl, stays)?);
        proxy.set(Mode::Reset);
        proxy.set(Mode::Pass);
        let ended = reaches(&ctl, stays, "its report counts", |task| task["state"] == "succeeded")?;
        ensure!(ended["attempts"].as_array().map(Vec::len) == Some(1), "{ended}");
        Ok(())
    })
}

#[test]
fn what_an_agent_says_too_late_is_kept_with_the_attempt_and_shown() -> Result<()> {
    let mut system = System::start(Options { lease_ttl: Duration::from_secs(6), ..Options::default() })?;
    system.agent()?.stop()?;
    let ctl = system.ctl();
    let stopped = ctl.json(&["agents"])?;
    ensure!(stopped["agents"][0]["state"] == "stopped", "one that said goodbye is not lost: {stopped}");
    let proxy = Proxy::start(system.address().parse()?)?;
    let _agent = far(&system, &proxy)?;
    let gate = system.folder().join("gate");
    let shell = format!("until test -e {}; do sleep 0.01; done; exit 7", gate.display());
    let file = format!("name = \"late\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\non_lost = \"fail\"\n");
    let job = system.submit("late.toml", &file)?;
    reaches(&ctl, job, "it runs", |task| task["attempts"][0]["started_at"].is_string())?;
    // It ends well within its lease, and nobody hears of that before it is given up.
    proxy.set(Mode::Hole);
    fs::write(&gate, "")?;
    let lost = reaches(&ctl, job, "it is lost", |task| task["state"] == "failed")?;
    ensure!(lost["attempts"][0]["end"]["reason"] == "its agent fell silent", "{lost}");
    proxy.set(Mode::Reset);
    proxy.set(Mode::Pass);
    let said = |task: &Value| task["attempts"][0]["end"]["reason"].as_str().is_some_and(|why| why.contains("later"));
    let late = reaches(&ctl, job, "what its agent says later is kept", said)?;
    let end = &late["attempts"][0]["end"];
    ensure!(end["reason"] == "its agent fell silent; reported later: exit code 7", "{late}");
    // It is evidence, and changes nothing.
    ensure!(end["kind"] == "lost" && late["state"] == "failed", "{late}");
    ensure!(late["attempts"].as_array().map(Vec::len) == Some(1), "{late}");
    for arguments in [["show", &format!("{job}.a")], ["show", &job.to_string()], ["explain", &job.to_string()]] {
        let told = ctl.run(&arguments)?.expect(0)?;
        ensure!(told.text().contains("reported later: exit code 7"), "ctl {arguments:?}: {told}");
    }
    Ok(())
}

/// An agent behind a line that breaks.
fn far(system: &System, proxy: &Proxy) -> Result<Daemon> {
    let mut command = Command::new(binaries::path("muster-agent")?);
    command.args(["--controller", &format!("http://{}", proxy.address), "--name", "far", "--cpus", "4", "--data"]);
    command.arg(system.folder().join("far")).env("NO_COLOR", "1");
    let agent = Daemon::start("far", &mut command, system.folder())?;
    system.agent_connected()?;
    Ok(agent)
}

trait Alive {
    /// Whether the process lives; one that is dead and not yet collected does not.
    fn exists_alive(&self) -> bool;
}

impl Alive for Path {
    fn exists_alive(&self) -> bool {
        let stat = fs::read_to_string(self).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }
}
