//! The way out to agents: one bounded channel a connection, filled only with what is committed.
//!
//! Never waits: an agent that does not take what is sent loses its connection and comes back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_common::proto::v1;
use muster_core::{
    event::{Effect, Lease},
    id::{AgentId, JobId, SessionId, Token},
};
use tokio::sync::mpsc;

/// Messages that wait for one agent. At most five a commit go to one connection, so that this
/// is some hundred commits, seconds of work, behind.
const SESSION_ROOM: usize = 1024;

/// One message to an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// Run these.
    Leases(Vec<Lease>),
    /// End this one.
    Stop(Token),
    /// Every report up to and with this one is durable.
    Acknowledge(u64),
    /// The heartbeat with this stamp renewed all leases.
    HeartbeatAck(u64),
    /// Run a command in a live attempt. Nothing depends on it.
    Exec(v1::ExecOrder),
    /// Close the connection; nothing follows.
    Disconnect,
}

/// What an agent said at the beginning that it understands, beside what every agent of its protocol does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knows {
    /// What an order of a command says of a terminal.
    pub terminals: bool,
}

/// What became of a message to one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// There is no connection with room for it.
    Away,
    /// The agent would read over a part of it.
    NotUnderstood,
}

/// Every connection that an agent has now. Clones share them.
#[derive(Clone, Debug)]
pub struct Sessions {
    shared: Arc<Mutex<Shared>>,
    forget: mpsc::Sender<Vec<JobId>>,
}

#[derive(Debug, Default)]
struct Shared {
    last: u64,
    open: BTreeMap<SessionId, mpsc::Sender<Outgoing>>,
    /// The newest connection of each agent, and what is understood there.
    agents: BTreeMap<AgentId, (SessionId, Knows)>,
}

/// What goes to one connection from one delivery, in the order in which it is sent.
#[derive(Debug, Default)]
struct Parcel {
    leases: Vec<Lease>,
    stops: Vec<Token>,
    acknowledge: Option<u64>,
    heartbeat: Option<u64>,
    disconnect: bool,
}

impl Sessions {
    /// No connections yet. Jobs whose logs and stored results are to be deleted go to `forget`.
    pub fn new(forget: mpsc::Sender<Vec<JobId>>) -> Self {
        Self { shared: Arc::default(), forget }
    }

    /// A new connection: its number, larger than every earlier one, and what is to be sent over it.
    /// The channel ends when the connection is to be closed.
    pub fn open(&self) -> (SessionId, mpsc::Receiver<Outgoing>) {
        let (sender, receiver) = mpsc::channel(SESSION_ROOM);
        let mut shared = self.lock();
        shared.last += 1;
        let session = SessionId(shared.last);
        shared.open.insert(session, sender);
        (session, receiver)
    }

    /// This connection is the newest of `agent`, which understands there what `knows` says.
    pub fn name(&self, session: SessionId, agent: AgentId, knows: Knows) {
        self.lock().agents.insert(agent, (session, knows));
    }

    /// A connection ended; what was still to be sent is dropped.
    pub fn close(&self, session: SessionId) {
        let mut shared = self.lock();
        shared.open.remove(&session);
        shared.agents.retain(|_, (newest, _)| *newest != session);
    }

    /// Sends something that depends on no commit, if all of it is understood at the other end of this very connection.
    pub fn send_to(&self, agent: AgentId, message: Outgoing) -> Sent {
        let shared = self.lock();
        let Some((session, knows)) = shared.agents.get(&agent) else { return Sent::Away };
        if matches!(&message, Outgoing::Exec(order) if order.terminal.is_some()) && !knows.terminals {
            return Sent::NotUnderstood;
        }
        let sent = shared.open.get(session).is_some_and(|sender| sender.try_send(message).is_ok());
        if sent { Sent::Yes } else { Sent::Away }
    }

    /// Closes every connection: the agents come back and say what they hold (C3).
    pub fn close_all(&self) {
        for (_, sender) in std::mem::take(&mut self.lock().open) {
            // A full channel needs no word: it ends when its sender is dropped here.
            let _ = sender.try_send(Outgoing::Disconnect);
        }
    }

    /// Whether `agent` has a connection.
    pub fn is_there(&self, agent: AgentId) -> bool {
        self.lock().agents.contains_key(&agent)
    }

    /// How many connections are open.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// Sends what follows from committed changes, one message of a kind a connection.
    pub fn deliver(&self, effects: Vec<Effect>) {
        let mut parcels = BTreeMap::<SessionId, Parcel>::new();
        let mut forget = Vec::new();
        for effect in effects {
            match effect {
                Effect::Lease { session, lease, .. } => parcels.entry(session).or_default().leases.push(lease),
                Effect::Stop { session, token, .. } => parcels.entry(session).or_default().stops.push(token),
                Effect::Acknowledge { session, seq, .. } => {
                    let parcel = parcels.entry(session).or_default();
                    parcel.acknowledge = parcel.acknowledge.max(Some(seq));
                }
                Effect::HeartbeatAck { session, stamp, .. } => {
                    parcels.entry(session).or_default().heartbeat = Some(stamp);
                }
                Effect::Disconnect { session, .. } => parcels.entry(session).or_default().disconnect = true,
                Effect::Forget(job) => forget.push(job),
            }
        }
        if !forget.is_empty()
            && let Err(error) = self.forget.try_send(forget)
        {
            tracing::warn!(%error, "logs of deleted jobs stay until the next start");
        }
        if !parcels.is_empty() {
            self.send(parcels);
        }
    }

    fn send(&self, parcels: BTreeMap<SessionId, Parcel>) {
        let mut shared = self.lock();
        for (session, parcel) in parcels {
            // Gone already: the agent will attach again and be told then.
            let Some(sender) = shared.open.get(&session) else { continue };
            let ends = parcel.disconnect;
            let full = parcel.into_messages().any(|message| sender.try_send(message).is_err());
            if full {
                tracing::warn!(%session, "an agent does not take what is sent; its connection is closed");
            }
            if full || ends {
                shared.open.remove(&session);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Every change under this lock is one map operation; there is no half-made state to fear.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parcel {
    fn into_messages(self) -> impl Iterator<Item = Outgoing> {
        let leases = (!self.leases.is_empty()).then_some(Outgoing::Leases(self.leases));
        leases
            .into_iter()
            .chain(self.stops.into_iter().map(Outgoing::Stop))
            .chain(self.acknowledge.map(Outgoing::Acknowledge))
            .chain(self.heartbeat.map(Outgoing::HeartbeatAck))
            .chain(self.disconnect.then_some(Outgoing::Disconnect))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_core::{
        id::{AgentId, TaskId},
        record::Job,
        spec::JobSpec,
        state::Stopping,
        time::Timestamp,
    };

    use super::*;

    const AGENT: AgentId = AgentId(1);

    fn lease(session: SessionId, token: u64) -> Effect {
        let empty: Arc<str> = "".into();
        let (key, by, trace_parent) = (Arc::clone(&empty), Arc::clone(&empty), empty);
        let spec = Arc::new(JobSpec::default());
        let job = Arc::new(Job { id: JobId(1), spec, submitted: Timestamp(1), key, by, trace_parent });
        let task = TaskId::new(JobId(1), 0);
        let lease =
            Lease { token: Token(token), task, attempt: 1, group: 0, offset: 0, job, has_inputs: false, memory: None };
        Effect::Lease { agent: AGENT, session, lease }
    }

    fn sessions() -> (Sessions, mpsc::Receiver<Vec<JobId>>) {
        let (forget, forgotten) = mpsc::channel(1);
        (Sessions::new(forget), forgotten)
    }

    fn all(receiver: &mut mpsc::Receiver<Outgoing>) -> Vec<Outgoing> {
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    fn tokens(message: &Outgoing) -> Vec<u64> {
        match message {
            Outgoing::Leases(leases) => leases.iter().map(|lease| lease.token.0).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn one_delivery_is_one_message_of_a_kind_and_a_lease_comes_before_its_stop() {
        let (sessions, _forgotten) = sessions();
        let ((a, mut to_a), (b, mut to_b)) = (sessions.open(), sessions.open());
        assert!(b > a, "a later connection has a higher number");
        let ack = |session, seq| Effect::Acknowledge { agent: AGENT, session, seq };
        let stop = Effect::Stop { agent: AGENT, session: a, token: Token(1), why: Stopping::Cancel };
        let beat = Effect::HeartbeatAck { agent: AGENT, session: a, stamp: 9 };
        sessions.deliver(vec![ack(a, 4), lease(a, 1), lease(b, 3), stop, ack(a, 5), lease(a, 2), beat]);
        let sent = all(&mut to_a);
        assert_eq!(tokens(&sent[0]), [1, 2]);
        assert_eq!(sent[1..], [Outgoing::Stop(Token(1)), Outgoing::Acknowledge(5), Outgoing::HeartbeatAck(9)]);
        let sent = all(&mut to_b);
        assert_eq!((sent.len(), tokens(&sent[0])), (1, vec![3]));
    }

    #[test]
    fn what_is_for_a_closed_connection_is_dropped() {
        let (sessions, _forgotten) = sessions();
        let (session, mut outgoing) = sessions.open();
        sessions.close(session);
        sessions.deliver(vec![lease(session, 1)]);
        assert!(all(&mut outgoing).is_empty());
        assert!(outgoing.is_closed());
    }

    #[test]
    fn a_disconnected_one_gets_what_came_before_and_then_the_end() {
        let (sessions, _forgotten) = sessions();
        let (session, mut outgoing) = sessions.open();
        let ack = Effect::Acknowledge { agent: AGENT, session, seq: 1 };
        sessions.deliver(vec![Effect::Disconnect { agent: AGENT, session }, ack]);
        assert_eq!(all(&mut outgoing), [Outgoing::Acknowledge(1), Outgoing::Disconnect]);
        assert!(outgoing.is_closed());
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn an_agent_that_takes_nothing_loses_its_connection_and_others_do_not() {
        let (sessions, _forgotten) = sessions();
        let ((slow, slow_end), (_quick, _to_quick)) = (sessions.open(), sessions.open());
        for stamp in 0..=SESSION_ROOM as u64 {
            sessions.deliver(vec![Effect::HeartbeatAck { agent: AGENT, session: slow, stamp }]);
        }
        assert!(slow_end.is_closed());
        assert_eq!(sessions.count(), 1);
    }

    #[test]
    fn a_command_with_a_terminal_goes_only_where_terminals_are_known() {
        let (sessions, _forgotten) = sessions();
        let order = |terminal| Outgoing::Exec(v1::ExecOrder { terminal, ..v1::ExecOrder::default() });
        let (plain, on_terminal) = (order(None), order(Some(v1::Terminal::default())));
        assert_eq!(sessions.send_to(AGENT, plain.clone()), Sent::Away);
        for (terminals, expected) in [(true, Sent::Yes), (false, Sent::NotUnderstood)] {
            let (session, mut outgoing) = sessions.open();
            sessions.name(session, AGENT, Knows { terminals });
            assert_eq!(sessions.send_to(AGENT, plain.clone()), Sent::Yes);
            assert_eq!(sessions.send_to(AGENT, on_terminal.clone()), expected);
            assert_eq!(all(&mut outgoing).len(), if terminals { 2 } else { 1 });
        }
    }

    #[test]
    fn jobs_to_forget_go_their_own_way_and_too_many_are_left_for_later() {
        let (sessions, mut forgotten) = sessions();
        sessions.deliver(vec![Effect::Forget(JobId(1)), Effect::Forget(JobId(2))]);
        sessions.deliver(vec![Effect::Forget(JobId(3))]);
        assert_eq!(forgotten.try_recv(), Ok(vec![JobId(1), JobId(2)]));
        assert!(forgotten.try_recv().is_err());
    }

    #[test]
    fn closing_all_says_so_to_each() {
        let (sessions, _forgotten) = sessions();
        let ((_, mut to_a), (_, mut to_b)) = (sessions.open(), sessions.open());
        sessions.close_all();
        assert_eq!((all(&mut to_a), all(&mut to_b)), (vec![Outgoing::Disconnect], vec![Outgoing::Disconnect]));
        assert!(to_a.is_closed() && to_b.is_closed());
    }
}
