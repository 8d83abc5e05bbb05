//! Working folders for tasks that name none: each task has one to itself, empty when it starts.
//!
//! A folder that was left empty serves the next task, because making and removing one costs more
//! than looking into it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::warn;

/// Empty folders that are kept for the next tasks.
const SPARE_MAX: usize = 256;

/// Folders of failed attempts that are kept; older ones go.
const KEPT_MAX: usize = 100;

/// The folder of one attempt.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    /// It was made for this attempt, which may be another user's, and serves no other.
    pub(crate) is_private: bool,
}

impl Folder {
    /// Whether the next task may have it as it is.
    pub(crate) fn is_clean(&self) -> bool {
        !self.is_private && Scratch::is_empty(&self.path)
    }
}

/// All scratch folders of this agent.
pub(crate) struct Scratch {
    root: PathBuf,
    kept: PathBuf,
    made: AtomicU64,
    spare: Mutex<Vec<PathBuf>>,
}

impl Scratch {
    /// Under `root`, which is emptied: what is there is of an earlier run. What is kept of failed attempts is moved to
    /// `kept`, on the same file system.
    pub(crate) fn new(root: PathBuf, kept: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&root)?,
        }
        std::fs::create_dir_all(&kept)?;
        Ok(Self { root, kept, made: AtomicU64::new(0), spare: Mutex::default() })
    }

    /// An empty folder, which nobody had before if it is to be private.
    pub(crate) fn take(&self, is_private: bool) -> io::Result<Folder> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(path) = (!is_private).then(spare).flatten() {
            return Ok(Folder { path, is_private });
        }
        let path = self.root.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&path)?;
        Ok(Folder { path, is_private })
    }

    /// Keeps what an attempt left, under `name`. Returns where; none: it left nothing. Blocks.
    pub(crate) fn keep(&self, folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
        if Self::is_empty(folder) {
            return Ok(None);
        }
        let to = self.kept.join(name);
        std::fs::rename(folder, &to)?;
        self.forget_oldest();
        Ok(Some(to))
    }

    fn forget_oldest(&self) {
        let Ok(entries) = std::fs::read_dir(&self.kept) else { return };
        let changed = |path: &Path| std::fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
        let mut kept: Vec<_> = entries.flatten().map(|entry| (changed(&entry.path()), entry.path())).collect();
        kept.sort_unstable();
        let many = kept.len().saturating_sub(KEPT_MAX);
        for (_, old) in kept.drain(..many) {
            self.clear(&old);
        }
    }

    /// Takes back a folder of which nothing was made.
    pub(crate) fn put_back(&self, folder: Folder) {
        match folder.is_clean() {
            true => self.put_empty(folder.path),
            false => self.clear(&folder.path),
        }
    }

    /// Takes back a folder that is empty, for the next task.
    pub(crate) fn put_empty(&self, folder: PathBuf) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(folder);
        } else {
            drop(spare);
            self.clear(&folder);
        }
    }

    /// Removes a folder and what the task left in it, of any size: not for a thread that others wait for.
    pub(crate) fn clear(&self, folder: &Path) {
        if let Err(error) = std::fs::remove_dir_all(folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(folder = %folder.display(), %error, "could not remove what a task left in its scratch folder");
        }
    }

    /// Whether the task left nothing in it.
    pub(crate) fn is_empty(folder: &Path) -> bool {
        std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
    }
}
