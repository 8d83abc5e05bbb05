//! Linux: starts a process in a group of its own, watches it through a pidfd, signals and reaps it.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, LazyLock},
    time::Duration,
};

use muster_core::id::Token;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{UsageWho, getrusage},
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{Pid, Uid, User, getpgid},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Hunter, Running, Spent, Status, Survivor,
    pipe::Pipe,
    proc::Stat,
    process::Process,
    start::{Confines, Program, Standard},
    unstarted::Unstarted,
};
use crate::{
    exec::ProcessIdentity,
    logs::{Scratch, Stream, with_scratch},
};

/// What runs `shell` texts.
pub(super) const SHELL: &str = "/bin/sh";
/// What a task finds when nobody said otherwise (`_PATH_STDPATH` and the local folders).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static BOOT: LazyLock<Arc<str>> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "".into(), |id| id.trim().into())
});

/// A process that was just started, before anybody waits for it.
pub(crate) struct Fresh {
    process: Process,
    pidfd: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// The first process of an attempt, watched by the runtime.
pub(crate) struct Leader {
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
}

/// A process that was just started, and nothing of ours that it reads or writes.
pub(crate) struct Begun {
    process: Process,
    pidfd: OwnedFd,
}

impl Begun {
    /// From here on, dropping it kills it. Blocks until the program runs or could not be started.
    pub(super) fn start(program: &Program, standard: &Standard<'_>, confines: Confines<'_>) -> Result<Self, Unstarted> {
        // See `child`: of what is started beside a task, too, more than one group may be left.
        let leads_session = standard.is_terminal || confines.joins.is_some();
        let (pid, pidfd) = program.start(standard, confines)?;
        Ok(Self { process: Process::child(pid, leads_session), pidfd })
    }

    /// Has the runtime watch it; must be called inside one.
    pub(super) fn watch(self) -> io::Result<Leader> {
        Ok(Leader { process: self.process, pidfd: watched(self.pidfd)? })
    }
}

/// Starts `program` with pipes for its output, and for its stdin if `feeds`. Blocks until the
/// program runs or could not be started.
pub(crate) fn spawn(program: &Program, feeds: bool, confines: Confines<'_>) -> Result<Fresh, Unstarted> {
    let (stdout, task_stdout) = std::io::pipe()?;
    let (stderr, task_stderr) = std::io::pipe()?;
    let (task_stdin, stdin) = if feeds { std::io::pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
    let standard = Standard {
        stdin: task_stdin.as_ref().map(AsFd::as_fd),
        stdout: task_stdout.as_fd(),
        stderr: task_stderr.as_fd(),
        is_terminal: false,
    };
    let Begun { process, pidfd } = Begun::start(program, &standard, confines)?;
    let (stdin, stdout, stderr) = (stdin.map(OwnedFd::from), OwnedFd::from(stdout), OwnedFd::from(stderr));
    // Our ends do not block; the task's are other open files and do, as programs expect.
    for pipe in [&stdout, &stderr].into_iter().chain(&stdin) {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
    }
    Ok(Fresh { process, pidfd, stdin, stdout, stderr })
}

impl Fresh {
    /// Whether it ends within `wait`; blocks as long.
    pub(crate) fn ended_within(&self, wait: Duration) -> bool {
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], timeout) == Ok(1)
    }

    /// Of one that ended: kills the rest of its group, hands on its output, and reaps it. `None`:
    /// something of it is still there, and it must be watched to its end.
    pub(crate) fn finish(&mut self, mut take: impl FnMut(Stream, &mut Scratch, usize)) -> Option<Status> {
        self.process.signal(Signal::SIGKILL);
        for (pipe, stream) in [(&self.stdout, Stream::Stdout), (&self.stderr, Stream::Stderr)] {
            let at_end = with_scratch(|scratch| {
                loop {
                    match nix::unistd::read(pipe, scratch.room()) {
                        Ok(0) => break true,
                        Ok(len) => take(stream, scratch, len),
                        Err(Errno::EINTR) => {}
                        // Somebody else holds it open.
                        Err(_) => break false,
                    }
                }
            });
            if !at_end {
                return None;
            }
        }
        self.process.reap().filter(|_| self.process.was_alone())
    }

    /// What it took, once it is reaped.
    pub(crate) fn spent(&self) -> Option<Spent> {
        self.process.spent()
    }

    /// Has the runtime watch it; must be called inside one.
    pub(crate) fn watch(self) -> io::Result<Running> {
        let pid = self.process.pid().as_raw();
        // One that is reaped left only members of its group: what they are known by is the cookie.
        let start = if self.process.is_reaped() { 0 } else { Stat::read(pid).map_or(0, |stat| stat.start) };
        let group = pid.unsigned_abs();
        let identity = ProcessIdentity { boot: Arc::clone(&BOOT), pid: group, start, group };
        let stdin = self.stdin.map(|stdin| Pipe::new(stdin, Interest::WRITABLE)).transpose()?;
        let output = |fd| Pipe::new(fd, Interest::READABLE);
        let (stdout, stderr) = (output(self.stdout)?, output(self.stderr)?);
        let leader = Leader { process: self.process, pidfd: watched(self.pidfd)? };
        Ok(Running { leader, identity, stdin, stdout, stderr })
    }
}

fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `AsyncFd` owns the descriptor from here on, and nobody else closes it.
    #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    Ok(pidfd)
}

/// What another process started, and hands on: its handle, what it writes to, and what it reads from, if anything feeds it.
/// It is no child of ours; who can ask how it ended says so with [`Leader::reaped`]. Must be called inside a runtime.
pub(crate) fn take_over(
    identity: ProcessIdentity,
    pidfd: OwnedFd,
    outputs: [OwnedFd; 2],
    stdin: Option<OwnedFd>,
) -> io::Result<Running> {
    let pid = i32::try_from(identity.pid).map_err(io::Error::other)?;
    let process = Process::of_another(Pid::from_raw(pid), identity.start);
    let leader = Leader { process, pidfd: watched(pidfd)? };
    let [stdout, stderr] = outputs;
    let stdin = stdin.map(|stdin| Pipe::new(stdin, Interest::WRITABLE)).transpose()?;
    let output = |fd| Pipe::new(fd, Interest::READABLE);
    let (stdout, stderr) = (output(stdout)?, output(stderr)?);
    Ok(Running { leader, identity, stdin, stdout, stderr })
}

impl Leader {
    /// Its handle, for another process.
    pub(crate) fn handle(&self) -> &OwnedFd {
        self.pidfd.get_ref()
    }

    /// Whether it is dead, at once.
    pub(crate) fn is_dead(&self) -> bool {
        poll(&mut [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    /// How it ended and what it took, when it is dead and before it is reaped; only of our own child.
    pub(crate) fn peek(&self) -> Option<(Status, Spent)> {
        self.process.peek()
    }

    /// Whoever could ask says how it ended.
    pub(crate) fn reaped(&mut self, status: Status, spent: Spent) {
        self.process.reaped(status, spent);
    }

    /// Waits until it ended; does not reap it. Cancel safe.
    pub(crate) async fn exited(&self) {
        // A pidfd becomes readable when the process is dead; an error would mean that we cannot
        // watch at all, and then the reaper finds out.
        let _ready = self.pidfd.readable().await;
    }

    /// Asks the whole group to end; stopped members are woken to hear it.
    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::SIGTERM);
        self.process.signal(Signal::SIGCONT);
    }

    /// Whether a process is in its group.
    pub(crate) fn leads(&self, pid: i32) -> bool {
        getpgid(Some(Pid::from_raw(pid))) == Ok(self.process.pid())
    }

    /// Kills the whole group, atomic against members that fork; and who is in the session that it leads, if it does.
    pub(crate) fn kill_group(&self) {
        self.process.kill();
    }

    /// Once reaped: whether nobody else is in its group, not even a member that is about to die.
    pub(crate) fn was_alone(&self) -> bool {
        self.process.was_alone()
    }

    /// Kills everything that belongs to the attempt and answers when all is dead, or with what lives after `limit`.
    pub(crate) async fn hunt(&self, hunter: &Hunter, token: Token, limit: Duration) -> Vec<Survivor> {
        hunter.hunt(token, self.process.kept_number(), limit).await
    }

    /// What it took, once it is reaped.
    pub(crate) fn spent(&self) -> Option<Spent> {
        self.process.spent()
    }

    /// How it ended; none: it has not. Its number may belong to somebody else afterwards.
    pub(crate) fn reap(&mut self) -> Option<Status> {
        self.process.reap()
    }
}

/// The kernel counts blocks of this size, whatever a disk has (`man 2 getrusage`).
const BLOCK: u64 = 512;

/// Bytes that we had at most.
pub(crate) fn own_peak() -> u64 {
    let own = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |own| own.max_rss());
    u64::try_from(own).unwrap_or(0) * 1024
}

pub(super) fn spent(usage: &libc::rusage) -> Spent {
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    let us = |time: libc::timeval| count(time.tv_sec) * 1_000_000 + count(time.tv_usec);
    let own = i64::try_from(own_peak() / 1024).unwrap_or(0);
    // It was in our memory until it had its own, and the kernel counts that: what is not more tells nothing.
    let memory_peak = if usage.ru_maxrss > own { count(usage.ru_maxrss) * 1024 } else { 0 };
    Spent {
        memory_peak,
        user_us: us(usage.ru_utime),
        system_us: us(usage.ru_stime),
        read_bytes: count(usage.ru_inblock) * BLOCK,
        written_bytes: count(usage.ru_oublock) * BLOCK,
    }
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    #[expect(unsafe_code, reason = "nix has no pidfd_open")]
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned this descriptor to us and to nobody else.
    #[expect(unsafe_code, reason = "a descriptor from a raw system call")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// SIGKILL to the process `pid` that started at `start`, and to no other.
pub(super) fn kill_exactly(pid: i32, start: u64) {
    signal_exactly(pid, start, Signal::SIGKILL);
}

/// The same with another signal.
pub(super) fn signal_exactly(pid: i32, start: u64, signal: Signal) {
    let Ok(handle) = open_pidfd(pid) else { return };
    // The handle may be of a process that got the number after `start` was read; if the number
    // still means what we saw, so does the handle.
    if Stat::read(pid).is_none_or(|stat| stat.start != start) {
        return;
    }
    send(&handle, signal);
}

/// Whether it was there to hear it, and ours to signal.
fn send(handle: &OwnedFd, signal: Signal) -> bool {
    // SAFETY: the descriptor is open; a null siginfo means the same as kill(2).
    #[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            handle.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    sent == 0
}

/// `signal` to all whom `members` names twice: who is still named when there is a handle is who the handle is of, or
/// another member with the same number. Says whether it was sent to anybody.
pub(super) fn signal_members(members: &dyn Fn() -> BTreeSet<i32>, signal: Signal) -> bool {
    let handles: Vec<_> = members().into_iter().filter_map(|pid| Some((pid, open_pidfd(pid).ok()?))).collect();
    let still = members();
    let there = handles.iter().filter(|(pid, _)| still.contains(pid));
    there.fold(false, |any, (_, handle)| send(handle, signal) || any)
}

/// Whether this is the boot that we run in.
pub(super) fn is_boot(boot: &Arc<str>) -> bool {
    *boot == *BOOT
}

/// Whether the process of `identity` lives; kills it if so. For leftovers of an earlier agent.
pub(crate) fn kill_identity(identity: &ProcessIdentity) -> bool {
    let Ok(pid) = i32::try_from(identity.pid) else { return false };
    if identity.boot != *BOOT {
        return false;
    }
    let lives = Stat::read(pid).is_some_and(|stat| stat.start == identity.start && !stat.is_dead());
    if lives {
        kill_exactly(pid, identity.start);
    }
    lives
}

/// What files were made without when this program was started: so tasks make theirs.
static UMASK: LazyLock<Mode> = LazyLock::new(|| umask(Mode::S_IRWXG | Mode::S_IRWXO));

/// The permissions without which tasks make files that do not say.
pub(super) fn task_umask() -> libc::mode_t {
    UMASK.bits()
}

/// Makes what this process holds open invisible to the tasks it will start, and the files that it makes from here on its
/// user's alone: other users' tasks pass through its folder.
pub(crate) fn prepare_self() {
    LazyLock::force(&UMASK);
    // What we open ourselves is closed on exec; this is for what we were started with.
    // SAFETY: close_range with CLOEXEC only marks descriptors; nothing is closed.
    #[expect(unsafe_code, reason = "nix has no close_range")]
    let _old_kernels_lack_it =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// The guard must hear of nothing but the end of its agent: a session of its own, no signals.
pub(crate) fn guard_signals() -> io::Result<()> {
    nix::unistd::setsid()?;
    ignore_signals()
}

/// No signals that are meant for others: a terminal's, a broken pipe's.
pub(crate) fn ignore_signals() -> io::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: SIG_IGN runs no code of ours.
        #[expect(unsafe_code, reason = "installing a signal disposition")]
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// The name of this start of the machine; empty: it has none.
pub(crate) fn boot() -> Arc<str> {
    Arc::clone(&BOOT)
}

/// What every task's environment starts with: who the agent's user is, and little else.
pub(crate) fn base_environment(path: Option<&OsStr>) -> Vec<(OsString, OsString)> {
    let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let user = User::from_uid(Uid::effective()).ok().flatten();
    let name = user.as_ref().map(|user| OsString::from(&user.name)).or_else(|| own("USER"));
    let home = user.as_ref().map(|user| user.dir.clone().into_os_string()).or_else(|| own("HOME"));
    let shell = user.as_ref().map(|user| user.shell.clone().into_os_string()).filter(|shell| !shell.is_empty());
    let mut base = vec![
        ("PATH".into(), path.map_or_else(|| DEFAULT_PATH.into(), OsStr::to_owned)),
        ("HOME".into(), home.unwrap_or_else(|| "/".into())),
        ("SHELL".into(), shell.unwrap_or_else(|| SHELL.into())),
        ("TMPDIR".into(), own("TMPDIR").unwrap_or_else(|| "/tmp".into())),
    ];
    if let Some(name) = name {
        base.extend([("USER".into(), name.clone()), ("LOGNAME".into(), name)]);
    }
    // Only what the agent has: a default of ours would make every small program load its files.
    base.extend(["LANG", "LC_ALL"].into_iter().filter_map(|name| Some((name.into(), own(name)?))));
    base
}
