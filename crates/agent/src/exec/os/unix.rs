//! Linux: starts a process in a group of its own, watches it through a pidfd, signals and reaps it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufRead, Read},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, LazyLock},
    time::Duration,
};

use muster_core::id::Token;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::{AccessFlags, Pid, Uid, User, access},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};

use super::{Hunter, Input, Output, Running, Status, Survivor, proc::Stat};
use crate::{
    exec::ProcessIdentity,
    logs::{Scratch, Stream, with_scratch},
};

/// What runs `shell` texts.
pub(crate) const SHELL: &str = "/bin/sh";
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

/// Not reaped before [`Process::reap`], so that its number and its group's stay its own.
struct Process {
    child: Child,
    pid: Pid,
    reaped: bool,
}

/// Starts `command` with pipes for its output, and for its stdin if `feeds`. Blocks until the
/// program runs or could not be started.
///
/// No `pre_exec` here: it would turn `posix_spawn` into `fork` and cost a quarter of all speed.
pub(crate) fn spawn(command: &mut Command, feeds: bool) -> io::Result<Fresh> {
    command
        .process_group(0)
        .stdin(if feeds { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    match handles(&mut child) {
        Ok((pid, pidfd, [stdin, stdout, stderr])) => {
            let process = Process { child, pid, reaped: false };
            let missing = || io::Error::other("a pipe is missing");
            let (stdout, stderr) = (stdout.ok_or_else(missing)?, stderr.ok_or_else(missing)?);
            Ok(Fresh { process, pidfd, stdin, stdout, stderr })
        }
        Err(error) => {
            let _gone = child.kill();
            let _reaped = child.wait();
            Err(error)
        }
    }
}

type Pipes = [Option<OwnedFd>; 3];

/// Our ends do not block; the task's are other open files and do, as programs expect.
fn handles(child: &mut Child) -> io::Result<(Pid, OwnedFd, Pipes)> {
    let pid = i32::try_from(child.id()).map_err(|_| io::Error::other("the process number is too large"))?;
    let pidfd = open_pidfd(pid)?;
    let pipes =
        [child.stdin.take().map(Into::into), child.stdout.take().map(Into::into), child.stderr.take().map(Into::into)];
    for pipe in pipes.iter().flatten() {
        fcntl::<&OwnedFd>(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok((Pid::from_raw(pid), pidfd, pipes))
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

    /// Has the runtime watch it; must be called inside one.
    pub(crate) fn watch(self) -> io::Result<Running> {
        let pid = self.process.pid.as_raw();
        // One that is reaped left only members of its group: what they are known by is the cookie.
        let start = if self.process.reaped { 0 } else { Stat::read(pid).map_or(0, |stat| stat.start) };
        let group = pid.unsigned_abs();
        let identity = ProcessIdentity { boot: Arc::clone(&BOOT), pid: group, start, group };
        let stdin = self
            .stdin
            .map(|stdin| Ok::<_, io::Error>(Box::new(pipe::Sender::from_owned_fd_unchecked(stdin)?) as Input));
        let output = |fd| Ok::<_, io::Error>(Box::new(pipe::Receiver::from_owned_fd_unchecked(fd)?) as Output);
        let (stdout, stderr) = (output(self.stdout)?, output(self.stderr)?);
        // SAFETY: `AsyncFd` owns the descriptor from here on, and nobody else closes it.
        #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
        let pidfd = unsafe { AsyncFd::register_with_interest(self.pidfd, Interest::READABLE) }?;
        let leader = Leader { process: self.process, pidfd };
        Ok(Running { leader, identity, stdin: stdin.transpose()?, stdout, stderr })
    }
}

impl Leader {
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

    /// Kills the whole group; atomic against members that fork.
    pub(crate) fn kill_group(&self) {
        self.process.signal(Signal::SIGKILL);
    }

    /// Once reaped: whether nobody else is in its group, not even a member that is about to die.
    pub(crate) fn was_alone(&self) -> bool {
        self.process.was_alone()
    }

    /// Kills everything that belongs to the attempt and answers when all is dead, or with what lives after `limit`.
    pub(crate) async fn hunt(&self, hunter: &Hunter, token: Token, limit: Duration) -> Vec<Survivor> {
        let leader = (!self.process.reaped).then_some(self.process.pid.as_raw());
        hunter.hunt(token, leader, limit).await
    }

    /// How it ended; none: it has not. Its number may belong to somebody else afterwards.
    pub(crate) fn reap(&mut self) -> Option<Status> {
        self.process.reap()
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        if !self.reaped {
            let _nobody_left = killpg(self.pid, signal);
        }
    }

    fn was_alone(&self) -> bool {
        self.reaped && killpg(self.pid, None) == Err(Errno::ESRCH)
    }

    /// Asked again, it says the same.
    fn reap(&mut self) -> Option<Status> {
        let status = self.child.try_wait().ok()??;
        self.reaped = true;
        match (status.code(), status.signal()) {
            (Some(code), _) => Some(Status::Exit(code)),
            (None, Some(signal)) => Some(Status::Signal(signal)),
            (None, None) => None,
        }
    }
}

impl Drop for Process {
    /// One that nobody waited for, because watching failed: it must not run on unseen.
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::SIGKILL);
            let _reaped = self.child.try_wait();
        }
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
    let Ok(handle) = open_pidfd(pid) else { return };
    // The handle may be of a process that got the number after `start` was read; if the number
    // still means what we saw, so does the handle.
    if Stat::read(pid).is_none_or(|stat| stat.start != start) {
        return;
    }
    // SAFETY: the descriptor is open; a null siginfo means the same as kill(2).
    #[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
    let _gone = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            handle.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
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

/// Makes what this process holds open invisible to the tasks it will start.
pub(crate) fn prepare_self() {
    // What we open ourselves is closed on exec; this is for what we were started with.
    // SAFETY: close_range with CLOEXEC only marks descriptors; nothing is closed.
    #[expect(unsafe_code, reason = "nix has no close_range")]
    let _old_kernels_lack_it =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// The guard must hear of nothing but the end of its agent: a session of its own, no signals.
pub(crate) fn guard_signals() -> io::Result<()> {
    nix::unistd::setsid()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: SIG_IGN runs no code of ours.
        #[expect(unsafe_code, reason = "installing a signal disposition")]
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }?;
    }
    Ok(())
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

/// A command that gives `text` to the shell.
#[expect(clippy::disallowed_methods, reason = "exec starts processes")]
pub(crate) fn shell(text: &str) -> Command {
    let mut command = Command::new(SHELL);
    command.arg("-c").arg(text);
    command
}

/// A command for `argv`, its program looked up in `path` from `cwd`; or why there is none.
#[expect(clippy::disallowed_methods, reason = "exec starts processes")]
pub(crate) fn find_program(argv: &[String], path: &OsStr, cwd: &Path) -> Result<Command, String> {
    let (name, args) = argv.split_first().ok_or("the command is empty: name a program")?;
    if name.is_empty() {
        return Err("the command's first word is empty: name a program".into());
    }
    // An absolute path, because a PATH of the task's own would otherwise force `fork`.
    let program = if name.contains('/') {
        cwd.join(name)
    } else {
        std::env::split_paths(path)
            .map(|folder| cwd.join(folder).join(name))
            .find(|file| access(file, AccessFlags::X_OK).is_ok() && file.is_file())
            .ok_or_else(|| not_found(name, path))?
    };
    let mut command = Command::new(program);
    command.arg0(name).args(args);
    Ok(command)
}

fn not_found(name: &str, path: &OsStr) -> String {
    let near = nearest(name, path).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("the program `{name}` was not found in PATH ({}){near}", path.to_string_lossy())
}

/// The program in `path` whose name is nearest, if it is near at all.
fn nearest(name: &str, path: &OsStr) -> Option<String> {
    let limit = 1 + name.len() / 4;
    std::env::split_paths(path)
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|folder| folder.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|other| (strsim::damerau_levenshtein(name, &other), other))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, other)| other)
}

/// Why `program` could not be started, in words for the person who wrote the job.
pub(crate) fn explain(program: &OsStr, cwd: &Path, error: &io::Error) -> String {
    let shown = Path::new(program).display();
    if !cwd.is_dir() {
        return format!("the working directory {} does not exist on this agent", cwd.display());
    }
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => match interpreter(Path::new(program)) {
            Some(line) => format!("{shown} asks for the interpreter `{line}` in its first line, which does not exist"),
            None => format!("the program {shown} does not exist on this agent"),
        },
        Some(Errno::EACCES) if Path::new(program).is_dir() => format!("{shown} is a folder, not a program"),
        Some(Errno::EACCES) => match std::fs::metadata(program) {
            Ok(file) => format!(
                "{shown} is not executable (mode {:o}): `chmod +x` it, or name its interpreter",
                file.permissions().mode() & 0o7777
            ),
            Err(_) => format!("the agent's user may not run {shown} or enter {}", cwd.display()),
        },
        Some(Errno::ENOTDIR) => format!("a part of the path {shown} is not a folder"),
        Some(Errno::ENOEXEC) => {
            format!("{shown} is not a program for this machine: it has no `#!` line, or is built for another processor")
        }
        Some(Errno::E2BIG) => "the arguments and the environment together are larger than this machine takes".into(),
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => {
            format!("this machine has no room for another process: {error}")
        }
        _ => format!("{shown} could not be started: {error}"),
    }
}

/// What the first line of a script asks for.
fn interpreter(program: &Path) -> Option<String> {
    let mut line = String::new();
    io::BufReader::new(File::open(program).ok()?).take(256).read_line(&mut line).ok()?;
    Some(line.strip_prefix("#!")?.trim().to_owned())
}

/// Whether trying again a little later may help.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)
    )
}
