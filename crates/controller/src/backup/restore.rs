//! From a file to an installation again: checked as a whole first, then written so that it is there or is not.
//!
//! The world went on after the backup was taken. Nothing that it did since may be mistaken for what the restored
//! installation does: terms and tokens jump past all that can have been given, and so do the numbers of jobs and
//! agents. What became of leases that the backup holds is known only to their agents, who may have forgotten.

use std::{
    fs,
    io::Write as _,
    path::{Component, Path, PathBuf},
};

use muster_common::{clock::Clock, proto::v1, wire::record};
use muster_core::{
    cluster::{Cluster, Config},
    id::Term,
    record::{Key, Meta, Piece},
};

use super::{Entry, Error, Reader};
#[cfg(feature = "etcd")]
use crate::store;
use crate::store::{Records, embedded::Locked};

/// Terms and tokens that nobody can have used up since: a thousand a second for 35 years.
const JUMP: u64 = 1 << 40;
/// Jobs and agents after a restore begin at the next multiple of it but one: people see at a glance that they are new.
const NUMBERS: u64 = 1_000_000;

/// A backup that was read and makes sense.
#[derive(Debug)]
pub struct Contents {
    /// What it says of itself.
    pub header: v1::BackupHeader,
    /// How many jobs it holds.
    pub jobs: u64,
    /// How many agents.
    pub agents: u64,
    /// How many logs and large results.
    pub objects: u64,
    records: Records,
    meta: Meta,
}

/// What became of it.
#[derive(Debug)]
pub struct Restored {
    /// What was restored.
    pub contents: Contents,
    /// The lowest number that a new job can have.
    pub next_job: u64,
    /// Where an older store was put, if one was in the way.
    pub aside: Option<PathBuf>,
}

/// Reads all of a backup and tries to take it up. Blocks.
///
/// # Errors
/// It is no backup, not whole, newer, or makes no sense.
pub fn check(path: &Path, clock: Clock) -> Result<Contents, Error> {
    let mut reader = Reader::open(path)?;
    let header = reader.header().clone();
    let mut records = Records { term: Term(header.term), all: Vec::new() };
    let mut objects = 0;
    while let Some(entry) = reader.entry()? {
        match entry {
            Entry::Record(key, value) => records.all.push((key, value)),
            Entry::Object { path: place, first, .. } => {
                object_path(&place).ok_or_else(|| torn(path, format!("`{place}` is no path of an object")))?;
                objects += u64::from(first);
            }
        }
    }
    if records.all.len() as u64 != header.records || records.bytes() != header.record_bytes {
        return Err(torn(path, "its records are not those that its header promises"));
    }
    let pieces = records.pieces().map_err(|error| Error::of_record(path, &header.written_by, &error))?;
    let count = |is: fn(&Key) -> bool| pieces.iter().filter(|(key, _)| is(key)).count() as u64;
    let (jobs, agents) = (count(|key| matches!(key, Key::Job(_))), count(|key| matches!(key, Key::Agent(_))));
    let meta = jumped(&pieces);
    Cluster::recover(Config::default(), pieces, clock.now())
        .map_err(|source| Error::Contradiction { path: path.to_owned(), source })?;
    Ok(Contents { header, jobs, agents, objects, records, meta })
}

/// The counters past all that can have been given since.
fn jumped(pieces: &[(Key, Piece)]) -> Meta {
    let mut meta = Meta::default();
    let (mut job, mut agent) = (0, 0);
    for (key, piece) in pieces {
        match (key, piece) {
            (_, Piece::Meta(found)) => meta = *found,
            (Key::Job(id), _) => job = job.max(id.0),
            (Key::Agent(id), _) => agent = agent.max(id.0),
            _ => {}
        }
    }
    let past = |number: u64| (number / NUMBERS + 1) * NUMBERS;
    let token_ceiling = meta.token_ceiling + JUMP;
    Meta {
        token_ceiling,
        job_floor: past(meta.job_floor.max(job)),
        agent_floor: past(meta.agent_floor.max(agent)),
        restored_below: token_ceiling,
    }
}

impl Contents {
    /// The records as the restored installation begins with them.
    fn to_records(&self) -> Records {
        let (name, value) = (record::key_bytes(&Key::Meta), record::encode(&Piece::Meta(self.meta), &Key::Meta));
        let mut all: Vec<_> = self.records.all.iter().filter(|(key, _)| *key != name).cloned().collect();
        let at = all.partition_point(|(key, _)| *key < name);
        all.insert(at, (name, value));
        Records { term: Term(self.records.term.0 + JUMP), all }
    }

    fn restored(self, aside: Option<PathBuf>) -> Restored {
        Restored { next_job: self.meta.job_floor + 1, contents: self, aside }
    }
}

/// Makes an installation of the backup in `folder`, which is empty or does not exist; with `replace`, an older store
/// there is put aside and kept. Blocks.
///
/// # Errors
/// See [`Error`]. The store is there as a whole or not at all.
pub fn into_folder(path: &Path, folder: &Path, replace: bool, clock: Clock) -> Result<Restored, Error> {
    let contents = check(path, clock)?;
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    fs::create_dir_all(folder).map_err(io("create", folder))?;
    // Whose controller runs keeps its folder as it is.
    let locked = Locked::new(folder)?;
    let aside = make_room(folder, replace, clock)?;
    unpack(path, &folder.join("objects"))?;
    // Last, and at once: before that there is nothing that could be started.
    locked.create(&contents.to_records())?;
    Ok(contents.restored(aside))
}

/// Puts what is in the way aside, if that is wanted.
fn make_room(folder: &Path, replace: bool, clock: Clock) -> Result<Option<PathBuf>, Error> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    let mut there = Vec::new();
    for entry in fs::read_dir(folder).map_err(io("read", folder))? {
        let name = entry.map_err(io("read", folder))?.file_name();
        if name != "store.lock" && !name.to_string_lossy().starts_with(ASIDE) {
            there.push(name);
        }
    }
    there.sort();
    let Some(first) = there.first() else { return Ok(None) };
    let found = first.to_string_lossy().into_owned();
    let is_store = there.iter().any(|name| name == "store.redb");
    if !replace || !is_store {
        let hint = if is_store { ", or put its store aside with --force" } else { "" };
        return Err(Error::Occupied { path: folder.to_owned(), found, hint });
    }
    let aside = folder.join(format!("{ASIDE}{}", clock.wall().0));
    fs::create_dir(&aside).map_err(io("create", &aside))?;
    for name in there {
        let (from, to) = (folder.join(&name), aside.join(&name));
        fs::rename(&from, &to).map_err(io("move", &from))?;
    }
    Ok(Some(aside))
}

/// How folders are called into which an older store was put.
const ASIDE: &str = "before-restore-";

/// Writes logs and results where the restored installation looks for them.
fn unpack(path: &Path, objects: &Path) -> Result<(), Error> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    };
    let mut reader = Reader::open(path)?;
    let mut file: Option<(PathBuf, fs::File)> = None;
    while let Some(entry) = reader.entry()? {
        let Entry::Object { path: place, data, first } = entry else { continue };
        let to = object_path(&place).map(|place| objects.join(place));
        let to = to.ok_or_else(|| torn(path, format!("`{place}` is no path of an object")))?;
        if first {
            close(file.take())?;
            let folder = to.parent().unwrap_or(objects);
            fs::create_dir_all(folder).map_err(io("create", folder))?;
            file = Some((to.clone(), fs::File::create(&to).map_err(io("create", &to))?));
        }
        match &mut file {
            Some((open, file)) if *open == to => file.write_all(&data).map_err(io("write", &to))?,
            _ => return Err(torn(path, "a part of an object has no beginning")),
        }
    }
    close(file)
}

fn close(file: Option<(PathBuf, fs::File)>) -> Result<(), Error> {
    let Some((path, file)) = file else { return Ok(()) };
    file.sync_all().map_err(|source| Error::Io { doing: "write", path, source })
}

/// A path below the object store's folder, and nowhere else.
fn object_path(place: &str) -> Option<PathBuf> {
    let path = PathBuf::from(place);
    let is_plain = !place.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)));
    is_plain.then_some(path)
}

/// Makes an installation of the backup in an etcd whose prefix is empty and that `store` leads; logs and results go
/// into `data`, if there are any.
///
/// # Errors
/// See [`Error`]. What was begun and not finished is refused by controllers, and begun anew by another restore.
#[cfg(feature = "etcd")]
pub async fn into_etcd(
    path: &Path,
    store: &store::etcd::EtcdStore,
    data: Option<&Path>,
    clock: Clock,
) -> Result<Restored, Error> {
    let contents = check(path, clock)?;
    let records = contents.to_records();
    let origin = v1::OriginRecord {
        version: record::VERSION,
        copying: true,
        id: uuid::Uuid::new_v4().to_string(),
        from: format!("the backup {} of {}", path.display(), contents.header.installation),
        at_us: clock.wall().0,
        term_floor: records.term.0,
    };
    store.begin_copy(&origin).await?;
    store.copy(&Records::default().changes(&records)).await?;
    store.verify_copy(&records).await?;
    if let Some(data) = data {
        unpack(path, &data.join("objects"))?;
    }
    store.finish_copy(&origin).await?;
    Ok(contents.restored(None))
}

fn torn(path: &Path, what: impl ToString) -> Error {
    Error::Torn { path: path.to_owned(), what: what.to_string() }
}
