//! Commands beside a task: where it is, as what it is, and gone when it is.

use std::time::Duration;

use muster_agent::{
    exec::{
        ExecEvent, KillReason, ProcessIdentity, Rules,
        beside::{self, Asked, Beside, Fed},
    },
    logs::Stream,
};
use muster_core::{resources::Request, run_as::RunAs, spec::TaskSpec, state::End};
use tokio::sync::mpsc;

use crate::{
    bench::{Bench, LIMIT, lives, shell, wait_for},
    skip::{here, skip},
};

/// A task that runs until it is killed.
pub(crate) async fn started(bench: &mut Bench, spec: TaskSpec) -> (muster_core::id::Token, ProcessIdentity) {
    let token = bench.start(spec);
    let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
    (token, identity)
}

/// Beside a process that was started as the agent itself.
pub(crate) fn plain(identity: &ProcessIdentity) -> Beside {
    Beside { process: identity.clone(), run_as: RunAs::default(), rules: Rules::default() }
}

/// A text for the shell, by pipes.
fn piped(text: impl Into<String>) -> Asked {
    Asked { command: ["sh".into(), "-c".into(), text.into()].into(), terminal: None }
}

/// Runs it to its end, with this to read.
async fn beside(identity: &ProcessIdentity, text: &str, input: &str) -> (Result<End, String>, String, String) {
    beside_as(plain(identity), text, input).await
}

async fn beside_as(beside: Beside, text: &str, input: &str) -> (Result<End, String>, String, String) {
    let (feed, fed) = mpsc::channel(4);
    let (said, mut heard) = mpsc::channel(4);
    feed.send(Fed::Bytes(input.into())).await.expect("room");
    feed.send(Fed::End).await.expect("room");
    let run = tokio::time::timeout(LIMIT, beside::run(beside, piped(text), fed, said));
    let hear = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some((stream, data)) = heard.recv().await {
            if stream == Stream::Stdout { out.extend(data) } else { err.extend(data) }
        }
        (out, err)
    };
    let (end, (out, err)) = tokio::join!(run, hear);
    drop(feed);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (end.expect("in time"), text(out), text(err))
}

#[tokio::test]
async fn a_command_is_in_a_session_of_its_own() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let (_, identity) = started(&mut bench, shell("sleep 1000")).await;
    // The agent's may have a larger share of the processors.
    let (end, out, _) = beside(&identity, "echo $$; cut -d ' ' -f 6 /proc/$$/stat", "").await;
    let numbers: Vec<&str> = out.lines().collect();
    assert!(matches!(numbers[..], [own, session] if own == session), "{end:?}: {out}");
}

#[tokio::test]
async fn who_reads_slowly_gets_all_of_it_and_the_exit_code() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let (_, identity) = started(&mut bench, shell("sleep 1000")).await;
    let (goes_on, written) = (bench.dir.join("goes-on"), bench.dir.join("written"));
    // The last of it has room in the pipe and on the way, where it is more than one piece.
    let text = format!(
        "head -c 400000 /dev/zero; until test -e {}; do sleep 0.01; done; \
         for i in 1 2 3 4 5; do head -c 10000 /dev/zero; sleep 0.02; done; : > {}; exit 7",
        goes_on.display(),
        written.display()
    );
    let (_feed, fed) = mpsc::channel(1);
    let (said, mut heard) = mpsc::channel(1);
    let mut run = std::pin::pin!(beside::run(plain(&identity), piped(text), fed, said));
    let mut bytes = 0;
    while bytes < 400_000 {
        tokio::select! {
            end = &mut run => panic!("{end:?} after {bytes} bytes"),
            Some((_, piece)) = heard.recv() => bytes += piece.len(),
        }
    }
    std::fs::write(goes_on, "").expect("written");
    tokio::select! {
        end = &mut run => panic!("{end:?} after {bytes} bytes"),
        () = wait_for("all to be written", || written.exists().then_some(())) => {}
    }
    // Longer than it waits for others who hold its output open.
    let waits = tokio::time::timeout(Duration::from_secs(1), &mut run).await;
    assert!(waits.is_err(), "{waits:?}, and {bytes} bytes were read");
    let reads = async {
        while let Some((_, piece)) = heard.recv().await {
            bytes += piece.len();
        }
    };
    let both = async { tokio::join!(run, reads) };
    let (end, ()) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    assert_eq!((end, bytes), (Ok(End::Exit(7)), 450_000));
}

#[tokio::test]
async fn a_command_that_is_over_is_not_held_up_by_what_writes_on_behind_it() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let (_, identity) = started(&mut bench, shell("sleep 1000")).await;
    for text in ["yes & exit 3", "while :; do echo a; sleep 0.1; done & exit 3", "sleep 1000 & exit 3"] {
        let (end, out, _) = beside(&identity, text, "").await;
        assert_eq!(end, Ok(End::Exit(3)), "{text}");
        assert!(out.len() < 64 << 20, "{text}: {} bytes", out.len());
    }
}

#[tokio::test]
async fn a_command_finds_what_the_task_has() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let mut spec = shell("cd /usr; exec sleep 1000");
    spec.env = [("COLOUR".to_owned(), "red".to_owned())].into();
    let (token, identity) = started(&mut bench, spec).await;
    wait_for("the task to be where it goes", || {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", identity.pid)).ok()?;
        (cwd.ends_with("usr")).then_some(())
    })
    .await;
    let text = "pwd; echo $COLOUR $MUSTER_TASK_NAME $MUSTER_TOKEN; cat; echo err >&2; exit 7";
    let (end, out, err) = beside(&identity, text, "given").await;
    assert_eq!(end, Ok(End::Exit(7)));
    assert_eq!(out, format!("/usr\nred t {token}\ngiven"));
    assert_eq!(err, "err\n");
    assert_eq!(beside(&identity, "kill -9 $$", "").await.0, Ok(End::Signal(9)));
    let (end, ..) = beside(&identity, "exec no-such-program", "").await;
    assert_eq!(end, Ok(End::Exit(127)), "the shell says so");
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled);
    let (end, ..) = beside(&identity, "true", "").await;
    assert_eq!(end, Err("the task's first process has ended".to_owned()));
    // Not our own start: that may lie in the same tick as the task's.
    let other = ProcessIdentity { pid: std::process::id(), start: u64::MAX, ..identity };
    assert!(beside(&other, "true", "").await.0.is_err(), "a number alone says nothing");
}

#[tokio::test]
async fn a_command_is_its_tasks_user_and_in_its_cgroups() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    if !nix::unistd::geteuid().is_root() || crate::limits::noted(&bench.dir).is_empty() {
        return skip(here!(), "no cgroups can be made here");
    }
    let request = Request { cpu_milli: 1000, memory: 64 << 20, ..Request::default() };
    let run_as = RunAs {
        user: Some("daemon".into()),
        groups: Some(vec!["tty".into()]),
        umask: Some(0o027),
        no_new_privs: true,
        ..RunAs::default()
    };
    let spec = TaskSpec { request, run_as: run_as.clone(), ..shell("sleep 1000") };
    let (token, identity) = started(&mut bench, spec).await;
    let is = || Beside { run_as: run_as.clone(), ..plain(&identity) };
    let text = "id -un; id -Gn; umask; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; cat /proc/self/cgroup";
    let (_, out, _) = beside_as(is(), text, "").await;
    let head = "daemon\ndaemon tty\n0027\nNoNewPrivs:\t1\nCapEff:\t0000000000000000\n";
    let cgroups = out.strip_prefix(head).unwrap_or_else(|| panic!("{out}"));
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", identity.pid)).expect("it lives");
    assert_eq!(cgroups, own);
    assert!(own.contains("muster-"), "{own}");
    // Its memory is the task's.
    let (end, ..) = beside_as(is(), "head -c 300000000 /dev/zero | tail >/dev/null", "").await;
    assert_ne!(end, Ok(End::Exit(0)));
    let over = bench.over().await;
    assert!(over.end == End::Oom && over.token == token, "{over:?}");
}

#[tokio::test]
async fn a_command_has_no_right_that_the_task_took_from_a_setuid_program() {
    if !nix::unistd::geteuid().is_root() {
        return skip(here!(), "not root");
    }
    let rules = Rules { user: Some("daemon".into()), ..Rules::default() };
    let mut bench = Bench::with_rules(rules.clone()).await;
    let folder = bench.dir.parent().expect("above").to_owned();
    // One that is root for as long as it waits for a password, and one that is so in every way.
    let setuid = |program: &str| {
        let copy = folder.join(program);
        std::fs::copy(format!("/usr/bin/{program}"), &copy).expect("copied");
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o4755)).expect("ours");
        copy
    };
    let (sleep, setpriv) = (setuid("sleep"), setuid("setpriv"));
    let wholly = format!("exec {} --reuid 0 --regid 0 --clear-groups sleep 1000", setpriv.display());
    for (text, ids) in [(format!("exec {} 1000", sleep.display()), "1 0 0 0"), (wholly, "0 0 0 0")] {
        let (token, identity) = started(&mut bench, shell(&text)).await;
        wait_for("it to be root", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", identity.pid)).ok()?;
            let found = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
            (found.split_ascii_whitespace().collect::<Vec<_>>().join(" ") == ids).then_some(())
        })
        .await;
        let (end, out, _) = beside_as(Beside { rules: rules.clone(), ..plain(&identity) }, "id -u", "").await;
        let why = end.expect_err(&out);
        assert!(why.contains("is not the user `daemon` any more"), "{why}");
        bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
        assert_eq!(bench.over().await.end, End::Cancelled);
    }
}

#[tokio::test]
async fn a_command_ends_with_its_task_whatever_it_does() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let (token, identity) = started(&mut bench, shell("sleep 1000")).await;
    let pids = bench.dir.join("pids");
    let text = format!("trap '' TERM; setsid sleep 1000 & echo $! $$ > {}; sleep 1000", pids.display());
    let (_feed, fed) = mpsc::channel(1);
    let (said, _heard) = mpsc::channel(1);
    let visit = tokio::spawn(beside::run(plain(&identity), piped(text), fed, said));
    let pids: Vec<i32> = bench.appears(&pids).await.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled);
    assert!(pids.iter().all(|pid| !lives(*pid)), "the command outlived its task");
    assert_eq!(tokio::time::timeout(LIMIT, visit).await.expect("in time").expect("whole"), Ok(End::Signal(9)));
}

#[tokio::test]
async fn a_command_whose_caller_goes_away_ends_and_its_task_goes_on() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let (token, identity) = started(&mut bench, shell("sleep 1000")).await;
    let file = bench.dir.join("pid");
    let text = format!("trap '' TERM; echo $$ > {}; while :; do sleep 0.1; done", file.display());
    let (feed, fed) = mpsc::channel(1);
    let (said, _heard) = mpsc::channel(1);
    let visit = tokio::spawn(beside::run(plain(&identity), piped(text), fed, said));
    let pid: i32 = bench.appears(&file).await.trim().parse().expect("a pid");
    drop(feed);
    assert_eq!(tokio::time::timeout(LIMIT, visit).await.expect("in time").expect("whole"), Ok(End::Signal(9)));
    assert!(!lives(pid));
    assert!(lives(identity.pid.cast_signed()), "the task went with it");
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled);
}
