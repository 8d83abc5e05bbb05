//! An embedded store as its user sees it: what was committed is there, and what was not written is never read.

mod damage;
mod power;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use muster_core::{
    id::{AgentId, JobId, TaskId, Term},
    record::{Key, Meta, Piece, Queue, TaskResult},
};

use super::{
    Embedded,
    disk::Folder,
    table::{self},
    worker::Worker,
};
use crate::store::{Batch, Error, Outcome, Store};

/// A small generator, so that a failing seed can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n as u64).expect("n is a usize")
    }

    /// Some puts over old and new keys, and a few deletes.
    fn batch(&mut self) -> Batch {
        let mut puts = BTreeMap::new();
        for _ in 0..1 + self.below(8) {
            let (key, piece) = self.piece();
            puts.insert(key, piece);
        }
        let mut deletes: Vec<_> = (0..self.below(4)).map(|_| self.piece().0).collect();
        deletes.sort();
        deletes.dedup();
        deletes.retain(|key| !puts.contains_key(key));
        Batch { puts: puts.into_iter().collect(), deletes }
    }

    fn piece(&mut self) -> (Key, Piece) {
        match self.below(8) {
            0 => (Key::Meta, Piece::Meta(Meta { token_ceiling: self.roll(), ..Meta::default() })),
            1 => {
                let name = format!("queue-{}", self.below(20));
                let queue = Queue { name: name.clone(), max_running: Some(self.roll()), ..Queue::default() };
                (Key::Queue(name.into()), Piece::Queue(Arc::new(queue)))
            }
            _ => {
                let task = TaskId::new(JobId(1 + self.below(9) as u64), u32::try_from(self.below(40)).expect("small"));
                let bytes: Vec<u8> = (0..self.below(6000)).map(|_| self.roll() as u8).collect();
                (Key::Result(task), Piece::Result(Arc::new(TaskResult::Inline(bytes.into()))))
            }
        }
    }
}

/// What a store should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<Key, Piece>);

impl Model {
    fn apply(&mut self, batch: &Batch) {
        self.0.extend(batch.puts.iter().cloned());
        for key in &batch.deletes {
            self.0.remove(key);
        }
    }

    fn of(pieces: Vec<(Key, Piece)>) -> Self {
        let count = pieces.len();
        let model = Self(pieces.into_iter().collect());
        assert_eq!(model.0.len(), count, "no key comes twice");
        model
    }
}

fn queue(n: u64) -> (Key, Piece) {
    let queue = Queue { name: "q".to_owned(), max_running: Some(n), ..Queue::default() };
    (Key::Queue("q".into()), Piece::Queue(Arc::new(queue)))
}

fn put(n: u64) -> Batch {
    Batch { puts: vec![queue(n)], deletes: Vec::new() }
}

fn worker(folder: &Path) -> Result<Worker, Error> {
    Worker::open(Box::new(Folder::lock(folder)?))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[tokio::test]
async fn what_was_committed_is_there_after_it_was_closed() {
    let folder = folder();
    let (mut model, mut dice) = (Model::default(), Dice(1));
    for round in 1..=4 {
        let store = Embedded::open(folder.path()).expect("it opens");
        let loaded = store.load().await.expect("it loads");
        assert_eq!(loaded.term, Term(round), "each opening begins a term");
        assert_eq!(Model::of(loaded.pieces), model);
        for _ in 0..20 {
            let batch = dice.batch();
            model.apply(&batch);
            assert_eq!(store.commit(loaded.term, batch).await, Outcome::Committed);
        }
        store.close().await;
    }
}

#[tokio::test]
async fn a_commit_of_another_term_is_fenced_and_writes_nothing() {
    let folder = folder();
    let store = Embedded::open(folder.path()).expect("it opens");
    let first = store.load().await.expect("it loads").term;
    assert_eq!(store.commit(first, put(1)).await, Outcome::Committed);
    let second = store.load().await.expect("it loads again").term;
    assert!(second > first);
    for term in [first, Term(second.0 + 1)] {
        assert_eq!(store.commit(term, put(2)).await, Outcome::Fenced, "term {term}");
    }
    assert_eq!(store.load().await.expect("it loads").pieces, [queue(1)]);
}

#[tokio::test]
async fn a_second_opening_is_refused_and_says_who_has_it_until_the_first_is_closed() {
    let folder = folder();
    let store = Embedded::open(folder.path()).expect("it opens");
    let error = Embedded::open(folder.path()).expect_err("it is in use");
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("another controller (or `ctl dev`) has the store in"), "{text}");
    #[cfg(unix)]
    assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
    store.close().await;
    assert!(store.load().await.is_err(), "closed is closed");
    assert!(matches!(store.commit(Term(1), put(1)).await, Outcome::Unknown(_)));
    Embedded::open(folder.path()).expect("it is free");
}

#[test]
fn whatever_was_acknowledged_is_in_the_file_at_once() {
    // What `kill -9` leaves is what the operating system has at that moment: a copy of the folder.
    let folder = folder();
    let mut store = worker(folder.path()).expect("it opens");
    let term = store.load().expect("it loads").term;
    let (mut model, mut dice) = (Model::default(), Dice(2));
    for _ in 0..15 {
        let batch = dice.batch();
        model.apply(&batch);
        assert_eq!(store.commit(term, batch), Outcome::Committed);
        let copy = self::folder();
        for name in ["store.redb", "store.mark"] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).expect("it is copied");
        }
        let left = worker(copy.path()).expect("it opens").load().expect("it loads");
        assert_eq!(Model::of(left.pieces), model);
    }
}

#[test]
fn a_half_made_store_is_made_again() {
    let folder = folder();
    std::fs::write(folder.path().join("store.redb.new"), b"power was lost here").expect("it is written");
    let loaded = worker(folder.path()).expect("it opens").load().expect("it loads");
    assert_eq!((loaded.term, loaded.pieces.len()), (Term(1), 0));
}

#[test]
fn a_record_of_a_newer_version_is_refused_by_name_and_left_as_it_is() {
    let folder = folder();
    let mut store = worker(folder.path()).expect("it opens");
    let term = store.load().expect("it loads").term;
    assert_eq!(store.commit(term, put(1)), Outcome::Committed);
    drop(store);
    let path = folder.path().join("store.redb");
    let database = redb::Database::open(&path).expect("it opens");
    // A message whose version is 9, under a right check.
    table::put_raw(&database, &Key::Agent(AgentId(1)), &[0x08, 9]).expect("it is written");
    drop(database);
    let error = worker(folder.path()).expect("it opens").load().expect_err("it is newer");
    assert!(matches!(error, Error::Newer { found: 9, .. }), "{error:?}");
    assert!(error.to_string().contains("use the newer version again"), "{error}");
}
