//! Brings what gathers in memory to the object store: one task for all logs, no timer an attempt.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, stream};
use muster_core::{
    id::JobId,
    time::{Mono, micros},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::logs::{Error, LogStore, Slot, job::JobLog, segment::Segment};

/// Jobs that are stored at one time: enough for the disk to write many files with one flush of its journal.
const STORED_AT_ONCE: usize = 16;
/// Less than this in one segment is a trickle, which is stored ever less often.
const TRICKLE_BYTES: usize = 64 * 1024;
/// A job of which nothing was heard for this long is put out of memory.
const IDLE: Duration = Duration::from_secs(10);
/// After a failure; doubled with each further one, up to the time of a trickle.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What is not stored by then when we stop is left to the agents, who have it still.
const STOP_WITHIN: Duration = Duration::from_secs(10);

impl LogStore {
    /// Stores what gathers in memory until cancelled, and then all that is left. To be spawned once.
    pub async fn run(self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.shared.wake.notified() => {}
                () = sleep(self.plan()) => {}
            }
            let due = self.take_due();
            self.store_all(due).await;
            self.keep_quota().await;
            self.put_away(self.shared.clock.mono());
        }
        if timeout(STOP_WITHIN, self.flush()).await.is_err() {
            tracing::warn!("logs in memory were not stored in time; agents will send them again");
        }
    }

    /// Stores everything that is in memory now.
    pub async fn flush(&self) {
        let all = std::mem::take(&mut *self.dirty()).into_keys().collect();
        self.store_all(all).await;
    }

    /// How long nothing is due.
    fn plan(&self) -> Duration {
        let now = self.shared.clock.mono();
        // Under the lock, so that `schedule` compares with the plan that follows what it adds.
        let dirty = self.dirty();
        let earliest = dirty.values().min().copied().unwrap_or(Mono(u64::MAX));
        let until = earliest.min(now.after(IDLE));
        self.shared.planned.store(until.0, Ordering::Relaxed);
        drop(dirty);
        until.since(now)
    }

    /// The jobs that are to be stored now: whose time has come, or the largest when memory is short.
    fn take_due(&self) -> Vec<JobId> {
        let now = self.shared.clock.mono();
        let mut due: Vec<_> = self.dirty().extract_if(.., |_, at| *at <= now).map(|(job, _)| job).collect();
        if self.shared.buffered.load(Ordering::Relaxed) > self.shared.config.buffer_bytes {
            due.extend(self.largest());
            due.sort_unstable();
            due.dedup();
        }
        due
    }

    /// The jobs that hold the most memory, together half of all.
    fn largest(&self) -> Vec<JobId> {
        let warm: Vec<_> = self.warm();
        let mut sizes: Vec<_> = warm.iter().map(|(id, job)| (job.lock().buffered(), *id)).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let half = sizes.iter().map(|(size, _)| size).sum::<usize>() / 2;
        let mut taken = 0;
        let wanted = sizes.into_iter().take_while(|(size, _)| {
            let more = taken <= half && *size > 0;
            taken += size;
            more
        });
        wanted.map(|(_, id)| id).collect()
    }

    async fn store_all(&self, jobs: Vec<JobId>) {
        let store = |id: JobId| async move {
            let Some(job) = self.known(id) else { return };
            if let Err(error) = self.store_job(id, &job).await {
                self.put_off(id, &job, &error);
            }
        };
        stream::iter(jobs).for_each_concurrent(STORED_AT_ONCE, store).await;
    }

    /// Stores a job's segments in order: an acknowledged frame must never stand behind one that is not stored.
    async fn store_job(&self, id: JobId, job: &Arc<JobLog>) -> Result<(), Error> {
        let _one_at_a_time = job.storing.lock().await;
        job.lock().seal();
        loop {
            let Some(segment) = start(job) else { return Ok(()) };
            let put = self.shared.shelf.put(id, &segment).await;
            if self.finish(job, &segment, put.as_ref().ok().copied()) {
                // Forgotten while it was on its way.
                return self.shared.shelf.delete(id, segment.seq).await;
            }
            self.shared.stored.fetch_add(put?, Ordering::Relaxed);
        }
    }

    /// A segment is stored and has a size, or it failed; says whether its job was forgotten meanwhile.
    fn finish(&self, job: &JobLog, segment: &Segment, size: Option<u64>) -> bool {
        let mut state = job.lock();
        state.in_flight = None;
        let retired = state.retired;
        if let Some(size) = size {
            state.confirm(segment, size);
            state.failures = 0;
            state.trickles = if is_trickle(segment) { state.trickles.saturating_add(1) } else { 0 };
        }
        drop(state);
        if retired || size.is_some() {
            self.release(segment.body.len());
        }
        retired
    }

    fn put_off(&self, id: JobId, job: &JobLog, error: &Error) {
        let mut state = job.lock();
        if state.failures == 0 {
            tracing::warn!(%error, source = ?std::error::Error::source(error), job = %id, "logs cannot be stored; will try again");
        }
        let wait = RETRY_AFTER.saturating_mul(1 << state.failures.min(5)).min(self.shared.config.flush_trickle);
        state.failures = state.failures.saturating_add(1);
        let at = self.shared.clock.mono().after(wait);
        drop(state);
        self.dirty().insert(id, at);
    }

    /// When a job that has something new in memory is to be stored.
    pub(super) fn due_at(&self, now: Mono, trickles: u32) -> Mono {
        let config = &self.shared.config;
        let wait = config.flush_within.saturating_mul(1 << trickles.min(10)).min(config.flush_trickle);
        now.after(wait)
    }

    /// Has a job stored at `due`, if it is not to be sooner.
    pub(super) fn schedule(&self, id: JobId, due: Mono) {
        let mut dirty = self.dirty();
        let at = dirty.entry(id).or_insert(due);
        *at = due.min(*at);
        if due.0 < self.shared.planned.load(Ordering::Relaxed) {
            self.shared.wake.notify_one();
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        self.shared.buffered.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.room.notify_waiters();
    }

    /// Forgets in memory what is stored and what nobody uses.
    pub(super) fn put_away(&self, now: Mono) {
        let mut jobs = self.jobs();
        jobs.retain(|_, slot| {
            let Slot::Warm(job) = slot else { return true };
            // Only this map can make another one, and it is locked.
            if Arc::strong_count(job) > 1 {
                return true;
            }
            let mut state = job.lock();
            if !state.is_clean() || micros(now.since(state.touched)) < micros(IDLE) {
                return true;
            }
            state.retired = true;
            let stored: Vec<_> = state.stored.iter().map(|(seq, stored)| (*seq, *stored)).collect();
            drop(state);
            let keep = !stored.is_empty();
            *slot = Slot::Cold(stored);
            keep
        });
    }
}

fn start(job: &JobLog) -> Option<Arc<Segment>> {
    let mut state = job.lock();
    let segment = state.sealed.front().cloned();
    state.in_flight = segment.as_ref().map(|segment| segment.seq);
    segment
}

fn is_trickle(segment: &Segment) -> bool {
    segment.body.len() < TRICKLE_BYTES && !segment.runs.iter().any(|run| run.last)
}
