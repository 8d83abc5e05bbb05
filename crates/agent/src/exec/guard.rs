//! A small process that outlives its agent by a moment, to kill what the agent left when it was killed itself.
//!
//! It holds the read end of a pipe whose write end only the agent has. The end of that pipe is the
//! end of the agent, however it came; then every process that carries the agent's cookie is killed.
//! So a lease that is given away is not still being run here.
//!
//! An agent that is frozen (SIGSTOP, a debugger, a disk that hangs) closes no pipe. So it also says
//! until when its leases hold, each time they are renewed; if that time comes and the agent has not
//! said another word, it cannot end its attempts itself, and the guard does (A1).

use std::{
    ffi::OsString,
    io::{Read, Write},
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::time::Mono;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{Error, os};

/// What the guard says when it watches.
const READY: &str = "muster guard: ready";
/// What an agent says that has ended all attempts.
const FAREWELL: u8 = b'.';
/// Before eight bytes: the milliseconds for which leases still hold. [`FOREVER`]: nothing is held by a lease.
const HOLD: u8 = b'h';
/// See [`HOLD`].
const FOREVER: u64 = u64::MAX;
/// An agent that is not frozen ends its attempts itself when their leases end, and says so within this. Well below the
/// margin that a controller waits before it gives work away.
pub(crate) const HEAR_WITHIN: Duration = Duration::from_millis(500);
/// The guard reads at once; one that does not is stopped itself, and must not keep the agent.
const TELL_WITHIN: Duration = Duration::from_secs(1);
/// Words that wait for the guard; a full line only makes the pipe wait.
const WORDS: usize = 16;
/// After a sudden end, so many looks in a row must find nobody: what was just being started may
/// show its environment only a little later.
pub(crate) const LOOKS: u32 = 3;
/// A guard that is not ready by then will not be.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Within this the guard kills what can be killed.
pub(crate) const SWEEP_LIMIT: Duration = Duration::from_secs(10);
/// Between a guard's unexpected end and the next one.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// It doubles up to this, for what cannot be started now may be later.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

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
    let clock = Clock::system();
    let looks = if stand_by(clock, &instance) { 1 } else { LOOKS };
    match os::sweep_blocking(clock, &instance, looks, SWEEP_LIMIT) {
        0 => ExitCode::SUCCESS,
        left => {
            complain(&format!("{left} processes of agent instance {instance} could not be killed"));
            ExitCode::FAILURE
        }
    }
}

/// What the agent says.
enum Word {
    Farewell,
    /// For how long its leases hold; none: nothing is held by one.
    Hold(Option<Duration>),
}

/// Waits for the end of the agent, and ends its attempts when it is frozen past its leases. Whether it said that it
/// ends, and everything with it.
fn stand_by(clock: Clock, instance: &str) -> bool {
    let (say, words) = mpsc::sync_channel(WORDS);
    std::thread::spawn(move || listen(&mut std::io::stdin().lock(), &say));
    let (mut said, mut ends) = (false, None::<Mono>);
    loop {
        let word = match ends {
            Some(at) => words.recv_timeout(at.since(clock.mono())),
            None => words.recv().map_err(RecvTimeoutError::from),
        };
        match word {
            Ok(Word::Farewell) => said = true,
            Ok(Word::Hold(hold)) => ends = hold.map(|hold| clock.mono().after(hold + HEAR_WITHIN)),
            Err(RecvTimeoutError::Timeout) => {
                ends = None;
                complain("the agent did not end its attempts when their leases did; they are killed");
                let left = os::sweep_blocking(clock, instance, LOOKS, SWEEP_LIMIT);
                if left > 0 {
                    complain(&format!("{left} processes of agent instance {instance} could not be killed"));
                }
            }
            // The agent has ended, or what it says is unreadable: better to sweep once too often.
            Err(RecvTimeoutError::Disconnected) => return said,
        }
    }
}

/// Reads until the pipe ends or breaks.
fn listen(pipe: &mut impl Read, say: &mpsc::SyncSender<Word>) {
    let mut byte = [0; 1];
    while pipe.read_exact(&mut byte).is_ok() {
        let word = match byte[0] {
            FAREWELL => Word::Farewell,
            HOLD => {
                let mut ms = [0; 8];
                if pipe.read_exact(&mut ms).is_err() {
                    return;
                }
                let ms = u64::from_le_bytes(ms);
                Word::Hold((ms != FOREVER).then(|| Duration::from_millis(ms)))
            }
            _ => return,
        };
        if say.send(word).is_err() {
            return;
        }
    }
}

pub(crate) fn complain(text: &str) {
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

/// Whom a guard watches, and what it must know.
pub(super) struct Watched {
    /// What becomes the next guard, should this one end.
    pub(super) program: Program,
    /// The cookie of this agent.
    pub(super) instance: Arc<str>,
    pub(super) clock: Clock,
    /// Until when leases hold.
    pub(super) lease_ends: watch::Receiver<Option<Mono>>,
}

/// Keeps a guard alive until `stop`; then lets it do its last work and waits for its end.
pub(super) async fn keep(mut guard: Guard, mut watched: Watched, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            status = guard.child.wait() => {
                warn!(?status, "the guard process ended and is started again");
                let Some(next) = another(&watched, &stop).await else { return };
                guard = next;
                watched.lease_ends.mark_changed();
            }
            Ok(()) = watched.lease_ends.changed() => {
                let ends = *watched.lease_ends.borrow_and_update();
                guard.tell(&hold(ends.map(|ends| ends.since(watched.clock.mono())))).await;
            }
        }
    }
    guard.tell(&[FAREWELL]).await;
    drop(guard.pipe);
    if tokio::time::timeout(SWEEP_LIMIT, guard.child.wait()).await.is_err() {
        warn!("the guard process is still busy; it is left alone");
    }
}

/// The same by the safe that we came from, until that is dead; then by a guard.
#[cfg(unix)]
pub(super) async fn keep_by_safe(safe: crate::safe::Safe, mut watched: Watched, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return safe.farewell(),
            () = safe.gone() => break,
            Ok(()) = watched.lease_ends.changed() => {
                let ends = *watched.lease_ends.borrow_and_update();
                safe.hold(ends.map(|ends| ends.since(watched.clock.mono())));
            }
        }
    }
    if let Some(guard) = another(&watched, &stop).await {
        watched.lease_ends.mark_changed();
        keep(guard, watched, stop).await;
    }
}

/// The guard after one that ended; none: the agent stops.
async fn another(watched: &Watched, stop: &CancellationToken) -> Option<Guard> {
    let mut pause = RESTART_PAUSE;
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
        match start(&watched.program, &watched.instance).await {
            Ok(guard) => return Some(guard),
            // Once is enough for a person to look.
            Err(error) if pause == RESTART_PAUSE => {
                error!(%error, "no guard: tasks would survive a sudden death of the agent; it is tried on");
            }
            Err(error) => debug!(%error, "still no guard"),
        }
        pause = RESTART_PAUSE_MAX.min(pause * 2);
    }
}

/// The word that leases hold for so long.
fn hold(ends_in: Option<Duration>) -> [u8; 9] {
    let ms = ends_in.map_or(FOREVER, |left| u64::try_from(left.as_millis()).unwrap_or(FOREVER));
    let mut word = [HOLD; 9];
    word[1..].copy_from_slice(&ms.to_le_bytes());
    word
}

impl Guard {
    /// A guard that is dead is seen elsewhere; one that does not read is left behind its time.
    async fn tell(&mut self, word: &[u8]) {
        let _dead_or_stopped = tokio::time::timeout(TELL_WITHIN, self.pipe.write_all(word)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(mut bytes: &[u8]) -> Vec<Option<Option<u64>>> {
        let (say, words) = mpsc::sync_channel(WORDS);
        listen(&mut bytes, &say);
        drop(say);
        let plain = |word| match word {
            Word::Farewell => None,
            Word::Hold(hold) => Some(hold.map(|hold| u64::try_from(hold.as_millis()).expect("short"))),
        };
        words.iter().map(plain).collect()
    }

    #[test]
    fn words_are_heard_as_they_were_said() {
        let said = [&hold(Some(Duration::from_millis(1500)))[..], &hold(None), &[FAREWELL]].concat();
        assert_eq!(heard(&said), [Some(Some(1500)), Some(None), None]);
    }

    #[test]
    fn a_word_that_is_cut_or_unknown_ends_the_listening() {
        assert_eq!(heard(&hold(None)[..5]), []);
        assert_eq!(heard(b".x."), [None]);
    }
}
