//! One named piece of work: announce it, run it, say how long it took and how it ended.

use std::{
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// How a step ended.
pub(crate) struct Ended {
    /// Whether the program exited with 0.
    pub(crate) ok: bool,
    /// Its exit code, if it has one.
    pub(crate) code: Option<i32>,
    took: Duration,
}

/// Runs a program as one step and turns its end into ours.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<ExitCode> {
    let ended = quietly(name, command)?;
    Ok(if ended.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a program as one step; its output goes where ours goes.
pub(crate) fn quietly(name: &str, command: &mut Command) -> Result<Ended> {
    watched(name, command.stdout(Stdio::inherit()), |_| ())
}

/// Runs a program as one step. Each line of its standard output is shown; if it is piped, `see` gets it too.
pub(crate) fn watched(name: &str, command: &mut Command, mut see: impl FnMut(&str)) -> Result<Ended> {
    eprintln!("==> {name}");
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{name}: could not start {:?}", command.get_program()))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("{name}: could not read its output"))?;
            let line = String::from_utf8_lossy(&line);
            show(&line);
            see(&line);
        }
    }
    let status = child.wait().with_context(|| format!("{name}: could not wait for its end"))?;
    let ended = Ended { ok: status.success(), code: status.code(), took: began.elapsed() };
    let word = if ended.ok { "ok".to_owned() } else { format!("FAILED ({status})") };
    eprintln!("    {name}: {word}, {:.1} s", ended.took.as_secs_f64());
    Ok(ended)
}

/// Prints one line for the person who called us.
#[expect(clippy::print_stdout, reason = "what a developer asked for goes to standard output")]
pub(crate) fn show(line: &str) {
    println!("{line}");
}
