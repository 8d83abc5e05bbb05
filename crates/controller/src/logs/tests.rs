//! The log store as its users see it.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_common::{
    clock::Clock,
    proto::v1::{LogAck, LogBatch, LogFrame, Stream},
};
use muster_core::id::{JobId, TaskId, Token};
use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
use proptest::prelude::*;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(LIMIT, work).await.expect("ends in time") })
}

async fn open(objects: &Arc<dyn ObjectStore>) -> LogStore {
    open_with(objects, Config::default()).await
}

async fn open_with(objects: &Arc<dyn ObjectStore>, config: Config) -> LogStore {
    LogStore::open(Arc::clone(objects), config, Clock::system()).await.unwrap()
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn text(data: impl Into<Bytes>) -> LogFrame {
    LogFrame { data: data.into(), ..LogFrame::default() }
}

/// Frames of attempt 1 of a task of job 7, whose token is the task's number plus 100.
fn batch(task: u32, first: u64, texts: &[&str]) -> LogBatch {
    let frames = texts.iter().map(|data| text(data.as_bytes().to_vec())).collect();
    LogBatch { token: u64::from(task) + 100, job: 7, task, attempt: 1, first, frames, last: false }
}

fn last(task: u32, first: u64, texts: &[&str]) -> LogBatch {
    LogBatch { last: true, ..batch(task, first, texts) }
}

fn selection(tasks: Range<u32>) -> Selection {
    Selection { job: JobId(7), tasks, attempts: Attempts::From(Arc::new(|_| 1)), stream: None }
}

async fn read_on(reader: &mut Reader) -> Vec<(u32, String)> {
    let mut all = Vec::new();
    while let Some(pieces) = reader.next().await.unwrap() {
        for piece in pieces {
            let of = |frame: &LogFrame| match frame.cut_reason.as_str() {
                "" => String::from_utf8_lossy(&frame.data).into_owned(),
                why => format!("[{} {why}]", frame.cut_bytes),
            };
            all.extend(piece.frames.iter().map(|frame| (piece.task, of(frame))));
        }
    }
    all
}

async fn read(store: &LogStore, tasks: Range<u32>) -> Vec<(u32, String)> {
    read_on(&mut store.reader(selection(tasks)).await.unwrap()).await
}

fn line(task: u32, text: &str) -> (u32, String) {
    (task, text.to_owned())
}

fn ack(token: u64, received: u64, kept: u64) -> LogAck {
    LogAck { token, received, kept }
}

#[test]
fn frames_are_readable_at_once_and_the_same_when_they_are_stored() {
    block_on(async {
        let store = open(&memory()).await;
        let source = store.source();
        source.append(batch(0, 0, &["a0", "a1"])).await.unwrap();
        source.append(batch(1, 0, &["b0"])).await.unwrap();
        source.append(last(0, 2, &["a2"])).await.unwrap();
        let all = vec![line(0, "a0"), line(0, "a1"), line(1, "b0"), line(0, "a2")];
        assert_eq!(read(&store, 0..9).await, all);
        assert_eq!(source.acks().await, [ack(100, 3, 0), ack(101, 1, 0)]);
        store.flush().await;
        assert_eq!(read(&store, 0..9).await, all);
        assert_eq!(read(&store, 1..2).await, [line(1, "b0")]);
        assert_eq!(source.acks().await, [ack(100, 3, 3), ack(101, 1, 1)]);
    });
}

#[test]
fn after_a_restart_frames_go_on_where_the_stored_ones_end() {
    block_on(async {
        let objects = memory();
        let store = open(&objects).await;
        store.source().append(batch(0, 0, &["a0", "a1"])).await.unwrap();
        store.source().append(last(1, 0, &["b0"])).await.unwrap();
        store.flush().await;
        store.source().append(batch(0, 2, &["never stored"])).await.unwrap();

        let store = open(&objects).await;
        let source = store.source();
        assert!(matches!(source.append(batch(0, 4, &["a4"])).await, Err(Error::Gap { .. })));
        assert_eq!(source.acks().await, [ack(100, 2, 2)], "a gap: begin at what is kept");
        source.append(batch(0, 0, &["a0", "a1", "a2"])).await.unwrap();
        source.append(last(1, 0, &["b0"])).await.unwrap();
        assert_eq!(source.acks().await, [ack(100, 3, 2), ack(101, 1, 1)]);
        let all = vec![line(0, "a0"), line(0, "a1"), line(1, "b0"), line(0, "a2")];
        assert_eq!(read(&store, 0..9).await, all);
        store.flush().await;
        assert_eq!(read(&open(&objects).await, 0..9).await, all);
    });
}

#[test]
fn a_follower_gets_each_frame_once_whether_it_is_stored_meanwhile_or_not() {
    block_on(async {
        let store = open(&memory()).await;
        let source = store.source();
        let mut reader = store.reader(selection(0..1)).await.unwrap();
        let mut seen = Vec::new();
        for n in 0..40_u64 {
            let grown = reader.grown();
            source.append(batch(0, n, &[&n.to_string()])).await.unwrap();
            source.append(batch(1, n, &["other"])).await.unwrap();
            grown.await;
            if n % 3 == 0 {
                store.flush().await;
            }
            if n % 5 != 0 {
                seen.extend(read_on(&mut reader).await);
            }
        }
        assert!(reader.is_open());
        source.append(last(0, 40, &[])).await.unwrap();
        assert!(!reader.is_open() && !reader.lacks_the_end_of(0, 1));
        let expected: Vec<_> = (0..40).map(|n: u64| line(0, &n.to_string())).collect();
        assert_eq!(seen, expected);
    });
}

#[test]
fn a_tail_is_found_in_memory_in_the_store_and_over_both() {
    block_on(async {
        let store = open(&memory()).await;
        let source = store.source();
        let lines: Vec<_> = (0..100).map(|n| format!("line {n}\n")).collect();
        for (n, line) in lines.iter().enumerate() {
            source.append(batch(0, n as u64, &[line])).await.unwrap();
            source.append(batch(1, n as u64, &["noise\n", "noise\n"])).await.unwrap();
            if n % 30 == 29 {
                store.flush().await;
            }
        }
        for wanted in [1, 5, 10, 11, 45, 100, 1000] {
            let mut reader = store.reader(selection(0..1)).await.unwrap();
            reader.tail(wanted).await.unwrap();
            let found: Vec<_> = read_on(&mut reader).await.into_iter().map(|(_, text)| text).collect();
            let skip = lines.len().saturating_sub(usize::try_from(wanted).unwrap());
            assert_eq!(found, lines[skip..], "the last {wanted}");
        }
    });
}

#[test]
fn a_tail_may_begin_within_a_frame() {
    block_on(async {
        let store = open(&memory()).await;
        store.source().append(batch(0, 0, &["one\ntwo\nthr", "ee\nfour\n"])).await.unwrap();
        let mut reader = store.reader(selection(0..1)).await.unwrap();
        reader.tail(3).await.unwrap();
        let pieces = reader.next().await.unwrap().unwrap();
        let offsets: Vec<_> = pieces[0].frames.iter().map(|frame| (frame.offset, frame.data.clone())).collect();
        assert_eq!(offsets, [(4, Bytes::from("two\nthr")), (0, Bytes::from("ee\nfour\n"))]);
    });
}

#[test]
fn streams_and_attempts_are_told_apart() {
    block_on(async {
        let store = open(&memory()).await;
        let source = store.source();
        let mut mixed = batch(0, 0, &["out"]);
        mixed.frames.push(LogFrame { stream: Stream::Stderr.into(), ..text("err") });
        source.append(mixed).await.unwrap();
        source.append(LogBatch { attempt: 2, token: 500, ..batch(0, 0, &["again"]) }).await.unwrap();
        let cases = [
            (Attempts::Only(1), None, vec![line(0, "out"), line(0, "err")]),
            (Attempts::Only(1), Some(Stream::Stderr), vec![line(0, "err")]),
            (Attempts::From(Arc::new(|_| 2)), None, vec![line(0, "again")]),
            (Attempts::From(Arc::new(|_| 1)), Some(Stream::Stdout), vec![line(0, "out"), line(0, "again")]),
        ];
        for (attempts, stream, expected) in cases {
            let wanted = Selection { attempts, stream, ..selection(0..1) };
            let mut reader = store.reader(wanted.clone()).await.unwrap();
            assert_eq!(read_on(&mut reader).await, expected, "{wanted:?}");
        }
    });
}

#[test]
fn binary_and_huge_frames_come_back_as_they_were() {
    block_on(async {
        let store = open(&memory()).await;
        let source = store.source();
        let noise: Vec<u8> =
            (0..3_000_000_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
        for n in 0..4 {
            let frames = vec![text(noise.clone())];
            source.append(LogBatch { frames, ..batch(0, n, &[]) }).await.unwrap();
        }
        let mut total = 0;
        let mut reader = store.reader(selection(0..1)).await.unwrap();
        while let Some(pieces) = reader.next().await.unwrap() {
            for frame in pieces.into_iter().flat_map(|piece| piece.frames) {
                assert!(frame.data == noise);
                total += 1;
            }
            store.flush().await;
        }
        assert_eq!(total, 4);
    });
}

#[test]
fn over_the_quota_the_oldest_ended_logs_go_and_leave_a_word() {
    block_on(async {
        let objects = memory();
        let config = Config { quota_bytes: 3_000, ..Config::default() };
        let store = open_with(&objects, config).await;
        let source = store.source();
        let long = "x".repeat(1_000);
        source.append(batch(9, 0, &[&long])).await.unwrap();
        store.flush().await;
        for task in 0..4 {
            source.append(last(task, 0, &[&long])).await.unwrap();
            store.flush().await;
            store.keep_quota().await;
        }
        let all = read(&store, 0..10).await;
        assert_eq!(all[0], line(9, &long), "the live attempt's are kept though they are the oldest");
        assert_eq!(all[1], line(0, "[1000 removed: all logs together were over their quota of 0.0 GiB]"));
        assert_eq!(all.last(), Some(&line(3, &long)));
        let again = open(&objects).await;
        assert_eq!(read(&again, 0..10).await, all, "after a restart too");
        assert_eq!(again.shared.stored.load(Ordering::Relaxed), store.shared.stored.load(Ordering::Relaxed));
    });
}

#[test]
fn a_forgotten_job_leaves_nothing() {
    block_on(async {
        let objects = memory();
        let store = open(&objects).await;
        store.source().append(batch(0, 0, &["a"])).await.unwrap();
        store.flush().await;
        store.source().append(batch(0, 1, &["b"])).await.unwrap();
        let mut result = store.put_result(TaskId::new(JobId(7), 0), Token(1)).await.unwrap();
        result.write(b"[1]").await.unwrap();
        result.finish().await.unwrap();
        let mut reader = store.reader(selection(0..1)).await.unwrap();
        store.forget(JobId(7)).await;
        assert_eq!(read_on(&mut reader).await, []);
        assert_eq!(store.shared.buffered.load(Ordering::Relaxed), 0);
        assert_eq!(store.shared.stored.load(Ordering::Relaxed), 0);
        assert_eq!(futures::StreamExt::count(objects.list(None)).await, 0);
    });
}

#[test]
fn leftovers_of_deleted_jobs_are_swept_at_the_start() {
    block_on(async {
        let objects = memory();
        let store = open(&objects).await;
        store.source().append(batch(0, 0, &["a"])).await.unwrap();
        store.source().append(LogBatch { job: 8, ..batch(0, 0, &["b"]) }).await.unwrap();
        store.flush().await;
        let mut result = store.put_result(TaskId::new(JobId(9), 0), Token(1)).await.unwrap();
        result.write(b"[1]").await.unwrap();
        result.finish().await.unwrap();
        open(&objects).await.keep_only(|job| job == JobId(8)).await;
        let left: Vec<_> = futures::TryStreamExt::try_collect(objects.list(None)).await.unwrap();
        let left: Vec<_> = left.into_iter().map(|object| object.location.to_string()).collect();
        assert_eq!(left, ["logs/00000000000000000008/0000000000"]);
    });
}

#[test]
fn writers_wait_when_memory_is_full_until_something_is_stored() {
    block_on(async {
        let store = open_with(&memory(), Config { buffer_bytes: 1_000, ..Config::default() }).await;
        let source = store.source();
        let long = "x".repeat(2_000);
        source.append(batch(0, 0, &[&long])).await.unwrap();
        let mut second = Box::pin(source.append(batch(0, 1, &["more"])));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let cancel = CancellationToken::new();
        let flusher = tokio::spawn(store.clone().run(cancel.clone()));
        second.await.unwrap();
        cancel.cancel();
        flusher.await.unwrap();
        assert_eq!(store.shared.buffered.load(Ordering::Relaxed), 0, "a stop stores what is left");
        assert_eq!(read(&store, 0..1).await, [line(0, &long), line(0, "more")]);
    });
}

#[test]
fn a_damaged_segment_costs_only_itself() {
    block_on(async {
        let objects = memory();
        let store = open(&objects).await;
        for n in 0..3 {
            store.source().append(batch(0, n, &[&n.to_string()])).await.unwrap();
            store.flush().await;
        }
        let path = Path::from("logs/00000000000000000007/0000000001");
        objects.put(&path, b"torn".to_vec().into()).await.unwrap();
        assert_eq!(read(&open(&objects).await, 0..1).await, [line(0, "0"), line(0, "2")]);
    });
}

#[test]
fn ten_thousand_short_logs_make_few_objects() {
    block_on(async {
        let objects = memory();
        let store = open(&objects).await;
        let source = store.source();
        for task in 0..10_000 {
            source.append(last(task, 0, &["hello\n"])).await.unwrap();
        }
        store.flush().await;
        assert_eq!(source.acks().await.len(), 10_000);
        assert_eq!(futures::StreamExt::count(objects.list(None)).await, 1);
        assert_eq!(read(&store, 9_999..10_000).await, [line(9_999, "hello\n")]);
        assert_eq!(read(&store, 0..10_000).await.len(), 10_000);
    });
}

#[test]
fn an_idle_job_is_put_away_and_comes_back() {
    block_on(async {
        let store = open(&memory()).await;
        store.source().append(batch(0, 0, &["a"])).await.unwrap();
        store.flush().await;
        let job = store.warm_job(JobId(7));
        job.lock().touched = Mono(0);
        drop(job);
        let forget = |slot: &Slot| matches!(slot, Slot::Cold(_));
        // The clock of a test is young: make it look as if long ago.
        store.put_away(Mono(u64::MAX));
        assert!(store.jobs().values().all(forget));
        let source = store.source();
        source.append(batch(0, 0, &["a", "b"])).await.unwrap();
        assert_eq!(read(&store, 0..1).await, [line(0, "a"), line(0, "b")]);
    });
}

#[test]
fn a_result_that_is_too_large_is_refused_and_leaves_nothing() {
    block_on(async {
        let objects = memory();
        let store = open(&objects).await;
        let task = TaskId::new(JobId(7), 0);
        let mut result = store.put_result(task, Token(1)).await.unwrap();
        let part = vec![b' '; 8 << 20];
        for _ in 0..8 {
            result.write(&part).await.unwrap();
        }
        assert!(matches!(result.write(b" ").await, Err(Error::ResultTooLarge)));
        result.abort().await;
        assert!(store.get_result(task, Token(1)).await.is_err());
    });
}

proptest! {
    /// Whatever is sent twice, stored between, or begun anew: each attempt's frames are read once and in order.
    #[test]
    fn frames_are_read_once_and_in_order(steps in proptest::collection::vec((0..3_u32, 0..4_u64, 0..4_u64, 0..10_u8), 1..40)) {
        block_on(async {
            let objects = memory();
            let mut store = open(&objects).await;
            let mut kept = [0_u64; 3];
            let mut sent = [0_u64; 3];
            for (task, back, more, what) in steps {
                let at = task as usize;
                let first = sent[at].saturating_sub(back).max(kept[at]);
                let texts: Vec<_> = (first..sent[at] + more).map(|n| n.to_string()).collect();
                let texts: Vec<_> = texts.iter().map(String::as_str).collect();
                store.source().append(batch(task, first, &texts)).await.unwrap();
                sent[at] += more;
                if what < 3 {
                    store.flush().await;
                    kept = sent;
                }
                if what == 9 {
                    store = open(&objects).await;
                    sent = kept;
                }
            }
            for task in 0..3_u32 {
                let found = read(&store, task..task + 1).await;
                let expected: Vec<_> = (0..sent[task as usize]).map(|n| line(task, &n.to_string())).collect();
                assert_eq!(found, expected);
            }
        });
    }
}
