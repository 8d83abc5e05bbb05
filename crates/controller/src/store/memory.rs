//! A store that forgets everything with its process, and fails on demand. For tests.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use muster_common::wire::record;
use muster_core::{
    id::Term,
    record::{Key, Piece},
};
use tokio::sync::Notify;

use crate::store::{Batch, Error, Loaded, Outcome, Records, Store};

/// What becomes of one commit.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is fenced.
    Fenced,
    /// It is written, and nobody learns of it.
    UnknownApplied,
    /// It is not written, and nobody learns of it.
    UnknownNotApplied,
    /// It is confirmed when this is notified.
    Slow(Arc<Notify>),
}

/// A store in memory. Clones share it, like two processes with one disk.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    term: u64,
    pieces: BTreeMap<Key, Piece>,
    fates: VecDeque<Fate>,
    failing_loads: u32,
    commits: u64,
}

impl Memory {
    /// What becomes of the next commits that have no fate yet, one after another; all others succeed.
    pub fn script(&self, fates: impl IntoIterator<Item = Fate>) {
        self.lock().fates.extend(fates);
    }

    /// The next `n` loadings fail as a full disk would.
    pub fn fail_loads(&self, n: u32) {
        self.lock().failing_loads = n;
    }

    /// What is kept under `key`.
    pub fn get(&self, key: &Key) -> Option<Piece> {
        self.lock().pieces.get(key).cloned()
    }

    /// All that is kept.
    pub fn pieces(&self) -> Vec<(Key, Piece)> {
        self.lock().pieces.iter().map(|(key, piece)| (key.clone(), piece.clone())).collect()
    }

    /// Keeps this, whatever a controller thinks: somebody tampers with the store.
    pub fn put(&self, key: Key, piece: Piece) {
        self.lock().pieces.insert(key, piece);
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.lock().pieces.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many commits were begun.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Option<Fate> {
        let mut shared = self.lock();
        shared.commits += 1;
        shared.fates.pop_front()
    }
}

impl Shared {
    fn apply(&mut self, term: Term, batch: Batch) -> Outcome {
        if term.0 != self.term {
            return Outcome::Fenced;
        }
        self.pieces.extend(batch.puts);
        for key in batch.deletes {
            self.pieces.remove(&key);
        }
        Outcome::Committed
    }
}

#[async_trait]
impl Store for Memory {
    async fn load(&self) -> Result<Loaded, Error> {
        let mut shared = self.lock();
        if shared.failing_loads > 0 {
            shared.failing_loads -= 1;
            let source = std::io::Error::other("a test said so");
            return Err(Error::Io { doing: "read", path: "memory".into(), source });
        }
        shared.term += 1;
        let pieces = shared.pieces.iter().map(|(key, piece)| (key.clone(), piece.clone())).collect();
        Ok(Loaded { term: Term(shared.term), pieces })
    }

    async fn commit(&self, term: Term, batch: Batch) -> Outcome {
        match self.begin() {
            None => self.lock().apply(term, batch),
            Some(Fate::Fenced) => Outcome::Fenced,
            Some(Fate::UnknownNotApplied) => Outcome::Unknown("a test said so".to_owned()),
            Some(Fate::UnknownApplied) => {
                self.lock().apply(term, batch);
                Outcome::Unknown("a test said so".to_owned())
            }
            Some(Fate::Slow(notify)) => {
                notify.notified().await;
                self.lock().apply(term, batch)
            }
        }
    }

    async fn snapshot(&self) -> Result<Records, Error> {
        let shared = self.lock();
        let mut all: Vec<_> =
            shared.pieces.iter().map(|(key, piece)| (record::key_bytes(key), record::encode(piece, key))).collect();
        all.sort();
        Ok(Records { term: Term(shared.term), all })
    }

    async fn close(&self) {}
}
