//! The way in to the engine, for every door.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_core::{
    cluster::{AgentStatus, Explained, Fleet, FleetQuery, QueueStatus},
    event::{Answer, Event, Target},
    id::Term,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::engine::Error;

/// How long a caller waits for its answer. Longer than a slow disk takes, or a store that is
/// opened again after an error.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a caller is sent.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// One thing for the engine to do.
#[derive(Debug)]
pub(super) enum Message {
    Ask(Event, Reply<Answer>),
    Tell(Event),
    TellAll(Vec<Event>),
    Explain(Target, Reply<Explained>),
    Agents(Reply<Vec<AgentStatus>>),
    Fleet(FleetQuery, Reply<Fleet>),
    Queues(Reply<Vec<QueueStatus>>),
    Turn(Reply<()>),
}

impl Message {
    /// Answers that it cannot be done now; what nobody waits for is forgotten.
    pub(super) fn refuse(self, why: &str) {
        let error = || Error::Unavailable(format!("the store is away, and nothing was changed: {why}"));
        // A caller that went away wants no answer.
        match self {
            Self::Ask(_, reply) => _ = reply.send(Err(error())),
            Self::Explain(_, reply) => _ = reply.send(Err(error())),
            Self::Agents(reply) => _ = reply.send(Err(error())),
            Self::Fleet(_, reply) => _ = reply.send(Err(error())),
            Self::Queues(reply) => _ = reply.send(Err(error())),
            // It turns, all the same.
            Self::Turn(reply) => _ = reply.send(Ok(())),
            // Agents say everything again when they are back.
            Self::Tell(_) | Self::TellAll(_) => {}
        }
    }
}

/// What all handles and the engine share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) term: AtomicU64,
    pub(super) lease_ttl: Duration,
    pub(super) heartbeat: Duration,
}

/// The way in to the engine. Clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Something that changes state, and what the caller is told once that is committed (K1).
    ///
    /// # Errors
    /// Refused, and nothing changed; or unavailable, and it may have happened or not.
    pub async fn ask(&self, event: Event) -> Result<Answer, Error> {
        self.call(|reply| Message::Ask(event, reply)).await
    }

    /// Something that is answered by an effect, if at all. Waits only for room in the engine's queue.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn tell(&self, event: Event) -> Result<(), Error> {
        self.send(Message::Tell(event)).await
    }

    /// Many such things, in order, for the price of one.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn tell_all(&self, events: Vec<Event>) -> Result<(), Error> {
        self.send(Message::TellAll(events)).await
    }

    /// Why tasks are where they are.
    ///
    /// # Errors
    /// There is no such work, or the engine has stopped.
    pub async fn explain(&self, target: Target) -> Result<Explained, Error> {
        self.call(|reply| Message::Explain(target, reply)).await
    }

    /// Every agent as it is now, committed or not.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn agents(&self) -> Result<Vec<AgentStatus>, Error> {
        self.call(Message::Agents).await
    }

    /// Some agents as they are now, committed or not, and what all together are.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn fleet(&self, query: FleetQuery) -> Result<Fleet, Error> {
        self.call(|reply| Message::Fleet(query, reply)).await
    }

    /// Every queue as it is now, committed or not.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn queues(&self) -> Result<Vec<QueueStatus>, Error> {
        self.call(Message::Queues).await
    }

    /// Waits until the engine has taken up everything that came before: it turns.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn turns(&self) -> Result<(), Error> {
        self.call(Message::Turn).await
    }

    /// The term under which commits are made now.
    pub fn term(&self) -> Term {
        Term(self.shared.term.load(Ordering::Relaxed))
    }

    /// How long an agent may be silent before it ends its attempts.
    pub fn lease_ttl(&self) -> Duration {
        self.shared.lease_ttl
    }

    /// How often an agent is to say that it lives.
    pub fn heartbeat(&self) -> Duration {
        self.shared.heartbeat
    }

    async fn call<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let wait = async {
            self.send(message(reply)).await?;
            answer.await.map_err(|_| Error::Unavailable(STOPPED.to_owned()))?
        };
        timeout(ANSWER_WITHIN, wait)
            .await
            .map_err(|_| Error::Unavailable(format!("no answer within {} s; ask again", ANSWER_WITHIN.as_secs())))?
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        self.sender.send(message).await.map_err(|_| Error::Unavailable(STOPPED.to_owned()))
    }
}

const STOPPED: &str = "the controller is stopping";
