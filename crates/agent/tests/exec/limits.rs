//! Attempts are held to their limits, counted, and ended as a whole, by the control groups of this machine, whichever
//! version they are of. `cargo xtask vm` runs the same on version 2.

mod weight;

use std::{collections::BTreeSet, path::Path, time::Duration};

use muster_agent::{
    cgroup::Enforce,
    exec::{ExecEvent, KillReason, Rules},
};
use muster_common::clock::Clock;
use muster_core::{
    resources::Request,
    run_as::Scratch,
    spec::TaskSpec,
    state::End,
    usage::{Unenforced, Usage},
};

use crate::{
    bench::{Bench, LIMIT, argv, lives, shell, wait_for},
    skip::{here, skip},
};

const MIB: u64 = 1 << 20;
/// What a program, its loader and the kernel take beside what a test asks for.
const BESIDE: u64 = 24 * MIB;

/// Folders of cgroups that the agent of `dir` has noted as its own.
pub(crate) fn noted(dir: &Path) -> Vec<std::path::PathBuf> {
    let text = std::fs::read_to_string(dir.join("run/cgroups")).unwrap_or_default();
    text.lines().map(Into::into).collect()
}

/// With every limit enforced; none: this machine or user cannot.
pub(crate) async fn strict(test: &str) -> Option<Bench> {
    let bench = Bench::new().await;
    if nix::unistd::geteuid().is_root() && !noted(&bench.dir).is_empty() {
        return Some(bench);
    }
    assert!(std::env::var_os("MUSTER_TEST_CGROUPS").is_none(), "{test} must run here");
    skip(test, "no cgroups can be made here");
    None
}

fn with_memory(mib: u64, spec: TaskSpec) -> TaskSpec {
    TaskSpec { request: Request { cpu_milli: 1000, memory: mib * MIB, ..Request::default() }, ..spec }
}

/// This binary, told to take so much memory and touch all of it.
fn takes(mib: u64) -> String {
    let exe = std::env::current_exe().expect("known");
    format!("TAKE_MIB={mib} {} --exact limits::called_by_a_test_this_takes_memory", exe.display())
}

#[test]
fn called_by_a_test_this_takes_memory() {
    let Ok(mib) = std::env::var("TAKE_MIB") else { return };
    let taken = vec![7_u8; mib.parse::<usize>().expect("a number") << 20];
    assert!(std::hint::black_box(&taken).iter().step_by(4096).all(|byte| *byte == 7));
}

fn usage_of(usage: Option<Usage>) -> Usage {
    usage.expect("it was counted")
}

#[tokio::test]
async fn a_memory_hog_ends_as_oom_while_its_neighbour_lives() {
    let Some(mut bench) = strict(here!()).await else { return };
    let neighbour = bench.start(with_memory(64, argv(&["sleep", "1000"])));
    let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
    let over = bench.run(with_memory(64, shell(&format!("exec env {}", takes(300))))).await;
    assert_eq!(over.end, End::Oom, "{}", over.why);
    assert!(over.why.contains("more memory than its limit of 64 MiB"), "{}", over.why);
    let peak = usage_of(over.usage).memory_peak.get();
    assert!((60 * MIB..=64 * MIB).contains(&peak), "{peak}");
    assert!(lives(identity.pid.cast_signed()), "the neighbour was killed too");
    bench.exec.kill(neighbour, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled);
}

#[tokio::test]
async fn exit_codes_and_signals_that_look_like_oom_are_none() {
    let Some(mut bench) = strict(here!()).await else { return };
    for (text, end) in [("exit 137", End::Exit(137)), ("kill -9 $$", End::Signal(9)), ("exit 1", End::Exit(1))] {
        let over = bench.run(with_memory(64, shell(text))).await;
        assert_eq!((over.end, over.why.as_str()), (end, ""));
    }
}

#[tokio::test]
async fn a_child_that_is_killed_for_memory_is_told_of_whatever_its_parent_does() {
    let Some(mut bench) = strict(here!()).await else { return };
    let over = bench.run(with_memory(64, shell(&format!("{}; exit 3", takes(300))))).await;
    assert_eq!(over.end, End::Oom, "{}", over.why);
    assert!(over.why.contains("64 MiB"), "{}", over.why);
    // Where the kernel does not end the whole group, a parent may still bring its work to an end.
    let over = bench.run(with_memory(64, shell(&format!("{}; exit 0", takes(300))))).await;
    assert!(matches!(over.end, End::Oom | End::Succeeded), "{:?}", over.end);
    assert!(over.why.contains("64 MiB"), "{}", over.why);
    let over = bench.run(with_memory(64, shell(&format!("{}; sleep 1000", takes(300))))).await;
    assert_eq!(over.end, End::Oom, "half an attempt went on: {}", over.why);
}

#[tokio::test]
async fn a_task_that_asks_for_no_memory_has_no_limit_and_its_peak_is_right() {
    let Some(mut bench) = strict(here!()).await else { return };
    let over = bench.run(shell(&format!("exec env {}", takes(150)))).await;
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    let usage = usage_of(over.usage);
    let peak = usage.memory_peak.get();
    assert!((150 * MIB..=150 * MIB + BESIDE).contains(&peak), "{peak}");
    assert!(usage.cpu_user_us.get() + usage.cpu_system_us.get() > 1000, "{usage:?}");
    assert_eq!(usage.unenforced, Unenforced::default());
    // The next ones in the same cgroups are not what came before them: short ones, and ones that last and so take up those
    // that others left.
    for n in 0..20 {
        let spec = if n % 2 == 0 { argv(&["true"]) } else { argv(&["sleep", "0.05"]) };
        let usage = usage_of(bench.run(spec).await.usage);
        assert!(usage.memory_peak.get() <= 12 * MIB, "{usage:?}");
        assert!(usage.cpu_user_us.get() + usage.cpu_system_us.get() < 1_000_000, "{usage:?}");
    }
}

#[tokio::test]
async fn what_starts_the_next_task_is_not_held_to_the_memory_of_the_last_one() {
    let Some(mut bench) = strict(here!()).await else { return };
    for _ in 0..20 {
        let over = bench.run(with_memory(64, argv(&["true"]))).await;
        assert_eq!(over.end, End::Succeeded, "{}", over.why);
    }
    // In version 2 nobody who starts a task stands in its cgroups.
    let slots = noted(&bench.dir).into_iter().flat_map(|base| std::fs::read_dir(base).into_iter().flatten().flatten());
    for slot in slots.map(|slot| slot.path()) {
        let read = |file: &str| std::fs::read_to_string(slot.join(file)).unwrap_or_default();
        let (standing, limit) = (read("tasks"), read("memory.limit_in_bytes"));
        let is_held = limit.trim().parse().is_ok_and(|bytes: u64| bytes <= 64 * MIB);
        assert!(standing.is_empty() || !is_held, "{standing}stand in {}, which has {limit}", slot.display());
    }
}

#[tokio::test]
async fn what_is_written_to_disk_is_counted() {
    let Some(mut bench) = strict(here!()).await else { return };
    // Files in memory have no disk.
    let disk = std::env::var_os("MUSTER_TEST_DISK").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(disk).expect("a folder");
    let text = format!("dd if=/dev/zero of={}/written bs=1M count=8 2>/dev/null", folder.path().display());
    let written = usage_of(bench.run(shell(&text)).await.usage).written_bytes.get();
    assert!((8 * MIB..=16 * MIB).contains(&written), "{written}");
}

/// Living processes of one attempt of the agent of `dir`, by their environment.
pub(crate) fn marked(dir: &Path, token: muster_core::id::Token) -> BTreeSet<i32> {
    let instance = std::fs::read_to_string(dir.join("run/instances")).expect("written");
    let marks = [format!("MUSTER_TOKEN={token}"), format!("MUSTER_AGENT_INSTANCE={}", instance.trim())];
    let all = std::fs::read_dir("/proc").expect("is there").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            marks.iter().all(|mark| text.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
        })
        .filter(|pid| lives(*pid))
        .collect()
}

#[tokio::test]
async fn a_fork_bomb_is_contained_and_removed() {
    let Some(mut bench) = strict(here!()).await else { return };
    let dir = bench.dir.clone();
    // A shell ends where it may not fork: the first one does so no more.
    let bomb = "bomb() { sleep 1000 & bomb & bomb & wait; }; (bomb) 2>/dev/null; exec sleep 1000";
    let token = bench.start(TaskSpec { pids: Some(40), ..shell(bomb) });
    // Who looks while processes come and go sees more than there are at any one moment.
    let (mut before, mut alike) = (BTreeSet::new(), 0);
    wait_for("the bomb to have gone off", || {
        let now = marked(&dir, token);
        alike = if now.len() >= 25 && now == before { alike + 1 } else { 0 };
        before = now;
        (alike >= 10).then_some(())
    })
    .await;
    for _ in 0..20 {
        let count = marked(&dir, token).len();
        assert!(count <= 41, "{count} processes");
        tokio::task::yield_now().await;
    }
    bench.exec.kill(token, KillReason::Cancelled, Duration::from_millis(50));
    let over = bench.over().await;
    assert_eq!(over.end, End::Cancelled, "{}", over.why);
    assert_eq!(marked(&dir, token), BTreeSet::new());
}

#[tokio::test]
async fn a_processor_hog_is_held_to_its_share() {
    let Some(mut bench) = strict(here!()).await else { return };
    let request = Request { cpu_milli: 200, ..Request::default() };
    let (timeout, grace) = (Some(Duration::from_secs(3)), Duration::ZERO);
    let over = bench.run(TaskSpec { request, cpu_limit: true, timeout, grace, ..shell("while :; do :; done") }).await;
    assert_eq!(over.end, End::Timeout);
    let (usage, ran) = (usage_of(over.usage), over.ended.since(over.started));
    let taken = Duration::from_micros(usage.cpu_user_us.get() + usage.cpu_system_us.get());
    assert!(taken <= ran / 5 + ran / 10, "{taken:?} of {ran:?}");
}

#[tokio::test]
async fn who_ignores_hides_and_closes_everything_is_dead_within_its_grace_and_two_seconds() {
    let Some(mut bench) = strict(here!()).await else { return };
    let grace = Duration::from_millis(30);
    let (clock, mut late) = (Clock::system(), Vec::new());
    for round in 0..50 {
        let pids = bench.dir.join(format!("pids{round}"));
        let hidden = format!(
            "trap \"\" TERM HUP; echo $$ >> {}; exec 0<&- 1>&- 2>&-; while :; do sleep 5; done",
            pids.display()
        );
        let twice = format!("(setsid env -i /bin/sh -c '{hidden}' &) &");
        let token = bench.start(shell(&format!("trap '' TERM; {twice} {twice} wait; while :; do sleep 5; done")));
        let hidden = wait_for("both in hiding", || {
            let text = std::fs::read_to_string(&pids).ok()?;
            let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            (pids.len() == 2).then_some(pids)
        })
        .await;
        let began = clock.mono();
        bench.exec.kill(token, KillReason::Cancelled, grace);
        let (over, took) = (bench.over().await, clock.mono().since(began));
        assert_eq!(over.end, End::Cancelled, "{}", over.why);
        assert!(hidden.iter().all(|pid| !lives(*pid)), "round {round}");
        late.extend((took > grace + Duration::from_secs(2)).then_some((round, took)));
    }
    // The machine itself may stand still for once.
    assert!(late.len() <= 1, "{late:?}");
}

#[tokio::test]
async fn a_daemon_that_a_short_task_leaves_dies_with_it() {
    let Some(mut bench) = strict(here!()).await else { return };
    let pid = bench.dir.join("daemon");
    let text = format!(
        "(setsid env -i /bin/sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' <&- >&- 2>&- &) ; while [ ! -e {0} ]; do :; done",
        pid.display()
    );
    for _ in 0..10 {
        let over = bench.run(shell(&text)).await;
        assert_eq!(over.end, End::Succeeded, "{}", over.why);
        let daemon = std::fs::read_to_string(&pid).expect("written").trim().parse().expect("a number");
        assert!(!lives(daemon), "A3: it outlived its attempt");
        std::fs::remove_file(&pid).expect("removed");
    }
}

#[tokio::test]
async fn nothing_is_left_of_the_cgroups_of_an_agent_that_ended() {
    let Some(mut bench) = strict(here!()).await else { return };
    let dirs = noted(&bench.dir);
    for _ in 0..5 {
        bench.run(argv(&["true"])).await;
    }
    let running = bench.start(argv(&["sleep", "1000"]));
    assert!(matches!(bench.event().await, ExecEvent::Started { .. }));
    assert!(dirs.iter().all(|dir| dir.exists()), "{dirs:?}");
    bench.exec.kill(running, KillReason::Shutdown, Duration::ZERO);
    bench.over().await;
    bench.exec.stop().await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    assert_eq!(noted(&bench.dir), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn cgroups_in_which_a_task_made_others_are_not_used_again() {
    let Some(mut bench) = strict(here!()).await else { return };
    let bases: Vec<String> = noted(&bench.dir).iter().map(|base| base.display().to_string()).collect();
    let makes = format!(
        "for slot in {}; do grep -qx $$ $slot/cgroup.procs || continue; mkdir $slot/x && echo $$ > $slot/x/cgroup.procs; \
         echo +memory > $slot/cgroup.subtree_control; made=1; done 2>/dev/null; test \"$made\"",
        bases.iter().map(|base| format!("{base}/[0-9]*")).collect::<Vec<_>>().join(" ")
    );
    for _ in 0..3 {
        let over = bench.run(shell(&makes)).await;
        assert_eq!(over.end, End::Succeeded, "{}", over.why);
        let over = bench.run(argv(&["true"])).await;
        assert_eq!((over.end, over.usage.map(|usage| usage.unenforced)), (End::Succeeded, Some(Unenforced::default())));
    }
    let slots = noted(&bench.dir).into_iter().flat_map(|base| std::fs::read_dir(base).expect("ours").flatten());
    let left: Vec<_> = slots.map(|slot| slot.path().join("x")).filter(|dir| dir.exists()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_limit_that_a_task_took_away_holds_for_the_next_one() {
    let Some(mut bench) = strict(here!()).await else { return };
    let bases: Vec<String> = noted(&bench.dir).iter().map(|base| format!("{}/[0-9]*", base.display())).collect();
    let lifts = format!(
        "for slot in {}; do grep -qx $$ $slot/cgroup.procs || continue; echo max > $slot/memory.max; \
         echo max > $slot/memory.swap.max; echo 0 > $slot/memory.oom.group; \
         echo -1 > $slot/memory.memsw.limit_in_bytes; echo -1 > $slot/memory.limit_in_bytes; done 2>/dev/null; exec env {}",
        bases.join(" "),
        takes(100)
    );
    let over = bench.run(with_memory(64, shell(&lifts))).await;
    assert_eq!(over.end, End::Succeeded, "it lifts its own: {}", over.why);
    // Version 2 has these files.
    let shows = format!(
        "for slot in {}; do grep -qx $$ $slot/cgroup.procs && cat $slot/memory.swap.max $slot/memory.oom.group; done \
         2>/dev/null; true",
        bases.join(" ")
    );
    for spec in [shell(&shows), with_memory(64, shell(&shows))] {
        let (_, out, _) = bench.output(spec).await;
        assert!(matches!(&*out, "" | "0\n1\n" | "1\n"), "{out}");
    }
    for _ in 0..3 {
        let over = bench.run(with_memory(64, shell(&format!("exec env {}", takes(100))))).await;
        assert_eq!(over.end, End::Oom, "{}", over.why);
    }
}

#[tokio::test]
async fn more_processes_than_a_machine_can_have_are_no_limit_and_shed_no_other() {
    let Some(mut bench) = strict(here!()).await else { return };
    for pids in [4_194_303, 4_194_304, 4_194_305, u64::MAX] {
        let spec = with_memory(64, shell(&format!("exec env {}", takes(100))));
        let over = bench.run(TaskSpec { pids: Some(pids), ..spec }).await;
        assert_eq!(over.end, End::Oom, "{pids}: {}", over.why);
        assert_eq!(usage_of(over.usage).unenforced, Unenforced::default(), "{pids}");
    }
}

#[tokio::test]
async fn who_could_not_be_held_to_a_limit_after_its_start_says_so() {
    let Some(mut bench) = strict(here!()).await else { return };
    let request = Request { cpu_milli: 1 << 50, ..Request::default() };
    let over = bench.run(TaskSpec { request, cpu_limit: true, ..argv(&["true"]) }).await;
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    assert!(usage_of(over.usage).unenforced.has(Unenforced::CPU));
    let request = Request { cpu_milli: 1000, ..Request::default() };
    let over = bench.run(TaskSpec { request, cpu_limit: true, ..argv(&["true"]) }).await;
    assert_eq!(usage_of(over.usage).unenforced, Unenforced::default());
}

#[tokio::test]
async fn where_limits_are_demanded_nothing_starts_without_its_cgroup() {
    if strict(here!()).await.is_none() {
        return;
    }
    let mut bench = Bench::enforcing(Enforce::Required).await;
    // As if the machine had no room for another one.
    let base = noted(&bench.dir).pop().expect("some");
    // Version 2 has this, and what is in it is given to the children once more.
    let given = base.join("cgroup.subtree_control");
    let controllers = std::fs::read_to_string(&given).ok();
    std::fs::remove_dir(&base).expect("nothing is in it yet");
    for spec in [with_memory(64, argv(&["true"])), argv(&["true"])] {
        let over = bench.run(spec).await;
        assert_eq!(over.end, End::NotStarted, "{}", over.why);
        assert!(over.why.contains("`enforce = \"required\"`"), "{}", over.why);
    }
    std::fs::create_dir(&base).expect("made again");
    if let Some(controllers) = controllers {
        let words: Vec<_> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        std::fs::write(&given, words.join(" ")).expect("given again");
    }
    let over = bench.run(with_memory(64, shell(&format!("exec env {}", takes(100))))).await;
    assert_eq!(over.end, End::Oom, "{}", over.why);
}

#[tokio::test]
async fn without_cgroups_attempts_say_what_they_were_not_held_to() {
    let mut bench = Bench::enforcing(Enforce::Off).await;
    let spec = TaskSpec { pids: Some(3), ..with_memory(64, shell(&format!("exec env {}", takes(150)))) };
    let over = bench.run(spec).await;
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    let usage = usage_of(over.usage);
    assert_eq!(usage.unenforced, Unenforced::MEMORY.and(Unenforced::PIDS));
    assert!(usage.memory_peak.get() >= 150 * MIB, "{usage:?}");
    assert_eq!(noted(&bench.dir), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn who_fills_its_scratch_folder_is_ended_and_told_so_and_its_neighbour_lives() {
    let mut bench = Bench::new().await;
    let scratch = |text: &str, size| TaskSpec { scratch: Scratch::Private, scratch_size: Some(size), ..shell(text) };
    let neighbour =
        bench.start(scratch("dd if=/dev/zero of=file bs=65536 count=16 2>/dev/null; exec sleep 1000", 4 * MIB));
    assert!(matches!(bench.event().await, ExecEvent::Started { .. }));
    // Files and folders, and what is written to them after they were opened.
    let fills = "mkdir -p a/b; i=0; while :; do i=$((i+1)); dd if=/dev/zero of=a/b/$i bs=65536 count=4 2>/dev/null; sleep 0.01; done";
    let over = bench.run(scratch(fills, 4 * MIB)).await;
    assert_eq!(over.end, End::ScratchFull, "{}", over.why);
    assert!(over.why.contains("more than its scratch_size of 4 MiB: let it remove"), "{}", over.why);
    bench.exec.kill(neighbour, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled, "the neighbour was ended too");
    // Nothing of it stays, and the next one begins with an empty folder.
    let (over, out, _) = bench.output(scratch("ls -A | wc -l", 4 * MIB)).await;
    assert_eq!((over.end, out.trim()), (End::Succeeded, "0"), "{}", over.why);
    assert_eq!(std::fs::read_dir(bench.dir.join("run/scratch")).expect("there").count(), 0);
}

#[tokio::test]
async fn the_agents_own_limit_of_scratch_holds_where_a_task_names_none() {
    let rules = Rules { scratch_size: Some(2 * MIB), ..Rules::default() };
    let mut bench = Bench::with_rules(rules).await;
    let fills = shell("dd if=/dev/zero of=file bs=1048576 count=8 2>/dev/null; exec sleep 1000");
    let over = bench.run(fills.clone()).await;
    assert_eq!(over.end, End::ScratchFull, "{}", over.why);
    assert!(over.why.contains("more than this agent's scratch_size of 2 MiB"), "{}", over.why);
    // A task may say more, and is asked first: it may still bring itself to an end.
    let own = TaskSpec {
        scratch: Scratch::Private,
        scratch_size: Some(64 * MIB),
        timeout: Some(Duration::from_secs(3)),
        ..fills
    };
    assert_eq!(bench.run(own).await.end, End::Timeout);
}

#[tokio::test]
async fn who_starts_tasks_outweighs_all_of_them_where_it_has_a_leaf_of_its_own() {
    let Some(mut bench) = strict(here!()).await else { return };
    bench.run(argv(&["true"])).await;
    let groups = std::fs::read_to_string("/proc/self/cgroup").expect("told");
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let weight = Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/')).join("cpu.weight");
    if own.starts_with("/service") {
        assert_eq!(std::fs::read_to_string(&weight).expect("it stands in a leaf").trim(), "1000", "{own}");
    } else {
        // Only a service has a leaf; the root of a tree has no weight, and version 1 none of this name.
        assert!(!weight.exists(), "{}", weight.display());
    }
}

#[tokio::test]
async fn whoever_is_to_end_hears_it_once_wherever_it_went() {
    let Some(mut bench) = strict(here!()).await else { return };
    for round in 0..10 {
        let [heard, go] = ["heard", "go"].map(|name| bench.dir.join(format!("{name}-{round}")));
        let says = |name: &str| {
            let line = format!("echo {name} >> {}", heard.display());
            format!("trap \"{line} asked\" TERM; {line} up; while ! [ -e {} ]; do :; done", go.display())
        };
        let token = bench.start(shell(&format!("setsid sh -c '{}' & {}; wait", says("left"), says("stayed"))));
        let lines = |count: usize| {
            let text = std::fs::read_to_string(&heard).unwrap_or_default();
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            (lines.len() >= count).then_some(lines)
        };
        wait_for("both to run", || lines(2)).await;
        bench.exec.kill(token, KillReason::Cancelled, LIMIT);
        wait_for("both to be asked", || lines(4)).await;
        std::fs::write(&go, "").expect("it can be written");
        assert_eq!(bench.over().await.end, End::Cancelled);
        let expected = ["left asked", "left up", "stayed asked", "stayed up"];
        assert_eq!(lines(0).expect("at least none"), expected, "round {round}");
    }
}

#[tokio::test]
async fn who_asks_for_less_memory_than_starting_takes_is_told_of_that() {
    let Some(mut bench) = strict(here!()).await else { return };
    // Controllers refuse such jobs; an older one may have accepted them.
    let request = Request { cpu_milli: 1000, memory: 64 << 10, ..Request::default() };
    let over = bench.run(TaskSpec { request, ..shell(&format!(": {}", "x".repeat(100_000))) }).await;
    // A kernel may load the program all the same, and end it then.
    let is_told = over.end == End::NotStarted && over.why.contains("its own `memory` of 65536 bytes is too little");
    assert!(is_told || over.end == End::Oom, "{:?}: {}", over.end, over.why);
}
