//! Keeps what tasks write until the controller has it: one file an attempt, shipped from where it was acknowledged.
//!
//! Never stands in a task's way: the network's speed is not the task's.

mod apart;
mod bulk;
mod frame;
mod mask;
mod rate;
#[cfg(unix)]
mod resume;
mod ship;
mod spool;
mod tail;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use muster_core::id::Token;
use tokio::sync::Notify;
use tracing::{info, warn};

pub use apart::Notice;
pub use bulk::{Bulk, Grpc};
#[cfg(unix)]
pub(crate) use frame::DATA_MAX;
pub use frame::{Head, Stream};
pub(crate) use frame::{Scratch, with_scratch};
pub use mask::Mask;
pub use ship::{Uplink, Wire};
pub use spool::Spool;

/// Of what all attempts may have together, this part is for marks of what is not kept: that is told when nothing else fits.
const MARKS_PART: u64 = 32;

/// How much output this machine keeps.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's folder; `spool/` in it is ours.
    pub data_dir: PathBuf,
    /// Bytes of one attempt, where its spec says nothing.
    pub attempt_limit: u64,
    /// Bytes of all attempts' files together that the controller does not have yet.
    pub total_limit: u64,
    /// Bytes of one attempt in a second, where its spec says nothing; none: no limit.
    pub rate: Option<u64>,
    /// The most that a spec gets of that, whatever it asks for; none: no limit.
    pub rate_max: Option<u64>,
}

impl Config {
    /// The usual limits: 256 MiB an attempt, 4 GiB together, as fast as they come.
    pub fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, attempt_limit: 256 << 20, total_limit: 4 << 30, rate: None, rate_max: None }
    }
}

/// All spools of this agent; cheap to clone.
#[derive(Clone)]
pub struct Spools {
    shared: Arc<Shared>,
}

/// What writers and the shipper share.
pub(crate) struct Shared {
    folder: PathBuf,
    attempt_limit: u64,
    total_limit: u64,
    rate: Option<u64>,
    rate_max: Option<u64>,
    /// Bytes in files, and of what is just being written.
    used: AtomicU64,
    board: Mutex<Board>,
    /// Something is in `Board::news`.
    news: Notify,
    /// An entry was forgotten.
    gone: Notify,
    /// Hears how much room came free with it, if another process counts what is used.
    on_forget: OnceLock<Box<dyn Fn(u64) + Send + Sync>>,
}

#[derive(Default)]
struct Board {
    entries: BTreeMap<Token, Arc<Entry>>,
    news: VecDeque<Arc<Entry>>,
}

/// One attempt that wrote something.
pub(crate) struct Entry {
    head: Head,
    path: PathBuf,
    /// The file's length; always between two records.
    end: AtomicU64,
    /// Records that the disk did not take; read after the file, when the attempt is over.
    memory: Mutex<Vec<u8>>,
    /// The writer is done.
    over: AtomicBool,
    /// It stands in `Board::news`.
    listed: AtomicBool,
    /// The controller has all of it. Changed under the board's lock, so that a writer that is just
    /// saying "over" does not bring it back.
    forgotten: AtomicBool,
}

impl Spools {
    /// Opens the folder; what an earlier agent left there is shipped.
    pub fn open(config: &Config) -> io::Result<Self> {
        let spools = Self::empty(config)?;
        spools.find_leftovers(|_| false)?;
        Ok(spools)
    }

    fn empty(config: &Config) -> io::Result<Self> {
        let folder = config.data_dir.join("spool");
        std::fs::create_dir_all(&folder)?;
        let shared = Shared {
            folder,
            attempt_limit: config.attempt_limit,
            total_limit: config.total_limit,
            rate: config.rate,
            rate_max: config.rate_max,
            used: AtomicU64::new(0),
            board: Mutex::default(),
            news: Notify::new(),
            gone: Notify::new(),
            on_forget: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A writer for one attempt that asks for no more than `limit` in all and `rate` in a second; nothing is made before
    /// its first byte.
    pub fn attempt(&self, head: Head, limit: Option<u64>, rate: Option<u64>) -> Spool {
        let shared = &self.shared;
        let entry = Entry::new(shared.path(head.token), head);
        self.writer(Arc::new(entry), limit, rate)
    }

    fn writer(&self, entry: Arc<Entry>, limit: Option<u64>, rate: Option<u64>) -> Spool {
        let shared = &self.shared;
        let rate = [rate.or(shared.rate), shared.rate_max].into_iter().flatten().min();
        Spool::new(Arc::clone(shared), entry, limit.unwrap_or(shared.attempt_limit), rate)
    }

    /// Ships until `stop`. Run it once.
    pub async fn ship(self, uplink: impl Uplink, stop: tokio_util::sync::CancellationToken) {
        ship::Shipper::new(self.shared).run(&uplink, &stop).await;
    }

    /// Waits until the controller has everything. Cancel safe; give it a limit.
    pub async fn drained(&self) {
        loop {
            let gone = self.shared.gone.notified();
            if self.shared.board().entries.is_empty() {
                return;
            }
            gone.await;
        }
    }

    /// Lists the files of attempts that are over; of the others somebody else tells.
    fn find_leftovers(&self, is_written: impl Fn(Token) -> bool) -> io::Result<()> {
        for file in std::fs::read_dir(&self.shared.folder)?.flatten() {
            let path = file.path();
            // By its name, before it is looked into: one that is just being made has no head yet.
            if token_of(&path).is_none_or(&is_written) {
                continue;
            }
            if let Some(entry) = Entry::leftover(path.clone()) {
                let frame::Head { token, task, attempt } = entry.head;
                let (job, bytes) = (task.job, entry.end());
                info!(%job, %task, attempt, %token, bytes, "output of an earlier run is still to be shipped");
                self.shared.used.fetch_add(entry.size(), Ordering::Relaxed);
                self.shared.list(&Arc::new(entry));
            } else {
                // Never deleted: its writer may be about to begin, or a newer build made it.
                warn!(path = %path.display(), "a file in the spool folder cannot be read; it is left alone");
            }
        }
        Ok(())
    }
}

/// Whose output a file has by its name; none: it is no spool of ours.
fn token_of(path: &Path) -> Option<Token> {
    path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok().map(Token)
}

/// Bytes of a file with so many of records.
fn size_of(end: u64) -> u64 {
    if end == 0 { 0 } else { end + frame::FILE_HEAD as u64 }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, token: Token) -> PathBuf {
        self.folder.join(format!("{token}.log"))
    }

    /// Bytes that may still be written by all, without what is for marks.
    fn room(&self) -> u64 {
        let all = self.total_limit - self.total_limit / MARKS_PART;
        all.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Takes room for up to `most` bytes, and for the `head` that stands before them. Returns for how many there was some;
    /// for none, nothing is taken.
    fn claim(&self, head: u64, most: u64) -> u64 {
        let mut got = 0;
        let _none = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let all = self.total_limit - self.total_limit / MARKS_PART;
            got = all.saturating_sub(used).saturating_sub(head).min(most);
            (got > 0).then(|| used + head + got)
        });
        got
    }

    /// The same for a mark, which is whole or none. Says whether there was room.
    fn claim_mark(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|after| *after <= self.total_limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// So much of what was taken is free again.
    fn give_back(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _never_fails = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The writer appended whole records, for which it took room.
    fn written(&self, entry: &Arc<Entry>, bytes: u64) {
        entry.end.fetch_add(bytes, Ordering::Release);
        self.list(entry);
    }

    /// The writer is done; an attempt that wrote nothing leaves nothing.
    fn over(&self, entry: &Arc<Entry>) {
        entry.over.store(true, Ordering::Release);
        if entry.end() > 0 || !entry.memory().is_empty() {
            self.list(entry);
        }
    }

    fn list(&self, entry: &Arc<Entry>) {
        if entry.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut board = self.board();
        if entry.forgotten.load(Ordering::Relaxed) {
            return;
        }
        board.entries.entry(entry.head.token).or_insert_with(|| Arc::clone(entry));
        board.news.push_back(Arc::clone(entry));
        drop(board);
        self.news.notify_one();
    }

    /// The next entry of which something may be new.
    fn next_news(&self) -> Option<Arc<Entry>> {
        let entry = self.board().news.pop_front()?;
        // Before its length is read: what is appended from here on lists it again.
        entry.listed.store(false, Ordering::Release);
        Some(entry)
    }

    /// The controller has all of it.
    fn forget(&self, entry: &Entry) {
        if let Err(error) = std::fs::remove_file(&entry.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %entry.path.display(), %error, "could not remove a spool file that was shipped");
        }
        self.give_back(entry.size());
        if let Some(tell) = self.on_forget.get() {
            tell(entry.size());
        }
        let mut board = self.board();
        entry.forgotten.store(true, Ordering::Relaxed);
        board.entries.remove(&entry.head.token);
        drop(board);
        self.gone.notify_waiters();
    }
}

impl Entry {
    fn new(path: PathBuf, head: Head) -> Self {
        Self {
            head,
            path,
            end: AtomicU64::new(0),
            memory: Mutex::default(),
            over: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        }
    }

    /// `None`: the file has no head that we know. Its writer is dead; a torn end is found when it is read.
    fn leftover(path: PathBuf) -> Option<Self> {
        let mut file = File::open(&path).ok()?;
        let mut head = [0; frame::FILE_HEAD];
        file.read_exact(&mut head).ok()?;
        let entry = Self::new(path, Head::decode(&head)?);
        let len = file.metadata().ok()?.len();
        entry.end.store(len.saturating_sub(frame::FILE_HEAD as u64), Ordering::Release);
        entry.over.store(true, Ordering::Release);
        Some(entry)
    }

    /// Bytes of whole records in the file.
    fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Bytes of the file; none is made before the first record.
    fn size(&self) -> u64 {
        size_of(self.end())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn memory(&self) -> MutexGuard<'_, Vec<u8>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_in_memory(&self, record: &[u8]) {
        self.memory().extend_from_slice(record);
    }

    /// The file with its head. A file of an attempt that no agent remembers is replaced.
    fn create(&self) -> io::Result<File> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&self.path)?;
        if let Err(error) = file.write_all(&self.head.encode()) {
            drop(file);
            let _nothing_in_it = std::fs::remove_file(&self.path);
            return Err(error);
        }
        Ok(file)
    }

    /// Removes half a record from the end.
    fn take_back(&self, file: &mut File) {
        let end = self.end() + frame::FILE_HEAD as u64;
        let cut = file.set_len(end).and_then(|()| io::Seek::seek(file, io::SeekFrom::Start(end)));
        if let Err(error) = cut {
            warn!(path = %self.path.display(), %error, "half a record stays in a spool file");
        }
    }
}
