//! All that can happen, all that can follow, and what a caller is told. Closed sets.

use std::sync::Arc;

use crate::{
    access::{Caller, NewToken},
    audit::Note,
    fleet::Tending,
    id::{AgentId, JobId, SessionId, TaskId, Token},
    identity, mutant,
    record::{Key, Offer, Queue, TaskResult},
    spec::JobSpec,
    state::{End, Stopping},
    time::Timestamp,
    usage::Usage,
    validate::Problem,
};

/// One thing that happened. Everything that changes state enters as one of these.
#[derive(Clone, Debug)]
pub enum Event {
    /// A person or program asks for work.
    Submit(Submission),
    /// A person ends work.
    Cancel {
        /// What.
        target: Target,
        /// Who.
        by: Arc<str>,
        /// Why; may be empty.
        reason: Arc<str>,
        /// Whole jobs only: teardown tasks end too.
        teardown_too: bool,
    },
    /// A person asks for new attempts at final tasks.
    Retry {
        /// What.
        target: Target,
        /// Which of its final tasks.
        which: Which,
    },
    /// A person sets a queue's limits.
    SetQueue(Queue),
    /// A person has agents cordoned, drained, resumed or limited.
    Tend(Tending),
    /// Machines join and are sent away. The answer is [`Answer::Identity`].
    Identity(identity::Change),
    /// Somebody at a door asks for what `event` says. It is recorded with what it changes, and refused where it is
    /// out of the caller's reach. Events of agents and of time come as they are.
    By {
        /// Who.
        caller: Arc<Caller>,
        /// What.
        event: Box<Event>,
    },
    /// Something is to be recorded that changes nothing here.
    Note(Note),
    /// A person makes a token.
    CreateToken(NewToken),
    /// A person revokes a token.
    RevokeToken {
        /// Its id, or its name.
        which: Arc<str>,
    },
    /// An agent connected. The answer is [`Answer::Attached`].
    Attach {
        /// Stable for the agent's data folder.
        uid: Arc<str>,
        /// Its machine.
        offer: Offer,
        /// Larger than every earlier one (the engine counts).
        session: SessionId,
        /// Leases whose attempt is not over, or whose last report is not acknowledged.
        holding: Vec<Token>,
    },
    /// An agent offers something else than before.
    Offer {
        /// Who.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// All that it offers now.
        offer: Offer,
    },
    /// An agent lives.
    Heartbeat {
        /// Who.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// Comes back in [`Effect::HeartbeatAck`].
        stamp: u64,
    },
    /// An agent says what became of an attempt.
    Report {
        /// Who.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// What.
        report: Report,
    },
    /// A connection ended. Nothing is lost by that; only silence loses.
    Detach {
        /// Who.
        agent: AgentId,
        /// Which connection.
        session: SessionId,
    },
    /// An agent is about to stop: it takes nothing new over this connection.
    Drain {
        /// Who.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
    },
    /// An agent ended cleanly: what it still holds never ran or was reported.
    Leave {
        /// Who.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
    },
    /// Time passed: due timers, silent agents, retention.
    Tick,
    /// Give out what can be given out.
    Round,
}

impl Event {
    /// This, asked for by `caller`.
    #[must_use]
    pub fn by(self, caller: &Arc<Caller>) -> Self {
        Self::By { caller: Arc::clone(caller), event: Box::new(self) }
    }

    /// The submission that this is, whoever asks for it.
    pub fn submission(&self) -> Option<&Submission> {
        match self {
            Self::Submit(submission) => Some(submission),
            Self::By { event, .. } => event.submission(),
            _ => None,
        }
    }
}

/// A job to accept.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What is asked for; other jobs' names are already numbers.
    pub spec: Arc<JobSpec>,
    /// The same key again returns the first job; empty: none.
    pub key: Arc<str>,
    /// Who asks.
    pub by: Arc<str>,
    /// W3C trace context; empty: none.
    pub trace_parent: Arc<str>,
}

/// What a person means, resolved by the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A whole job.
    Job(JobId),
    /// Tasks `first .. first + count` of a job.
    Tasks {
        /// The job.
        job: JobId,
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
}

impl Target {
    /// The job.
    pub fn job(self) -> JobId {
        match self {
            Self::Job(job) | Self::Tasks { job, .. } => job,
        }
    }
}

/// Which final tasks a retry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Failed and cancelled ones, and what was skipped because of them.
    Failed,
    /// All of them.
    All,
}

/// What an agent says of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Grows by one with each report of an agent; acknowledged cumulatively.
    pub seq: u64,
    /// The lease.
    pub token: Token,
    /// The task it is for.
    pub task: TaskId,
    /// What happened.
    pub what: What,
}

/// What happened to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its process started. Only sent of attempts that last.
    Started {
        /// When, by the agent's clock.
        at: Timestamp,
    },
    /// It ended and nothing of it is left (but see [`End::KillFailed`]).
    Ended {
        /// How.
        end: End,
        /// What a person should know.
        why: Option<Arc<str>>,
        /// When its process started, by the agent's clock; never: none did.
        started: Timestamp,
        /// When it ended, by the agent's clock.
        ended: Timestamp,
        /// What it left.
        result: Option<TaskResult>,
        /// What it took; none: nobody counted.
        usage: Option<Usage>,
    },
    /// It never started, through no fault of its own: somebody else may have it at once.
    Returned {
        /// Why.
        why: Arc<str>,
    },
}

/// What follows from an event.
#[derive(Debug, Default)]
pub struct Step {
    /// Pieces that changed; ask the cluster for them when the commit is made.
    pub changes: Vec<Key>,
    /// Jobs whose summary changed.
    pub jobs: Vec<JobId>,
    /// What must be done once the changes are committed (C1).
    pub effects: Vec<Effect>,
}

/// Something to be done outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send a lease.
    Lease {
        /// To whom.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// What.
        lease: Lease,
    },
    /// Tell an agent to end an attempt.
    Stop {
        /// Whom.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// Which.
        token: Token,
        /// What for.
        why: Stopping,
    },
    /// Tell an agent that its reports are durable.
    Acknowledge {
        /// Whom.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// Up to and with this one.
        seq: u64,
    },
    /// Tell an agent that its leases are renewed.
    HeartbeatAck {
        /// Whom.
        agent: AgentId,
        /// Over which connection.
        session: SessionId,
        /// As it came.
        stamp: u64,
    },
    /// End a connection that a newer one replaced, or whose agent was given up.
    Disconnect {
        /// Whose.
        agent: AgentId,
        /// Which.
        session: SessionId,
    },
    /// Delete what a deleted job left in the object store.
    Forget(JobId),
}

impl Effect {
    /// Whether it must wait for the commit of the changes before it (C1). A heartbeat's answer
    /// must not: it promises nothing that the store knows, and a slow disk must not kill work.
    pub fn waits_for_commit(&self) -> bool {
        match self {
            Self::HeartbeatAck { .. } => false,
            Self::Lease { .. } => !mutant::is_on("lease-early"),
            Self::Stop { .. } => !mutant::is_on("stop-early"),
            Self::Acknowledge { .. } => !mutant::is_on("ack-early"),
            _ => true,
        }
    }
}

/// The right of one agent to run one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Fences everything said about it.
    pub token: Token,
    /// What to run.
    pub task: TaskId,
    /// Which try.
    pub attempt: u32,
    /// Its entry in the spec.
    pub group: u32,
    /// Its place in that entry.
    pub offset: u32,
    /// The job.
    pub job: Arc<crate::record::Job>,
    /// Whether its dependencies left results.
    pub has_inputs: bool,
    /// Bytes of memory for this attempt; none: what its entry asks for.
    pub memory: Option<u64>,
}

/// What a caller is told, once it is committed.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To `Submit`.
    Submitted {
        /// The job, new or the first with this key.
        job: JobId,
        /// Whether the key was known.
        duplicate: bool,
        /// What a person should know.
        warnings: Vec<String>,
    },
    /// To `Cancel`.
    Cancelled {
        /// Tasks that this ended or is ending.
        tasks: u32,
        /// Tasks that were final before.
        already_final: u32,
    },
    /// To `Retry`.
    Retried {
        /// Tasks that get a new attempt, or wait for one again.
        tasks: u32,
    },
    /// To `Attach`.
    Attached {
        /// Its number.
        agent: AgentId,
        /// Leases it names that are not, or no longer, its own: it ends them and reports nothing.
        drop: Vec<Token>,
    },
    /// To `Tend`.
    Tended {
        /// Names of agents that are now otherwise than before.
        changed: Vec<String>,
        /// Names of those that were so already.
        same: Vec<String>,
    },
    /// To `Identity`.
    Identity(identity::Answer),
    /// To everything else.
    Done,
}

/// Why an event was refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The spec cannot be accepted.
    #[error("the job has {} problem(s)", .0.len())]
    Invalid(Vec<Problem>),
    /// The queue takes no more for now.
    #[error("queue `{queue}` holds {held} unfinished tasks and takes at most {limit}")]
    QueueFull {
        /// Its name.
        queue: String,
        /// What it holds.
        held: u64,
        /// What it takes.
        limit: u64,
    },
    /// It cannot be done in the state that the thing is in.
    #[error("{0}")]
    Conflict(String),
    /// Whoever asks may not.
    #[error("{0}")]
    Denied(String),
    /// A message over a connection that is not the agent's current one.
    #[error("agent {agent} has a newer connection, or none")]
    StaleSession {
        /// Who.
        agent: AgentId,
    },
    /// An agent that connects again and again and shows by nothing that it hears us.
    #[error("agent {agent} was taken in several times and never answered: what is sent to it does not arrive")]
    Unheard {
        /// Who.
        agent: AgentId,
    },
}
