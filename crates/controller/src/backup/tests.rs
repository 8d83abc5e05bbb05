//! A backup is what was there, whole, or it is refused; what is restored cannot be taken for what went on.

use std::{fs, path::Path, sync::Arc};

use muster_common::{clock::Clock, proto::v1, wire::record};
use muster_core::{
    fleet::Limits,
    id::{AgentId, JobId, Term},
    record::{AgentRecord, Job, Key, Meta, Offer, Piece, Queue},
    spec::{DEFAULT_QUEUE, JobSpec, TaskSpec},
    time::Timestamp,
};
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::{Error, Source, Writer, check, into_folder};
use crate::store::{self, Batch, Outcome, Store, embedded::Embedded};

fn pieces() -> Vec<(Key, Piece)> {
    let queue = Queue { name: "night".to_owned(), max_running: Some(3), ..Queue::default() };
    let agent = AgentRecord {
        id: AgentId(4),
        uid: "u".into(),
        offer: Offer::default(),
        lost: false,
        stopped: false,
        first_seen: Timestamp(1),
        changed: Timestamp(1),
        cordon: None,
        limits: Limits::default(),
    };
    let mut pieces = vec![
        (Key::Meta, Piece::Meta(Meta { token_ceiling: 1 << 21, job_floor: 2, agent_floor: 1, restored_below: 0 })),
        (Key::Queue("night".into()), Piece::Queue(Arc::new(queue))),
        (Key::Agent(AgentId(4)), Piece::Agent(Arc::new(agent))),
    ];
    pieces.extend((3..40).map(|id| (Key::Job(JobId(id)), Piece::Job(Arc::new(job(id))))));
    pieces
}

fn job(id: u64) -> Job {
    let task = TaskSpec { name: "only".to_owned(), ..TaskSpec::default() };
    let spec = JobSpec {
        name: format!("census-{id}"),
        queue: DEFAULT_QUEUE.to_owned(),
        tasks: vec![Arc::new(task)],
        ..JobSpec::default()
    };
    let none = || Arc::from("");
    Job { id: JobId(id), spec: Arc::new(spec), submitted: Timestamp(1), key: none(), by: none(), trace_parent: none() }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap().block_on(work)
}

/// A store in `folder` with the pieces of above in it.
async fn filled(folder: &Path) -> Arc<Embedded> {
    let store = Arc::new(Embedded::open(folder).unwrap());
    let term = store.load().await.unwrap().term;
    let committed = store.commit(term, Batch { puts: pieces(), deletes: Vec::new() }).await;
    assert_eq!(committed, Outcome::Committed);
    store
}

async fn take(store: Arc<dyn Store>, to: &Path) {
    let (sender, mut parts) = mpsc::channel(2);
    let source = Source::new(store, "a test".to_owned());
    let taking = tokio::spawn(async move { source.send(Clock::system(), None, &sender).await });
    let mut bytes = Vec::new();
    while let Some(part) = parts.recv().await {
        bytes.extend_from_slice(&part);
    }
    taking.await.unwrap().unwrap();
    fs::write(to, bytes).unwrap();
}

/// A backup of a filled store, and where it is.
fn backup(folder: &Path) -> std::path::PathBuf {
    let (data, file) = (folder.join("data"), folder.join("backup"));
    fs::create_dir(&data).unwrap();
    run(async {
        let store = filled(&data).await;
        take(store.clone(), &file).await;
        store.close().await;
    });
    file
}

#[test]
fn what_is_restored_is_what_was_there_past_all_numbers_that_can_have_been_given() {
    let folder = tempfile::tempdir().unwrap();
    let (file, new) = (backup(folder.path()), folder.path().join("new"));
    let restored = into_folder(&file, &new, false, Clock::system()).unwrap();
    assert_eq!((restored.contents.jobs, restored.contents.agents, restored.next_job), (37, 1, 1_000_001));
    let loaded = run(async { Embedded::open(&new).unwrap().load().await.unwrap() });
    assert_eq!(loaded.term, Term(1 + (1 << 40) + 1));
    let meta = loaded.pieces.iter().find_map(|(_, piece)| match piece {
        Piece::Meta(meta) => Some(*meta),
        _ => None,
    });
    let ceiling = (1 << 21) + (1 << 40);
    let expected =
        Meta { token_ceiling: ceiling, job_floor: 1_000_000, agent_floor: 1_000_000, restored_below: ceiling };
    assert_eq!(meta, Some(expected));
    let rest = |mut pieces: Vec<(Key, Piece)>| {
        pieces.retain(|(key, _)| *key != Key::Meta);
        pieces.sort_by(|(a, _), (b, _)| a.cmp(b));
        pieces
    };
    assert_eq!(rest(loaded.pieces), rest(pieces()));
}

#[test]
fn a_backup_of_one_store_and_of_another_with_the_same_records_are_the_same_records() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let embedded = filled(folder.path()).await;
        let memory = store::memory::Memory::default();
        let term = memory.load().await.unwrap().term;
        memory.commit(term, Batch { puts: pieces(), deletes: Vec::new() }).await;
        let snapshots = (embedded.snapshot().await.unwrap(), memory.snapshot().await.unwrap());
        assert_eq!(snapshots.0, snapshots.1);
        // A second one begins anew, and what was deleted meanwhile is not in it.
        embedded.commit(Term(1), Batch { puts: Vec::new(), deletes: vec![Key::Job(JobId(5))] }).await;
        assert_eq!(embedded.snapshot().await.unwrap().all.len(), snapshots.0.all.len() - 1);
    });
}

#[test]
fn nothing_is_restored_over_what_is_there_unless_it_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let file = backup(folder.path());
    let data = folder.path().join("data");
    let refused = into_folder(&file, &data, false, Clock::system()).unwrap_err();
    assert!(matches!(&refused, Error::Occupied { found, .. } if found.starts_with("store.")), "{refused}");
    assert!(refused.to_string().contains("--force"), "{refused}");

    let before = fs::read(data.join("store.redb")).unwrap();
    let restored = into_folder(&file, &data, true, Clock::system()).unwrap();
    let aside = restored.aside.expect("it was put aside");
    assert_eq!(fs::read(aside.join("store.redb")).unwrap().len(), before.len());
    assert_eq!(run(async { Embedded::open(&data).unwrap().load().await.unwrap() }).pieces.len(), 40);

    let odd = folder.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("thesis.txt"), "mine").unwrap();
    let refused = into_folder(&file, &odd, true, Clock::system()).unwrap_err();
    assert!(matches!(&refused, Error::Occupied { found, .. } if found == "thesis.txt"), "{refused}");
    assert_eq!(fs::read(odd.join("thesis.txt")).unwrap(), b"mine");
}

#[test]
fn a_store_that_somebody_uses_is_not_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let file = backup(folder.path());
    let data = folder.path().join("data");
    let _running = Embedded::open(&data).unwrap();
    let refused = into_folder(&file, &data, true, Clock::system()).unwrap_err();
    assert!(matches!(refused, Error::Store(store::Error::InUse { .. })), "{refused}");
    assert!(data.join("store.redb").exists());
}

#[test]
fn what_is_foreign_newer_or_contradicts_itself_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(backup(folder.path())).unwrap();
    let newer_format = [&good[..8], &9_u32.to_le_bytes(), &good[12..]].concat();
    let made = |header: v1::BackupHeader, records: &[(&str, &[u8])]| {
        let mut writer = Writer::new(&header);
        for (key, value) in records {
            writer.record(key, value).unwrap();
        }
        let mut bytes = writer.take();
        bytes.extend(writer.finish().unwrap());
        bytes
    };
    let header = |records: &[(&str, &[u8])]| v1::BackupHeader {
        version: record::VERSION,
        records: records.len() as u64,
        record_bytes: records.iter().map(|(_, value)| value.len() as u64).sum(),
        written_by: "muster 9.0".to_owned(),
        ..v1::BackupHeader::default()
    };
    let newer: &[(&str, &[u8])] = &[("meta", &[0x08, 0x63])];
    let orphan: &[(&str, &[u8])] = &[("jobs/00000000000000000009/cancel", &[0x08, 0x01])];
    let unknown: &[(&str, &[u8])] = &[("dreams/1", &[0x08, 0x01])];
    let short = v1::BackupHeader { records: 7, ..header(newer) };
    let later = v1::BackupHeader { version: record::VERSION + 1, ..header(&[]) };
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "it is empty"),
        ("foreign", b"PK\x03\x04 and so on, for some time".to_vec(), "is not a backup"),
        ("newer format", newer_format, "a newer Muster"),
        ("newer header", made(later, &[]), "muster 9.0"),
        ("newer record", made(header(newer), newer), "muster 9.0"),
        ("contradiction", made(header(orphan), orphan), "contradict"),
        ("unknown key", made(header(unknown), unknown), "dreams/1"),
        ("wrong count", made(short, newer), "not those that its header promises"),
    ];
    for (name, bytes, expected) in table {
        let (file, new) = (folder.path().join("bad"), folder.path().join("new"));
        fs::write(&file, bytes).unwrap();
        let refused = into_folder(&file, &new, false, Clock::system()).expect_err(name).to_string();
        assert!(refused.contains(expected), "{name}: {refused}");
        assert!(!new.exists(), "{name} left something");
    }
}

#[test]
fn a_path_that_leads_out_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["../up", "/etc/passwd", "logs/../../up", ""] {
        let header = v1::BackupHeader { version: record::VERSION, with_objects: true, ..v1::BackupHeader::default() };
        let mut writer = Writer::new(&header);
        writer.object(path, b"x", true).unwrap();
        let file = folder.path().join("bad");
        let mut bytes = writer.take();
        bytes.extend(writer.finish().unwrap());
        fs::write(&file, bytes).unwrap();
        let refused = check(&file, Clock::system()).expect_err(path).to_string();
        assert!(refused.contains("is no path"), "{path}: {refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_backup_that_was_cut_or_changed_anywhere_is_refused(at in any::<prop::sample::Index>(), flip in 0_u8..=255, grow in any::<bool>()) {
        thread_local! {
            static GOOD: (tempfile::TempDir, Vec<u8>) = {
                let folder = tempfile::tempdir().unwrap();
                let good = fs::read(backup(folder.path())).unwrap();
                (folder, good)
            };
        }
        GOOD.with(|(folder, good)| {
            let at = at.index(good.len());
            let mut bytes = good.clone();
            match (flip, grow) {
                (0, false) => bytes.truncate(at),
                (0, true) => bytes.push(0),
                _ => bytes[at] ^= flip,
            }
            let file = folder.path().join("bad");
            fs::write(&file, &bytes).unwrap();
            prop_assert!(check(&file, Clock::system()).is_err(), "byte {at} of {}, {flip}", good.len());
            fs::write(&file, good).unwrap();
            prop_assert!(check(&file, Clock::system()).is_ok());
            Ok(())
        })?;
    }
}
