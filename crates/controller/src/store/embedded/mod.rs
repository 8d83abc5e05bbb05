//! The store of a single machine: one redb file, written by one thread, on disk before it is confirmed.

mod disk;
mod header;
mod table;
mod worker;

#[cfg(test)]
mod tests;

use std::{path::Path, thread};

use async_trait::async_trait;
use muster_core::id::Term;
use tokio::sync::{mpsc, oneshot};

use self::{
    disk::{Disk, Folder},
    worker::{Request, Worker},
};
use crate::store::{Batch, Error, Loaded, Outcome, Store};

/// One commit is in flight at a time; the rest is for loading and closing.
const REQUESTS: usize = 4;

/// A store in a folder of this machine. The folder is locked until it is closed.
#[derive(Debug)]
pub struct Embedded {
    requests: mpsc::Sender<Request>,
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

    fn start(disk: Box<dyn Disk>) -> Result<Self, Error> {
        let path = disk.path().to_owned();
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let worker = Worker::open(disk)?;
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run(receiver))
            .map_err(|source| Error::Io { doing: "start a thread for", path, source })?;
        Ok(Self { requests })
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

    async fn close(&self) {
        // Already closed is closed.
        let _ = self.call(Request::Close).await;
    }
}
