//! What is true after a crash: pieces by key, committed in batches that are fenced by the term (C2).

mod authority;
pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod memory;
mod records;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use muster_core::{
    id::Term,
    record::{Key, Piece},
};

pub use self::{
    authority::Authority,
    records::{Change, Records},
};

/// Where pieces are kept. One engine uses it; nobody else writes.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Takes the store up under a new term, which fences every earlier one, and reads all of it.
    /// After an unknown outcome this starts from what is durable. Not cancel safe: a dropped call
    /// may have begun a term.
    async fn load(&self) -> Result<Loaded, Error>;

    /// Makes all of `batch` durable, or nothing of it. Not cancel safe: a dropped call is an
    /// unknown outcome.
    async fn commit(&self, term: Term, batch: Batch) -> Outcome;

    /// Copies all records as they are at one commit, while commits go on. Not cancel safe.
    async fn snapshot(&self) -> Result<Records, Error>;

    /// Whether this process may still act for the store. Once it may not, nothing that was decided may leave it.
    fn holds(&self) -> bool {
        true
    }

    /// How it is, as far as it is known without asking. Cheap.
    fn gauge(&self) -> Gauge {
        Gauge::default()
    }

    /// Finishes what is under way and gives the store up, so that another process may open it.
    async fn close(&self);
}

/// How a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// What it holds on its disk; 0: not known.
    pub bytes: u64,
    /// Past this, new submissions are refused; 0: it has no limit but the disk.
    pub limit: u64,
    /// How long it took to answer last; none: not known, or it did not.
    pub latency: Option<Duration>,
    /// What a person should see to.
    pub problems: Vec<String>,
}

impl Gauge {
    /// Why nothing new should be taken in; what runs goes on.
    pub fn is_full(&self) -> Option<String> {
        (self.limit > 0 && self.bytes >= self.limit).then(|| {
            let (bytes, limit) = (self.bytes >> 20, self.limit >> 20);
            format!(
                "the store holds {bytes} MiB of its budget of {limit} MiB; what was accepted goes on. Delete finished \
                 jobs by a shorter `retention`, or raise `store_budget` and etcd's own quota"
            )
        })
    }
}

/// All that a store holds.
#[derive(Debug)]
pub struct Loaded {
    /// The term that this loading began.
    pub term: Term,
    /// A job's header comes before its other pieces.
    pub pieces: Vec<(Key, Piece)>,
}

/// What one commit writes. No key is named twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Pieces as they are now.
    pub puts: Vec<(Key, Piece)>,
    /// Pieces that are gone.
    pub deletes: Vec<Key>,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is durable.
    Committed,
    /// Nothing of it was written: a newer term has begun.
    Fenced,
    /// It is durable or it is not; loading tells. Why, for the log.
    Unknown(String),
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("another controller (or `ctl dev`) has the store in {} open{}; stop it, or choose another folder with --data", path.display(), holder(*.pid))]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The other process, where it is known.
        pid: Option<u32>,
    },
    /// Something else lies where the store should be.
    #[error("{} is not a Muster store; nothing was changed: move the file away, or choose another folder with --data", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error("{} has format {found}, and this version of Muster reads up to {known}; nothing was changed: use the newer version again", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// It does not hold what was written to it.
    #[error("{} is damaged: {what}; keep a copy, then restore the folder from a backup, or start anew with another folder (--data)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// Its records are elsewhere now.
    #[error("{}", moved(path, to, *.done))]
    Moved {
        /// The file.
        path: PathBuf,
        /// `etcd://…`
        to: String,
        /// Whether the move is known to be over.
        done: bool,
    },
    /// It is being filled with the records of another, or that was cut short.
    #[error(
        "what lies at {url} is an unfinished copy of {from}, and nothing may run on it; do again what made it \
         (`ctl admin promote` or `restore`), which begins anew, or use the original"
    )]
    Unfinished {
        /// Where.
        url: String,
        /// What was copied.
        from: String,
    },
    /// Something is where nothing should be.
    #[error("{place} is not empty: {found}; nothing was changed: choose an empty place")]
    Occupied {
        /// The folder or address.
        place: String,
        /// What is there.
        found: String,
    },
    /// The operating system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// It is elsewhere, and cannot be reached or refuses.
    #[error("the store at {url} cannot be used")]
    Remote {
        /// Where.
        url: String,
        /// Whether trying again could help without a person.
        may_pass: bool,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another controller leads.
    #[error("another controller leads now")]
    Deposed,
    /// It was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// Whether trying again could help without a person.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Remote { may_pass, .. } => *may_pass,
            Self::InUse { .. }
            | Self::Foreign { .. }
            | Self::Newer { .. }
            | Self::Damaged { .. }
            | Self::Moved { .. }
            | Self::Unfinished { .. }
            | Self::Occupied { .. }
            | Self::Closed
            | Self::Deposed => false,
        }
    }
}

fn moved(path: &Path, to: &str, done: bool) -> String {
    let path = path.display();
    if done {
        format!("{path} has moved to {to} and is not used any more; start with --store {to} (`store` in the file)")
    } else {
        format!(
            "{path} was being moved to {to} when its controller ended, and only the copy there tells whether it has: \
             start muster-controller on it while {to} can be reached, which finds out"
        )
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
