//! A small process that outlives its agent by a moment, to kill what the agent left when it was killed itself.
//!
//! It holds the read end of a pipe whose write end only the agent has. The end of that pipe is the
//! end of the agent, however it came; then every process that carries the agent's cookie is killed.
//! So a lease that is given away is not still being run here.

use std::{
    ffi::OsString,
    io::{Read, Write},
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_common::clock::Clock;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{Error, os};

/// What the guard says when it watches.
const READY: &str = "muster guard: ready";
/// What an agent says that has ended all attempts.
const FAREWELL: &[u8; 1] = b".";
/// After a sudden end, so many looks in a row must find nobody: what was just being started may
/// show its environment only a little later.
const LOOKS: u32 = 3;
/// A guard that is not ready by then will not be.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Within this the guard kills what can be killed.
const SWEEP_LIMIT: Duration = Duration::from_secs(10);
/// Between a guard's unexpected end and the next one.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// A program that becomes [`main`].
#[derive(Clone, Debug)]
pub struct Program {
    /// What to start.
    pub exe: PathBuf,
    /// Its arguments; the guard's own follow.
    pub args: Vec<OsString>,
}

/// The whole life of the guard process; `args` are those after [`Program::args`].
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(instance) = args.next().and_then(|arg| arg.into_string().ok()).filter(|cookie| !cookie.is_empty()) else {
        complain("the guard is started by an agent, with the agent's instance as its argument");
        return ExitCode::from(2);
    };
    if let Err(error) = os::guard_signals() {
        complain(&format!("the guard cannot leave the agent's session: {error}"));
        return ExitCode::FAILURE;
    }
    if writeln!(std::io::stdout(), "{READY}").and_then(|()| std::io::stdout().flush()).is_err() {
        return ExitCode::FAILURE;
    }
    let looks = if farewell() { 1 } else { LOOKS };
    match os::sweep_blocking(Clock::system(), &instance, looks, SWEEP_LIMIT) {
        0 => ExitCode::SUCCESS,
        left => {
            complain(&format!("{left} processes of agent instance {instance} could not be killed"));
            ExitCode::FAILURE
        }
    }
}

/// Waits for the end of the agent. Whether it said that it ends, and everything with it.
fn farewell() -> bool {
    let mut said = false;
    let mut byte = [0; 1];
    let mut pipe = std::io::stdin().lock();
    // An error ends it like the end of the pipe: better to sweep once too often.
    while pipe.read(&mut byte).is_ok_and(|read| read > 0) {
        said = byte == *FAREWELL;
    }
    said
}

fn complain(text: &str) {
    let _nobody_to_tell = writeln!(std::io::stderr(), "muster guard: {text}");
}

/// A guard that watches.
pub(super) struct Guard {
    child: Child,
    /// Its end is the signal.
    pipe: ChildStdin,
}

/// Starts a guard and waits until it watches.
pub(super) async fn start(program: &Program, instance: &str) -> Result<Guard, Error> {
    let failed = |why: String| Error::Guard { program: program.exe.display().to_string(), why };
    #[expect(clippy::disallowed_methods, reason = "exec starts processes")]
    let mut command = Command::new(&program.exe);
    command.args(&program.args).arg(instance).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let (Some(pipe), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed("its pipes are missing".into()));
    };
    let mut lines = BufReader::new(stdout).lines();
    let ready = async {
        while let Ok(Some(line)) = lines.next_line().await {
            // What starts it may print something first.
            if line.ends_with(READY) {
                return true;
            }
        }
        false
    };
    match tokio::time::timeout(READY_LIMIT, ready).await {
        Ok(true) => Ok(Guard { child, pipe }),
        Ok(false) => Err(failed("it ended before it was ready".into())),
        Err(_) => Err(failed(format!("it was not ready within {} s", READY_LIMIT.as_secs()))),
    }
}

/// Keeps a guard alive until `stop`; then lets it do its last work and waits for its end.
pub(super) async fn keep(mut guard: Guard, program: Program, instance: Arc<str>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            status = guard.child.wait() => {
                warn!(?status, "the guard process ended and is started again");
            }
        }
        guard = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESTART_PAUSE) => {}
            }
            match start(&program, &instance).await {
                Ok(guard) => break guard,
                Err(error) => error!(%error, "no guard: tasks would survive a sudden death of the agent"),
            }
        };
    }
    let _already_dead = guard.pipe.write_all(FAREWELL).await;
    drop(guard.pipe);
    if tokio::time::timeout(SWEEP_LIMIT, guard.child.wait()).await.is_err() {
        warn!("the guard process is still busy; it is left alone");
    }
}
