//! Owns every process that the agent starts: starts, feeds, watches and ends it, and says so only when it is dead.

mod order;
mod transfer;

pub use order::{ExecEvent, KillReason, Leftover, Order, ProcessIdentity, Swept};
pub use transfer::{Inputs, Results, TransferError};

use std::{path::PathBuf, sync::Arc, time::Duration};

use muster_common::clock::Clock;
use muster_core::id::Token;
use tokio::sync::mpsc;

/// How `exec` works on this machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's folder; `run/` in it is ours.
    pub data_dir: PathBuf,
    /// The agent's name, for `MUSTER_AGENT`.
    pub agent: Arc<str>,
    /// The clock of the program.
    pub clock: Clock,
    /// How to start the guard: a program that becomes [`guard::main`]; none: no guard (tests only).
    pub guard: Option<guard::Program>,
}

/// What `exec` needs from other rooms.
#[derive(Clone)]
pub struct Links {
    /// For `MUSTER_INPUTS`.
    pub inputs: Arc<dyn Inputs>,
    /// For results past 64 KiB.
    pub results: Arc<dyn Results>,
    /// Where output goes.
    pub spools: crate::logs::Spools,
}

/// Why `exec` cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file of ours cannot be used.
    #[error("failed to prepare {path}; the agent needs to write there", path = .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The guard did not start.
    #[error("failed to start the guard process `{program}`: {why}")]
    Guard {
        /// What was started.
        program: String,
        /// What went wrong.
        why: String,
    },
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Exec;

impl Exec {
    /// Prepares the folders and starts the guard and the threads. Events wait for room in the channel.
    pub async fn new(_config: Config, _links: Links) -> Result<(Self, mpsc::Receiver<ExecEvent>), Error> {
        let (_sender, events) = mpsc::channel(1024);
        Ok((Self, events))
    }

    /// Runs one attempt. Never blocks; a start that fails is an [`ExecEvent::Ended`] too.
    pub fn start(&self, _order: Arc<Order>) {}

    /// Ends one attempt: SIGTERM, `grace`, SIGKILL, verified. Without effect when it is over or unknown.
    pub fn kill(&self, _token: Token, _reason: KillReason, _grace: Duration) {}

    /// Kills whatever earlier agents on this data folder left, verified: by their instance cookies
    /// (kept in `run/`) and by the identities in `leftovers`. Answers in the order of `leftovers`.
    pub async fn sweep(&self, leftovers: &[Leftover]) -> Vec<Swept> {
        vec![Swept::Dead; leftovers.len()]
    }

    /// Ends the threads; call it when every attempt is over.
    pub async fn stop(&self) {}
}

pub mod guard {
    //! placeholder
    use std::{ffi::OsString, path::PathBuf};

    /// A program that becomes [`main`].
    #[derive(Clone, Debug)]
    pub struct Program {
        /// What to start.
        pub exe: PathBuf,
        /// Its arguments; the guard's own follow.
        pub args: Vec<OsString>,
    }

    /// The whole life of the guard process; `args` are those after [`Program::args`].
    pub fn main(_args: impl Iterator<Item = OsString>) -> std::process::ExitCode {
        std::process::ExitCode::SUCCESS
    }
}
