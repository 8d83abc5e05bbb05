//! The thread that owns the file: takes requests one after another, and closes the file after any error.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use muster_common::proto::v1;
use muster_core::id::Term;
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use crate::store::{
    Batch, Error, Loaded, Outcome,
    embedded::{
        disk::{self, Disk},
        fill,
        pages::{self, Page},
        table::{self, Written},
    },
};

/// One thing for the thread to do.
pub(super) enum Request {
    Load(oneshot::Sender<Result<Loaded, Error>>),
    Commit(Term, Batch, oneshot::Sender<Outcome>),
    /// The next page of all records, or the first of a new reading; with the term under which they were committed.
    Page(Reading, oneshot::Sender<Result<(u64, Page), Error>>),
    /// Where it has moved, if it has.
    Marked(oneshot::Sender<Result<Option<v1::MoveRecord>, Error>>),
    Mark(Option<v1::MoveRecord>, oneshot::Sender<Result<(), Error>>),
    Close(oneshot::Sender<()>),
}

/// Which page is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    First,
    Next,
}

/// The file and who may open it again.
pub(super) struct Worker {
    disk: Box<dyn Disk>,
    // None after an error: redb wants to be closed and opened again then, and so do we.
    database: Option<Database>,
    // Who copies the store is at some page of it; closed with the file.
    reading: Option<pages::Reading>,
}

impl Worker {
    pub(super) fn open(mut disk: Box<dyn Disk>) -> Result<Self, Error> {
        let database = guard(disk.path().to_owned(), || disk.open())?;
        Ok(Self { disk, database: Some(database), reading: None })
    }

    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.blocking_recv() {
            // An answer that nobody waits for any more is no reason to stop.
            match request {
                Request::Load(reply) => _ = reply.send(self.load()),
                Request::Commit(term, batch, reply) => _ = reply.send(self.commit(term, batch)),
                Request::Page(which, reply) => {
                    let page = self.page(which);
                    // After the last page, or where nobody wants another, what was read need not be kept.
                    let is_last = page.as_ref().map_or(true, |(_, page)| page.is_empty());
                    if reply.send(page).is_err() || is_last {
                        self.reading = None;
                    }
                }
                Request::Marked(reply) => _ = reply.send(self.with_database(fill::marked)),
                Request::Mark(mark, reply) => _ = reply.send(self.mark(mark.as_ref())),
                Request::Close(reply) => {
                    drop(self);
                    _ = reply.send(());
                    return;
                }
            }
        }
    }

    pub(super) fn load(&mut self) -> Result<Loaded, Error> {
        let path = self.disk.path().to_owned();
        let loaded = guard(path, || {
            // Kept here, not in the closure: a file that is closed while a panic unwinds could end
            // the whole process.
            let database = match &mut self.database {
                Some(database) => database,
                none => none.insert(self.disk.open()?),
            };
            table::load(database, self.disk.as_mut())
        });
        if loaded.is_err() {
            self.give_up();
        }
        loaded
    }

    pub(super) fn commit(&mut self, term: Term, batch: Batch) -> Outcome {
        let Some(database) = &self.database else {
            return Outcome::Unknown("the store is closed after an error".to_owned());
        };
        let path = self.disk.path().to_owned();
        let written = guard(path.clone(), || {
            table::commit(database, term, &batch).map_err(|error| disk::explain(&path, "write", error))
        });
        match written {
            Ok(Written::Durable(commits)) => {
                self.disk.note(commits);
                Outcome::Committed
            }
            Ok(Written::Fenced) => Outcome::Fenced,
            Err(error) => {
                self.give_up();
                Outcome::Unknown(chain(&error))
            }
        }
    }

    fn page(&mut self, which: Reading) -> Result<(u64, Page), Error> {
        let path = self.disk.path().to_owned();
        if which == Reading::First {
            self.reading = Some(self.with_database(pages::Reading::begin)?);
        }
        // The file was closed after an error; who copies begins anew.
        let reading = self.reading.as_mut().ok_or(Error::Closed)?;
        guard(path.clone(), || Ok((reading.term(), reading.page(&path)?)))
    }

    fn mark(&mut self, mark: Option<&v1::MoveRecord>) -> Result<(), Error> {
        self.with_database(|database, path| {
            fill::mark(database, mark).map_err(|error| disk::explain(path, "write", error))
        })
    }

    fn with_database<T>(&self, work: impl FnOnce(&Database, &Path) -> Result<T, Error>) -> Result<T, Error> {
        let path = self.disk.path().to_owned();
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        guard(path.clone(), || work(database, &path))
    }

    /// Closes the file; the next loading opens it.
    fn give_up(&mut self) {
        self.reading = None;
        let database = self.database.take();
        // redb writes when it closes, which can fail as everything else can on a damaged file.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(database)));
    }
}

/// Turns a panic of redb over a damaged file into an error. What `work` touched is closed by the
/// caller afterwards, so that nothing half-made is used again.
fn guard<T>(path: PathBuf, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(Error::Damaged { path, what: format!("reading it failed an internal check ({text})") })
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
