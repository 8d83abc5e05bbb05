//! A controller as the engine is: the real core behind the real gate, commits that take time, and a
//! process that may die between any two of its steps.

use std::collections::BTreeMap;

use muster_core::{
    cluster::{Cluster, Config, RecoverError},
    event::{Answer, Effect, Event, Refusal},
    gate::Gate,
    id::{SessionId, Term},
    record::{Key, Piece},
    time::Now,
};

use crate::{clocks::Clock, world::Pieces};

/// What waits for a commit.
#[derive(Clone, Debug)]
pub enum Held {
    /// Something to do.
    Effect(Effect),
    /// Something to tell a client, by the number of its call.
    Reply(u64, Answer),
    /// Something to tell an agent that says hello.
    Welcome(usize, SessionId, Answer),
}

/// Whom an answer goes to.
#[derive(Clone, Copy, Debug)]
pub enum Caller {
    /// A client's call.
    Client(u64),
    /// An agent's hello.
    Agent(usize, SessionId),
    /// Nobody.
    Nobody,
}

/// Connections of one life have numbers of their own, so that it is known whose each is.
const SESSIONS: u64 = 1_000_000;

/// One life of a controller.
#[derive(Debug)]
pub struct Controller {
    /// The core.
    pub cluster: Cluster,
    /// Its leadership.
    pub term: Term,
    /// Of the machine that it runs on.
    clock: Clock,
    /// What is held back.
    gate: Gate<Held>,
    /// What the commit in flight carries.
    pub(crate) in_flight: Pieces,
    /// Agents by their connection.
    pub sessions: BTreeMap<SessionId, usize>,
    next_session: u64,
}

impl Controller {
    /// Takes up a store.
    ///
    /// # Errors
    /// As [`Cluster::recover`].
    pub(crate) fn start(
        term: Term,
        store: &BTreeMap<Key, Piece>,
        clock: Clock,
        now: Now,
    ) -> Result<Self, RecoverError> {
        let (cluster, _) = Cluster::recover(Config::default(), store.clone(), clock.read(now))?;
        let gate = Gate::default();
        Ok(Self {
            cluster,
            term,
            clock,
            gate,
            in_flight: Vec::new(),
            sessions: BTreeMap::new(),
            next_session: term.0 * SESSIONS + 1,
        })
    }

    /// What its clock shows when it is `now` in truth.
    pub fn time(&self, now: Now) -> Now {
        self.clock.read(now)
    }

    /// A connection for an agent.
    pub fn open(&mut self, agent: usize) -> SessionId {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(session, agent);
        session
    }

    /// Handles an event; returns what need not wait.
    pub fn handle(&mut self, now: Now, event: Event, caller: Caller) -> Vec<Held> {
        let (step, answer) = self.cluster.handle(self.time(now), event);
        self.gate.changed(step.changes);
        let mut free = Vec::new();
        for effect in step.effects {
            if effect.waits_for_commit() {
                free.extend(self.gate.hold(Held::Effect(effect)));
            } else {
                free.push(Held::Effect(effect));
            }
        }
        if let (Caller::Agent(_, session), Err(Refusal::Unheard { agent })) = (&caller, &answer) {
            free.push(Held::Effect(Effect::Disconnect { agent: *agent, session: *session }));
        }
        let reply = match (caller, answer) {
            (Caller::Client(call), Ok(answer)) => Some(Held::Reply(call, answer)),
            (Caller::Agent(agent, session), Ok(answer)) => Some(Held::Welcome(agent, session, answer)),
            (Caller::Nobody, _) | (_, Err(_)) => None,
        };
        free.extend(reply.and_then(|reply| self.gate.hold(reply)));
        free
    }

    /// Starts the next commit, if one is due.
    pub fn begin(&mut self) -> bool {
        let Some(keys) = self.gate.begin() else { return false };
        self.in_flight = keys.into_iter().map(|key| (key.clone(), self.cluster.piece(&key))).collect();
        true
    }

    /// The commit in flight is durable.
    pub fn confirmed(&mut self) -> Vec<Held> {
        self.in_flight.clear();
        self.gate.confirmed()
    }

    /// Whether nothing waits for a commit.
    pub fn is_idle(&self) -> bool {
        self.gate.is_idle()
    }
}
