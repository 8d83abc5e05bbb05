//! Windows: a Job Object for each attempt holds its whole tree, and ends it when the agent's handle is closed.
//!
//! So there is no guard here: the kernel closes the handles of an agent that dies, however it dies.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::windows::{
        io::{AsRawHandle, FromRawHandle, OwnedHandle},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::id::Token;
use tokio::process::Child;
use windows_sys::Win32::{
    Foundation::{FILETIME, HANDLE, INVALID_HANDLE_VALUE},
    System::{
        Console::{CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent},
        Diagnostics::ToolHelp::{
            CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
        },
        JobObjects::{
            AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
            JOBOBJECT_BASIC_ACCOUNTING_INFORMATION, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
            JobObjectBasicAccountingInformation, JobObjectExtendedLimitInformation, QueryInformationJobObject,
            SetInformationJobObject, TerminateJobObject,
        },
        Threading::{
            CREATE_NEW_PROCESS_GROUP, CREATE_SUSPENDED, GetProcessTimes, OpenThread, ResumeThread,
            THREAD_SUSPEND_RESUME,
        },
    },
};

use super::{Input, IsLive, Output, Running, Spent, Status, Survivor, nobody::Who};
use crate::{
    cgroup::{Place, Slot},
    exec::ProcessIdentity,
    logs::{Scratch, Stream},
};

/// Exit code of what we kill; the end is named by the reason, not by this.
const KILLED: u32 = 1;
/// Between two looks at a job that is being ended.
const PAUSE: Duration = Duration::from_millis(10);

/// Variables of the agent that programs need on this system, and that tell of the machine only.
const KEPT: [&str; 24] = [
    "ALLUSERSPROFILE",
    "APPDATA",
    "COMMONPROGRAMFILES",
    "COMPUTERNAME",
    "COMSPEC",
    "HOMEDRIVE",
    "HOMEPATH",
    "LOCALAPPDATA",
    "NUMBER_OF_PROCESSORS",
    "OS",
    "PATHEXT",
    "PROCESSOR_ARCHITECTURE",
    "PROGRAMDATA",
    "PROGRAMFILES",
    "PROGRAMFILES(X86)",
    "PUBLIC",
    "SYSTEMDRIVE",
    "SYSTEMROOT",
    "TEMP",
    "TMP",
    "USERDOMAIN",
    "USERNAME",
    "USERPROFILE",
    "WINDIR",
];

/// The first process of an attempt, and the job that holds all of them.
pub(crate) struct Leader {
    child: tokio::sync::Mutex<Child>,
    pid: u32,
    job: Job,
}

struct Job(OwnedHandle);

/// A program, its arguments, its environment and its folder.
pub(crate) struct Program(std::sync::Mutex<Command>, OsString);

impl Program {
    /// `file` is where it is; nobody finds another name as its own here.
    #[expect(clippy::disallowed_methods, reason = "exec starts processes")]
    pub(crate) fn new(file: &Path, _name: &OsStr) -> Self {
        Self::of(Command::new(file))
    }

    /// One more argument.
    pub(crate) fn argument(&mut self, argument: &OsStr) {
        self.change(|command| command.arg(argument));
    }

    /// All variables, as `NAME=value`.
    pub(crate) fn variables(&self) -> Vec<OsString> {
        let command = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let pair = |(name, value): (&OsStr, Option<&OsStr>)| {
            let mut text = name.to_owned();
            text.push("=");
            text.push(value?);
            Some(text)
        };
        command.get_envs().filter_map(pair).collect()
    }

    /// A variable. The environment has nothing but these.
    pub(crate) fn variable(&mut self, name: &OsStr, value: &OsStr) {
        self.change(|command| command.env(name, value));
    }

    /// A variable that is a number.
    pub(crate) fn number(&mut self, name: &str, value: impl std::fmt::Display) {
        self.change(|command| command.env(name, value.to_string()));
    }

    /// Where it starts.
    pub(crate) fn folder(&mut self, folder: &Path) {
        self.change(|command| command.current_dir(folder));
    }

    fn of(mut command: Command) -> Self {
        command.env_clear();
        let name = command.get_program().to_owned();
        Self(std::sync::Mutex::new(command), name)
    }

    fn change(&mut self, change: impl FnOnce(&mut Command) -> &mut Command) {
        change(self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

/// What holds a process; nothing does here but its job.
#[derive(Clone, Copy, Default)]
#[expect(dead_code, reason = "there is nothing here yet that a process could be held to")]
pub(crate) struct Confines<'a> {
    pub(crate) place: Option<&'a Place>,
    pub(crate) data_limit: Option<u64>,
    pub(crate) who: Option<&'a Who>,
    pub(crate) joins: Option<&'a [i32]>,
}

/// There are no control groups here.
pub(crate) fn terminate_strays(slot: &Slot, _leader: &Leader) {
    match *slot {}
}

/// There are no control groups here.
pub(crate) fn strike_members(slot: &Slot) {
    match *slot {}
}

/// There are no control groups here.
pub(crate) async fn end_members(slot: &Slot, _clock: Clock, _limit: Duration) -> Vec<Survivor> {
    match *slot {}
}

/// A process that was just started.
pub(crate) struct Fresh(Running);

impl Fresh {
    /// Nobody waits on a starter's thread on this system.
    pub(crate) fn ended_within(&self, _wait: Duration) -> bool {
        false
    }

    /// See [`Fresh::ended_within`].
    pub(crate) fn finish(&mut self, _take: impl FnMut(Stream, &mut Scratch, usize)) -> Option<Status> {
        None
    }

    /// Nobody counts here yet.
    pub(crate) fn spent(&self) -> Option<Spent> {
        None
    }

    /// It is watched already.
    pub(crate) fn watch(self) -> io::Result<Running> {
        Ok(self.0)
    }
}

/// Why a process could not be started.
pub(crate) type Unstarted = io::Error;

/// Starts `program` with pipes for its output, and for its stdin if `feeds`. Suspended until it is
/// in its job, so that nothing of it can escape. Must be called inside a tokio runtime.
pub(crate) fn spawn(program: &Program, feeds: bool, _confines: Confines<'_>) -> io::Result<Fresh> {
    let mut command = program.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    command
        .creation_flags(CREATE_SUSPENDED | CREATE_NEW_PROCESS_GROUP)
        .stdin(if feeds { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(std::mem::replace(&mut *command, placeholder()));
    command.kill_on_drop(true);
    let mut child = command.spawn()?;
    let job = Job::new()?;
    let handle = child.raw_handle().ok_or_else(|| io::Error::other("the process has no handle"))?;
    job.assign(handle)?;
    let pid = child.id().ok_or_else(|| io::Error::other("the process has no number"))?;
    resume(pid)?;
    let missing = || io::Error::other("a pipe is missing");
    let stdin = child.stdin.take().map(|stdin| Box::new(stdin) as Input);
    let stdout: Output = Box::new(child.stdout.take().ok_or_else(missing)?);
    let stderr: Output = Box::new(child.stderr.take().ok_or_else(missing)?);
    let identity = ProcessIdentity { boot: "".into(), pid, start: start_of(handle), group: 0 };
    Ok(Fresh(Running { leader: Leader { child: child.into(), pid, job }, identity, stdin, stdout, stderr }))
}

/// What stands in a command that was used up.
#[expect(clippy::disallowed_methods, reason = "never started")]
fn placeholder() -> Command {
    Command::new("")
}

impl Leader {
    /// Waits until it ended. Cancel safe.
    pub(crate) async fn exited(&self) {
        let _status = self.child.lock().await.wait().await;
    }

    /// Asks the group to end, as far as this system can: console programs hear of it.
    pub(crate) fn terminate(&self) {
        // SAFETY: two integers; a group without a console is an error that we ignore.
        #[expect(unsafe_code, reason = "a system call")]
        let _no_console = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self.pid) };
    }

    /// Kills the whole job at once.
    pub(crate) fn kill_group(&self) {
        self.job.terminate();
    }

    /// Once it ended: whether nobody else is in its job.
    pub(crate) fn was_alone(&self) -> bool {
        self.job.living() == 0
    }

    /// Kills everything that belongs to the attempt and answers when all is dead, or with what lives after `limit`.
    pub(crate) async fn hunt(&self, _hunter: &Hunter, _token: Token, limit: Duration) -> Vec<Survivor> {
        let all_dead = async {
            self.job.terminate();
            while self.job.living() > 0 {
                tokio::time::sleep(PAUSE).await;
                self.job.terminate();
            }
        };
        match tokio::time::timeout(limit, all_dead).await {
            Ok(()) => Vec::new(),
            Err(_) => vec![Survivor { pid: self.pid, name: format!("{} in its job", self.job.living()), token: None }],
        }
    }

    /// Nobody counts here yet.
    pub(crate) fn spent(&self) -> Option<Spent> {
        None
    }

    /// How it ended; none: it has not.
    pub(crate) fn reap(&mut self) -> Option<Status> {
        let status = self.child.get_mut().try_wait().ok()??;
        Some(Status::Exit(status.code().unwrap_or(-1)))
    }
}

impl Job {
    fn new() -> io::Result<Self> {
        // SAFETY: no attributes and no name; the handle is checked before it is owned.
        #[expect(unsafe_code, reason = "a system call")]
        let job = unsafe {
            let handle = CreateJobObjectW(std::ptr::null(), std::ptr::null());
            if handle.is_null() {
                return Err(io::Error::last_os_error());
            }
            Self(OwnedHandle::from_raw_handle(handle))
        };
        let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        // SAFETY: the structure is what the class says, and lives during the call.
        #[expect(unsafe_code, reason = "a system call")]
        let done = unsafe {
            SetInformationJobObject(
                job.handle(),
                JobObjectExtendedLimitInformation,
                (&raw const limits).cast(),
                size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32,
            )
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(job) }
    }

    fn handle(&self) -> HANDLE {
        self.0.as_raw_handle()
    }

    fn assign(&self, process: HANDLE) -> io::Result<()> {
        // SAFETY: both handles are open.
        #[expect(unsafe_code, reason = "a system call")]
        let done = unsafe { AssignProcessToJobObject(self.handle(), process) };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn terminate(&self) {
        // SAFETY: the handle is open.
        #[expect(unsafe_code, reason = "a system call")]
        let _empty = unsafe { TerminateJobObject(self.handle(), KILLED) };
    }

    /// Processes that live in it; if it does not tell, none, for then there is no job.
    fn living(&self) -> u32 {
        let mut account = JOBOBJECT_BASIC_ACCOUNTING_INFORMATION::default();
        // SAFETY: the structure is what the class says, and lives during the call.
        #[expect(unsafe_code, reason = "a system call")]
        let done = unsafe {
            QueryInformationJobObject(
                self.handle(),
                JobObjectBasicAccountingInformation,
                (&raw mut account).cast(),
                size_of::<JOBOBJECT_BASIC_ACCOUNTING_INFORMATION>() as u32,
                std::ptr::null_mut(),
            )
        };
        if done == 0 { 0 } else { account.ActiveProcesses }
    }
}

/// Lets the only thread of a suspended process run. The standard library keeps its handle to itself.
fn resume(pid: u32) -> io::Result<()> {
    // SAFETY: the snapshot handle is checked before it is owned; the entry's size is set as the call
    // asks; the thread handle is checked before it is owned.
    #[expect(unsafe_code, reason = "system calls")]
    unsafe {
        let handle = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        let snapshot = OwnedHandle::from_raw_handle(handle);
        let mut entry = THREADENTRY32 { dwSize: size_of::<THREADENTRY32>() as u32, ..THREADENTRY32::default() };
        let mut more = Thread32First(snapshot.as_raw_handle(), &raw mut entry);
        while more != 0 {
            if entry.th32OwnerProcessID == pid {
                let thread = OpenThread(THREAD_SUSPEND_RESUME, 0, entry.th32ThreadID);
                if thread.is_null() {
                    return Err(io::Error::last_os_error());
                }
                let thread = OwnedHandle::from_raw_handle(thread);
                if ResumeThread(thread.as_raw_handle()) == u32::MAX {
                    return Err(io::Error::last_os_error());
                }
                return Ok(());
            }
            more = Thread32Next(snapshot.as_raw_handle(), &raw mut entry);
        }
    }
    Err(io::Error::other("the new process has no thread"))
}

fn start_of(process: HANDLE) -> u64 {
    let mut times = [FILETIME::default(); 4];
    let [created, exited, kernel, user] = &mut times;
    // SAFETY: the handle is open; the four structures live during the call.
    #[expect(unsafe_code, reason = "a system call")]
    let done = unsafe { GetProcessTimes(process, created, exited, kernel, user) };
    if done == 0 { 0 } else { u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime) }
}

/// Jobs need no looking for.
#[derive(Clone)]
pub(crate) struct Hunter;

impl Hunter {
    /// As on other systems; there is no thread here.
    pub(crate) fn start(_clock: Clock, _instance: Arc<str>, _is_live: IsLive) -> io::Result<Self> {
        Ok(Self)
    }

    /// What earlier agents started ended with their handles.
    pub(crate) async fn hunt_instances(&self, _cookies: Vec<Arc<str>>, _limit: Duration) -> Vec<Survivor> {
        Vec::new()
    }

    /// Nothing outlives its job.
    pub(crate) async fn hunt_strays(&self, _limit: Duration) -> Vec<Survivor> {
        Vec::new()
    }

    /// An attempt that outlived the end of its job. Its handle is closed, so nobody can tell what became of it: it counts as
    /// alive until the agent starts anew (A3).
    pub(crate) async fn hunt(&self, _token: Token, _leader: Option<i32>, _limit: Duration) -> Vec<Survivor> {
        vec![Survivor { pid: 0, name: "what its job left".to_owned(), token: None }]
    }

    /// Nothing outlives its job.
    pub(crate) fn check_for_strays(&self) {}
}

/// Nothing of an earlier agent lives: its jobs ended with it.
pub(crate) fn kill_identity(_identity: &ProcessIdentity) -> bool {
    false
}

/// Handles are not inherited unless asked for.
pub(crate) fn prepare_self() {}

/// The system has no name for it that costs nothing to ask.
pub(crate) fn boot() -> Arc<str> {
    "".into()
}

/// There is no guard on this system.
pub(crate) fn guard_signals() -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "job objects do a guard's work on this system"))
}

/// There is no guard on this system.
pub(crate) fn sweep_blocking(_clock: Clock, _cookie: &str, _looks: u32, _limit: Duration) -> usize {
    0
}

/// What every task's environment starts with: what programs need on this system, and little else.
pub(crate) fn base_environment(path: Option<&OsStr>) -> Vec<(OsString, OsString)> {
    let path = path.map(OsStr::to_owned).or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    let kept = KEPT.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    kept.chain([(OsString::from("PATH"), path)]).collect()
}

/// A command that gives `text` to the shell, as it is.
#[expect(clippy::disallowed_methods, reason = "exec starts processes")]
pub(crate) fn shell(text: &str) -> Program {
    let mut command = Command::new("cmd.exe");
    command.args(["/D", "/S", "/C"]).raw_arg(format!("\"{text}\""));
    Program::of(command)
}

/// A command for `argv`. The system itself looks programs up.
#[expect(clippy::disallowed_methods, reason = "exec starts processes")]
pub(crate) fn find_program(argv: &[String], _path: &OsStr, cwd: &Path) -> Result<Program, String> {
    let (name, args) = argv.split_first().ok_or("the command is empty: name a program")?;
    if name.is_empty() {
        return Err("the command's first word is empty: name a program".into());
    }
    let program = if name.contains(['/', '\\']) { cwd.join(name).into_os_string() } else { name.into() };
    let mut command = Command::new(program);
    command.args(args);
    Ok(Program::of(command))
}

/// Why `program` could not be started, in words for the person who wrote the job.
pub(crate) fn explain(program: &Program, _cwd: &Path, error: &Unstarted) -> String {
    let shown = Path::new(&program.1).display();
    match error.kind() {
        io::ErrorKind::InvalidInput => {
            "the command has a zero byte in an argument, which no program can be given".into()
        }
        io::ErrorKind::NotFound => format!("the program {shown} was not found on this agent"),
        io::ErrorKind::PermissionDenied => format!("the agent's user may not run {shown}"),
        io::ErrorKind::ArgumentListTooLong => "the command line is longer than this system takes".into(),
        _ => format!("{shown} could not be started: {error}"),
    }
}

/// Whether trying again a little later may help. Not here: a command is used up by a try.
pub(crate) fn is_shortage(_error: &Unstarted) -> bool {
    false
}

/// Whether it may be for want of memory. A limit of its own begins later here.
pub(crate) fn wants_memory(_error: &Unstarted) -> bool {
    false
}

/// Whether others are where it was to go. Nothing like it is here.
pub(crate) fn is_busy(_error: &Unstarted) -> bool {
    false
}
