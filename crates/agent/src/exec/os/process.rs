//! Unix: a process by its number, for as long as that is its own: signalled, killed with its group, reaped.

use std::{mem::MaybeUninit, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    Spent, Status,
    proc::Stat,
    unix::{signal_members, spent},
};

/// For one that nobody waits for any more to be dead, so often and so long.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(2);

/// Not reaped before [`Process::reap`], so that its number and its group's stay its own; of one that is no child of ours,
/// whoever has it sees to that.
pub(super) struct Process {
    pid: Pid,
    /// It goes with all groups of its session, as of a terminal or of what is run beside a task.
    leads_session: bool,
    /// When it started, if it is no child of ours.
    foreign: Option<u64>,
    /// Set when it is reaped.
    status: Option<Status>,
    /// With `status`.
    spent: Option<Spent>,
}

impl Process {
    /// One that was just started.
    pub(super) fn child(pid: Pid, leads_session: bool) -> Self {
        Self { pid, leads_session, foreign: None, status: None, spent: None }
    }

    /// One that somebody else started then.
    pub(super) fn of_another(pid: Pid, start: u64) -> Self {
        Self { pid, leads_session: false, foreign: Some(start), status: None, spent: None }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// What it took; none: it is not reaped.
    pub(super) fn spent(&self) -> Option<Spent> {
        self.spent
    }

    /// How it ended and what it took, before it is reaped; only of our own child.
    pub(super) fn peek(&self) -> Option<(Status, Spent)> {
        (self.foreign.is_none() && !self.is_reaped()).then(|| super::reaper::peek(self.pid.as_raw()))?
    }

    /// Whoever could ask says how it ended.
    pub(super) fn reaped(&mut self, status: Status, spent: Spent) {
        (self.status, self.spent) = (Some(status), Some(spent));
    }

    pub(super) fn is_reaped(&self) -> bool {
        self.status.is_some()
    }

    /// Its number, as long as that is nobody else's: whoever has it may have reaped it.
    pub(super) fn kept_number(&self) -> Option<i32> {
        let pid = self.pid.as_raw();
        let is_it = |start: u64| Stat::read(pid).is_some_and(|stat| stat.start == start);
        (!self.is_reaped() && self.foreign.is_none_or(is_it)).then_some(pid)
    }

    pub(super) fn signal(&self, signal: Signal) {
        if self.kept_number().is_some() {
            let _nobody_left = killpg(self.pid, signal);
        }
    }

    pub(super) fn kill(&self) {
        if let Some(number) = self.kept_number().filter(|_| self.leads_session) {
            // A shell with job control gives each command line a group of its own.
            signal_members(&|| super::proc::session(number), Signal::SIGKILL);
        }
        self.signal(Signal::SIGKILL);
    }

    pub(super) fn was_alone(&self) -> bool {
        self.is_reaped() && killpg(self.pid, None) == Err(Errno::ESRCH)
    }

    /// Asked again, it says the same.
    pub(super) fn reap(&mut self) -> Option<Status> {
        if self.status.is_none() && self.foreign.is_none() {
            let (mut raw, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
            // SAFETY: writes an integer and a structure of integers that live here, for which zeroes are values too. nix
            // cannot tell of real-time signals.
            #[expect(unsafe_code, reason = "a system call")]
            let (pid, usage) = unsafe {
                let pid = libc::wait4(self.pid.as_raw(), &raw mut raw, libc::WNOHANG, usage.as_mut_ptr());
                (pid, usage.assume_init())
            };
            let status = ExitStatus::from_raw(raw);
            self.status = match (pid == self.pid.as_raw(), status.code(), status.signal()) {
                (true, Some(code), _) => Some(Status::Exit(code)),
                (true, None, Some(signal)) => Some(Status::Signal(signal)),
                _ => None,
            };
            self.spent = self.status.is_some().then(|| spent(&usage));
        }
        self.status
    }
}

impl Drop for Process {
    /// One that nobody waited for, because watching failed: it must not run on unseen.
    fn drop(&mut self) {
        if !self.is_reaped() {
            self.kill();
            let mut looks = if self.foreign.is_none() { LOOKS } else { 1 };
            while self.reap().is_none() && looks > 1 {
                looks -= 1;
                // Else it would stay a zombie of ours for good.
                std::thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_process_that_somebody_else_reaped_is_not_its_own_any_more() {
        let pid = Pid::this();
        let start = Stat::read(pid.as_raw()).expect("we live").start;
        let number = |foreign| {
            // Never dropped: that would end its group.
            let process = match foreign {
                Some(start) => Process::of_another(pid, start),
                None => Process::child(pid, false),
            };
            std::mem::ManuallyDrop::new(process).kept_number()
        };
        assert_eq!(number(Some(start)), Some(pid.as_raw()));
        assert_eq!(number(Some(start + 1)), None, "another has it now");
        assert_eq!(number(None), Some(pid.as_raw()), "a child of ours that we did not reap");
    }
}
