//! What tasks wrote, and results too large for the store: kept in the object store, read while still in memory.

use std::{path::Path, sync::Arc, time::Duration};

use muster_common::clock::Clock;
use muster_core::id::JobId;
use object_store::{ObjectStore, local::LocalFileSystem};
use tokio_util::sync::CancellationToken;

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
}

/// All logs. Clones share them.
#[derive(Clone, Debug)]
pub struct LogStore;

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
    pub async fn open(_objects: Arc<dyn ObjectStore>, _config: Config, _clock: Clock) -> Result<Self, Error> {
        Ok(Self)
    }

    /// Stores what gathers in memory until cancelled, and then all that is left. To be spawned once.
    pub async fn run(self, _cancel: CancellationToken) {}

    /// Deletes all logs and stored results of a job.
    pub async fn forget(&self, _job: JobId) {}

    /// Deletes what belongs to no job that `keep` knows: leftovers of a stop between the deletion
    /// of a job and that of its logs. For the start, when the view is complete.
    pub async fn keep_only(&self, _keep: impl Fn(JobId) -> bool + Send) {}
}
