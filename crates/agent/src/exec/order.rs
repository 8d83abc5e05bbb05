//! What the supervisor and `exec` say to one another: orders go down, events come up.
//!
//! Plain values only: no runtime, no process, no clock. The simulation builds them too.

use std::sync::Arc;

use muster_core::{
    id::{TaskId, Token},
    record::TaskResult,
    spec::TaskSpec,
    state::End,
    time::Timestamp,
    usage::Usage,
};

/// One lease as an agent holds it: all that is needed to run the attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Fences everything said about it.
    pub token: Token,
    /// What to run.
    pub task: TaskId,
    /// Which try; counts from 1.
    pub attempt: u32,
    /// Shared by all orders of one message that come from one entry of a job.
    pub spec: Arc<TaskSpec>,
    /// The place of that entry in the job.
    pub group: u32,
    /// What people call the job.
    pub job_name: Arc<str>,
    /// The lane it runs in.
    pub queue: Arc<str>,
    /// The W3C trace context of the submission; empty: none.
    pub trace_parent: Arc<str>,
    /// Array tasks only: the index the user counts by, and the item if there is one.
    pub element: Option<(i64, Option<Arc<str>>)>,
    /// Whether its dependencies left results to fetch.
    pub has_inputs: bool,
}

#[cfg(test)]
impl Order {
    /// With nothing that a test need know of.
    pub(crate) fn plain(token: u64, task: TaskId, attempt: u32, spec: impl Into<Arc<TaskSpec>>) -> Self {
        Self {
            token: Token(token),
            task,
            attempt,
            spec: spec.into(),
            group: 0,
            job_name: "job".into(),
            queue: "default".into(),
            trace_parent: "".into(),
            element: None,
            has_inputs: false,
        }
    }
}

/// Why a process is ended. It decides what the end is called when the process is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// A person asked: `Cancelled`.
    Cancelled,
    /// The lease could not be renewed in time (A1): `Lost`.
    LeaseExpired,
    /// The agent stops: `Lost`.
    Shutdown,
    /// The lease is no longer this agent's: nothing is reported.
    Dropped,
}

impl KillReason {
    /// What the end is called.
    pub fn end(self) -> End {
        match self {
            Self::Cancelled => End::Cancelled,
            Self::LeaseExpired | Self::Shutdown | Self::Dropped => End::Lost,
        }
    }

    /// The reason for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::LeaseExpired => "the agent could not renew its lease in time and ended the attempt",
            Self::Shutdown => "the agent was stopped",
            Self::Dropped => "the controller gave the lease up",
        }
    }
}

/// One process, so that its number can never be mistaken for another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The machine's boot; empty: the system has none.
    pub boot: Arc<str>,
    /// The process number.
    pub pid: u32,
    /// When it started, in the system's own unit since boot.
    pub start: u64,
    /// Its process group; 0: the system has none.
    pub group: u32,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecEvent {
    /// Its process runs. Not told of one that is over at once.
    Started {
        /// The order.
        token: Token,
        /// When.
        at: Timestamp,
        /// The process.
        identity: ProcessIdentity,
    },
    /// It is over and nothing of it is left (A3). Exactly one for each order; but one that is [`End::KillFailed`] is
    /// followed by another when what survived is dead.
    Ended {
        /// The order.
        token: Token,
        /// How.
        end: End,
        /// What a person should know.
        why: Option<Arc<str>>,
        /// When its process started; never: none did.
        started: Timestamp,
        /// When it was over.
        ended: Timestamp,
        /// What it left.
        result: Option<TaskResult>,
        /// What it took; none: it never had a process.
        usage: Option<Usage>,
        /// The offered order that was begun in its place.
        next: Option<Token>,
    },
    /// An offer was taken back before it was begun; it never will be.
    Withdrawn {
        /// The order.
        token: Token,
    },
}

impl ExecEvent {
    /// The order that it is about.
    pub fn token(&self) -> Token {
        match self {
            Self::Started { token, .. } | Self::Ended { token, .. } | Self::Withdrawn { token } => *token,
        }
    }
}

/// An attempt that an earlier instance of this agent held when it died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its lease.
    pub token: Token,
    /// Its task.
    pub task: TaskId,
    /// Its process; none: it never started, or the agent died before it could note it
    /// (then the process is to be found by its environment).
    pub identity: Option<ProcessIdentity>,
}

/// What a sweep found of a [`Leftover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// Nothing of it is left.
    Dead,
    /// It could not be ended; its slot is not free (A3).
    Survives,
    /// It was never begun, and never will be.
    NeverBegun,
    /// The machine was restarted since.
    Rebooted,
}

/// An attempt that outlived the agent that started it.
#[derive(Clone, Debug, PartialEq)]
pub struct Alive {
    /// What was started.
    pub order: Arc<Order>,
    /// Its process, and when it started; none: it has not started yet, or is over already, of which an event tells.
    pub process: Option<(Timestamp, ProcessIdentity)>,
}
