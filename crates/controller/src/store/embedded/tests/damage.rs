//! A file that is not as it was written: an error that says so, or all that was written; never anything else.

use std::fs;

use super::{Dice, Model, folder, put, worker};
use crate::store::{
    Error, Outcome, Store as _,
    embedded::{Embedded, table},
};

/// A store with some hundred records, cleanly closed: its bytes and what is in it.
fn sound() -> (Vec<u8>, Model) {
    let folder = folder();
    let mut store = worker(folder.path()).expect("it opens");
    let term = store.load().expect("it loads").term;
    let (mut model, mut dice) = (Model::default(), Dice(3));
    for _ in 0..60 {
        let batch = dice.batch();
        model.apply(&batch);
        assert_eq!(store.commit(term, batch), Outcome::Committed);
    }
    drop(store);
    (fs::read(folder.path().join("store.redb")).expect("it is there"), model)
}

/// Opens a folder that has `bytes` as its store.
fn read(bytes: &[u8]) -> Result<Model, Error> {
    let folder = folder();
    fs::write(folder.path().join("store.redb"), bytes).expect("it is written");
    let loaded = worker(folder.path())?.load()?;
    Ok(Model::of(loaded.pieces))
}

fn check(bytes: &[u8], model: &Model, what: &str) -> bool {
    match read(bytes) {
        Ok(found) => {
            assert!(found == *model, "{what}: something was read that was not written");
            false
        }
        Err(Error::Damaged { .. } | Error::Foreign { .. } | Error::Newer { .. }) => true,
        Err(error) => panic!("{what}: {error:?} tells a person nothing"),
    }
}

#[test]
fn a_flipped_bit_is_noticed_or_does_no_harm() {
    let (sound, model) = sound();
    let mut noticed = 0;
    for seed in 0..120 {
        let mut dice = Dice(seed);
        let mut bytes = sound.clone();
        let at = dice.below(bytes.len());
        bytes[at] ^= 1 << dice.below(8);
        noticed += u32::from(check(&bytes, &model, &format!("seed {seed}: a bit of byte {at}")));
    }
    assert!(noticed > 6, "only {noticed} of 120 were noticed: a good part of the file is records");
}

#[test]
fn a_page_of_zeros_is_noticed_or_does_no_harm() {
    const PAGE: usize = 4096;
    let (sound, model) = sound();
    let mut noticed = 0;
    for page in 0..sound.len() / PAGE {
        let mut bytes = sound.clone();
        let range = page * PAGE..(page + 1) * PAGE;
        if bytes[range.clone()].iter().all(|byte| *byte == 0) {
            continue;
        }
        bytes[range].fill(0);
        noticed += u32::from(check(&bytes, &model, &format!("page {page}")));
    }
    assert!(noticed > 20, "only {noticed} pages were noticed");
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let (sound, model) = sound();
    for length in [1, 8, 9, 100, 319, 320, 4095, 4096, 10_000, sound.len() / 2, sound.len() - 1] {
        assert!(check(&sound[..length], &model, &format!("{length} bytes")), "{length} bytes are taken for a store");
    }
}

#[test]
fn an_empty_file_and_one_of_zeros_are_damaged_stores_and_not_new_ones() {
    for bytes in [vec![], vec![0; 4096]] {
        let error = read(&bytes).expect_err("it is no store");
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("restore the folder from a backup"), "{error}");
    }
}

#[test]
fn something_else_is_refused_and_left_as_it_is() {
    let foreign_redb = {
        let folder = folder();
        let path = folder.path().join("other");
        drop(redb::Database::create(&path).expect("it is made"));
        fs::read(&path).expect("it is there")
    };
    for bytes in [b"SQLite format 3\0 and so on".to_vec(), b"hello".to_vec(), foreign_redb] {
        let folder = folder();
        let path = folder.path().join("store.redb");
        fs::write(&path, &bytes).expect("it is written");
        let error = worker(folder.path()).and_then(|mut worker| worker.load()).expect_err("it is not ours");
        assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
        assert!(error.to_string().contains("is not a Muster store"), "{error}");
        assert!(fs::read(&path).expect("it is there") == bytes, "it was changed");
    }
}

#[test]
fn a_store_that_lost_an_acknowledged_commit_is_refused() {
    let folder = folder();
    let mut store = worker(folder.path()).expect("it opens");
    let term = store.load().expect("it loads").term;
    assert_eq!(store.commit(term, put(1)), Outcome::Committed);
    let old = fs::read(folder.path().join("store.redb")).expect("it is there");
    assert_eq!(store.commit(term, put(2)), Outcome::Committed);
    drop(store);
    fs::write(folder.path().join("store.redb"), old).expect("it is written");
    let error = worker(folder.path()).and_then(|mut worker| worker.load()).expect_err("a commit is missing");
    assert!(error.to_string().contains("was acknowledged"), "{error}");
}

#[test]
fn a_store_that_lost_a_record_is_refused() {
    let folder = folder();
    let mut store = worker(folder.path()).expect("it opens");
    let term = store.load().expect("it loads").term;
    assert_eq!(store.commit(term, put(1)), Outcome::Committed);
    drop(store);
    let database = redb::Database::open(folder.path().join("store.redb")).expect("it opens");
    table::lose(&database, &put(1).puts[0].0).expect("it is lost");
    drop(database);
    let error = worker(folder.path()).and_then(|mut worker| worker.load()).expect_err("a record is missing");
    assert!(error.to_string().contains("it holds 0 records, and not the 1 that were written"), "{error}");
}

#[tokio::test]
async fn a_file_that_goes_bad_while_it_is_open_is_an_unknown_outcome_and_then_an_error() {
    let folder = folder();
    let store = Embedded::open(folder.path()).expect("it opens");
    let term = store.load().await.expect("it loads").term;
    assert_eq!(store.commit(term, put(1)).await, Outcome::Committed);
    let path = folder.path().join("store.redb");
    let length = fs::metadata(&path).expect("it is there").len();
    fs::write(&path, vec![0xFF; usize::try_from(length).expect("small")]).expect("it is written");
    // Whether this is noticed depends on what is in memory; that nothing wrong is read does not.
    let _ = store.commit(term, put(2)).await;
    store.close().await;
    let read = worker(folder.path()).and_then(|mut worker| worker.load());
    if let Ok(loaded) = read {
        assert_eq!(loaded.pieces, put(2).puts);
    }
}
