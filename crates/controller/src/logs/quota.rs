//! Keeps logs below their quota: the oldest go first, those of live attempts last, and what is gone leaves a word.

use std::sync::atomic::Ordering;

use muster_core::id::JobId;

use crate::logs::{
    Error, LogStore, Slot,
    job::{State, Stored},
    segment::Run,
};

/// Which segments may go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those of ended attempts.
    Ended,
    /// All: the disk matters more.
    All,
}

impl LogStore {
    pub(super) async fn keep_quota(&self) {
        for which in [Which::Ended, Which::All] {
            if !self.is_over_quota() {
                return;
            }
            if let Err(error) = self.remove_oldest(which).await {
                tracing::warn!(%error, "logs over their quota could not be removed; will try again");
                return;
            }
        }
    }

    fn is_over_quota(&self) -> bool {
        self.shared.stored.load(Ordering::Relaxed) > self.shared.config.quota_bytes
    }

    async fn remove_oldest(&self, which: Which) -> Result<(), Error> {
        let ids: Vec<_> = self.jobs().keys().copied().collect();
        for id in ids {
            for (seq, stored) in self.bodies(id) {
                if !self.is_over_quota() {
                    return Ok(());
                }
                self.remove(id, seq, stored, which).await?;
            }
        }
        Ok(())
    }

    /// The segments of a job that have a body, oldest first.
    fn bodies(&self, id: JobId) -> Vec<(u32, Stored)> {
        let jobs = self.jobs();
        let all = match jobs.get(&id) {
            Some(Slot::Cold(stored)) => stored.clone(),
            Some(Slot::Warm(job)) => job.lock().stored.iter().map(|(seq, stored)| (*seq, *stored)).collect(),
            None => Vec::new(),
        };
        all.into_iter().filter(|(_, stored)| !stored.removed).collect()
    }

    async fn remove(&self, id: JobId, seq: u32, stored: Stored, which: Which) -> Result<(), Error> {
        let runs = match self.shared.shelf.index(id, seq, stored.size).await? {
            Ok(footer) if !footer.removed.is_empty() => {
                self.note_removed(id, seq, stored.size, stored.size);
                return Ok(());
            }
            Ok(footer) => footer.runs,
            Err(damage) => {
                tracing::warn!(job = %id, seq, %damage, "a log segment that cannot be read is removed: over quota");
                Vec::new()
            }
        };
        if which == Which::Ended && !self.are_over(id, &runs) {
            return Ok(());
        }
        let gib = self.shared.config.quota_bytes as f64 / f64::from(1 << 30);
        let why = format!("removed: all logs together were over their quota of {gib:.1} GiB");
        let size = self.shared.shelf.remove_body(id, seq, runs, &why).await?;
        self.note_removed(id, seq, stored.size, size);
        Ok(())
    }

    /// Whether nobody adds to these attempts: they said so, or their job was not heard of for a while.
    fn are_over(&self, id: JobId, runs: &[Run]) -> bool {
        let jobs = self.jobs();
        let over = |state: &State| runs.iter().all(|run| state.is_over((run.task, run.attempt)));
        match jobs.get(&id) {
            Some(Slot::Warm(job)) => over(&job.lock()),
            Some(Slot::Cold(_)) | None => true,
        }
    }

    fn note_removed(&self, id: JobId, seq: u32, before: u64, size: u64) {
        let entry = Stored { size, removed: true };
        match self.jobs().get_mut(&id) {
            Some(Slot::Cold(stored)) => {
                stored.iter_mut().filter(|(at, _)| *at == seq).for_each(|(_, stored)| *stored = entry);
            }
            Some(Slot::Warm(job)) => _ = job.lock().stored.insert(seq, entry),
            // Forgotten meanwhile, and counted down there.
            None => return,
        }
        self.shared.stored.fetch_add(size, Ordering::Relaxed);
        self.shared.stored.fetch_sub(before, Ordering::Relaxed);
    }
}
