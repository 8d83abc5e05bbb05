//! The way in for one agent's connection: what it sends, and what it is told about that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_common::proto::v1::{LogAck, LogBatch};
use tokio::sync::Notify;

use crate::logs::{Error, LogStore};

/// What one connection is to be told, by token. A newer word replaces an older one about the same attempt, so that
/// this never holds more than one a live attempt, however slowly it is read.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    acks: Mutex<BTreeMap<u64, LogAck>>,
    some: Notify,
}

impl Mailbox {
    /// Says how far an attempt's frames have come.
    pub(super) fn note(&self, token: u64, received: u64, kept: u64) {
        self.lock().insert(token, LogAck { token, received, kept });
        self.some.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, LogAck>> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One agent's connection.
#[derive(Clone, Debug)]
pub struct Source {
    store: LogStore,
    mailbox: Arc<Mailbox>,
}

impl Source {
    pub(super) fn new(store: LogStore) -> Self {
        Self { store, mailbox: Arc::default() }
    }

    /// Takes frames; waits while too much is in memory. Frames that are here already are dropped and acknowledged.
    ///
    /// # Errors
    /// Frames before these are missing (the sender is to begin at what is kept; if it has no more either, these are
    /// taken when they come again), or the object store cannot be read, or takes nothing for long.
    pub async fn append(&self, batch: LogBatch) -> Result<(), Error> {
        self.store.append(batch, &self.mailbox).await
    }

    /// Tells the agent to forget frames that nobody wants.
    pub fn decline(&self, batch: &LogBatch) {
        let next = batch.first.saturating_add(batch.frames.len() as u64);
        self.mailbox.note(batch.token, next, next);
    }

    /// Waits for something to acknowledge. Cancel safe; for one caller at a time.
    pub async fn acks(&self) -> Vec<LogAck> {
        loop {
            let acks = std::mem::take(&mut *self.mailbox.lock());
            if !acks.is_empty() {
                return acks.into_values().collect();
            }
            self.mailbox.some.notified().await;
        }
    }
}
