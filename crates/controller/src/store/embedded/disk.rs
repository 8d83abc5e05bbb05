//! The folder of an embedded store: its lock, its file, and the mark of the newest acknowledged commit.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
};

use redb::{Builder, Database, DatabaseError};

use crate::store::{
    Error, Records,
    embedded::{fill, table},
};

/// What redb keeps of the file in memory. The engine holds all state anyway and reads only once.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// What every redb file begins with.
const REDB_MAGIC: [u8; 9] = [b'r', b'e', b'd', b'b', 0x1A, 0x0A, 0xA9, 0x0D, 0x0A];

const FILE: &str = "store.redb";
const NEW_FILE: &str = "store.redb.new";
const LOCK: &str = "store.lock";
const MARK: &str = "store.mark";

/// Where an embedded store lives.
pub(super) trait Disk: Send {
    /// For people.
    fn path(&self) -> &Path;

    /// Opens the database again; makes a new one where there is none.
    fn open(&mut self) -> Result<Database, Error>;

    /// Notes that so many commits are acknowledged. Need not survive a loss of power.
    fn note(&mut self, commits: u64);

    /// What was noted; none: nothing legible.
    fn noted(&mut self) -> Option<u64>;
}

/// A folder that this process has locked.
#[derive(Debug)]
pub(super) struct Folder {
    folder: PathBuf,
    file: PathBuf,
    mark: Option<File>,
    // Held until this is dropped, also while the database is closed between two openings.
    _lock: File,
}

impl Folder {
    /// Locks `folder` for this process.
    pub(super) fn lock(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(LOCK);
        let mut lock = open_or_create(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // On Windows a locked file cannot be read; then nobody is named.
                let _ = lock.read_to_string(&mut pid);
                return Err(Error::InUse { path: folder.to_owned(), pid: pid.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { doing: "lock", path, source }),
        }
        // For the message above; a lock without a name is a lock.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self { folder: folder.to_owned(), file: folder.join(FILE), mark: None, _lock: lock })
    }

    /// Makes the file under another name first, so that a crash on the way leaves no half-made
    /// store behind that could be taken for a damaged one, or the other way round.
    fn create(&self, records: Option<&Records>) -> Result<(), Error> {
        let new = self.folder.join(NEW_FILE);
        if let Err(source) = fs::remove_file(&new)
            && source.kind() != ErrorKind::NotFound
        {
            return Err(Error::Io { doing: "remove", path: new, source });
        }
        let database = builder().create(&new).map_err(|error| explain(&new, "create", error))?;
        table::initialise(&database).map_err(|error| explain(&new, "create", error))?;
        if let Some(records) = records {
            fill::fill(&database, records).map_err(|error| explain(&new, "write", error))?;
        }
        drop(database);
        // A mark without its store belongs to one that a person removed.
        let _ = fs::remove_file(self.folder.join(MARK));
        fs::rename(&new, &self.file).and_then(|()| sync_folder(&self.folder)).map_err(|source| Error::Io {
            doing: "create",
            path: self.file.clone(),
            source,
        })
    }

    /// Makes the file of these records; there must be none.
    pub(super) fn create_filled(&self, records: &Records) -> Result<(), Error> {
        let occupied =
            |found: &str| Error::Occupied { place: self.folder.display().to_string(), found: found.to_owned() };
        match self.file.try_exists() {
            Ok(false) => self.create(Some(records)),
            Ok(true) => Err(occupied("it holds a store")),
            Err(source) => Err(Error::Io { doing: "open", path: self.file.clone(), source }),
        }
    }

    fn check_magic(&self) -> Result<(), Error> {
        let mut start = Vec::new();
        File::open(&self.file)
            .and_then(|file| file.take(REDB_MAGIC.len() as u64).read_to_end(&mut start))
            .map_err(|source| Error::Io { doing: "read", path: self.file.clone(), source })?;
        if start.is_empty() {
            return Err(Error::Damaged { path: self.file.clone(), what: "it is empty".to_owned() });
        }
        if start.iter().all(|byte| *byte == 0) {
            return Err(Error::Damaged { path: self.file.clone(), what: "it begins with zeros".to_owned() });
        }
        if start != REDB_MAGIC {
            return Err(Error::Foreign { path: self.file.clone() });
        }
        Ok(())
    }

    /// Whose file it is, without writing anything to it: redb writes whenever it opens and closes.
    fn look(&self) -> Result<(), Error> {
        match builder().open_read_only(&self.file) {
            Ok(database) => table::check_owner(&database, &self.file),
            // It was not closed cleanly, so that it can only be read after a repair.
            Err(DatabaseError::RepairAborted) => Ok(()),
            Err(error) => Err(explain(&self.file, "open", error)),
        }
    }

    fn mark_file(&mut self) -> io::Result<&mut File> {
        match &mut self.mark {
            Some(file) => Ok(file),
            none => {
                let path = self.folder.join(MARK);
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
                Ok(none.insert(file))
            }
        }
    }
}

impl Disk for Folder {
    fn path(&self) -> &Path {
        &self.file
    }

    fn open(&mut self) -> Result<Database, Error> {
        match self.file.try_exists() {
            Ok(true) => {
                self.check_magic()?;
                self.look()?;
            }
            Ok(false) => self.create(None)?,
            Err(source) => return Err(Error::Io { doing: "open", path: self.file.clone(), source }),
        }
        builder().open(&self.file).map_err(|error| explain(&self.file, "open", error))
    }

    fn note(&mut self, commits: u64) {
        let mark = mark_bytes(commits);
        let noted = self.mark_file().and_then(|file| {
            file.rewind()?;
            file.write_all(&mark)
        });
        if let Err(error) = noted {
            // The commit itself is durable; only the check for a lost one is weaker.
            tracing::debug!(%error, "the store's mark cannot be written");
        }
    }

    fn noted(&mut self) -> Option<u64> {
        let mut bytes = [0; 12];
        let file = self.mark_file().ok()?;
        file.rewind().ok()?;
        file.read_exact(&mut bytes).ok()?;
        mark_value(bytes)
    }
}

fn mark_bytes(commits: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (value, check) = bytes.split_at_mut(8);
    value.copy_from_slice(&commits.to_le_bytes());
    check.copy_from_slice(&crc32fast::hash(value).to_le_bytes());
    bytes
}

fn mark_value(bytes: [u8; 12]) -> Option<u64> {
    let (value, check) = bytes.split_first_chunk::<8>()?;
    (crc32fast::hash(value).to_le_bytes() == check).then(|| u64::from_le_bytes(*value))
}

fn open_or_create(path: &Path) -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(|source| Error::Io {
        doing: "create",
        path: path.to_owned(),
        source,
    })
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    // A rename is durable with its volume's journal there; a folder cannot be opened as a file.
    Ok(())
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// What an error of redb means to a person.
pub(super) fn explain(path: &Path, doing: &'static str, error: impl Into<redb::Error>) -> Error {
    let path = path.to_owned();
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => {
            let folder = path.parent().map(Path::to_owned).unwrap_or(path);
            Error::InUse { path: folder, pid: None }
        }
        redb::Error::UpgradeRequired(found) => {
            Error::Damaged { path, what: format!("its file format {found} is too old to be read") }
        }
        redb::Error::Io(source) if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            Error::Damaged { path, what: format!("it is cut off or overwritten ({source})") }
        }
        redb::Error::Io(source) => Error::Io { doing, path, source },
        redb::Error::PreviousIo => {
            Error::Io { doing, path, source: io::Error::other("an earlier error has closed the file") }
        }
        other => Error::Damaged { path, what: other.to_string() },
    }
}
