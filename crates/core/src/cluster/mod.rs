//! All that is known, and the one function through which it changes.

use std::{sync::Arc, time::Duration};

use crate::{
    event::{Answer, Event, Refusal, Step, Target},
    id::{AgentId, JobId, SessionId, TaskId},
    record::{AgentRecord, Key, Piece, Queue, Summary},
    resources::Request,
    state::State,
    time::{Mono, Now, Timestamp},
};

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// An agent that is silent for this long ends its attempts itself (A1).
    pub lease_ttl: Duration,
    /// How much longer the controller waits before it gives them to another.
    pub lease_margin: Duration,
    /// A task that was lost with its agent this often is not tried again.
    pub losses_max: u16,
    /// How long finished jobs are kept.
    pub retention: Duration,
    /// Where a task goes when several agents have room.
    pub placement: Placement,
}

/// Where a task goes when several agents have room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The fullest agent that has room, so that large tasks find an empty one.
    #[default]
    Pack,
    /// The emptiest, so that tasks disturb one another least.
    Spread,
}

/// When `Event::Tick` is next of use, by each clock; none: not before something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakeup {
    /// By the wall clock.
    pub wall: Option<Timestamp>,
    /// By the monotonic clock.
    pub mono: Option<Mono>,
}

/// Why a store cannot be taken up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A piece refers to one that is not there.
    #[error("{what} belongs to {owner}, which the store does not have")]
    Orphan {
        /// The piece.
        what: String,
        /// What it needs.
        owner: String,
    },
    /// A piece contradicts another.
    #[error("{0}")]
    Inconsistent(String),
}

/// One agent as `ctl agents` shows it.
#[derive(Clone, Debug)]
pub struct AgentStatus {
    /// What is stored of it.
    pub record: Arc<AgentRecord>,
    /// Its connection; none: silent.
    pub session: Option<SessionId>,
    /// What running leases take of it.
    pub used: Request,
    /// Leases that take resources.
    pub running: u32,
    /// Leases sent ahead, which wait there for room.
    pub ahead: u32,
    /// When it last gave a sign.
    pub last_seen: Mono,
}

/// One queue as `ctl queue list` shows it.
#[derive(Clone, Debug)]
pub struct QueueStatus {
    /// Its limits.
    pub queue: Arc<Queue>,
    /// Leases.
    pub running: u64,
    /// Unfinished tasks without one.
    pub waiting: u64,
}

/// Why tasks are where they are: one answer for neighbours that share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The first of them.
    pub task: TaskId,
    /// How many share this answer.
    pub count: u32,
    /// Where they are.
    pub state: State,
    /// All reasons; empty only for final and running tasks (S2).
    pub reasons: Vec<Reason>,
}

/// One reason why a task does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Stable, for machines: `waiting-for`, `start-at`, `retry-at`, `queue-full`, `queue-paused`,
    /// `no-agent`, `agent-mismatch`, `agent-too-small`, `agent-busy`, `agent-silent`, `behind`, `setup`.
    pub code: &'static str,
    /// For people.
    pub text: String,
    /// What would unblock it, for people.
    pub unblock: String,
    /// The agent that this is about.
    pub agent: Option<Arc<str>>,
}

/// All that is known.
#[derive(Debug)]
pub struct Cluster;

impl Cluster {
    /// Takes up what a store holds (nothing, for a new one). Every agent that holds leases has
    /// `lease_ttl + lease_margin` from `now` to come back.
    ///
    /// # Errors
    /// The pieces contradict one another; nothing should be written to such a store.
    pub fn recover(
        _config: Config,
        _pieces: impl IntoIterator<Item = (Key, Piece)>,
        _now: Now,
    ) -> Result<(Self, Step), RecoverError> {
        Ok((Self, Step::default()))
    }

    /// The one way in which anything changes. A refusal changes nothing, and its step is empty.
    pub fn handle(&mut self, _now: Now, _event: Event) -> (Step, Result<Answer, Refusal>) {
        (Step::default(), Ok(Answer::Done))
    }

    /// The piece behind a changed key, as it is now; none: it is to be deleted.
    pub fn piece(&self, _key: &Key) -> Option<Piece> {
        None
    }

    /// A job's counts.
    pub fn summary(&self, _job: JobId) -> Option<Summary> {
        None
    }

    /// When time alone will change something.
    pub fn wakeup(&self) -> Wakeup {
        Wakeup::default()
    }

    /// Why tasks are where they are, by the code that decides.
    ///
    /// # Errors
    /// There is no such work.
    pub fn explain(&self, _now: Now, _target: Target) -> Result<Vec<Explanation>, Refusal> {
        Ok(Vec::new())
    }

    /// Every agent, by number.
    pub fn agents(&self) -> Vec<AgentStatus> {
        let _: Option<AgentId> = None;
        Vec::new()
    }

    /// Every queue, by name.
    pub fn queues(&self) -> Vec<QueueStatus> {
        Vec::new()
    }
}
