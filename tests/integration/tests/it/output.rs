//! What tasks print: binary, endless lines, far too much of it, and live.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    probe,
    system::System,
    wait::{self, Look},
};

/// More than this above what it had before, and a daemon is not bounded.
const GROWTH_MAX: u64 = 200 << 20;

#[test]
fn binary_output_comes_back_byte_for_byte() -> Result<()> {
    let system = System::plain()?;
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let data = system.folder().join("data");
    std::fs::write(&data, &bytes)?;
    let file = format!("name = \"binary\"\n[[tasks]]\nname = \"a\"\nrun = [\"cat\", \"{}\"]\n", data.display());
    let job = system.submit("binary.toml", &file)?;
    system.ctl().finished(job, wait::LIMIT)?;
    wait::until("all bytes of the output", || {
        let ran = system.ctl().run(&["logs", &format!("{job}.a")])?.expect(0)?;
        Ok(Look::when(ran.stdout == bytes, ran.stdout.len()))
    })?;
    system.finish()
}

#[test]
fn a_line_of_ten_megabytes_comes_back_whole_or_says_what_was_cut() -> Result<()> {
    let system = System::plain()?;
    let shell = "head -c 10000000 /dev/zero | tr '\\\\0' x; echo; echo behind";
    let job =
        system.submit("long.toml", &format!("name = \"long\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n"))?;
    ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "succeeded", "the task did not succeed");
    wait::until("the line and what stands behind it", || {
        let ran = system.ctl().run(&["logs", &format!("{job}.a")])?.expect(0)?;
        let kept = ran.stdout.iter().filter(|byte| **byte == b'x').count();
        let is_told = kept == 10_000_000 || ran.stderr.contains("cut");
        Ok(Look::when(is_told && ran.stdout.ends_with(b"behind\n"), (kept, ran.stdout.len(), ran.stderr)))
    })?;
    system.finish()
}

#[test]
fn a_hundred_megabytes_of_output_leave_the_daemons_small_and_the_task_unharmed() -> Result<()> {
    let mut system = System::plain()?;
    let before = [probe::resident(system.controller()?.pid())?, probe::resident(system.agent()?.pid())?];
    let file = "name = \"much\"\n[[tasks]]\nname = \"a\"\nshell = \"yes 0123456789 | head -c 100000000\"\n";
    let job = system.submit("much.toml", file)?;
    let finished = system.ctl().finished(job, wait::LIMIT)?;
    ensure!(finished["state"] == "succeeded", "the task did not succeed: {finished}");
    let after = [probe::resident_peak(system.controller()?.pid())?, probe::resident_peak(system.agent()?.pid())?];
    for (name, (before, after)) in ["controller", "agent"].into_iter().zip(before.into_iter().zip(after)) {
        let growth = after.saturating_sub(before);
        ensure!(growth < GROWTH_MAX, "the {name} grew by {} MiB", growth >> 20);
    }
    wait::until("the output, or word of what was cut", || {
        let ran = system.ctl().run(&["logs", &format!("{job}.a")])?.expect(0)?;
        Ok(Look::when(ran.stdout.len() == 100_000_000 || ran.stderr.contains("cut"), (ran.stdout.len(), ran.stderr)))
    })?;
    system.finish()
}

#[test]
fn logs_are_followed_while_the_task_runs() -> Result<()> {
    let system = System::plain()?;
    let gate = system.folder().join("gate");
    // The task prints its second line only when the test has seen the first: a log that came late would hang here.
    let shell = format!("echo one; until test -e {0}; do sleep 0.01; done; echo two", gate.display());
    let job =
        system.submit("live.toml", &format!("name = \"live\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n"))?;
    let mut command = system.ctl().command(&["logs", "-f", &format!("{job}.a")])?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("could not start ctl")?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    let (sender, receiver) = std::sync::mpsc::sync_channel(16);
    let reader = std::thread::spawn(move || lines.try_for_each(|line| sender.send(line.unwrap_or_default())));
    let first = receiver.recv_timeout(wait::LIMIT).context("no line while the task runs")?;
    ensure!(first.ends_with("one"), "the first line is {first:?}");
    std::fs::write(&gate, "")?;
    let second = receiver.recv_timeout(wait::LIMIT).context("no second line")?;
    ensure!(second.ends_with("two"), "the second line is {second:?}");
    wait::until("`logs -f` to end with its task", || {
        Ok(child.try_wait()?.map_or(Look::not_yet("it still runs"), Look::Done))
    })?;
    drop(reader.join());
    system.finish()
}

#[test]
fn a_line_is_found_among_the_output_of_many_tasks() -> Result<()> {
    let system = System::plain()?;
    let file = "name = \"many\"\nlabels = { kind = \"count\" }\n[[tasks]]\nname = \"count\"\n\
                shell = 'seq 1 20000; [ $MUSTER_INDEX != 7 ] || echo the needle of $MUSTER_INDEX >&2'\n\
                array = \"0-19\"\n";
    let job = system.submit("many.toml", file)?;
    ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "succeeded", "a task did not succeed");
    let found = wait::until("the one line", || {
        let ran = system.ctl().run(&["logs", "--search", "^the need.e", "--label", "kind=count"])?.expect(0)?;
        let text = String::from_utf8_lossy(&ran.stdout).into_owned();
        Ok(if text.is_empty() { Look::not_yet(ran.stderr) } else { Look::Done((text, ran.stderr)) })
    })?;
    ensure!(found.0 == format!("{job}.count[7] | the needle of 7\n"), "found {found:?}");
    ensure!(found.1.contains("1 line found"), "it does not say what it looked at: {}", found.1);
    let work = format!("{job}.count[7]");
    for (arguments, expected) in [
        (vec!["logs", &work, "--grep", "needle"], "the needle of 7\n"),
        (vec!["logs", &work, "--grep", "^1999[89]$", "--tail", "1"], "19999\n"),
        (vec!["logs", &work, "--stream", "stderr", "--since", "1h"], "the needle of 7\n"),
        (vec!["logs", &work, "--until", "2001-01-01"], ""),
    ] {
        let ran = system.ctl().run(&arguments)?.expect(0)?;
        ensure!(String::from_utf8_lossy(&ran.stdout) == expected, "{arguments:?} gave {:?}", ran.stdout.len());
    }
    let wrong = system.ctl().run(&["logs", &work, "--grep", "("])?;
    ensure!(wrong.code == 2 && wrong.stderr.contains("regular expression"), "{}", wrong.stderr);
    system.finish()
}
