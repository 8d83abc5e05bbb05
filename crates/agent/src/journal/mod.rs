//! What an agent must not forget when its process dies: leases, processes, reports (A2).
//!
//! Segments `journal-<n>.log` in the data folder; each begins with all that was known when it was
//! begun, so only the newest counts. Writes go to the page cache without fsync: they survive
//! `kill -9` of the agent, which is what they are for. When the power fails, the attempts died too;
//! their leases expire, and a report that was neither written back nor acknowledged is one attempt
//! repeated, as for any lost agent. A new segment is synced before the old ones are deleted, both on a thread of their own;
//! until then it counts if all is there that it begins with, so whoever is killed in between has lost nothing.

mod codec;
mod file;
mod replay;
mod settle;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;

use self::settle::{Settler, Sync};
use crate::{
    link::chain,
    supervisor::{Entry, Memory},
};

/// A segment past this is replaced, so that neither disk nor the next start grows without end.
const SEGMENT_MAX: u64 = 4 << 20;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system says no.
    #[error("failed to use the journal {path}; the agent's data folder must be readable and writable", path = .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It belongs to a newer build. It is not touched.
    #[error("the journal {path} has version {found} and this build knows up to {known}; start a newer muster-agent", path = .path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What this build knows.
        known: u32,
    },
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    number: u64,
    /// None: the newest segment misses something, and only a new one is right again.
    file: Option<File>,
    size: u64,
    /// The size after which it is replaced; grows with what must be kept.
    limit: u64,
    /// Records that are not written yet.
    batch: Vec<u8>,
    settler: Settler,
}

impl Journal {
    /// Opens the journal in `folder` and gives back what it remembers. Damage is logged, set aside
    /// as `*.damaged`, and what can be read is kept. On a full disk it is behind from the beginning, and what there is on
    /// disk stands until [`Journal::renew`] succeeds: an agent that does not start lets everything end that it left.
    ///
    /// # Errors
    /// The folder cannot be read, nothing can be written where nothing is, or the journal belongs to a newer build.
    pub fn open(folder: &Path) -> Result<(Self, Memory), Error> {
        Self::open_with(folder, Arc::new(File::sync_data))
    }

    fn open_with(folder: &Path, sync: Sync) -> Result<(Self, Memory), Error> {
        let segments = file::segments(folder)?;
        let (memory, is_whole) = file::load(&segments)?;
        let number = segments.last().map_or(0, |(number, _)| *number);
        let settler = Settler::new(folder.to_owned(), sync);
        let (folder, batch) = (folder.to_owned(), Vec::new());
        let mut journal = Self { folder, number, file: None, size: 0, limit: 0, batch, settler };
        match journal.renew(&memory) {
            Err(error) if is_whole => {
                let error = chain(&error);
                warn!(%error, "the journal cannot be begun anew; a restart now would lose track of attempts");
            }
            begun => begun?,
        }
        Ok((journal, memory))
    }

    /// Adds a record to the batch.
    pub fn add(&mut self, entry: &Entry) {
        codec::append(entry, &mut self.batch);
    }

    /// Whether there is anything to write.
    pub fn is_clean(&self) -> bool {
        self.batch.is_empty() && self.file.is_some()
    }

    /// Whether a new segment is due, because this one is long or because a write failed.
    pub fn wants_memory(&self) -> bool {
        self.file.is_none() || self.size > self.limit
    }

    /// Writes the batch; one call to the system. When that fails the journal is behind until
    /// [`Journal::renew`] succeeds, and nothing is lost while the process lives.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn write(&mut self) -> Result<(), Error> {
        if let Err(source) = self.settler.go_on(self.number) {
            // The disk did not take it, and what is in memory of it may be gone: another one is due.
            self.file = None;
            self.batch.clear();
            return Err(Error::Io { path: file::path(&self.folder, self.number), source });
        }
        let Some(file) = self.file.as_mut().filter(|_| !self.batch.is_empty()) else {
            // What is behind is made good from memory, not from the batch.
            self.batch.clear();
            return Ok(());
        };
        let written = file.write_all(&self.batch);
        let size = u64::try_from(self.batch.len()).unwrap_or(u64::MAX);
        self.batch.clear();
        // One burst must not hold its memory for ever.
        self.batch.shrink_to(64 << 10);
        match written {
            Ok(()) => {
                self.size = self.size.saturating_add(size);
                Ok(())
            }
            Err(source) => {
                self.file = None;
                Err(Error::Io { path: file::path(&self.folder, self.number), source })
            }
        }
    }

    /// Begins a new segment with all that must be remembered. Waits for no disk; the old ones are deleted later.
    ///
    /// # Errors
    /// The disk is full or broken; the old segment stands and a later call may succeed.
    pub fn renew(&mut self, memory: &Memory) -> Result<(), Error> {
        let (file, size) = file::begin(&self.folder, self.number + 1, memory)?;
        self.file = Some(file);
        self.number += 1;
        self.batch.clear();
        self.size = size;
        self.limit = SEGMENT_MAX.max(size.saturating_mul(2));
        self.settler.begin(self.number);
        Ok(())
    }
}
