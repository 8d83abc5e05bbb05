//! One daemon under test: started in its own folder, its words kept in a file, ended by its own handle even on panic.

use std::{
    fs::{self, File},
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::{self, Look};

/// How long a daemon may take to end after SIGTERM: it ends its tasks first.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running daemon. Dropped, it is told to stop, and killed when it does not.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Daemon {
    /// Starts `command`; both its output streams go to `<folder>/<name>.log`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).context("could not open a daemon's log")?;
        command.stdin(Stdio::null()).stdout(file.try_clone().context("could not share a daemon's log")?).stderr(file);
        // A session of its own, as a service has it: a Ctrl-C at the terminal is for the test, which then ends the daemon in
        // order, and the kernel shares processors between sessions.
        // SAFETY: setsid may be called between fork and exec.
        #[expect(unsafe_code, reason = "the standard library cannot ask for a session")]
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        let child = command.spawn().with_context(|| format!("could not start {name} ({:?})", command.get_program()))?;
        Ok(Self { name: name.to_owned(), child, log, ended: false })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it said so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it runs no more, and how it ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().with_context(|| format!("could not look at {}", self.name))?;
        self.ended |= status.is_some();
        Ok(status)
    }

    /// Waits until its log says where it listens: `127.0.0.1:PORT`, after what was logged up to `from`.
    pub fn address(&mut self, from: usize) -> Result<String> {
        wait::until(&format!("{} to say where it listens", self.name), || {
            if let Some(status) = self.ended()? {
                bail!("{} ended at once ({status}):\n{}", self.name, self.log());
            }
            let log = self.log();
            Ok(match listening(log.get(from..).unwrap_or_default()) {
                Some(address) => Look::Done(address),
                None => Look::NotYet(log),
            })
        })
    }

    /// SIGKILL, now; returns when it is dead.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("could not kill {}", self.name))?;
        self.child.wait().with_context(|| format!("could not wait for {}", self.name))?;
        self.ended = true;
        Ok(())
    }

    /// SIGTERM, and a wait for a clean end.
    pub fn stop(&mut self) -> Result<()> {
        self.end_by(Signal::SIGTERM)
    }

    /// SIGINT, and a wait for a clean end: an agent ends what it runs.
    pub fn interrupt(&mut self) -> Result<()> {
        self.end_by(Signal::SIGINT)
    }

    fn end_by(&mut self, signal: Signal) -> Result<()> {
        let status = self.terminate(signal)?;
        ensure!(status.success(), "{} did not stop cleanly ({status}):\n{}", self.name, tail(&self.log()));
        Ok(())
    }

    /// Fails when it logged an error: nobody asked for one.
    pub fn expect_no_errors(&self) -> Result<()> {
        let log = self.log();
        let errors: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ")).collect();
        ensure!(errors.is_empty(), "{} logged errors:\n{}", self.name, errors.join("\n"));
        Ok(())
    }

    fn terminate(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(signal)?;
        let name = self.name.clone();
        wait::within(STOP_LIMIT, &format!("{name} to stop"), || {
            Ok(match self.ended()? {
                Some(status) => Look::Done(status),
                None => Look::NotYet(tail(&self.log())),
            })
        })
    }

    /// Sends a signal to the daemon, which is not reaped yet: its number cannot be somebody else's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(!self.ended, "{} has ended already", self.name);
        let pid = i32::try_from(self.child.id()).context("a process number does not fit")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("could not send {signal} to {}", self.name))
    }

    /// Stops it (SIGSTOP), as [`freeze`] does, until SIGCONT.
    pub fn freeze(&self) -> Result<()> {
        ensure!(!self.ended, "{} has ended already", self.name);
        freeze(i32::try_from(self.child.id()).context("a process number does not fit")?)
    }
}

/// Stops a process and returns when all its threads stand: of those that have something to do, some go on for a while after the
/// signal was sent.
pub fn freeze(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).with_context(|| format!("could not stop process {pid}"))?;
    wait::until(&format!("all threads of process {pid} to stand"), || {
        let state = |thread: io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            Ok(stat.rsplit(')').next().unwrap_or_default().trim_start().chars().next())
        };
        let states: io::Result<Vec<_>> = fs::read_dir(format!("/proc/{pid}/task"))?.map(state).collect();
        Ok(Look::when(states.as_ref().is_ok_and(|all| all.iter().all(|one| *one == Some('T'))), states))
    })
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Nothing of a test goes on without it.
        let stopped = self.terminate(Signal::SIGINT).is_ok_and(|status| status.signal().is_none());
        if !stopped && !self.ended {
            drop::<io::Result<_>>(self.child.kill().and_then(|()| self.child.wait()));
        }
        if thread::panicking() {
            eprintln!("--- {}:\n{}", self.name, tail(&self.log()));
        }
    }
}

/// The first local address with a port in `log`.
fn listening(log: &str) -> Option<String> {
    const HOST: &str = "127.0.0.1:";
    log.match_indices(HOST).find_map(|(at, _)| {
        let port: String = log[at + HOST.len()..].chars().take_while(char::is_ascii_digit).collect();
        // The line must be whole: a port that is still being written would be another one.
        let is_whole = log[at..].contains('\n');
        // Where it keeps its state, and not where it listens.
        let is_store = log[..at].ends_with("etcd://");
        port.parse::<u16>().ok().filter(|port| *port > 0 && is_whole && !is_store).map(|port| format!("{HOST}{port}"))
    })
}

/// The end of a log: enough to see what was last.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
