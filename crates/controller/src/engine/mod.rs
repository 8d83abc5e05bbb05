//! The order of things: one task that owns all state, takes events, commits what they changed, and only then acts.
//!
//! There is no second writer and no second path (C1, C2, C3).

mod alarm;
mod commit;
mod handle;
mod reload;
mod turn;

#[cfg(test)]
mod tests;

use std::sync::{Arc, atomic::AtomicU64};

use muster_common::clock::Clock;
use muster_core::{
    cluster::{Config, RecoverError},
    event::Refusal,
};
use tokio::sync::mpsc;

pub use self::{handle::Handle, turn::Engine};
use crate::{
    dispatch::Sessions,
    store::{self, Store},
    view::View,
};

/// Messages that wait for the engine. Callers wait for room, which is how load is pushed back to them.
const INBOX: usize = 4096;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// It was looked at and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store has no room for more work; nothing changed.
    #[error("{0}")]
    Full(String),
    /// Nobody knows what became of it; ask again, with the same key if it has one.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Why the state cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What it holds makes no sense. Nothing was written.
    #[error("the store contradicts itself; keep a copy, and restore it from a backup")]
    Recover(#[from] RecoverError),
    /// The thread that took it up died.
    #[error("taking up the store was cut short")]
    CutShort(#[from] tokio::task::JoinError),
}

impl StartError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => error.may_pass(),
            Self::Recover(_) | Self::CutShort(_) => false,
        }
    }
}

/// Why the engine ended. Everything that waited was answered with "unavailable".
#[derive(Debug)]
pub enum Ended {
    /// It was told to, and committed all it had decided.
    Stopped,
    /// A newer term has begun: another controller leads.
    Fenced,
    /// The store's state is unknown and it cannot be loaded again.
    Broken(StartError),
}

/// What an engine works with.
#[derive(Clone)]
pub struct Parts {
    /// What is true after a crash.
    pub store: Arc<dyn Store>,
    /// The way out to agents.
    pub sessions: Sessions,
    /// What readers see.
    pub view: View,
    /// The time.
    pub clock: Clock,
    /// What an operator may set.
    pub config: Config,
    /// How often an agent is to say that it lives.
    pub heartbeat: std::time::Duration,
}

/// Takes up what the store holds, shows it in the view, and makes an engine that is ready to run.
///
/// # Errors
/// See [`StartError`].
pub async fn start(parts: Parts) -> Result<(Handle, Engine), StartError> {
    let taken = reload::take_up(&parts).await?;
    let (sender, inbox) = mpsc::channel(INBOX);
    let shared = Arc::new(handle::Shared {
        term: AtomicU64::new(0),
        lease_ttl: parts.config.lease_ttl,
        heartbeat: parts.heartbeat,
    });
    let handle = Handle { sender, shared: Arc::clone(&shared) };
    Ok((handle, Engine::new(parts, shared, inbox, taken)))
}
