//! The way out to agents: one bounded channel a connection, filled only with what is committed.
//!
//! Never waits: an agent that does not take what is sent loses its connection and comes back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_core::{
    event::{Effect, Lease},
    id::{JobId, SessionId, Token},
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
    /// Close the connection; nothing follows.
    Disconnect,
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

    /// A connection ended; what was still to be sent is dropped.
    pub fn close(&self, session: SessionId) {
        self.lock().open.remove(&session);
    }

    /// Closes every connection: the agents come back and say what they hold (C3).
    pub fn close_all(&self) {
        for (_, sender) in std::mem::take(&mut self.lock().open) {
            // A full channel needs no word: it ends when its sender is dropped here.
            let _ = sender.try_send(Outgoing::Disconnect);
        }
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
