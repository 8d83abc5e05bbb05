//! What tasks wrote, and results too large for the store: kept in the object store, read while still in memory.
//!
//! A job's frames are kept in the order in which they came, in segments that hold all its tasks: ten thousand tasks of
//! one line each are a few objects, and following a job is reading on. A frame is acknowledged as kept when its
//! segment is durable; until then its agent has it as well.

mod flush;
mod intake;
mod job;
mod lines;
mod objects;
mod quota;
mod read;
mod results;
mod segment;
mod shelf;
mod tail;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_common::{clock::Clock, proto::v1::LogBatch};
use muster_core::{id::JobId, time::Mono};
use object_store::{ObjectStore, local::LocalFileSystem};
use tokio::{sync::Notify, time::timeout};

use self::{
    intake::Mailbox,
    job::{JobLog, Stored},
    shelf::Shelf,
};
pub use self::{
    intake::Source,
    lines::{Lines, Pattern},
    read::{Attempts, Piece, Reader, Selection},
    results::{RESULT_MAX, ResultWriter},
};

/// How long a writer waits for room in memory before its connection is given up.
const ROOM_WITHIN: Duration = Duration::from_secs(30);

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of logs kept, all jobs together; the oldest finished ones go first.
    pub quota_bytes: u64,
    /// Bytes held in memory before they are stored, all jobs together.
    pub buffer_bytes: usize,
    /// The longest that frames of a busy or ended attempt wait to be stored.
    pub flush_within: Duration,
    /// The longest that frames of an attempt wait that writes little.
    pub flush_trickle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            quota_bytes: 16 << 30,
            buffer_bytes: 64 << 20,
            flush_within: Duration::from_secs(1),
            flush_trickle: Duration::from_secs(30),
        }
    }
}

/// Why logs or results cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object store refused.
    #[error("the object store failed at `{path}`")]
    Store {
        /// The object.
        path: String,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
    /// Nothing could be stored for so long that memory is full.
    #[error("logs fill the memory kept for them and the object store takes none; see the controller's log")]
    Full,
    /// Frames came before those that stand before them. What is kept was acknowledged.
    #[error("output of task {job}.{task} came with a gap; connect again and begin at what is kept")]
    Gap {
        /// The job.
        job: JobId,
        /// The task.
        task: u32,
    },
    /// A result is larger than is taken.
    #[error("the result is larger than {RESULT_MAX} bytes; leave a file or a link in its place")]
    ResultTooLarge,
}

/// All logs. Clones share them.
#[derive(Clone, Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shelf: Shelf,
    config: Config,
    clock: Clock,
    jobs: Mutex<BTreeMap<JobId, Slot>>,
    /// Jobs with something in memory that is not stored, and when it is to be.
    dirty: Mutex<BTreeMap<JobId, Mono>>,
    /// Until when the flusher sleeps, if it is not woken.
    planned: AtomicU64,
    wake: Notify,
    /// Bytes in memory that are not stored, and where those wait who would add to them.
    buffered: AtomicUsize,
    room: Notify,
    /// Bytes of all segments in the object store.
    stored: AtomicU64,
    /// When anything last came from any agent.
    heard: AtomicU64,
}

/// What is known of one job.
#[derive(Debug)]
enum Slot {
    /// Only which segments it has.
    Cold(Vec<(u32, Stored)>),
    /// Somebody writes or reads.
    Warm(Arc<JobLog>),
}

/// A folder as an object store, which answers when the bytes are on the disk.
///
/// # Errors
/// The folder cannot be used.
pub fn local_objects(folder: &Path) -> Result<Arc<dyn ObjectStore>, Error> {
    let refuse = |source| Error::Store { path: folder.display().to_string(), source };
    Ok(Arc::new(LocalFileSystem::new_with_prefix(folder).map_err(refuse)?.with_fsync(true)))
}

impl LogStore {
    /// Finds what is stored.
    ///
    /// # Errors
    /// The object store cannot be listed.
    pub async fn open(objects: Arc<dyn ObjectStore>, config: Config, clock: Clock) -> Result<Self, Error> {
        let shelf = Shelf { objects };
        let found = shelf.list().await?;
        let stored: u64 = found.values().flatten().map(|(_, stored)| stored.size).sum();
        let jobs = found.into_iter().map(|(id, stored)| (id, Slot::Cold(stored))).collect();
        let shared = Shared {
            shelf,
            config,
            clock,
            jobs: Mutex::new(jobs),
            dirty: Mutex::default(),
            planned: AtomicU64::new(u64::MAX),
            wake: Notify::new(),
            buffered: AtomicUsize::new(0),
            room: Notify::new(),
            stored: AtomicU64::new(stored),
            heard: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The way in for one agent's connection.
    pub fn source(&self) -> Source {
        Source::new(self.clone())
    }

    /// Deletes all logs and stored results of a job.
    pub async fn forget(&self, id: JobId) {
        let slot = self.jobs().remove(&id);
        self.dirty().remove(&id);
        let stored = match slot {
            Some(Slot::Warm(job)) => self.retire(&job),
            Some(Slot::Cold(stored)) => stored,
            None => Vec::new(),
        };
        let freed = stored.iter().map(|(_, stored)| stored.size).sum();
        self.shared.stored.fetch_sub(freed, Ordering::Relaxed);
        if let Err(error) = self.shared.shelf.delete_job(id).await {
            tracing::warn!(%error, job = %id, "logs of a deleted job stay until the next start");
        }
    }

    /// Deletes what belongs to no job that `keep` knows: leftovers of a stop between the deletion
    /// of a job and that of its logs. For the start, when the view is complete.
    pub async fn keep_only(&self, keep: impl Fn(JobId) -> bool + Send) {
        let mut orphans: Vec<_> = self.jobs().keys().copied().filter(|id| !keep(*id)).collect();
        match self.shared.shelf.jobs_with_results().await {
            Ok(found) => orphans.extend(found.into_iter().filter(|id| !keep(*id))),
            Err(error) => tracing::warn!(%error, "stored results cannot be listed"),
        }
        for id in orphans {
            self.forget(id).await;
        }
    }

    /// How long no agent has sent any output.
    pub fn quiet_for(&self) -> Duration {
        self.shared.clock.mono().since(Mono(self.shared.heard.load(Ordering::Relaxed)))
    }

    async fn append(&self, batch: LogBatch, mailbox: &Arc<Mailbox>) -> Result<(), Error> {
        let (id, task) = (JobId(batch.job), batch.task);
        let silent = batch.last && batch.first == 0 && batch.frames.is_empty();
        if silent && self.known(id).is_none() {
            mailbox.note(batch.token, 0, 0);
            return Ok(());
        }
        self.wait_for_room().await?;
        loop {
            let job = self.warm_job(id);
            self.load(id, &job).await?;
            let mut state = job.lock();
            if state.retired {
                continue;
            }
            let now = self.shared.clock.mono();
            state.touched = now;
            self.shared.heard.store(now.0, Ordering::Relaxed);
            let full_before = state.sealed.len();
            let appended = state.append(batch, mailbox);
            let full = state.sealed.len() > full_before;
            self.shared.buffered.fetch_add(appended.bytes, Ordering::Relaxed);
            let due = match (full, appended.hurry) {
                (true, _) => now,
                (false, true) => now.after(self.shared.config.flush_within),
                (false, false) => self.due_at(now, state.trickles),
            };
            let earlier =
                (appended.dirty || appended.hurry) && !state.is_clean() && state.due.is_none_or(|at| due < at);
            if earlier {
                state.due = Some(due);
            }
            drop(state);
            if appended.gap {
                return Err(Error::Gap { job: id, task });
            }
            if earlier {
                self.schedule(id, due);
            }
            job.grown.notify_waiters();
            return Ok(());
        }
    }

    /// Waits while too much is in memory that is not stored. This is what holds back agents that
    /// write faster than the object store takes.
    async fn wait_for_room(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let is_full = || shared.buffered.load(Ordering::Relaxed) > shared.config.buffer_bytes;
        if !is_full() {
            return Ok(());
        }
        let wait = async {
            loop {
                let room = shared.room.notified();
                if !is_full() {
                    return;
                }
                shared.wake.notify_one();
                room.await;
            }
        };
        timeout(ROOM_WITHIN, wait).await.map_err(|_| Error::Full)
    }

    /// Reads how far each attempt of a job had come when it was last in memory.
    async fn load(&self, id: JobId, job: &JobLog) -> Result<(), Error> {
        let load = || async {
            let stored = job.lock().stored.clone();
            for (seq, stored) in stored {
                match self.shared.shelf.index(id, seq, stored.size).await? {
                    Ok(footer) => {
                        let mut state = job.lock();
                        state.recall(&footer.runs);
                        if let Some(stored) = state.stored.get_mut(&seq) {
                            stored.removed = !footer.removed.is_empty();
                        }
                    }
                    Err(damage) => tracing::warn!(job = %id, seq, %damage, "a log segment cannot be read"),
                }
            }
            Ok(())
        };
        job.loaded.get_or_try_init(load).await.map(|_| ())
    }

    /// The job's logs in memory, made if they are not there.
    fn warm_job(&self, id: JobId) -> Arc<JobLog> {
        let mut jobs = self.jobs();
        let slot = jobs.entry(id).or_insert_with(|| Slot::Cold(Vec::new()));
        match slot {
            Slot::Warm(job) => Arc::clone(job),
            Slot::Cold(stored) => {
                let job = Arc::new(JobLog::new(std::mem::take(stored).into_iter().collect()));
                job.lock().touched = self.shared.clock.mono();
                *slot = Slot::Warm(Arc::clone(&job));
                job
            }
        }
    }

    /// The job's logs in memory, if it has any logs at all.
    fn known(&self, id: JobId) -> Option<Arc<JobLog>> {
        let known = self.jobs().contains_key(&id);
        known.then(|| self.warm_job(id))
    }

    /// Every job that is in memory.
    fn warm(&self) -> Vec<(JobId, Arc<JobLog>)> {
        let jobs = self.jobs();
        let warm = jobs.iter().filter_map(|(id, slot)| match slot {
            Slot::Warm(job) => Some((*id, Arc::clone(job))),
            Slot::Cold(_) => None,
        });
        warm.collect()
    }

    fn retire(&self, job: &JobLog) -> Vec<(u32, Stored)> {
        let mut state = job.lock();
        let freed = state.retire();
        let stored = std::mem::take(&mut state.stored).into_iter().collect();
        drop(state);
        self.release(freed);
        job.grown.notify_waiters();
        stored
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobId, Slot>> {
        self.shared.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeMap<JobId, Mono>> {
        self.shared.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
