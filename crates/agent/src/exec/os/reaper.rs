//! Linux: takes in whom their parents left behind, and says how each ended, before or after it is gone for good.

use std::{io, mem::MaybeUninit};

use nix::{
    libc,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use super::{Spent, Status, unix::spent};

/// From here on whoever loses its parent below us is our child.
pub(crate) fn take_in_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// So many files may be open, here and in what is started from now on. Returns how many might before; none: all that the
/// system lets us have.
pub(crate) fn allow_files(count: Option<u64>) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let _stays = setrlimit(Resource::RLIMIT_NOFILE, count.unwrap_or(hard).min(hard), hard);
    soft
}

/// A child that is dead and not reaped; none: there is none, or none at all.
pub(crate) fn dead_child() -> Option<i32> {
    look(libc::P_ALL, 0).map(|(pid, _, _)| pid)
}

/// How the child `pid` ended and what it took. It is not reaped.
pub(crate) fn peek(pid: i32) -> Option<(Status, Spent)> {
    let id = libc::id_t::try_from(pid).ok()?;
    look(libc::P_PID, id).map(|(_, status, spent)| (status, spent))
}

/// The dead child `pid` is gone for good; its number may be another's.
pub(crate) fn reap(pid: i32) {
    let _was_no_child = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Our children by their numbers.
pub(crate) fn children() -> Vec<i32> {
    let own = std::process::id();
    let text = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn look(which: libc::idtype_t, id: libc::id_t) -> Option<(i32, Status, Spent)> {
    let (mut about, mut usage) = (MaybeUninit::<libc::siginfo_t>::zeroed(), MaybeUninit::<libc::rusage>::zeroed());
    let how = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    // SAFETY: the call fills two structures of integers that live here, for which zeroes are values too; with WNOHANG and
    // nobody dead the number in the first stays 0. The C library's call does not hand the second one on, nor nix, which
    // cannot tell of real-time signals either.
    #[expect(unsafe_code, reason = "a system call")]
    let (result, pid, status, about, usage) = unsafe {
        let result = libc::syscall(libc::SYS_waitid, which, id, about.as_mut_ptr(), how, usage.as_mut_ptr());
        let about = about.assume_init();
        (result, about.si_pid(), about.si_status(), about, usage.assume_init())
    };
    if result != 0 || pid == 0 {
        return None;
    }
    let status = if about.si_code == libc::CLD_EXITED { Status::Exit(status) } else { Status::Signal(status) };
    Some((pid, status, spent(&usage)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_open_is_raised_for_us_and_given_back() {
        let before = allow_files(None);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, hard)| soft == hard), Ok(true));
        allow_files(Some(before));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft), Ok(before));
    }

    #[test]
    fn a_child_is_looked_at_before_it_is_reaped_and_not_after() {
        #[expect(clippy::disallowed_methods, reason = "a child of this test")]
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "kill -35 $$"]).spawn().expect("a shell");
        let pid = i32::try_from(child.id()).expect("a number");
        let status = loop {
            if let Some((status, _)) = peek(pid) {
                break status;
            }
            std::thread::yield_now();
        };
        assert_eq!(status, Status::Signal(35), "signals without a name, too");
        assert_eq!(peek(pid).map(|(status, _)| status), Some(status), "as often as one likes");
        reap(pid);
        assert_eq!(peek(pid), None);
        let _reaped = child.wait();
    }
}
