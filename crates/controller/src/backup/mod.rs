//! A copy of a whole installation in one file: taken while it runs, checked, and made an installation again.

mod file;
mod restore;
mod take;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use muster_common::wire;
use muster_core::cluster::RecoverError;

#[cfg(feature = "etcd")]
pub use self::restore::into_etcd;
pub use self::{
    file::{Entry, Reader, Writer},
    restore::{Contents, Restored, check, into_folder},
    take::Source,
};
use crate::{logs, store};

/// Why a backup cannot be taken, believed or made an installation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// It is something else.
    #[error("{} is not a backup of Muster; nothing was changed", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error("{} was written by {by}, in a format that this version does not read; nothing was changed: use that version or a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Who wrote it.
        by: String,
    },
    /// It is not what was written.
    #[error("{} is torn or damaged: {what}; nothing was changed: use another backup", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// What it holds makes no sense together.
    #[error("{} holds records that contradict one another; nothing was changed: use another backup", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Which.
        source: RecoverError,
    },
    /// A folder that should be empty is not.
    #[error("{} is not empty: it holds `{found}`; nothing was changed: choose an empty folder{hint}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// Something in it.
        found: String,
        /// What else may be done.
        hint: &'static str,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The object store refused.
    #[error(transparent)]
    Logs(#[from] logs::Error),
    /// Nobody takes what is read.
    #[error("whoever asked for the backup went away")]
    Gone,
}

impl Error {
    /// What a record that cannot be read means for its file.
    fn of_record(path: &std::path::Path, by: &str, error: &wire::Error) -> Self {
        let path = path.to_owned();
        match error {
            wire::Error::Newer { .. } => Self::Newer { path, by: by.to_owned() },
            other => Self::Torn { path, what: other.to_string() },
        }
    }
}
