//! Brings a segment to the disk and then deletes those before it, on a thread of its own: a disk that is busy for seconds
//! must not keep the loop that says that we live.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use super::file;

/// What brings a file to the disk.
pub(super) type Sync = Arc<dyn Fn(&File) -> io::Result<()> + Send + std::marker::Sync>;

/// One thread at a time, for the newest segment that there is when the last one has ended. It ends by itself; what it did
/// not come to is done at the next start.
pub(super) struct Settler {
    folder: PathBuf,
    sync: Sync,
    /// A segment that may not be on disk; those before it stand.
    due: Option<u64>,
    busy: Option<(u64, JoinHandle<io::Result<()>>)>,
}

impl Settler {
    pub(super) fn new(folder: PathBuf, sync: Sync) -> Self {
        Self { folder, sync, due: None, busy: None }
    }

    /// This one is the newest from now on.
    pub(super) fn begin(&mut self, number: u64) {
        self.due = Some(number);
        self.start();
    }

    /// Goes on with what is due. The error is that of segment `newest`, which may not be believed then; one that was
    /// replaced meanwhile matters to nobody.
    pub(super) fn go_on(&mut self, newest: u64) -> io::Result<()> {
        let Some((number, thread)) = self.busy.take_if(|(_, thread)| thread.is_finished()) else { return Ok(()) };
        let settled = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs it panicked")));
        self.start();
        if number == newest { settled } else { Ok(()) }
    }

    fn start(&mut self) {
        if self.busy.is_some() {
            return;
        }
        let Some(number) = self.due.take() else { return };
        let (folder, sync) = (self.folder.clone(), Arc::clone(&self.sync));
        let work = move || settle(&folder, number, &*sync);
        match thread::Builder::new().name("muster-journal".to_owned()).spawn(work) {
            Ok(thread) => self.busy = Some((number, thread)),
            // No thread is to be had: the old segments stand until the next one is begun.
            Err(error) => tracing::debug!(%error, "a journal segment is synced later"),
        }
    }
}

impl fmt::Debug for Settler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settler").field("due", &self.due).field("busy", &self.busy).finish_non_exhaustive()
    }
}

fn settle(folder: &Path, number: u64, sync: &dyn Fn(&File) -> io::Result<()>) -> io::Result<()> {
    sync(&OpenOptions::new().append(true).open(file::path(folder, number))?)?;
    // Its name, too; not everywhere can a folder be opened.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all()?;
    }
    file::delete_before(folder, number);
    Ok(())
}
