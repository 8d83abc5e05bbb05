//! Who follows work finds the controller again: it is killed and started anew under each kind of follower.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::{self, Ctl},
    proxy::Proxy,
    system::System,
    wait::{self, Look},
};

/// A task that writes a line, waits for a gate, and writes another.
fn gated(system: &System) -> (String, std::path::PathBuf) {
    let gate = system.folder().join("gate");
    let shell = format!("echo one; until test -e {}; do sleep 0.01; done; echo two", gate.display());
    (format!("name = \"v1.gated\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n"), gate)
}

fn follow(ctl: &Ctl, arguments: &[&str]) -> Result<Child> {
    let mut command = ctl.command(arguments)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("could not start ctl")
}

/// Bytes: a greeting has some 55, and the shortest answer with it 139.
const ANSWERED: u64 = 100;

/// The same on a line of its own, once its first question is answered: from then on it bears that the controller goes.
fn waiting(system: &System, arguments: &[&str]) -> Result<(Child, Proxy)> {
    let line = Proxy::start(system.address().parse()?)?;
    let child = follow(&Ctl::of(&line.address.to_string()), arguments)?;
    wait::until(&format!("ctl {arguments:?} to wait"), || Ok(Look::when(line.heard() >= ANSWERED, line.heard())))?;
    Ok((child, line))
}

/// Until the only job runs.
fn running(system: &System) -> Result<()> {
    wait::until("the job to run", || {
        let jobs = system.ctl().json(&["list"])?;
        Ok(Look::when(jobs["jobs"][0]["state"] == "running", jobs))
    })
}

#[test]
fn a_killed_and_restarted_controller_disturbs_nobody_who_waits_or_follows() -> Result<()> {
    let mut system = System::plain()?;
    let (text, gate) = gated(&system);
    let file = system.file("gated.toml", &text)?.to_string_lossy().into_owned();
    // The job's name has a dot, and so has the name of its task.
    let run = follow(&system.ctl(), &["run", "--logs", &file])?;
    running(&system)?;
    let other = system.file("other.toml", &text.replace("v1.", "v2."))?.to_string_lossy().into_owned();
    let waits = [&["wait", "v1.gated"][..], &["wait", "v1.gated.a"], &["submit", "--wait", &other]];
    let waits = waits.iter().map(|arguments| waiting(&system, arguments)).collect::<Result<Vec<_>>>()?;
    let mut logs = follow(&system.ctl(), &["logs", "-f", "1"])?;
    let mut lines = BufReader::new(logs.stdout.take().context("a pipe")?).lines();
    ensure!(lines.next().context("a line")?? == "one");
    wait::until("the second job", || {
        let jobs = system.ctl().json(&["list"])?;
        Ok(Look::when(jobs["jobs"].as_array().is_some_and(|jobs| jobs.len() == 2), jobs))
    })?;

    for _ in 0..2 {
        system.controller()?.kill9()?;
        system.start_controller()?;
        system.agent_connected()?;
    }
    std::fs::write(&gate, "")?;
    ensure!(lines.next().context("a line")?? == "two", "the log goes on where it was");
    ensure!(lines.next().is_none(), "nothing is shown twice");
    ctl::finish(logs, b"", wait::LIMIT)?.expect(0)?;
    for (child, _line) in waits {
        ctl::finish(child, b"", wait::LIMIT)?.expect(0)?;
    }
    let ran = ctl::finish(run, b"", wait::LIMIT)?.expect(0)?;
    let shown = ran.text();
    ensure!(shown.contains("a | one") && shown.contains("a | two"), "{ran}");
    system.finish()
}
