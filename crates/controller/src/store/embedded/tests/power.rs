//! Power is lost at any moment: writes that were not synced are there, or not, or half; every
//! acknowledged commit is there.

use std::{
    io::{Error as IoError, ErrorKind, Result as IoResult},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{Database, StorageBackend};

use super::{Dice, Model, Worker};
use crate::store::{
    Batch, Error, Outcome,
    embedded::{
        disk::{self, Disk},
        table,
    },
};

/// A disk that forgets what was not synced.
#[derive(Clone, Debug, Default)]
struct Volatile {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What reads see.
    now: Vec<u8>,
    /// What is surely kept.
    synced: Vec<u8>,
    /// What was done since, in order.
    pending: Vec<Pending>,
    /// Operations until everything fails; none: never.
    fuse: Option<u32>,
    noted: Option<u64>,
    /// It says that all is synced and syncs nothing.
    lies: bool,
}

/// What becomes of the mark, which nobody syncs, when power is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// It may be as old as the disk likes.
    MayBeOlder,
    /// It is there.
    IsThere,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Pending {
    /// The disk does it.
    fn reach(self, image: &mut Vec<u8>) {
        match self {
            Self::Length(length) => image.resize(length, 0),
            Self::Write(at, bytes) => {
                let end = (at + bytes.len()).max(image.len());
                image.resize(end, 0);
                image[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
}

impl Volatile {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After so many more operations every one fails.
    fn fuse(&self, operations: u32) {
        self.lock().fuse = Some(operations);
    }

    /// Power comes back: of what was not synced, some is there, some is not, some is torn.
    fn power_cycle(&self, dice: &mut Dice, mark: Mark) {
        let mut shared = self.lock();
        let mut image = shared.synced.clone();
        for pending in std::mem::take(&mut shared.pending) {
            match pending {
                Pending::Write(..) if dice.below(3) == 0 => {}
                Pending::Write(at, mut bytes) => {
                    if dice.below(3) == 0 {
                        let kept = dice.below(bytes.len() + 1);
                        bytes.truncate(kept);
                    }
                    Pending::Write(at, bytes).reach(&mut image);
                }
                length @ Pending::Length(_) => length.reach(&mut image),
            }
        }
        let older = if mark == Mark::MayBeOlder { dice.below(3) as u64 } else { 0 };
        shared.noted = shared.noted.map(|noted| noted.saturating_sub(older));
        (shared.now, shared.synced, shared.fuse, shared.lies) = (image.clone(), image, None, false);
    }
}

impl Shared {
    fn operate(&mut self) -> IoResult<()> {
        match &mut self.fuse {
            None => Ok(()),
            Some(0) => Err(IoError::new(ErrorKind::StorageFull, "no space left on this disk")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl StorageBackend for Volatile {
    fn len(&self) -> IoResult<u64> {
        Ok(self.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> IoResult<()> {
        let at = usize::try_from(offset).expect("small");
        let shared = self.lock();
        let bytes = shared.now.get(at..at + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> IoResult<()> {
        let mut shared = self.lock();
        shared.operate()?;
        let len = usize::try_from(len).expect("small");
        shared.now.resize(len, 0);
        shared.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> IoResult<()> {
        let mut shared = self.lock();
        shared.operate()?;
        if shared.lies {
            return Ok(());
        }
        let shared = &mut *shared;
        shared.pending.drain(..).for_each(|pending| pending.reach(&mut shared.synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        let mut shared = self.lock();
        shared.operate()?;
        let at = usize::try_from(offset).expect("small");
        let end = (at + data.len()).max(shared.now.len());
        shared.now.resize(end, 0);
        shared.now[at..at + data.len()].copy_from_slice(data);
        shared.pending.push(Pending::Write(at, data.to_vec()));
        Ok(())
    }
}

impl Disk for Volatile {
    fn path(&self) -> &Path {
        Path::new("a disk in memory")
    }

    fn open(&mut self) -> Result<Database, Error> {
        let is_new = self.lock().now.is_empty();
        let database = disk::builder().create_with_backend(self.clone());
        let database = database.map_err(|error| disk::explain(self.path(), "open", error))?;
        if is_new {
            table::initialise(&database).map_err(|error| disk::explain(self.path(), "create", error))?;
        }
        Ok(database)
    }

    fn note(&mut self, commits: u64) {
        self.lock().noted = Some(commits);
    }

    fn noted(&mut self) -> Option<u64> {
        self.lock().noted
    }
}

const SEEDS: u64 = 1_000;
/// Operations of the disk before power is lost, at most.
const OPERATIONS: usize = 60;

#[test]
fn every_acknowledged_commit_survives_a_loss_of_power_at_any_moment() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let disk = Volatile::default();
        let mut model = Model::default();
        // A few live longer than one loss of power.
        for _ in 0..if seed < 50 { 4 } else { 1 } {
            let mut store = Worker::open(Box::new(disk.clone())).expect("it opens");
            let loaded = store.load().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(Model::of(loaded.pieces) == model, "seed {seed}: something is missing, or too much");
            disk.fuse(u32::try_from(dice.below(OPERATIONS)).expect("small"));
            let lost = commit_until_it_fails(&mut store, loaded.term, &mut model, &mut dice);
            // A process without power writes nothing when it ends.
            disk.fuse(0);
            drop(store);
            disk.power_cycle(&mut dice, Mark::MayBeOlder);
            model = settle(&disk, model, &lost, seed);
        }
    }
}

fn commit_until_it_fails(store: &mut Worker, term: muster_core::id::Term, model: &mut Model, dice: &mut Dice) -> Batch {
    for _ in 0..OPERATIONS {
        let batch = dice.batch();
        match store.commit(term, batch.clone()) {
            Outcome::Committed => model.apply(&batch),
            Outcome::Unknown(_) => return batch,
            Outcome::Fenced => panic!("nobody else is there"),
        }
    }
    panic!("more commits were acknowledged than the disk did operations: some are on no disk")
}

/// The commit whose outcome is unknown is there as a whole or not at all; which, is learned here.
fn settle(disk: &Volatile, model: Model, lost: &Batch, seed: u64) -> Model {
    let mut with = model.clone();
    with.apply(lost);
    let mut store = Worker::open(Box::new(disk.clone())).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let found = Model::of(store.load().unwrap_or_else(|error| panic!("seed {seed}: {error}")).pieces);
    assert!(found == model || found == with, "seed {seed}: neither before nor after the commit");
    found
}

/// Nobody can keep what such a disk loses; but that something is lost must be seen, and nothing else may be read instead.
#[test]
fn a_disk_that_says_it_has_synced_and_has_not_costs_a_refusal_and_never_something_wrong() {
    let (mut refused, mut kept) = (0, 0);
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let disk = Volatile::default();
        let mut model = Model::default();
        let mut store = Worker::open(Box::new(disk.clone())).expect("it opens");
        let term = store.load().expect("it loads").term;
        for _ in 0..1 + dice.below(6) {
            disk.lock().lies = dice.below(2) == 0;
            let batch = dice.batch();
            assert_eq!(store.commit(term, batch.clone()), Outcome::Committed);
            model.apply(&batch);
        }
        disk.fuse(0);
        drop(store);
        disk.power_cycle(&mut dice, Mark::IsThere);
        match Worker::open(Box::new(disk)).and_then(|mut store| store.load()) {
            Ok(loaded) => {
                assert!(Model::of(loaded.pieces) == model, "seed {seed}: something is missing, or too much");
                kept += 1;
            }
            Err(Error::Damaged { .. } | Error::Foreign { .. }) => refused += 1,
            Err(error) => panic!("seed {seed}: {error:?} tells a person nothing"),
        }
    }
    assert!(refused > 100 && kept > 100, "{refused} refused, {kept} kept: this disk is of one kind only");
}

#[test]
fn a_full_disk_is_an_unknown_outcome_and_goes_on_when_there_is_room_again() {
    let disk = Volatile::default();
    let mut store = Worker::open(Box::new(disk.clone())).expect("it opens");
    let term = store.load().expect("it loads").term;
    let (mut model, mut dice) = (Model::default(), Dice(7));
    let first = dice.batch();
    model.apply(&first);
    assert_eq!(store.commit(term, first), Outcome::Committed);
    disk.fuse(1);
    let second = dice.batch();
    assert!(matches!(store.commit(term, second.clone()), Outcome::Unknown(_)));
    let closed = store.commit(term, second.clone());
    assert!(matches!(&closed, Outcome::Unknown(_)), "it is closed until it is loaded: {closed:?}");
    let error = store.load().expect_err("it is full");
    assert!(error.may_pass(), "{error:?}");
    disk.lock().fuse = None;
    let loaded = store.load().expect("there is room");
    assert!(loaded.term > term);
    let found = Model::of(loaded.pieces);
    let mut with = model.clone();
    with.apply(&second);
    assert!(found == model || found == with);
    assert_eq!(store.commit(loaded.term, second), Outcome::Committed);
}
