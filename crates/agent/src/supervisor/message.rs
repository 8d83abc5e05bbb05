//! What enters the supervisor, what it asks for, and what it must not forget. Closed sets.

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::Report,
    id::{AgentId, SessionId, TaskId, Term, Token},
    resources::Request,
    spec::TaskSpec,
    time::Mono,
};

use crate::exec::{Alive, ExecEvent, KillReason, Order, ProcessIdentity, Swept, beside::Asked};

/// One thing that happened to the agent.
#[derive(Clone, Debug)]
pub enum Input {
    /// What outlived the agent that started it, before [`Input::Swept`]: it goes on, and its ends come as events.
    Adopted {
        /// The attempts, with or without a process.
        alive: Vec<Alive>,
        /// When our leases were last renewed, and for how long that holds; none: they hold no more (A1).
        renewed: Option<(Mono, Duration)>,
    },
    /// What the sweep found of the leases in [`Memory`]; once, before everything else.
    Swept(Vec<(Token, Swept)>),
    /// A stream to a controller is open and waits for our hello.
    Connected,
    /// The controller took us in.
    Welcome(Welcome),
    /// Work.
    Leases {
        /// Of the controller that gives it.
        term: Term,
        /// In the order in which they start.
        orders: Vec<Arc<Order>>,
        /// Leases of the same message that this build cannot make sense of.
        unusable: Vec<Unusable>,
    },
    /// A person ended an attempt.
    Stop {
        /// Of the controller that says so.
        term: Term,
        /// Which.
        token: Token,
    },
    /// Reports are durable.
    ReportsAcked {
        /// Up to and with this one.
        up_to: u64,
    },
    /// Our leases are renewed from the instant at which the heartbeat was sent.
    HeartbeatAcked {
        /// Of the controller that says so.
        term: Term,
        /// As [`Action::Heartbeat`] carried it.
        stamp: Mono,
    },
    /// The stream is gone.
    Disconnected,
    /// Somebody wants a command to run beside an attempt.
    Visit(Arc<Visit>),
    /// Something became of a process.
    Exec(ExecEvent),
    /// The machine offers more or less than before. What runs goes on; what does not fit waits.
    Capacity(Request),
    /// Time passed; of use from [`super::Supervisor::wakeup`] on.
    Tick,
    /// Stop the agent. A second one waits for no grace.
    Shutdown,
}

/// A command beside an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The controller's number of it.
    pub id: u64,
    /// The attempt.
    pub token: Token,
    /// What is to be run.
    pub asked: Asked,
}

/// The controller's answer to our hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Our number.
    pub agent: AgentId,
    /// This connection.
    pub session: SessionId,
    /// The controller's leadership.
    pub term: Term,
    /// How long a lease holds without renewal.
    pub lease_ttl: Duration,
    /// How often to renew.
    pub heartbeat: Duration,
    /// What we named in the hello and is not, or no longer, ours.
    pub drop: Vec<Token>,
}

/// A lease that cannot be run because its spec cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The lease.
    pub token: Token,
    /// Its task.
    pub task: TaskId,
    /// What is wrong with it.
    pub why: Arc<str>,
}

/// Something to be done outside, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Remember this before anything that follows is done.
    Journal(Entry),
    /// Start an attempt. Exactly one `Ended` comes back.
    Start(Arc<Order>),
    /// Exec may begin this lease by itself where an attempt of the same request ended. It comes back as
    /// that one's [`ExecEvent::Ended`] `next`, or not at all before it is claimed or withdrawn.
    Offer {
        /// Offers begin in the order in which they were made.
        order: Arc<Order>,
        /// It must not be begun then any more (A1).
        until: Mono,
    },
    /// Start an offered lease, unless it has begun; its room is taken. Exactly one `Ended` comes back.
    Claim {
        /// Which.
        token: Token,
    },
    /// Take an offer back. [`ExecEvent::Withdrawn`] comes back, unless it has begun.
    Withdraw {
        /// Which.
        token: Token,
    },
    /// End an attempt that was started. A second one for the same token shortens the grace.
    Kill {
        /// Which.
        token: Token,
        /// Why.
        reason: KillReason,
        /// Between asking and forcing.
        grace: Duration,
    },
    /// Run a command beside this process, or in its container; none: the attempt does not run here.
    Visit {
        /// What.
        visit: Arc<Visit>,
        /// Beside whom, and what that was started for.
        process: Option<(ProcessIdentity, Arc<TaskSpec>)>,
    },
    /// The first message of a stream.
    Hello {
        /// Every lease that is not over, whose slot is not free, or of which a report is not
        /// acknowledged; in order.
        holding: Vec<Token>,
        /// The highest term we have seen.
        term: Term,
    },
    /// Renew all leases.
    Heartbeat {
        /// When this was decided; comes back.
        stamp: Mono,
    },
    /// Send a report; it was journaled before.
    Send(Report),
    /// The stream may now be used for everything.
    Attached {
        /// Our number.
        agent: AgentId,
        /// This connection.
        session: SessionId,
    },
    /// Cut the stream and try the next controller.
    Disconnect {
        /// Why, for the log.
        why: String,
    },
    /// Say that we stop and take nothing new.
    Draining,
    /// Say that nothing of us is left.
    Goodbye,
    /// All is over: nothing runs, and what could be said was said.
    Stopped,
}

/// One fact that must survive the death of the agent's process.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// We hold this lease.
    Lease(Arc<Order>),
    /// Its process.
    Started {
        /// The lease.
        token: Token,
        /// The process.
        identity: ProcessIdentity,
    },
    /// What we say of a lease until it is acknowledged (A2). An end ends the lease.
    Report(Report),
    /// Reports up to and with this one are durable at the controller.
    Acked {
        /// The last of them.
        up_to: u64,
    },
    /// A lease that is over and of which nothing is to be said, or a slot that is free at last.
    Released {
        /// The lease.
        token: Token,
    },
    /// The highest term that we have seen.
    Term(Term),
}

/// All that an agent must not forget: what the journal gives back at the next start.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// The highest term seen.
    pub term: Term,
    /// The highest token seen.
    pub highest: Token,
    /// The number of the next report.
    pub next_seq: u64,
    /// Leases that are not over, by token.
    pub leases: Vec<Remembered>,
    /// Reports that are not acknowledged, by number.
    pub reports: Vec<Report>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { term: Term(0), highest: Token(0), next_seq: 1, leases: Vec::new(), reports: Vec::new() }
    }
}

/// A lease as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The lease.
    pub token: Token,
    /// Its task.
    pub task: TaskId,
    /// What it takes of the agent.
    pub request: Request,
    /// Its process, as far as we know.
    pub identity: Option<ProcessIdentity>,
    /// Its end was reported as `KillFailed`: only its slot is still held.
    pub reported: bool,
}
