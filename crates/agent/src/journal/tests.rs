//! What is written comes back, whatever happens to the tail; damage is seen and costs only itself.

use std::{
    fs, io,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use muster_core::{
    event::{Report, What},
    id::{JobId, TaskId, Term, Token},
    record::TaskResult,
    resources::Request,
    spec::TaskSpec,
    state::End,
    time::Timestamp,
};
use proptest::prelude::*;

use super::{Error, Journal, codec, file, replay::replay};
use crate::{
    exec::{Order, ProcessIdentity},
    supervisor::{Entry, Memory, Remembered},
};

fn task(token: u64) -> TaskId {
    TaskId::new(JobId(1), u32::try_from(token).expect("small"))
}

fn request() -> Request {
    Request { cpu_milli: 500, memory: 9, gpus: 1, named: [("licence".to_owned(), 2)].into() }
}

fn lease(token: u64) -> Entry {
    let spec = Arc::new(TaskSpec { request: request(), ..TaskSpec::default() });
    Entry::Lease(Arc::new(Order::plain(token, task(token), 1, spec)))
}

fn identity() -> ProcessIdentity {
    ProcessIdentity { boot: "b7".into(), pid: 77, start: 123_456, group: 77 }
}

fn started(token: u64) -> Entry {
    Entry::Started { token: Token(token), identity: identity() }
}

fn report(seq: u64, token: u64, end: End) -> Report {
    let result = Some(TaskResult::Inline(Arc::from(&b"{}"[..])));
    let what =
        What::Ended { end, why: Some("why".into()), started: Timestamp(1), ended: Timestamp(2), result, usage: None };
    Report { seq, token: Token(token), task: task(token), what }
}

fn remembered(token: u64, known: bool, reported: bool) -> Remembered {
    let identity = known.then(identity);
    Remembered { token: Token(token), task: task(token), request: request(), identity, reported }
}

/// One of everything, and what it amounts to.
fn history() -> (Vec<Entry>, Memory) {
    let entries = vec![
        Entry::Term(Term(4)),
        lease(1),
        started(1),
        lease(2),
        lease(3),
        started(3),
        lease(4),
        started(4),
        Entry::Report(report(1, 1, End::Succeeded)),
        Entry::Report(report(2, 4, End::KillFailed)),
        Entry::Report(Report { seq: 3, token: Token(3), task: task(3), what: What::Started { at: Timestamp(1) } }),
        lease(5),
        Entry::Report(Report { seq: 4, token: Token(5), task: task(5), what: What::Returned { why: "full".into() } }),
        lease(6),
        Entry::Released { token: Token(6) },
        Entry::Acked { up_to: 2 },
    ];
    let kept = [&entries[10], &entries[12]].map(|entry| match entry {
        Entry::Report(report) => report.clone(),
        other => panic!("a report, not {other:?}"),
    });
    let memory = Memory {
        term: Term(4),
        highest: Token(6),
        next_seq: 5,
        leases: vec![remembered(2, false, false), remembered(3, true, false), remembered(4, true, true)],
        reports: kept.to_vec(),
    };
    (entries, memory)
}

fn bytes(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::append_memory(&Memory::default(), &mut bytes);
    for entry in entries {
        codec::append(entry, &mut bytes);
    }
    bytes
}

fn newest(folder: &std::path::Path) -> std::path::PathBuf {
    file::segments(folder).expect("readable").pop().expect("there is one").1
}

#[test]
fn what_was_written_comes_back_after_the_process_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut journal, memory) = Journal::open(folder.path()).expect("new");
    assert_eq!(memory, Memory::default());
    let (entries, expected) = history();
    for batch in entries.chunks(5) {
        for entry in batch {
            journal.add(entry);
        }
        journal.write().expect("written");
        assert!(journal.is_clean());
    }
    drop(journal);
    let (journal, memory) = Journal::open(folder.path()).expect("there");
    assert_eq!(memory, expected);
    drop(journal);
    let (mut journal, memory) = Journal::open(folder.path()).expect("there");
    assert_eq!(memory, expected, "a memory that was written at the start of a segment is the same");
    until_segments(&mut journal, 1);
}

#[cfg(unix)]
#[test]
fn nobody_else_may_read_a_segment_or_what_was_set_aside_of_one() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    // As an older build left them, and one of them damaged.
    let old = file::path(folder.path(), 1);
    fs::write(&old, [7; 64]).expect("written");
    fs::write(file::path(folder.path(), 2).with_extension("draft"), "half").expect("written");
    fs::set_permissions(&old, PermissionsExt::from_mode(0o644)).expect("ours");
    fs::set_permissions(file::path(folder.path(), 2).with_extension("draft"), PermissionsExt::from_mode(0o644))
        .expect("ours");
    let _open = Journal::open(folder.path()).expect("there");
    assert_eq!(mode(&newest(folder.path())), 0o600);
    assert_eq!(mode(&old.with_extension("damaged")), 0o600);
}

#[test]
fn a_long_journal_is_renewed_and_stays_small() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut journal, mut memory) = Journal::open(folder.path()).expect("new");
    for seq in 1..=100_000 {
        journal.add(&Entry::Report(report(seq, seq, End::Succeeded)));
        if seq % 100 == 0 {
            journal.add(&Entry::Acked { up_to: seq });
            memory = Memory { highest: Token(seq), next_seq: seq + 1, ..Memory::default() };
            journal.write().expect("written");
            if journal.wants_memory() {
                journal.renew(&memory).expect("renewed");
            }
        }
    }
    let size = fs::metadata(newest(folder.path())).expect("there").len();
    assert!(size < super::SEGMENT_MAX + (64 << 10), "{size} bytes");
    assert_eq!(Journal::open(folder.path()).expect("there").1, memory);
}

#[test]
fn a_write_that_fails_is_made_good_from_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut journal, _) = Journal::open(folder.path()).expect("new");
    // A handle that cannot write stands for a full disk.
    journal.file = Some(fs::File::open(newest(folder.path())).expect("readable"));
    journal.add(&lease(1));
    assert!(matches!(journal.write(), Err(Error::Io { .. })));
    assert!(journal.wants_memory() && !journal.is_clean());
    journal.add(&started(1));
    journal.write().expect("nothing is tried while it is behind");
    let memory = Memory { highest: Token(1), leases: vec![remembered(1, true, false)], ..Memory::default() };
    journal.renew(&memory).expect("the disk has room again");
    assert!(journal.is_clean());
    journal.add(&Entry::Term(Term(8)));
    journal.write().expect("written");
    assert_eq!(Journal::open(folder.path()).expect("there").1, Memory { term: Term(8), ..memory });
}

/// What the next agent finds, were this one killed now.
fn found_after_a_kill(folder: &std::path::Path) -> Memory {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        // A segment may be deleted while we look; those that count never are.
        let _gone = fs::copy(&path, copy.path().join(path.file_name().expect("a name")));
    }
    Journal::open(copy.path()).expect("there").1
}

/// What must come has come after so many looks, so far apart.
const LOOKS: u32 = 6000;
const PAUSE: Duration = Duration::from_millis(5);

/// Until there are so many segments.
fn until_segments(journal: &mut Journal, count: usize) {
    for _ in 0..LOOKS {
        journal.write().expect("written");
        if file::segments(&journal.folder).expect("readable").len() == count {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("{count} segments, not {:?}", file::segments(&journal.folder));
}

#[test]
fn a_disk_that_takes_its_time_keeps_nobody_waiting_and_a_kill_meanwhile_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (go, gate) = mpsc::sync_channel(8);
    let gate = Mutex::new(gate);
    // It takes one file each time that it is told to; that of a test that does not come to it fails.
    let slow = move |_: &fs::File| {
        let gate = gate.lock().map_err(|_| io::Error::other("a panic"))?;
        gate.recv_timeout(Duration::from_secs(20)).map_err(io::Error::other)
    };
    let (mut journal, mut memory) = Journal::open_with(folder.path(), Arc::new(slow)).expect("new");
    for token in 1..=4 {
        journal.add(&lease(token));
        journal.write().expect("written");
        memory.highest = Token(token);
        memory.leases.push(remembered(token, false, false));
        assert_eq!(found_after_a_kill(folder.path()), memory);
        journal.renew(&memory).expect("no disk is waited for");
        assert_eq!(found_after_a_kill(folder.path()), memory, "what is new has a name and is not on disk");
        journal.add(&started(token));
        journal.write().expect("written");
        memory.leases[usize::try_from(token).expect("small") - 1].identity = Some(identity());
        assert_eq!(found_after_a_kill(folder.path()), memory, "it counts, and not the one before it");
    }
    assert_eq!(
        file::segments(folder.path()).expect("readable").len(),
        5,
        "none is deleted before a newer one is there"
    );
    // The first, before which there is none; then the newest, and all others are of no use any more.
    go.send(()).expect("it waits");
    go.send(()).expect("it waits");
    until_segments(&mut journal, 1);
    assert_eq!(found_after_a_kill(folder.path()), memory);
}

#[test]
fn a_segment_that_the_disk_does_not_take_is_written_anew_and_those_before_it_stand() {
    let folder = tempfile::tempdir().expect("a folder");
    let (say, told) = mpsc::sync_channel(8);
    let told = Mutex::new(told);
    let broken = move |_: &fs::File| {
        let told = told.lock().map_err(|_| io::Error::other("a panic"))?;
        match told.recv_timeout(Duration::from_secs(20)) {
            Ok(true) => Ok(()),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    };
    let (mut journal, _) = Journal::open_with(folder.path(), Arc::new(broken)).expect("new");
    say.send(true).expect("it waits");
    let memory = Memory { highest: Token(1), leases: vec![remembered(1, false, false)], ..Memory::default() };
    journal.renew(&memory).expect("no disk is waited for");
    say.send(false).expect("it waits");
    let mut fails = || {
        std::thread::sleep(PAUSE);
        journal.write().is_err()
    };
    assert!((0..LOOKS).any(|_| fails()), "nobody says that the disk did not take it");
    assert!(journal.wants_memory() && !journal.is_clean());
    assert_eq!(file::segments(folder.path()).expect("readable").len(), 2);
    journal.renew(&memory).expect("another");
    say.send(true).expect("it waits");
    until_segments(&mut journal, 1);
    assert!(journal.is_clean());
    assert_eq!(found_after_a_kill(folder.path()), memory);
}

#[test]
fn a_journal_that_cannot_be_begun_anew_is_read_and_made_good_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut journal, _) = Journal::open(folder.path()).expect("new");
    let (entries, expected) = history();
    entries.iter().for_each(|entry| journal.add(entry));
    journal.write().expect("written");
    drop(journal);
    // A draft that cannot be made stands for a full disk.
    let in_the_way = file::path(folder.path(), 2).with_extension("draft");
    fs::create_dir_all(in_the_way.join("inside")).expect("made");
    let (mut journal, memory) = Journal::open(folder.path()).expect("what there is can be read");
    assert_eq!(memory, expected);
    assert!(journal.wants_memory() && !journal.is_clean());
    journal.add(&Entry::Term(Term(8)));
    journal.write().expect("nothing is tried while it is behind");
    assert!(matches!(journal.renew(&memory), Err(Error::Io { .. })));
    assert_eq!(found_after_a_kill(folder.path()), expected, "what was there stands");
    fs::remove_dir_all(in_the_way).expect("there is room again");
    let memory = Memory { term: Term(8), ..expected };
    journal.renew(&memory).expect("there is room again");
    assert!(journal.is_clean());
    assert_eq!(found_after_a_kill(folder.path()), memory);
    // Without anything on disk there is nothing to stand upon.
    let empty = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(file::path(empty.path(), 1).with_extension("draft").join("inside")).expect("made");
    assert!(matches!(Journal::open(empty.path()), Err(Error::Io { .. })));
}

#[test]
fn a_segment_that_was_not_all_on_disk_does_not_hide_the_one_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let (entries, before) = history();
    let after = Memory { term: Term(9), ..before.clone() };
    let mut newer = Vec::new();
    codec::append_memory(&after, &mut newer);
    let begins_with = newer.len();
    codec::append(&Entry::Term(Term(10)), &mut newer);
    let (old, new) = (file::path(folder.path(), 7), file::path(folder.path(), 8));
    for cut in 0..=newer.len() {
        for rest in [0, newer.len() - cut] {
            fs::write(&old, bytes(&entries)).expect("written");
            fs::write(&new, [&newer[..cut], &vec![0; rest]].concat()).expect("written");
            let segments = [(7, old.clone()), (8, new.clone())];
            let (found, is_whole) = file::load(&segments).expect("readable");
            assert!(is_whole);
            let expected = match cut {
                _ if cut < begins_with => before.clone(),
                _ if cut == newer.len() => Memory { term: Term(10), ..after.clone() },
                _ => after.clone(),
            };
            assert_eq!(found, expected, "{cut} of {} bytes and {rest} zeros", newer.len());
        }
    }
}

#[test]
fn an_empty_newest_segment_does_not_hide_the_one_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let (entries, expected) = history();
    fs::write(file::path(folder.path(), 7), bytes(&entries)).expect("written");
    fs::write(file::path(folder.path(), 8), [0; 4096]).expect("written");
    assert_eq!(Journal::open(folder.path()).expect("there").1, expected);
}

#[test]
fn a_damaged_middle_costs_only_itself_and_is_kept_for_a_person() {
    let folder = tempfile::tempdir().expect("a folder");
    let (entries, expected) = history();
    let mut damaged = bytes(&entries);
    // Inside the record of lease 2, which is the fourth entry.
    let place = bytes(&entries[..3]).len() + codec::HEADER + 2;
    damaged[place] ^= 0x10;
    let path = file::path(folder.path(), 1);
    fs::write(&path, &damaged).expect("written");
    let (_, memory) = Journal::open(folder.path()).expect("there");
    assert_eq!(memory, Memory { leases: expected.leases[1..].to_vec(), ..expected });
    assert_eq!(fs::read(path.with_extension("damaged")).expect("set aside"), damaged);
}

#[test]
fn a_journal_of_a_newer_build_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut later = Vec::new();
    codec::append_head_of(codec::VERSION + 1, &mut later);
    let path = file::path(folder.path(), 3);
    fs::write(&path, &later).expect("written");
    let error = Journal::open(folder.path()).expect_err("refused");
    assert!(error.to_string().contains("start a newer muster-agent"), "{error}");
    assert_eq!(fs::read(&path).expect("there"), later);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_tail_leaves_exactly_the_records_before_it(cut in 0..4096_usize) {
        let (entries, _) = history();
        let all = bytes(&entries);
        let cut = cut % all.len();
        let whole = (0..=entries.len()).rev().find(|n| bytes(&entries[..*n]).len() <= cut);
        let found = replay(&all[..cut]);
        prop_assert_eq!(&found.damaged, &Vec::<String>::new());
        if let Some(n) = whole {
            let exact = replay(&bytes(&entries[..n]));
            prop_assert_eq!(&found.memory, &exact.memory);
            prop_assert_eq!(found.torn_at.is_some(), cut > bytes(&entries[..n]).len());
        } else {
            prop_assert!(!found.whole);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_and_what_is_behind_it_is_read(place in 0..4096_usize, bit in 0..8_u8) {
        let (entries, _) = history();
        let mut all = bytes(&entries);
        let place = place % all.len();
        all[place] ^= 1 << bit;
        let found = replay(&all);
        prop_assert!(!found.damaged.is_empty() || found.torn_at.is_some());
        // The last record is the acknowledgement; unless it is the damaged one, it was read.
        if place < bytes(&entries[..entries.len() - 1]).len() {
            prop_assert!(found.memory.reports.iter().all(|report| report.seq > 2));
        }
    }

    #[test]
    fn no_bytes_whatever_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        replay(&bytes);
    }
}
