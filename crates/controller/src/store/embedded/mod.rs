//! The store of a single machine: one redb file, written by one thread, on disk before it is confirmed.

mod disk;
mod fill;
mod header;
mod pages;
mod table;
mod worker;

#[cfg(test)]
mod tests;

use std::{path::Path, thread};

use async_trait::async_trait;
use muster_common::proto::v1;
use muster_core::id::Term;
use tokio::sync::{Mutex, mpsc, oneshot};

use self::{
    disk::{Disk, Folder},
    worker::{Reading, Request, Worker},
};
use crate::store::{Batch, Error, Loaded, Outcome, Records, Store};

/// One commit is in flight at a time; the rest is for loading and closing.
const REQUESTS: usize = 4;

/// A store in a folder of this machine. The folder is locked until it is closed.
#[derive(Debug)]
pub struct Embedded {
    requests: mpsc::Sender<Request>,
    /// Held by who copies the store: one at a time.
    copying: Mutex<()>,
}

/// A folder that nobody else may use, and in which nothing is open.
#[derive(Debug)]
pub struct Locked(Folder);

impl Locked {
    /// Locks `folder`, which exists, until this is dropped.
    ///
    /// # Errors
    /// Somebody uses its store.
    pub fn new(folder: &Path) -> Result<Self, Error> {
        Folder::lock(folder).map(Self)
    }

    /// Makes a store of these records; on the disk when this returns, and before that not there at all. Blocks.
    ///
    /// # Errors
    /// There is a store already, or the disk refuses.
    pub fn create(&self, records: &Records) -> Result<(), Error> {
        self.0.create_filled(records)
    }
}

impl Embedded {
    /// Opens the store in `folder`, which exists; makes a new one where there is none. Blocks.
    ///
    /// # Errors
    /// See [`Error`]. Nothing that was there is changed then.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let folder = Folder::lock(folder)?;
        Self::start(Box::new(folder))
    }

    /// Where its records have moved, or are about to.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn moved(&self) -> Result<Option<v1::MoveRecord>, Error> {
        self.call(Request::Marked).await?
    }

    /// Notes durably that its records move, or (none) that they stay. Not cancel safe.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn mark_moved(&self, mark: Option<v1::MoveRecord>) -> Result<(), Error> {
        self.call(|reply| Request::Mark(mark, reply)).await?
    }

    fn start(disk: Box<dyn Disk>) -> Result<Self, Error> {
        let path = disk.path().to_owned();
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let worker = Worker::open(disk)?;
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run(receiver))
            .map_err(|source| Error::Io { doing: "start a thread for", path, source })?;
        Ok(Self { requests, copying: Mutex::default() })
    }

    async fn call<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn load(&self) -> Result<Loaded, Error> {
        self.call(Request::Load).await?
    }

    async fn commit(&self, term: Term, batch: Batch) -> Outcome {
        let outcome = self.call(|reply| Request::Commit(term, batch, reply)).await;
        outcome.unwrap_or_else(|error| Outcome::Unknown(error.to_string()))
    }

    async fn snapshot(&self) -> Result<Records, Error> {
        let _one_at_a_time = self.copying.lock().await;
        let (mut records, mut which) = (Records::default(), Reading::First);
        loop {
            let (term, page) = self.call(|reply| Request::Page(which, reply)).await??;
            if page.is_empty() {
                records.term = Term(term);
                return Ok(records);
            }
            records.all.extend(page);
            which = Reading::Next;
        }
    }

    async fn close(&self) {
        // Already closed is closed.
        let _ = self.call(Request::Close).await;
    }
}
