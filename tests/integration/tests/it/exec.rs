//! `ctl exec`: a command beside a task, from a terminal to its machine and back.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl,
    system::System,
    wait::{self, Look},
};

use crate::yard::processes;

const JOB: &str = r#"
name = "held"

[[tasks]]
name = "first"
shell = 'until test -e "$GATE"; do sleep 0.05; done'
env = { GATE = "@GATE@", COLOUR = "red" }

[[tasks]]
name = "many"
array = "0-1"
shell = 'until test -e "$GATE"; do sleep 0.05; done'
env = { GATE = "@GATE@" }

[[tasks]]
name = "later"
after = ["first"]
run = ["true"]
"#;

/// A job of which each task runs until the gate is there.
pub(crate) fn held(system: &System) -> Result<std::path::PathBuf> {
    let gate = system.folder().join("gate");
    let job = system.submit("held.toml", &JOB.replace("@GATE@", &gate.display().to_string()))?;
    wait::until("the first task to run", || {
        let ran = system.ctl().run(&["exec", &format!("{job}.first"), "--", "true"])?;
        Ok(Look::when(ran.code == 0, ran.to_string()))
    })?;
    Ok(gate)
}

#[test]
fn a_command_reads_writes_and_ends_as_if_it_were_here() -> Result<()> {
    let system = System::plain()?;
    let gate = held(&system)?;
    let ctl = system.ctl();
    let script = "cat; echo $COLOUR $MUSTER_TASK_NAME; echo bad >&2; exit 3";
    let ran = ctl.run_with(&["exec", "-i", "held.first", "--", "sh", "-c", script], b"given\n")?.expect(3)?;
    ensure!(ran.text() == "given\nred first\n" && ran.stderr == "bad\n", "{ran}");
    // Megabytes in both directions, as they are.
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let ran = ctl.run_with(&["exec", "--stdin", "1.0", "--", "cat"], &large)?.expect(0)?;
    ensure!(ran.stdout == large, "{} bytes came back", ran.stdout.len());
    // Without --stdin it reads nothing, even where there is something.
    let ran = ctl.run_with(&["exec", "1.0", "--", "cat"], b"unread")?.expect(0)?;
    ensure!(ran.stdout.is_empty(), "{ran}");
    ctl.run(&["exec", "1.0", "--", "sh", "-c", "kill -15 $$"])?.expect(128 + 15)?;
    let ran = ctl.run(&["exec", "1.0", "--", "no-such-program"])?.expect(126)?;
    ensure!(ran.stderr.contains("`no-such-program` was not found in PATH"), "{ran}");
    std::fs::write(gate, "")?;
    ctl.finished(1, wait::LIMIT)?;
    system.finish()
}

#[test]
fn what_cannot_be_is_told_and_what_was_asked_for_is_recorded() -> Result<()> {
    let mut system = System::plain()?;
    let gate = held(&system)?;
    let ctl = system.ctl();
    let refused = |task: &str, code: i32, words: &str| -> Result<()> {
        let ran = ctl.run(&["exec", task, "--", "true"])?.expect(code)?;
        ensure!(ran.stderr.contains(words), "{task}: {ran}");
        Ok(())
    };
    refused("held", 5, "stands for 4 tasks, and a command runs in one; name it: 1.0")?;
    refused("held.many", 5, "stands for 2 tasks")?;
    refused("held.later", 5, "1.3 does not run: it is waiting")?;
    refused("held.none", 3, "none")?;
    refused("7.0", 3, "job 7 does not exist")?;
    ctl.run(&["exec", "held.first", "--", "echo", "a word"])?.expect(0)?;
    let audit = ctl.json(&["audit"])?;
    let record =
        audit["records"].as_array().context("no records")?.iter().find(|record| {
            record["action"] == "exec" && record["object"] == "1.0" && record["detail"] == "echo a word"
        });
    ensure!(record.is_some(), "{audit}");

    // One that is under way ends with its caller; the task goes on.
    let pid = system.folder().join("pid");
    let text = format!("echo $$ > {}; sleep 1000", pid.display());
    let mut command = ctl.command(&["exec", "held.first", "--", "sh", "-c", &text])?;
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let number = wait::until("the command to run", || {
        let text = std::fs::read_to_string(&pid).unwrap_or_default();
        Ok(if text.ends_with('\n') { Look::Done(text.trim().to_owned()) } else { Look::NotYet(text) })
    })?;
    child.kill()?;
    child.wait()?;
    let proc = std::path::PathBuf::from(format!("/proc/{number}"));
    wait::until("the command to end", || Ok(Look::when(!proc.exists(), "it lives")))?;
    ensure!(ctl.json(&["show", "1.0"])?["state"] == "running", "the task went with it");

    // Callers that read nothing keep nobody else waiting: what goes to the controller beside them gets there.
    let unread = |_| {
        let mut command = ctl.command(&["exec", "held.first", "--", "head", "-c", "77117711000", "/dev/zero"])?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("ctl")
    };
    let mut callers = (0..6).map(unread).collect::<Result<Vec<_>>>()?;
    let mut last = (Vec::new(), 0);
    wait::until("them to wait for their readers", || {
        let written = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let now: Vec<_> = processes("77117711000").into_iter().map(written).collect();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        // Those of ctl have the words, too.
        Ok(Look::when(last.0.len() == 12 && last.1 == 50, &last))
    })?;
    let shell = r#"{ printf '"'; head -c 1000000 /dev/zero | tr '\0' a; printf '"'; } >$MUSTER_RESULT; seq 300000"#;
    let text = format!("name = 'large'\n[tasks.a]\nshell = '''{shell}'''\n");
    let job = system.submit("large.toml", &text)?;
    ensure!(ctl.finished(job, wait::LIMIT)?["state"] == "succeeded", "a result does not get past them");
    wait::until("the output to get past them", || {
        let said = ctl.run(&["logs", &format!("{job}.a"), "--tail", "1"])?.text();
        Ok(Look::when(said.trim() == "300000", said))
    })?;
    for caller in &mut callers {
        caller.kill()?;
        caller.wait()?;
    }

    // Another is there when its agent dies: the caller hears of it.
    let runs = system.folder().join("runs");
    let text = format!("echo > {}; exec sleep 1000", runs.display());
    let mut command = ctl.command(&["exec", "held.first", "--", "sh", "-c", &text])?;
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    wait::until("the command to run", || Ok(Look::when(runs.exists(), "no word of it")))?;
    system.agent()?.kill9()?;
    let ran = ctl::finish(child, b"", wait::LIMIT)?;
    ensure!(ran.code != 0 && !ran.stderr.is_empty(), "{ran}");
    refused("held.first", 5, "held.first").or_else(|_| refused("held.first", 4, "is not connected"))?;
    drop(gate);
    Ok(())
}
