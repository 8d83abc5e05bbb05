//! Linux: a new process until it is the program it was made for. Nothing in it may allocate, lock or panic.
//!
//! The way of glibc's `posix_spawn` (`clone` with shared memory, the parent held until the program is loaded), for what
//! is too dear there when a task lasts a millisecond: a stack that is mapped, faulted in and unmapped for each process,
//! and two questions about each of 64 signals. And the pidfd comes with the process, so that it is never a stranger's.

use std::{
    cell::UnsafeCell,
    ffi::{CStr, c_char, c_int, c_void},
    io,
    mem::MaybeUninit,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::Pid,
};

use super::unstarted::{Step, Unstarted};

/// What a child may use of its parent's memory as a stack: a few frames of system calls.
const STACK: usize = 32 << 10;
/// The signals that programs know; what lies above is nobody's here.
const SIGNALS: std::ops::RangeInclusive<c_int> = 1..=31;
/// What shells say when a program could not be loaded; nobody sees it, the error is told in memory.
const NOT_LOADED: c_int = 127;

/// What to become. All strings end with a zero and both lists with a null; they outlive the call.
pub(super) struct Plan {
    pub(super) file: *const c_char,
    /// Null: where we are.
    pub(super) folder: *const c_char,
    pub(super) arguments: *const *const c_char,
    pub(super) variables: *const *const c_char,
    /// What it gets as stdin, stdout and stderr; none of them is 0, 1 or 2.
    pub(super) standard: [RawFd; 3],
    /// The cgroup of version 2 that it is made in; none: the one that we stand in.
    pub(super) cgroup: Option<RawFd>,
    /// Bytes of data that it may have (`RLIMIT_DATA`); none: as many as we.
    pub(super) data_limit: Option<u64>,
    /// As whom; none: as we are.
    pub(super) ids: Option<Ids>,
    pub(super) umask: libc::mode_t,
    pub(super) nice: Option<c_int>,
    pub(super) no_new_privs: bool,
    /// It leads a session of its own, whose terminal is its stdin.
    pub(super) is_on_terminal: bool,
    /// It goes where another process is.
    pub(super) is_beside: bool,
    /// Folders of cgroups that it goes into; outlive the call.
    pub(super) joins: *const RawFd,
    pub(super) join_count: usize,
}

/// A user with all groups; `groups` outlives the call.
pub(super) struct Ids {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: *const libc::gid_t,
    pub(super) group_count: usize,
}

/// What parent and child share.
struct Shared<'a> {
    plan: &'a Plan,
    /// It was not made in its cgroup and goes there itself.
    enters: Option<RawFd>,
    /// Why it could not become the program; 0: it did.
    error: c_int,
    /// Which step that was.
    failed: Step,
}

/// The system call that makes a process inside a cgroup is not there (before Linux 5.7, or a filter forbids it).
static CANNOT_BE_BORN_INSIDE: AtomicBool = AtomicBool::new(false);

#[repr(align(16))]
struct Stack([MaybeUninit<u8>; STACK]);

thread_local! {
    /// One child at a time: this thread waits until its child has left it.
    static OWN: Box<UnsafeCell<Stack>> = Box::new(UnsafeCell::new(Stack([MaybeUninit::uninit(); STACK])));
}

/// Starts a process as the leader of a new group, or of a new session if it is on a terminal or goes beside another process,
/// with no signal blocked, handled or ignored. Blocks until its program is loaded, or could not be.
pub(super) fn start(plan: &Plan) -> Result<(Pid, OwnedFd), Unstarted> {
    let mut shared = Shared { plan, enters: None, error: 0, failed: Step::Make };
    let mut pidfd: RawFd = -1;
    let mut mask = SigSet::empty();
    // Until the child has dispositions of its own, our handlers would run in it, in our memory.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask)).map_err(io::Error::from)?;
    let made = OWN.with(|stack| make(stack.get(), &mut shared, &mut pidfd));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).map_err(io::Error::from)?;
    let pid = made?;
    if pidfd < 0 {
        let _reaped = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
        let why = "this kernel gives no handles of processes; Linux 5.3 is the oldest that does";
        return Err(io::Error::other(why).into());
    }
    // SAFETY: the call above returned this descriptor to us and to nobody else.
    #[expect(unsafe_code, reason = "a descriptor from a raw system call")]
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if shared.error != 0 {
        // It ended by itself; nobody else knows of it.
        let _reaped = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
        return Err(Unstarted { step: shared.failed, error: io::Error::from_raw_os_error(shared.error) });
    }
    Ok((Pid::from_raw(pid), pidfd))
}

/// Makes the process, in its cgroup if this system can.
fn make(stack: *mut Stack, shared: &mut Shared<'_>, pidfd: &mut RawFd) -> io::Result<c_int> {
    if let Some(cgroup) = shared.plan.cgroup {
        if !CANNOT_BE_BORN_INSIDE.load(Ordering::Relaxed) {
            match inside::clone(cgroup, stack, shared, pidfd) {
                Err(error) if inside::is_missing(&error) => CANNOT_BE_BORN_INSIDE.store(true, Ordering::Relaxed),
                made => return made,
            }
        }
        shared.enters = Some(cgroup);
    }
    // SAFETY: the stack belongs to this thread, which does not go on before the child has left it (CLONE_VFORK);
    // `shared` and `pidfd` live in the caller's frame; `enter` only makes system calls.
    #[expect(unsafe_code, reason = "a process that shares our memory until it has its own")]
    let pid = unsafe {
        libc::clone(
            enter,
            (&raw mut (*stack).0).cast::<u8>().add(STACK).cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            ptr::from_mut(shared).cast(),
            ptr::from_mut(pidfd),
        )
    };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// `clone3`, which the C library keeps to itself: it alone makes a process inside a cgroup.
#[cfg(target_arch = "x86_64")]
mod inside {
    use std::{arch::asm, ffi::c_int, io, os::fd::RawFd, ptr};

    use nix::{errno::Errno, libc};

    use super::{STACK, Shared, Stack, enter};

    /// `struct clone_args` as of Linux 5.7.
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }

    const INTO_CGROUP: u64 = 0x2_0000_0000;

    pub(super) fn clone(
        cgroup: RawFd,
        stack: *mut Stack,
        shared: &mut Shared<'_>,
        pidfd: &mut RawFd,
    ) -> io::Result<c_int> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
        let arguments = Arguments {
            flags: u64::from(flags.unsigned_abs()) | INTO_CGROUP,
            pidfd: ptr::from_mut(pidfd).addr() as u64,
            exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
            stack: stack.addr() as u64,
            stack_size: STACK as u64,
            cgroup: u64::from(cgroup.unsigned_abs()),
            ..Arguments::default()
        };
        let result: isize;
        // SAFETY: the arguments are what the call asks for, and as with `clone` the stack is this thread's, which does not
        // go on before the child has left it. The child returns from the call on that stack, whose end is aligned to 16,
        // and never comes back from `enter`; nothing of the parent's frame is touched by it.
        #[expect(unsafe_code, reason = "a system call that returns twice, on two stacks")]
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 as isize => result,
                in("rdi") &raw const arguments,
                in("rsi") size_of::<Arguments>(),
                in("r12") ptr::from_mut(shared),
                in("r13") enter as extern "C" fn(*mut std::ffi::c_void) -> c_int,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        match i32::try_from(result) {
            Ok(pid) if pid > 0 => Ok(pid),
            Ok(error) => Err(io::Error::from_raw_os_error(-error)),
            Err(_) => Err(io::ErrorKind::Other.into()),
        }
    }

    /// Whether this system has no such call.
    pub(super) fn is_missing(error: &io::Error) -> bool {
        let missing = [Errno::ENOSYS, Errno::E2BIG, Errno::EINVAL, Errno::EPERM];
        error.raw_os_error().is_some_and(|code| missing.contains(&Errno::from_raw(code)))
    }
}

/// Nobody has tried it on other processors: there a process enters its cgroup before it becomes its program.
#[cfg(not(target_arch = "x86_64"))]
mod inside {
    use std::{ffi::c_int, io, os::fd::RawFd};

    use super::{Shared, Stack};

    pub(super) fn clone(_: RawFd, _: *mut Stack, _: &mut Shared<'_>, _: &mut RawFd) -> io::Result<c_int> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_missing(_: &io::Error) -> bool {
        true
    }
}

/// In the child, on its own stack and in our memory.
extern "C" fn enter(shared: *mut c_void) -> c_int {
    let shared = shared.cast::<Shared<'_>>();
    // SAFETY: the parent's frame, which waits for us; only calls that are safe in a signal handler (signal-safety(7)).
    #[expect(unsafe_code, reason = "system calls between clone and exec")]
    unsafe {
        (*shared).failed = become_it((*shared).plan, (*shared).enters);
        (*shared).error = *libc::__errno_location();
        libc::_exit(NOT_LOADED)
    }
}

/// Returns only if a step failed: which; `errno` says why.
///
/// # Safety
/// In a child that shares memory with a parent that waits, with all signals blocked.
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn become_it(plan: &Plan, enters: Option<RawFd>) -> Step {
    // SAFETY: integers, and pointers that the plan promises to be good; the kernel checks the rest.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in SIGNALS {
            // KILL and STOP refuse, as they should.
            let _refused = libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        if !take_place(plan) {
            return Step::Place;
        }
        if !go_where_it_belongs(plan, enters) {
            return Step::Cgroup;
        }
        if !take_limits(plan) {
            return Step::Limits;
        }
        if let Some(nice) = plan.nice
            && libc::setpriority(libc::PRIO_PROCESS, 0, nice) < 0
        {
            return Step::Nice;
        }
        if !become_whom(plan) {
            return Step::User;
        }
        if !plan.folder.is_null() && libc::chdir(plan.folder) < 0 {
            return Step::Folder;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) < 0 {
            return Step::Place;
        }
        libc::execve(plan.file, plan.arguments, plan.variables);
        Step::Load
    }
}

/// Takes its streams, and its group or session. Says whether it could; `errno` says why not.
///
/// # Safety
/// As [`become_it`].
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn take_place(plan: &Plan) -> bool {
    // SAFETY: integers.
    unsafe {
        for (from, to) in plan.standard.iter().zip(0..) {
            if libc::dup2(*from, to) < 0 {
                return false;
            }
        }
        match (plan.is_on_terminal, plan.is_beside) {
            // Who leads a session leads a group, too. Nobody else has this terminal.
            (true, _) => libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) >= 0,
            // Of the share of processors that our session may have, a task has nothing.
            (false, true) => libc::setsid() >= 0,
            (false, false) => libc::setpgid(0, 0) >= 0,
        }
    }
}

/// Takes limits of its own. Says whether it could; `errno` says why not.
///
/// # Safety
/// As [`become_it`].
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn take_limits(plan: &Plan) -> bool {
    // SAFETY: structures of integers that live here.
    unsafe {
        // Nobody asked for a file as large as its memory in its folder; who wants one may still raise it.
        let mut core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_CORE, &raw mut core) < 0 {
            return false;
        }
        core.rlim_cur = 0;
        if libc::setrlimit(libc::RLIMIT_CORE, &raw const core) < 0 {
            return false;
        }
        plan.data_limit.is_none_or(|bytes| {
            let data = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            libc::setrlimit(libc::RLIMIT_DATA, &raw const data) >= 0
        })
    }
}

/// Goes into the cgroups that it was not made in. Says whether it could; `errno` says why not.
///
/// # Safety
/// As [`become_it`].
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn go_where_it_belongs(plan: &Plan, enters: Option<RawFd>) -> bool {
    // SAFETY: a list that the plan promises to be good.
    unsafe {
        let mut joins = 0;
        while joins < plan.join_count {
            if !go_into(*plan.joins.add(joins)) {
                return false;
            }
            joins += 1;
        }
        enters.is_none_or(|cgroup| go_into(cgroup))
    }
}

/// Goes into a cgroup. Says whether it could; `errno` says why not.
///
/// # Safety
/// As [`become_it`].
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn go_into(cgroup: RawFd) -> bool {
    const PROCS: &CStr = c"cgroup.procs";
    // SAFETY: constant strings, and descriptors that the kernel checks.
    unsafe {
        let file = libc::openat(cgroup, PROCS.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        // "0" is who writes it.
        file >= 0 && libc::write(file, c"0".as_ptr().cast(), 1) == 1
    }
}

/// Takes the rights and the user of the plan. Says whether it could; `errno` says why not.
///
/// # Safety
/// As [`become_it`].
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn become_whom(plan: &Plan) -> bool {
    // SAFETY: integers, and a list that the plan promises to be good. The calls are made as they are: the C library's
    // would tell all threads of our parent, whose memory this is, to change with us.
    unsafe {
        libc::umask(plan.umask);
        if let Some(ids) = &plan.ids {
            let (uid, gid) = (ids.uid, ids.gid);
            if libc::syscall(libc::SYS_setgroups, ids.group_count, ids.groups) < 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
            {
                return false;
            }
        }
        !plan.no_new_privs || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    }
}
