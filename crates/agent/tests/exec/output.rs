//! What tasks write arrives whole, in order, in time, and in bounded memory.

use std::time::Duration;

use muster_agent::exec::KillReason;
use muster_core::{id::Token, spec::TaskSpec, state::End};

use crate::bench::{Bench, LIMIT, argv, shell, wait_for};

/// Bytes that repeat only after a long time, so that a lost or doubled piece is seen.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

#[tokio::test]
async fn both_outputs_arrive_apart_and_end_with_a_last_word() {
    let mut bench = Bench::new().await;
    let (over, out, err) = bench.output(shell("echo out; echo err >&2; printf 'no newline'")).await;
    assert_eq!((over.end, out.as_str(), err.as_str()), (End::Succeeded, "out\nno newline", "err\n"));
    let log = bench.controller.log(over.token);
    assert!(log.last);
    let (from, to) = (over.started.0, over.ended.0);
    assert!(log.times.iter().all(|at| (from..=to).contains(at)), "{:?} not in {from}..={to}", log.times);
}

#[tokio::test]
async fn a_silent_attempt_leaves_and_sends_nothing() {
    let mut bench = Bench::new().await;
    let over = bench.run(argv(&["true"])).await;
    bench.drained().await;
    assert!(!bench.controller.state.lock().expect("not poisoned").logs.contains_key(&over.token.0));
    assert_eq!(std::fs::read_dir(bench.dir.join("spool")).expect("is there").count(), 0);
}

#[tokio::test]
async fn an_attempt_says_at_its_end_whether_it_wrote_anything() {
    let mut bench = Bench::new().await;
    // Short ones, which end on the thread that started them, and others; what is not kept was written, too.
    let secret = |spec: TaskSpec| TaskSpec {
        env: [("S".to_owned(), "hidden".to_owned())].into(),
        mask: vec!["S".to_owned()],
        ..spec
    };
    let table = [
        (argv(&["true"]), false),
        (argv(&["sleep", "0.1"]), false),
        (argv(&["echo", "x"]), true),
        (shell("sleep 0.1; echo x >&2"), true),
        (TaskSpec { output_limit: Some(0), ..shell("sleep 0.1; echo x") }, true),
        (secret(shell("printf hi")), true),
        (secret(shell("sleep 0.1; printf hi")), true),
    ];
    for (spec, wrote) in table {
        let command = format!("{:?}", spec.command);
        let over = bench.run(spec).await;
        assert_eq!(over.usage.expect("it was counted").has_output, Some(wrote), "{command}");
        bench.drained().await;
        assert_eq!(bench.controller.state.lock().expect("not poisoned").logs.contains_key(&over.token.0), wrote);
    }
    let token = bench.start(shell("echo x; exec sleep 1000"));
    wait_for("its output", || (bench.controller.log(token).stdout == b"x\n").then_some(())).await;
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.usage.expect("it was counted").has_output, Some(true));
}

#[tokio::test]
async fn what_is_shipped_is_deleted() {
    let mut bench = Bench::new().await;
    for _ in 0..20 {
        bench.output(shell("echo x")).await;
    }
    assert_eq!(std::fs::read_dir(bench.dir.join("spool")).expect("is there").count(), 0);
}

#[tokio::test]
async fn output_is_seen_while_the_task_runs() {
    let mut bench = Bench::new().await;
    let token = bench.start(shell("echo now; sleep 1000"));
    let mut changed = bench.controller.changed.subscribe();
    let seen = async {
        while bench.controller.log(token).stdout != b"now\n" {
            changed.changed().await.expect("alive");
        }
    };
    tokio::time::timeout(LIMIT, seen).await.expect("seen");
    bench.exec.kill(token, KillReason::Cancelled, Duration::from_secs(9));
    assert_eq!(bench.over().await.end, End::Cancelled);
}

#[tokio::test]
async fn a_line_of_ten_megabytes_and_binary_output_arrive_as_they_are() {
    let mut bench = Bench::new().await;
    let bytes = pattern(10 << 20);
    let file = bench.dir.join("bytes");
    std::fs::write(&file, &bytes).expect("written");
    let over = bench.run(argv(&["cat", file.to_str().expect("text")])).await;
    bench.drained().await;
    assert!(bench.controller.log(over.token).stdout == bytes, "bytes differ");
    let over = bench.run(shell("head -c 10000000 /dev/zero | tr '\\0' x")).await;
    bench.drained().await;
    let log = bench.controller.log(over.token);
    assert!(log.stdout.len() == 10_000_000 && log.stdout.iter().all(|byte| *byte == b'x'));
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("is there");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[tokio::test]
async fn a_flood_is_kept_to_its_limit_and_says_what_it_left_out() {
    let mut bench = Bench::new().await;
    let limit = 1 << 20;
    let count = 200_000_000u64;
    let before = resident();
    let text = format!("yes 0123456789abcde | head -c {count}; echo the end; echo of errors >&2");
    let over = bench.run(TaskSpec { output_limit: Some(limit), ..shell(&text) }).await;
    assert_eq!(over.end, End::Succeeded);
    bench.drained().await;
    let grown = resident().saturating_sub(before);
    // Half of it: other tests of this program take some, too.
    assert!(grown < 96 << 20, "memory grew by {grown}");
    let log = bench.controller.log(over.token);
    let cut: u64 = log.cuts.iter().map(|(_, _, bytes, _)| bytes).sum();
    assert_eq!(log.stdout.len() as u64 + cut, count + 8, "every byte is kept or counted");
    assert_eq!((log.stdout.len() + log.stderr.len()) as u64, limit, "the head and the end are the limit");
    assert!(log.stdout.ends_with(b"the end\n"), "the end is kept");
    assert!(log.stderr.ends_with(b"of errors\n"), "of both");
    assert_eq!(log.cuts[0].1, limit - 64 * 1024);
    assert!(log.cuts.iter().all(|(_, _, _, why)| why.contains("limit of 1048576 bytes")), "{:?}", log.cuts);
}

#[tokio::test]
async fn output_up_to_the_limit_is_kept_whole_and_never_a_byte_more() {
    let mut bench = Bench::new().await;
    for (limit, written) in [(0, 20), (1, 20), (10, 10), (10, 11), (10, 9), (300_000, 299_999), (300_000, 300_001)] {
        let text = format!("head -c {written} /dev/zero | tr '\\0' x");
        let over = bench.run(TaskSpec { output_limit: Some(limit), ..shell(&text) }).await;
        bench.drained().await;
        let log = bench.controller.log(over.token);
        let cut: u64 = log.cuts.iter().map(|(_, _, bytes, _)| bytes).sum();
        assert_eq!(log.stdout.len() as u64, limit.min(written), "{written} bytes, limit {limit}");
        assert_eq!(cut, written.saturating_sub(limit), "{written} bytes, limit {limit}");
    }
}

#[tokio::test]
async fn all_attempts_together_are_limited_and_go_on_when_there_is_room_again() {
    let total = 1 << 20;
    let mut bench = Bench::with_logs(|config| config.total_limit = total).await;
    bench.controller.set(|state| state.keep_nothing = true);
    let go = bench.dir.join("go");
    let first = bench.run(shell("head -c 1048000 /dev/zero")).await;
    assert_eq!(first.end, End::Succeeded);
    let text = format!(
        "head -c 200000 /dev/zero | tr '\\0' a; until [ -e {} ]; do sleep 0.01; done; echo after",
        go.display()
    );
    let second = bench.start(shell(&text));
    wait_for("the cut", || (!bench.controller.log(second).cuts.is_empty()).then_some(())).await;
    // All is sent once more, and kept.
    bench.controller.set(|state| (state.keep_nothing, state.break_next) = (false, true));
    bench.exec.start(std::sync::Arc::new(crate::bench::order(500, shell("echo poke; echo poke"))));
    assert_eq!(bench.over().await.end, End::Succeeded);
    // What the second one writes last is kept only where there is room for it.
    let shipped = bench.dir.join(format!("spool/{}.log", first.token));
    wait_for("room", || (!shipped.exists()).then_some(())).await;
    std::fs::write(&go, "").expect("written");
    assert_eq!(bench.over().await.end, End::Succeeded);
    let log = bench.controller.log(second);
    assert!(log.cuts[0].3.contains("keeps at most 1048576 bytes"), "{:?}", log.cuts);
    let cut: u64 = log.cuts.iter().map(|(_, _, bytes, _)| bytes).sum();
    wait_for("the rest", || bench.controller.log(second).last.then_some(())).await;
    let log = bench.controller.log(second);
    assert!(cut > 0 && log.stdout.ends_with(b"after\n"));
}

#[tokio::test]
async fn a_broken_stream_loses_and_repeats_nothing() {
    let mut bench = Bench::new().await;
    bench.controller.set(|state| state.break_after = Some(3));
    let bytes = pattern(3 << 20);
    let file = bench.dir.join("bytes");
    std::fs::write(&file, &bytes).expect("written");
    let over = bench.run(argv(&["cat", file.to_str().expect("text")])).await;
    bench.drained().await;
    assert!(bench.controller.log(over.token).stdout == bytes, "bytes differ");
    assert!(bench.controller.state.lock().expect("not poisoned").streams > 1);
}

#[tokio::test]
async fn a_controller_that_is_silent_does_not_slow_a_task_and_gets_a_window_only() {
    let mut bench = Bench::new().await;
    bench.controller.set(|state| state.silent = true);
    let over = bench.run(shell("head -c 20000000 /dev/zero")).await;
    assert_eq!(over.end, End::Succeeded);
    wait_for("a window of output", || (bench.controller.log(over.token).stdout.len() > 4_000_000).then_some(())).await;
    assert!(bench.controller.log(over.token).stdout.len() < 5 << 20);
}

#[tokio::test]
async fn output_of_an_earlier_agent_is_shipped_by_the_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::at(folder.path(), None, |_| {}).await;
    bench.controller.set(|state| state.silent = true);
    let over = bench.run(shell("echo kept")).await;
    drop(bench);
    // A crash in the middle of a record, and a file that is none of ours.
    let file = folder.path().join("spool").join(format!("{}.log", over.token));
    let mut bytes = std::fs::read(&file).expect("is there");
    bytes.extend_from_slice(&[30, 0, 0, 0, 1, 2]);
    std::fs::write(&file, bytes).expect("written");
    std::fs::write(folder.path().join("spool/notes.txt"), "x").expect("written");
    let bench = Bench::at(folder.path(), None, |_| {}).await;
    bench.drained().await;
    let log = bench.controller.log(over.token);
    assert_eq!((log.stdout.as_slice(), log.last), (&b"kept\n"[..], true));
    // What it cannot read it leaves alone: somebody else may.
    let left = std::fs::read_dir(folder.path().join("spool")).expect("is there").flatten();
    assert_eq!(left.map(|file| file.file_name()).collect::<Vec<_>>(), ["notes.txt"]);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_does_not_stop_a_task() {
    let mut bench = Bench::new().await;
    // The spool folder is gone: every write fails, as on a full disk.
    std::fs::remove_dir_all(bench.dir.join("spool")).expect("removed");
    let (over, out, _) = bench.output(shell("head -c 300000 /dev/zero; exit 5")).await;
    assert_eq!((over.end, out.as_str()), (End::Exit(5), ""));
    let log = bench.controller.log(over.token);
    assert_eq!(log.cuts.iter().map(|(_, _, bytes, _)| bytes).sum::<u64>(), 300_000);
    assert!(log.cuts[0].3.contains("could not write to its disk"), "{:?}", log.cuts);
    assert!(log.last);
    assert_ne!(over.token, Token(0));
}

#[tokio::test]
async fn who_floods_is_kept_to_its_rate_without_being_held_up_and_its_end_is_kept() {
    let mut bench = Bench::new().await;
    let text = "yes 0123456789abcde | head -c 20000000; echo the end";
    let over = bench.run(TaskSpec { log_rate: Some(50_000), ..shell(text) }).await;
    assert_eq!(over.end, End::Succeeded);
    bench.drained().await;
    let log = bench.controller.log(over.token);
    let cut: u64 = log.cuts.iter().map(|(_, _, bytes, _)| bytes).sum();
    assert_eq!(log.stdout.len() as u64 + cut, 20_000_008, "every byte is kept or counted");
    // At that rate all of it would take minutes.
    let seconds = over.ended.since(over.started).as_secs() + 1;
    assert!(log.stdout.len() as u64 <= 50_000 * (6 + seconds), "{} bytes in {seconds} s", log.stdout.len());
    assert!(log.stdout.ends_with(b"the end\n"), "the end is kept");
    assert!(log.cuts.iter().all(|(_, _, _, why)| why.contains("log_rate of 50000 bytes")), "{:?}", log.cuts);
}

#[tokio::test]
async fn a_secret_in_the_environment_never_reaches_the_disk_or_the_controller() {
    let mut bench = Bench::new().await;
    let secret = "s3cr3t-of-ours";
    let env = [("TOKEN", secret), ("OTHER", "in-the-open")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    // Short, in two writes, on both streams, of one that lasts, and at its very end.
    let text =
        "echo token $TOKEN, other $OTHER; printf s3cr3t >&2; sleep 0.1; printf -- '-of-ours\\n' >&2; printf s3cr3t-of";
    let spec = TaskSpec { env: env.into(), mask: vec!["TOKEN".into()], ..shell(text) };
    bench.controller.set(|state| state.keep_nothing = true);
    let over = bench.run(spec.clone()).await;
    let token = over.token;
    let log = wait_for("all of it", || Some(bench.controller.log(token)).filter(|log| log.last)).await;
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(shown(&log.stdout), "token ***, other in-the-open\ns3cr3t-of");
    assert_eq!(shown(&log.stderr), "***\n");
    let spooled = std::fs::read(bench.dir.join(format!("spool/{token}.log"))).expect("not forgotten");
    assert!(!spooled.windows(secret.len()).any(|part| part == secret.as_bytes()), "it lies on the disk");
    let over = bench.run(TaskSpec { mask: Vec::new(), ..spec }).await;
    let log = wait_for("all of it", || Some(bench.controller.log(over.token)).filter(|log| log.last)).await;
    assert_eq!(shown(&log.stderr), format!("{secret}\n"), "only where it is asked for");
}
