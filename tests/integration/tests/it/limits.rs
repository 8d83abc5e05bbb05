//! Limits and accounts through real daemons: what a kernel says of a task reaches the person who asked for it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    binaries,
    skip::skip,
    system::System,
    wait::{self, Look},
};
use serde_json::Value;

const HOG: &str = r#"
name = "hog"

[[tasks]]
name = "neighbour"
shell = 'while [ ! -e "$GATE" ]; do sleep 0.1; done'
env = { GATE = "@GATE@" }
memory = "64MiB"

[[tasks]]
name = "hog"
shell = 'head -c 400000000 /dev/zero | tail >/dev/null'
memory = "64MiB"
"#;

const HUNGRY: &str = r#"
name = "hungry"

[[tasks]]
name = "grows"
shell = 'head -c 100000000 /dev/zero | tail >/dev/null'
memory = "16MiB"
oom_retries = 3
"#;

const GREEDY: &str = r#"
name = "greedy"

[[tasks]]
name = "fills"
scratch = "private"
scratch_size = "1MiB"
grace = "1s"
shell = 'dd if=/dev/zero of=file bs=1048576 count=8 2>/dev/null; exec sleep 1000'

[[tasks]]
name = "talks"
log_rate = "1kB"
mask = ["TOKEN"]
env = { TOKEN = "hunter2222" }
shell = 'echo $TOKEN; head -c 100000 /dev/zero | tr "\\0" x; echo; echo the end: $TOKEN'

[[tasks]]
name = "slow"
cwd = "@FOLDER@"
io_write = "1MB"
io_read_ops = 1000
shell = 'echo > file'
"#;

/// The cgroups that the agent of `system` noted as its own; none: it may make none here.
pub(crate) fn cgroups(system: &System) -> Vec<std::path::PathBuf> {
    let text = std::fs::read_to_string(system.folder().join("agent/run/cgroups")).unwrap_or_default();
    text.lines().map(Into::into).collect()
}

fn task<'a>(job: &'a Value, name: &str) -> Result<&'a Value> {
    let tasks = job["tasks"].as_array().context("no tasks")?;
    tasks.iter().find(|task| task["name"] == name).with_context(|| format!("no task {name} in {job}"))
}

#[test]
fn a_hog_ends_as_oom_its_neighbour_lives_and_both_are_counted() -> Result<()> {
    let mut system = System::plain()?;
    let dirs = cgroups(&system);
    if dirs.is_empty() {
        return skip("a_hog_ends_as_oom_its_neighbour_lives_and_both_are_counted", "no cgroups can be made here");
    }
    let gate = system.folder().join("gate");
    let job = system.submit("hog.toml", &HOG.replace("@GATE@", &gate.display().to_string()))?;
    let ctl = system.ctl();
    let shown = || ctl.json(&["show", &job.to_string(), "--tasks"]);
    let hog = wait::until("the hog's end", || {
        let shown = shown()?;
        let (hog, neighbour) = (task(&shown, "hog")?, task(&shown, "neighbour")?);
        ensure!(neighbour["state"] == "running" || hog["state"] != "failed", "the neighbour died: {neighbour}");
        Ok(if hog["state"] == "failed" { Look::Done(hog.clone()) } else { Look::NotYet(hog.to_string()) })
    })?;
    let attempt = &hog["attempts"][0];
    ensure!(attempt["end"]["kind"] == "oom", "{attempt}");
    let reason = attempt["end"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("its limit of 64 MiB"), "{reason}");
    std::fs::write(&gate, "")?;
    ctl.finished(job, wait::LIMIT)?;
    let shown = shown()?;
    let usage = &task(&shown, "neighbour")?["attempts"][0]["usage"];
    let peak = usage["memory_peak_bytes"].as_u64().context("no peak")?;
    ensure!((100_000..64 << 20).contains(&peak), "{usage}");
    ensure!(usage["unenforced"] == serde_json::json!([]), "{usage}");

    let advice = ctl.json(&["recommend", &job.to_string()])?;
    let group = advice["groups"].as_array().and_then(|groups| groups.iter().find(|group| group["task"] == "hog"));
    let better = group.and_then(|group| group["recommended_memory_bytes"].as_u64()).context("no advice")?;
    ensure!(better == 96 << 20, "{advice}");

    system.agent()?.stop()?;
    ensure!(dirs.iter().all(|dir| !dir.exists()), "cgroups are left: {dirs:?}");
    Ok(())
}

#[test]
fn a_task_that_needs_more_memory_gets_more_until_it_is_enough() -> Result<()> {
    let system = System::plain()?;
    if cgroups(&system).is_empty() {
        return skip("a_task_that_needs_more_memory_gets_more_until_it_is_enough", "no cgroups can be made here");
    }
    let job = system.submit("hungry.toml", HUNGRY)?;
    let ctl = system.ctl();
    ctl.finished(job, wait::LIMIT)?;
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    let task = task(&shown, "grows")?;
    ensure!(task["state"] == "succeeded" && task["ooms"] == 3 && task["retries"] == 0, "{task}");
    let ends: Vec<_> = task["attempts"].as_array().context("no attempts")?.iter().map(|a| &a["end"]["kind"]).collect();
    ensure!(ends == ["oom", "oom", "oom", "succeeded"], "{task}");
    let reasons: Vec<_> =
        task["attempts"].as_array().into_iter().flatten().map(|a| a["end"]["reason"].to_string()).collect();
    for (reason, limit) in reasons.iter().zip(["16 MiB", "32 MiB", "64 MiB"]) {
        ensure!(reason.contains(limit), "{reason}");
    }
    Ok(())
}

#[test]
fn scratch_output_secrets_and_disks_are_limited_as_a_job_says_and_people_are_told() -> Result<()> {
    let system = System::plain()?;
    let folder = system.folder().display().to_string();
    let job = system.submit("greedy.toml", &GREEDY.replace("@FOLDER@", &folder))?;
    let (ctl, number) = (system.ctl(), job.to_string());
    ctl.finished(job, wait::LIMIT)?;
    let shown = ctl.json(&["show", &number, "--tasks"])?;
    let end = &task(&shown, "fills")?["attempts"][0]["end"];
    ensure!(end["kind"] == "scratch_full", "{end}");
    let reason = end["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("more than its scratch_size of 1 MiB: let it remove"), "{reason}");
    for name in ["talks", "slow"] {
        ensure!(task(&shown, name)?["state"] == "succeeded", "{shown}");
    }
    let unheld = &task(&shown, "slow")?["attempts"][0]["usage"]["unenforced"];
    let is_told = *unheld == serde_json::json!([]) || *unheld == serde_json::json!(["io"]);
    ensure!(is_told, "{unheld}");
    let groups = shown["groups"].as_array().context("no groups")?;
    let limits: Vec<_> = groups.iter().map(|group| &group["limits"]).collect();
    ensure!(limits[0]["scratch_bytes"] == 1 << 20 && limits[1]["log_rate_bytes"] == 1000, "{limits:?}");
    ensure!(limits[1]["mask"][0] == "TOKEN" && limits[2]["io_write_bytes"] == 1_000_000, "{limits:?}");

    let ran = wait::until("its whole output", || {
        let ran = ctl.run(&["logs", &format!("{number}.talks")])?;
        Ok(if ran.text().ends_with("the end: ***\n") { Look::Done(ran) } else { Look::NotYet(ran.to_string()) })
    })?;
    ensure!(ran.text().starts_with("***\nxxx") && !ran.text().contains("hunter"), "{ran}");
    // At its rate; how long the shell takes is the machine's affair.
    ensure!(ran.stdout.len() < 30_000, "{} bytes", ran.stdout.len());
    ensure!(ran.to_string().contains("its log_rate of 1000 bytes"), "{ran}");
    Ok(())
}

/// An agent in mounts of its own, where no cgroups are. It has a minute to end.
const BARE: &str = r#"mount --make-rprivate / && mount -t tmpfs none /sys/fs/cgroup && exec timeout 60 "$@""#;

#[test]
fn an_agent_that_must_hold_limits_and_cannot_ends_and_says_why() -> Result<()> {
    let name = "limits::an_agent_that_must_hold_limits_and_cannot_ends_and_says_why";
    let alone = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", BARE, "sh"]);
        command
    };
    if !alone().arg("true").output().is_ok_and(|ran| ran.status.success()) {
        return skip(name, "no mounts can be made here");
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let mut agent = alone();
    agent.arg(binaries::path("muster-agent")?).arg("--data").arg(folder.path().join("agent"));
    let ran = agent.args(["--controller", "http://127.0.0.1:9", "--limits", "required"]).output()?;
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    ensure!(ran.status.code() == Some(1), "{:?}: {said}", ran.status);
    let why = said.lines().last().unwrap_or_default();
    ensure!(why.starts_with("muster-agent: limits must be enforced here") && why.contains("memory is not"), "{said}");
    Ok(())
}

#[test]
fn no_number_of_tasks_keeps_those_who_renew_leases_from_the_processors() -> Result<()> {
    if !std::path::Path::new("/proc/self/autogroup").exists() {
        return skip("precedence", "this kernel does not share processors between sessions");
    }
    let mut system = System::plain()?;
    let agent = system.agent()?.pid();
    let share = std::fs::read_to_string(format!("/proc/{agent}/autogroup"))?;
    ensure!(share.trim().ends_with("nice -10"), "the agent has {share}");
    let controller = std::fs::read_to_string(format!("/proc/{}/autogroup", system.controller()?.pid()))?;
    ensure!(controller.trim().ends_with("nice -10"), "the controller has {controller}");
    let ctl = system.ctl();
    let said = ctl.run(&["run", "--", "cat", "/proc/self/autogroup"])?.expect(0)?.text();
    ensure!(said.trim().ends_with("nice 0"), "a task has {said}");
    Ok(())
}
