//! Linux: a new process until it is the program it was made for. Nothing in it may allocate, lock or panic.
//!
//! The way of glibc's `posix_spawn` (`clone` with shared memory, the parent held until the program is loaded), for what
//! is too dear there when a task lasts a millisecond: a stack that is mapped, faulted in and unmapped for each process,
//! and two questions about each of 64 signals. And the pidfd comes with the process, so that it is never a stranger's.

use std::{
    cell::UnsafeCell,
    ffi::{c_char, c_int, c_void},
    io,
    mem::MaybeUninit,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::Pid,
};

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
}

/// What parent and child share.
struct Shared<'a> {
    plan: &'a Plan,
    /// Why it could not become the program; 0: it did.
    error: c_int,
}

#[repr(align(16))]
struct Stack([MaybeUninit<u8>; STACK]);

thread_local! {
    /// One child at a time: this thread waits until its child has left it.
    static OWN: Box<UnsafeCell<Stack>> = Box::new(UnsafeCell::new(Stack([MaybeUninit::uninit(); STACK])));
}

/// Starts a process as the leader of a new group, with no signal blocked, handled or ignored. Blocks until its program
/// is loaded, or could not be.
pub(super) fn start(plan: &Plan) -> io::Result<(Pid, OwnedFd)> {
    let mut shared = Shared { plan, error: 0 };
    let mut pidfd: RawFd = -1;
    let mut mask = SigSet::empty();
    // Until the child has dispositions of its own, our handlers would run in it, in our memory.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    let pid = OWN.with(|stack| {
        // SAFETY: the stack belongs to this thread, which does not go on before the child has left it (CLONE_VFORK);
        // `shared` and `pidfd` live in this frame; `enter` only makes system calls.
        #[expect(unsafe_code, reason = "a process that shares our memory until it has its own")]
        unsafe {
            libc::clone(
                enter,
                (&raw mut (*stack.get()).0).cast::<u8>().add(STACK).cast(),
                libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
                (&raw mut shared).cast(),
                &raw mut pidfd,
            )
        }
    });
    let failed = io::Error::last_os_error();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    if pid < 0 {
        return Err(failed);
    }
    if pidfd < 0 {
        let _reaped = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
        return Err(io::Error::other("this kernel gives no handles of processes; Linux 5.3 is the oldest that does"));
    }
    // SAFETY: the call above returned this descriptor to us and to nobody else.
    #[expect(unsafe_code, reason = "a descriptor from a raw system call")]
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if shared.error != 0 {
        // It ended by itself; nobody else knows of it.
        let _reaped = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
        return Err(io::Error::from_raw_os_error(shared.error));
    }
    Ok((Pid::from_raw(pid), pidfd))
}

/// In the child, on its own stack and in our memory.
extern "C" fn enter(shared: *mut c_void) -> c_int {
    let shared = shared.cast::<Shared<'_>>();
    // SAFETY: the parent's frame, which waits for us; only calls that are safe in a signal handler (signal-safety(7)).
    #[expect(unsafe_code, reason = "system calls between clone and exec")]
    unsafe {
        become_it((*shared).plan);
        (*shared).error = *libc::__errno_location();
        libc::_exit(NOT_LOADED)
    }
}

/// Returns only if a step failed; `errno` says why.
///
/// # Safety
/// In a child that shares memory with a parent that waits, with all signals blocked.
#[expect(unsafe_code, reason = "system calls between clone and exec")]
unsafe fn become_it(plan: &Plan) {
    // SAFETY: integers, and pointers that the plan promises to be good; the kernel checks the rest.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in SIGNALS {
            // KILL and STOP refuse, as they should.
            let _refused = libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        for (from, to) in plan.standard.iter().zip(0..) {
            if libc::dup2(*from, to) < 0 {
                return;
            }
        }
        if !plan.folder.is_null() && libc::chdir(plan.folder) < 0 {
            return;
        }
        if libc::setpgid(0, 0) < 0 {
            return;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) < 0 {
            return;
        }
        libc::execve(plan.file, plan.arguments, plan.variables);
    }
}
