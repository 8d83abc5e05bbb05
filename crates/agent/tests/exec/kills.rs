//! How attempts are ended, and that nothing of them is left then.

use std::time::Duration;

use muster_agent::exec::{ExecEvent, KillReason, Leftover, Swept, guard};
use muster_core::{
    id::{JobId, TaskId, Token},
    spec::TaskSpec,
    state::End,
};

use crate::{
    bench::{Bench, LIMIT, argv, lives, shell, wait_for},
    limits::marked,
};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

fn limited(timeout: Duration, grace: Duration, spec: TaskSpec) -> TaskSpec {
    TaskSpec { timeout: Some(timeout), grace, ..spec }
}

#[tokio::test]
async fn a_time_limit_ends_a_task_kindly_first() {
    let mut bench = Bench::new().await;
    // Long enough for a shell on a busy machine to say how it wants to be asked.
    let limit = Duration::from_secs(5);
    let (over, out, _) =
        bench.output(limited(limit, LONG, shell("trap 'echo bye; exit 3' TERM; sleep 1000 & wait"))).await;
    assert_eq!((over.end, out.as_str()), (End::Timeout, "bye\n"));
    assert!(over.why.contains("longer than its limit of 5s"), "{}", over.why);
}

#[tokio::test]
async fn a_task_that_ignores_sigterm_is_killed_after_its_grace() {
    let mut bench = Bench::new().await;
    let over = bench.run(limited(SHORT, SHORT, shell("trap '' TERM; while :; do sleep 0.01; done"))).await;
    assert_eq!(over.end, End::Timeout);
    let over = bench.run(limited(SHORT, Duration::ZERO, shell("trap '' TERM; sleep 1000"))).await;
    assert_eq!(over.end, End::Timeout);
}

#[tokio::test]
async fn the_reason_of_a_kill_names_the_end() {
    let mut bench = Bench::new().await;
    for (reason, end) in [
        (KillReason::Cancelled, End::Cancelled),
        (KillReason::LeaseExpired, End::Lost),
        (KillReason::Shutdown, End::Lost),
        (KillReason::Dropped, End::Lost),
    ] {
        let token = bench.start(argv(&["sleep", "1000"]));
        let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
        bench.exec.kill(token, reason, LONG);
        let over = bench.over().await;
        assert_eq!(over.end, end);
        assert!(!lives(identity.pid.cast_signed()));
    }
    bench.exec.kill(Token(9999), KillReason::Cancelled, LONG);
}

#[tokio::test]
async fn a_later_kill_can_only_hurry_an_earlier_one() {
    let mut bench = Bench::new().await;
    let ready = bench.dir.join("ready");
    let token = bench.start(shell(&format!("trap '' TERM; echo x > {}; sleep 1000", ready.display())));
    bench.appears(&ready).await;
    bench.exec.kill(token, KillReason::Cancelled, Duration::from_secs(100_000));
    bench.exec.kill(token, KillReason::Shutdown, SHORT);
    assert_eq!(bench.over().await.end, End::Cancelled);
}

#[tokio::test]
async fn a_kill_before_the_start_prevents_it_or_ends_it() {
    let mut bench = Bench::new().await;
    let tokens: Vec<Token> = (0..50).map(|_| bench.start(argv(&["sleep", "1000"]))).collect();
    for token in &tokens {
        bench.exec.kill(*token, KillReason::Cancelled, LONG);
    }
    for _ in &tokens {
        assert_eq!(bench.over().await.end, End::Cancelled);
    }
}

#[tokio::test]
async fn a_stopped_task_hears_that_it_should_end() {
    let mut bench = Bench::new().await;
    let token = bench.start(shell("kill -STOP $$; sleep 1000"));
    let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
    wait_for("the task to stop itself", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", identity.pid)).ok()?;
        stat.contains(") T ").then_some(())
    })
    .await;
    bench.exec.kill(token, KillReason::Cancelled, LONG);
    assert_eq!(bench.over().await.end, End::Cancelled);
}

#[tokio::test]
async fn who_left_the_group_the_session_and_its_parents_is_killed_too() {
    let mut bench = Bench::new().await;
    let pids = bench.dir.join("pids");
    let text = format!(
        "(setsid sh -c 'trap \"\" TERM HUP; (setsid sh -c \"trap \\\"\\\" TERM; echo \\$\\$ >> {0}; sleep 1000\" >/dev/null 2>&1 &); \
         echo $$ >> {0}; env -i sleep 1000' >/dev/null 2>&1 &) ; sleep 1000",
        pids.display()
    );
    let token = bench.start(shell(&text));
    let both = wait_for("two daemons", || {
        let text = std::fs::read_to_string(&pids).ok()?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() == 2).then_some(pids)
    })
    .await;
    bench.exec.kill(token, KillReason::Cancelled, LONG);
    assert_eq!(bench.over().await.end, End::Cancelled);
    // At the moment of the report, not some time later (A3).
    assert!(both.iter().all(|pid| !lives(*pid)), "{both:?}");
}

#[tokio::test]
async fn a_task_that_forks_without_end_is_ended() {
    let mut bench = Bench::new().await;
    let text = "n=0; while [ $n -lt 60 ]; do (sh -c 'while :; do (setsid sleep 5 >/dev/null 2>&1 &) ; sleep 0.02; done' &) ; n=$((n+1)); done; sleep 1000";
    let token = bench.start(shell(text));
    let dir = bench.dir.clone();
    // Not the shells, of whose words it is one.
    let sleeps =
        |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.starts_with(b"sleep\0"));
    wait_for("many processes", || (marked(&dir, token).iter().filter(|pid| sleeps(pid)).count() > 60).then_some(()))
        .await;
    bench.exec.kill(token, KillReason::Cancelled, SHORT);
    let over = bench.over().await;
    assert_eq!(over.end, End::Cancelled, "{}", over.why);
}

#[tokio::test]
async fn many_are_cancelled_at_once() {
    let mut bench = Bench::new().await;
    let tokens: Vec<Token> = (0..200).map(|_| bench.start(argv(&["sleep", "1000"]))).collect();
    for _ in &tokens {
        assert!(matches!(bench.event().await, ExecEvent::Started { .. }));
    }
    for token in &tokens {
        bench.exec.kill(*token, KillReason::Shutdown, LONG);
    }
    for _ in &tokens {
        assert_eq!(bench.over().await.end, End::Lost);
    }
}

/// The guard of these tests is this test binary, told to run this one "test".
#[test]
fn called_by_an_agent_this_is_its_guard() {
    let mut args = std::env::args_os();
    if args.any(|arg| arg == "kills::called_by_an_agent_this_is_its_guard")
        && let Some(instance) = args.next().filter(|arg| arg.len() == 32)
    {
        // At once: the test harness would print into a pipe that nobody reads.
        let code = guard::main(std::iter::once(instance));
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
    }
}

fn this_binary() -> guard::Program {
    let args = ["--nocapture", "--exact", "kills::called_by_an_agent_this_is_its_guard"];
    guard::Program { exe: std::env::current_exe().expect("known"), args: args.map(Into::into).to_vec() }
}

/// An agent in a process of its own, to be killed: run as a "test" with a folder in the environment.
#[tokio::test]
async fn called_by_a_test_this_is_an_agent() {
    let Ok(dir) = std::env::var("MUSTER_TEST_AGENT_DIR") else { return };
    let dir = std::path::Path::new(&dir);
    let guard = std::env::var("MUSTER_TEST_NO_GUARD").is_err().then(this_binary);
    let mut bench = Bench::at(dir, guard, |_| {}).await;
    let pids = dir.join("pids").display().to_string();
    bench.start(shell(&format!(
        "trap '' TERM HUP; echo $$ >> {pids}; setsid sh -c 'echo $$ >> {pids}; sleep 1000' & sleep 1000"
    )));
    bench.start(shell(&format!("echo $$ >> {pids}; sleep 1000")));
    loop {
        bench.event().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "an agent to be killed")]
fn agent(dir: &std::path::Path, guarded: bool) -> std::process::Child {
    let mut command = std::process::Command::new(std::env::current_exe().expect("known"));
    command.args(["--exact", "kills::called_by_a_test_this_is_an_agent"]);
    command.env("MUSTER_TEST_AGENT_DIR", dir).stdout(std::process::Stdio::null());
    if !guarded {
        command.env("MUSTER_TEST_NO_GUARD", "1");
    }
    command.spawn().expect("starts")
}

async fn three_pids(dir: &std::path::Path) -> Vec<i32> {
    wait_for("three processes", || {
        let text = std::fs::read_to_string(dir.join("pids")).ok()?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() == 3).then_some(pids)
    })
    .await
}

#[tokio::test]
async fn nothing_outlives_an_agent_that_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = agent(folder.path(), true);
    let pids = three_pids(folder.path()).await;
    assert!(pids.iter().all(|pid| lives(*pid)));
    child.kill().expect("killed");
    child.wait().expect("reaped");
    wait_for("the guard's work", || pids.iter().all(|pid| !lives(*pid)).then_some(())).await;
    let noted = crate::limits::noted(folder.path());
    let _next = Bench::at(folder.path(), None, |_| {}).await;
    assert!(noted.iter().all(|dir| !dir.exists()), "the next agent removes its cgroups: {noted:?}");
}

#[tokio::test]
async fn the_next_agent_sweeps_what_an_unguarded_one_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = agent(folder.path(), false);
    let pids = three_pids(folder.path()).await;
    child.kill().expect("killed");
    child.wait().expect("reaped");
    assert!(pids.iter().all(|pid| lives(*pid)), "without a guard they live");
    let noted = crate::limits::noted(folder.path());
    let bench = Bench::at(folder.path(), None, |_| {}).await;
    assert!(noted.iter().all(|dir| !dir.exists()), "its cgroups are left: {noted:?}");
    let leftover = Leftover { token: Token(1), task: TaskId::new(JobId(5), 7), identity: None };
    let swept = tokio::time::timeout(LIMIT, bench.exec.sweep(&[leftover])).await.expect("in time");
    assert_eq!(swept, [Swept::Dead]);
    assert!(pids.iter().all(|pid| !lives(*pid)));
}

#[tokio::test]
async fn a_sweep_never_kills_a_stranger_that_has_the_number_now() {
    let mut bench = Bench::new().await;
    let token = bench.start(argv(&["sleep", "1000"]));
    let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
    let task = TaskId::new(JobId(5), 7);
    let mut later = identity.clone();
    later.start += 1;
    let mut rebooted = identity.clone();
    rebooted.boot = "another".into();
    let leftovers = [later, rebooted].map(|identity| Leftover { token: Token(99), task, identity: Some(identity) });
    assert_eq!(bench.exec.sweep(&leftovers).await, [Swept::Dead, Swept::Dead]);
    assert!(lives(identity.pid.cast_signed()), "a stranger was killed");
    bench.exec.kill(token, KillReason::Cancelled, LONG);
    bench.over().await;
}

#[tokio::test]
async fn the_guard_is_started_again_when_it_dies() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::at(folder.path(), Some(this_binary()), |_| {}).await;
    let instances = folder.path().join("run/instances");
    let instance = std::fs::read_to_string(instances).expect("written").trim().to_owned();
    let guards = |but: Option<i32>| {
        let all = std::fs::read_dir("/proc").expect("is there").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| Some(*pid) != but && lives(*pid))
            .find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&instance))
            })
    };
    let first = guards(None).expect("a guard");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::SIGKILL).expect("killed");
    let second = wait_for("another guard", || guards(Some(first))).await;
    assert_eq!(bench.run(argv(&["true"])).await.end, End::Succeeded);
    bench.exec.stop().await;
    assert!(!lives(second), "the guard outlives a clean stop");
}
