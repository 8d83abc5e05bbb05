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

/// All scratch folders of this agent.
pub(crate) struct Scratch {
    root: PathBuf,
    made: AtomicU64,
    spare: Mutex<Vec<PathBuf>>,
}

impl Scratch {
    /// Under `root`, which is emptied: what is there is of an earlier run.
    pub(crate) fn new(root: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&root)?,
        }
        Ok(Self { root, made: AtomicU64::new(0), spare: Mutex::default() })
    }

    /// An empty folder.
    pub(crate) fn take(&self) -> io::Result<PathBuf> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(folder) = spare {
            return Ok(folder);
        }
        let folder = self.root.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder)?;
        Ok(folder)
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
