//! The committed state that readers see: one immutable snapshot after another, sharing all that did not change.
//!
//! Readers never wait for the engine, and the engine never waits for them.

mod snapshot;

use std::sync::Arc;

use arc_swap::ArcSwap;
use muster_core::{
    id::JobId,
    record::{Key, Piece, Summary},
};
use tokio::sync::watch;

pub use self::snapshot::{Group, JobView, Snapshot};

/// What one commit changed.
#[derive(Debug, Default)]
pub struct Update {
    /// Pieces as they are now; none: deleted.
    pub pieces: Vec<(Key, Option<Piece>)>,
    /// Counts as they are now; none: the job is gone.
    pub summaries: Vec<(JobId, Option<Summary>)>,
}

/// The newest snapshot. Clones share it.
#[derive(Clone, Debug)]
pub struct View {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
}

impl Default for View {
    fn default() -> Self {
        Self::new(Snapshot::default())
    }
}

impl View {
    /// A view that begins with `snapshot`.
    pub fn new(snapshot: Snapshot) -> Self {
        let version = watch::Sender::new(snapshot.version);
        Self { shared: Arc::new(Shared { current: ArcSwap::from_pointee(snapshot), version }) }
    }

    /// What is committed now. Hold it no longer than one answer takes: it keeps old pieces alive.
    pub fn load(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// Tells of each new snapshot by its version. Several may pass between two looks.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Shows what a confirmed commit changed. Only the engine calls this, and only it.
    pub fn publish(&self, update: Update) {
        let mut next = Snapshot::clone(&self.shared.current.load());
        next.apply(update);
        self.put(next);
    }

    /// Shows another state altogether: memory was thrown away and loaded again (C3).
    pub fn replace(&self, mut snapshot: Snapshot) {
        snapshot.version = self.shared.current.load().version + 1;
        self.put(snapshot);
    }

    fn put(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.shared.current.store(Arc::new(snapshot));
        self.shared.version.send_replace(version);
    }
}
