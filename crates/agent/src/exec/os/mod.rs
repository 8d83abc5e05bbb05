//! The only place, with `host`, that knows an operating system. Two sides with equal signatures.
//!
//! Never decides anything: `attempt` says what is done and when.

#[cfg(unix)]
mod chamber;
#[cfg(unix)]
mod child;
#[cfg(unix)]
mod contain;
#[cfg(unix)]
mod hunt;
#[cfg(unix)]
mod join;
#[cfg(unix)]
mod lookup;
#[cfg(unix)]
mod pipe;
#[cfg(unix)]
mod proc;
#[cfg(unix)]
mod process;
#[cfg(unix)]
mod pty;
#[cfg(unix)]
mod reaper;
#[cfg(unix)]
mod socket;
#[cfg(unix)]
mod start;
#[cfg(unix)]
mod unix;
#[cfg(unix)]
mod unstarted;
#[cfg(unix)]
mod who;
#[cfg(windows)]
mod windows;

#[cfg(windows)]
pub(crate) use windows::{
    Confines, Fresh, Hunter, Leader, Program, Unstarted, base_environment, boot, end_members, explain, find_program,
    guard_signals, is_busy, is_shortage, kill_identity, prepare_self, shell, spawn, strike_members, sweep_blocking,
    terminate_strays, wants_memory,
};
#[cfg(windows)]
mod nobody;
#[cfg(windows)]
pub(crate) use nobody::{
    Mark, Marked, Pty, Sluice, Who, close_file, close_folder, for_us_alone, is_others, is_user, join, missing_rights,
    open_way,
};
#[cfg(unix)]
pub(crate) use {
    chamber::{Mark, Sluice},
    contain::{end_members, kill_members, strike_members, terminate_strays},
    hunt::{Hunter, Marked, sweep_blocking},
    join::join,
    lookup::{find_program, shell},
    pty::Pty,
    reaper::{allow_files, children, dead_child, peek, reap, take_in_orphans},
    socket::{receive, running_for},
    start::{Confines, Program},
    unix::{
        Fresh, Leader, base_environment, boot, guard_signals, ignore_signals, kill_identity, own_peak, prepare_self,
        spawn, take_over,
    },
    unstarted::{Unstarted, explain, is_busy, is_shortage, wants_memory},
    who::{Who, close_file, close_folder, for_us_alone, is_others, is_user, missing_rights, open_way},
};

/// Whether an attempt is still somebody's business.
pub(crate) type IsLive = std::sync::Arc<dyn Fn(muster_core::id::Token) -> bool + Send + Sync>;

use std::fmt;

use super::ProcessIdentity;

/// One end of a pipe that a task writes to.
#[cfg(unix)]
pub(crate) type Output = pipe::Pipe;
/// The end of a pipe that a task reads from.
#[cfg(unix)]
pub(crate) type Input = pipe::Pipe;
/// One end of a pipe that a task writes to.
#[cfg(windows)]
pub(crate) type Output = Box<dyn tokio::io::AsyncRead + Send + Unpin>;
/// The end of a pipe that a task reads from.
#[cfg(windows)]
pub(crate) type Input = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;

/// A process that was started, and our ends of its pipes.
pub(crate) struct Running {
    pub(crate) leader: Leader,
    pub(crate) identity: ProcessIdentity,
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// What a command beside a task was started with: our ends of it.
pub(crate) enum Ways {
    #[cfg_attr(windows, expect(dead_code, reason = "no such command is started there"))]
    Pipes { stdin: Option<Input>, stdout: Output, stderr: Output },
    #[cfg_attr(windows, expect(dead_code, reason = "no such command is started there"))]
    Terminal(Pty),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Exit(i32),
    #[cfg_attr(windows, expect(dead_code, reason = "processes end by codes alone there"))]
    Signal(i32),
}

/// What a process and those that it waited for took, as its parent hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Bytes of the largest of them; 0: not known.
    pub(crate) memory_peak: u64,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

impl Spent {
    /// The same, where others read and wrote what is not known here.
    pub(crate) fn without_disks(self) -> Self {
        Self { read_bytes: 0, written_bytes: 0, ..self }
    }
}

/// A process that should be dead and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Survivor {
    /// 0: its number is not known.
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Whose attempt it carries the mark of, if any.
    pub(crate) token: Option<muster_core::id::Token>,
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str(&self.name),
            pid => write!(f, "{pid} ({})", self.name),
        }
    }
}
