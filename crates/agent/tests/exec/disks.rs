//! Attempts are held to how fast they may use disks, by the control groups of this machine, whichever version they are of.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use muster_agent::{
    cgroup::Enforce,
    exec::{ExecEvent, KillReason},
};
use muster_core::{resources::IoLimits, spec::TaskSpec, state::End, usage::Unenforced};

use crate::{
    bench::{Bench, Over, shell, wait_for},
    limits::noted,
    skip::{here, skip},
};

const MIB: u64 = 1 << 20;

/// An agent, and a folder on a disk to which it can hold attempts; none: there is no such disk, or we may not.
async fn with_disk(test: &str) -> Option<(Bench, tempfile::TempDir)> {
    let mut bench = Bench::new().await;
    let base = std::env::var_os("MUSTER_TEST_DISK").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(base).expect("a folder");
    let io = IoLimits { read: Some(1 << 40), ..IoLimits::default() };
    let over = bench.run(TaskSpec { io, ..at(folder.path(), "true") }).await;
    if over.usage.expect("it was counted").unenforced == Unenforced::default() {
        return Some((bench, folder));
    }
    assert!(std::env::var_os("MUSTER_TEST_DISK").is_none(), "{test} must run here");
    skip(test, "no disk here whose use can be limited");
    None
}

fn at(folder: &Path, text: &str) -> TaskSpec {
    TaskSpec { cwd: Some(folder.display().to_string()), ..shell(text) }
}

/// Writes so many blocks of 64 KiB past the kernel's memory: version 1 holds only what is written at once.
fn writes(folder: &Path, name: &str, blocks: u64) -> TaskSpec {
    at(folder, &format!("exec dd if=/dev/zero of={name} bs=65536 count={blocks} oflag=direct 2>/dev/null"))
}

fn took(over: &Over) -> Duration {
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    assert_eq!(over.usage.expect("it was counted").unenforced, Unenforced::default());
    over.ended.since(over.started)
}

/// All that stands in the files of limits of disks of an agent's cgroups.
fn standing(dir: &Path) -> String {
    let slots = noted(dir).into_iter().flat_map(|base| std::fs::read_dir(base).into_iter().flatten().flatten());
    let files = slots.flat_map(|slot| std::fs::read_dir(slot.path()).into_iter().flatten().flatten());
    let is_limit = |name: &str| name == "io.max" || name.starts_with("blkio.throttle.") && name.ends_with("_device");
    let limits = files.filter(|file| file.file_name().to_str().is_some_and(is_limit));
    limits.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect()
}

/// In version 1 these limits begin a moment after the process: on a busy machine a short task may be over by then.
const TRIES: usize = 5;

#[tokio::test]
async fn who_may_write_so_much_a_second_is_held_to_it_and_its_neighbour_is_not() {
    let Some((mut bench, folder)) = with_disk(here!()).await else { return };
    let io = IoLimits { write: Some(MIB), ..IoLimits::default() };
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let slow = bench.start(TaskSpec { io, ..writes(folder.path(), "slow", 64) });
        let free = bench.start(writes(folder.path(), "free", 64));
        let (first, second) = (bench.over().await, bench.over().await);
        let was_free_first = (first.token, second.token) == (free, slow);
        // 4 MiB at one a second; half of it for how the kernel counts at first.
        if was_free_first && took(&second) >= Duration::from_secs(2) {
            return;
        }
        seen.push((was_free_first, took(&first), took(&second)));
    }
    panic!("not held, or the neighbour was: {seen:?}");
}

#[tokio::test]
async fn who_may_read_so_often_a_second_is_held_to_it() {
    let Some((mut bench, folder)) = with_disk(here!()).await else { return };
    took(&bench.run(writes(folder.path(), "file", 64)).await);
    let reads = at(folder.path(), "exec dd if=file of=/dev/null bs=4096 count=60 iflag=direct 2>/dev/null");
    let io = IoLimits { read_ops: Some(20), ..IoLimits::default() };
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let free = took(&bench.run(reads.clone()).await);
        let slow = took(&bench.run(TaskSpec { io, ..reads.clone() }).await);
        // Three seconds; half of them for how the kernel counts at first.
        if slow >= Duration::from_millis(1500) {
            return;
        }
        seen.push((free, slow));
    }
    panic!("not held: {seen:?}");
}

#[tokio::test]
async fn the_next_ones_in_the_same_cgroups_have_no_limit() {
    let Some((mut bench, folder)) = with_disk(here!()).await else { return };
    let all = IoLimits { read: Some(MIB), write: Some(MIB), read_ops: Some(50), write_ops: Some(50) };
    for _ in 0..20 {
        took(&bench.run(TaskSpec { io: all, ..at(folder.path(), "true") }).await);
        assert_eq!(standing(&bench.dir), "", "limits stay where nobody asked for them");
    }
    let running = bench.start(TaskSpec { io: all, ..at(folder.path(), "exec sleep 1000") });
    assert!(matches!(bench.event().await, ExecEvent::Started { .. }));
    let stands = standing(&bench.dir);
    assert!(stands.contains(&MIB.to_string()) && stands.contains("50"), "{stands}");
    bench.exec.kill(running, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled);
    assert_eq!(standing(&bench.dir), "");
}

#[tokio::test]
async fn who_waits_for_a_slow_disk_is_dead_when_it_is_killed() {
    let Some((mut bench, folder)) = with_disk(here!()).await else { return };
    // At a page a second: hours, in which no signal is heard. In version 1 the limit begins a moment after the process: there is
    // more to write than a disk writes until then.
    let io = IoLimits { write: Some(4096), ..IoLimits::default() };
    let waits = at(folder.path(), "echo > begun; exec dd if=/dev/zero of=slow bs=1048576 count=1024 oflag=direct");
    let token = bench.start(TaskSpec { io, ..waits });
    bench.appears(&folder.path().join("begun")).await;
    let identity = match bench.event().await {
        ExecEvent::Started { identity, .. } => identity,
        other => panic!("{other:?}"),
    };
    let stat = format!("/proc/{}/stat", identity.pid);
    wait_for("it to wait for the disk", || {
        let text = std::fs::read_to_string(&stat).unwrap_or_default();
        text.contains("(dd) D").then_some(())
    })
    .await;
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    let over = bench.over().await;
    assert_eq!(over.end, End::Cancelled, "{}", over.why);
}

#[tokio::test]
async fn where_there_is_no_disk_an_attempt_says_that_it_was_not_held() {
    let mut bench = Bench::new().await;
    let io = IoLimits { read: Some(MIB), ..IoLimits::default() };
    let over = bench.run(TaskSpec { io, ..at(Path::new("/proc"), "true") }).await;
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    assert_eq!(over.usage.expect("it was counted").unenforced, Unenforced::IO);
}

#[tokio::test]
async fn where_limits_are_demanded_who_cannot_be_held_is_not_started_and_others_are() {
    let mut auto = Bench::new().await;
    let is_enforced = auto.run(shell("true")).await.usage.expect("it was counted").unenforced == Unenforced::default();
    if noted(&auto.dir).is_empty() || !is_enforced {
        return skip(here!(), "no limits can be enforced here");
    }
    let mut bench = Bench::enforcing(Enforce::Required).await;
    let io = IoLimits { read: Some(MIB), ..IoLimits::default() };
    let over = bench.run(TaskSpec { io, ..at(Path::new("/proc"), "true") }).await;
    assert_eq!(over.end, End::NotStarted, "{}", over.why);
    assert!(over.why.contains("limits of disks"), "{}", over.why);
    assert_eq!(bench.run(at(Path::new("/proc"), "true")).await.end, End::Succeeded);
}
