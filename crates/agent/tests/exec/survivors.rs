//! What no signal ends keeps its place and is told of, and told of again when it is dead; by cgroups of either version, and
//! without any.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use muster_agent::exec::{ExecEvent, KillReason, Leftover, Swept};
use muster_core::{
    id::{JobId, TaskId, Token},
    resources::Request,
    spec::TaskSpec,
    state::End,
};
use nix::{
    sys::ptrace::{self, Options},
    unistd::Pid,
};

use crate::{
    bench::{Bench, LIMIT, argv, lives, shell, wait_for},
    limits::{noted, strict},
    skip::{here, skip},
};

const HELD: &str = "it is held";

/// A process that hangs in the kernel when it is killed, as one does that waits for a dead disk: another process traces it
/// and lets it not go (`PTRACE_EVENT_EXIT`), which no second SIGKILL changes.
struct Hung {
    holder: Child,
    /// Open until it ends, which has more to say.
    _said: BufReader<ChildStdout>,
}

impl Hung {
    /// None: it may not be traced here.
    #[expect(clippy::disallowed_methods, reason = "no attempt: this binary, told to hold a process")]
    fn hold(pid: u32) -> Option<Self> {
        let mut holder = std::process::Command::new(std::env::current_exe().expect("known"));
        holder.args(["--exact", "--nocapture", "survivors::called_by_a_test_this_holds_a_process"]);
        holder.env("HOLD_PID", pid.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().expect("it starts");
        let mut said = BufReader::new(holder.stdout.take().expect("a pipe"));
        let is_held = said.by_ref().lines().any(|line| line.is_ok_and(|line| line.ends_with(HELD)));
        is_held.then_some(Self { holder, _said: said })
    }

    /// It ends as it should have.
    fn let_go(mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().expect("it is ours");
    }
}

#[test]
fn called_by_a_test_this_holds_a_process() {
    let Ok(pid) = std::env::var("HOLD_PID") else { return };
    let pid = Pid::from_raw(pid.parse().expect("a number"));
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT).expect("it may be traced");
    println!("{HELD}");
    // Until whoever asked lets go, or is dead.
    let _closed = std::io::stdin().read_to_end(&mut Vec::new());
}

#[tokio::test]
async fn what_survives_a_kill_is_told_and_told_again_when_it_is_dead() {
    let Some(mut bench) = strict(here!()).await else { return };
    bench.exec.offer_gpus(&[0], []);
    let gpu = |spec: TaskSpec| TaskSpec { request: Request { gpus: 1, ..Request::default() }, ..spec };
    let token = bench.start(gpu(argv(&["sleep", "1000"])));
    let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
    let Some(hung) = Hung::hold(identity.pid) else { return skip(here!(), "no process can be traced here") };
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    let over = bench.over().await;
    assert_eq!(over.end, End::KillFailed, "{}", over.why);
    assert!(over.why.contains(&format!("{} (sleep)", identity.pid)), "{}", over.why);
    assert_eq!(bench.run(gpu(argv(&["true"]))).await.end, End::NotStarted, "A3: it still has its GPU");
    hung.let_go();
    let over = tokio::time::timeout(LIMIT, bench.over()).await.expect("in time");
    assert_eq!((over.token, over.why.as_str()), (token, "what survived it is dead now"));
    assert!(!lives(identity.pid.cast_signed()));
    let (over, out, _) = bench.output(gpu(shell("echo $CUDA_VISIBLE_DEVICES"))).await;
    assert_eq!((over.end, out.as_str()), (End::Succeeded, "0\n"), "{}", over.why);
}

/// Folders of the cgroups of an agent in which a process stands.
fn slots_of(dir: &Path, pid: u32) -> Vec<PathBuf> {
    let slots = noted(dir).into_iter().flat_map(|base| std::fs::read_dir(base).into_iter().flatten().flatten());
    let has = |slot: &PathBuf| {
        let text = std::fs::read_to_string(slot.join("cgroup.procs")).unwrap_or_default();
        text.lines().any(|line| line == pid.to_string())
    };
    slots.map(|slot| slot.path()).filter(has).collect()
}

#[tokio::test]
async fn who_survives_in_a_cgroup_that_the_task_made_is_told_and_killed_when_it_can_be() {
    let Some(mut bench) = strict(here!()).await else { return };
    let file = bench.dir.join("child");
    let text = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
    let token = bench.start(shell(&text));
    let child: u32 = bench.appears(&file).await.trim().parse().expect("a number");
    let slots = wait_for("its cgroups", || Some(slots_of(&bench.dir, child)).filter(|slots| !slots.is_empty())).await;
    for slot in &slots {
        std::fs::create_dir(slot.join("x")).expect("made");
        std::fs::write(slot.join("x/cgroup.procs"), child.to_string()).expect("moved");
    }
    let Some(hung) = Hung::hold(child) else { return skip(here!(), "no process can be traced here") };
    bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
    let over = bench.over().await;
    assert_eq!(over.end, End::KillFailed, "A3: {}", over.why);
    assert!(over.why.contains(&format!("{child} (sleep)")), "{}", over.why);
    hung.let_go();
    let over = tokio::time::timeout(LIMIT, bench.over()).await.expect("in time");
    assert_eq!((over.token, over.why.as_str()), (token, "what survived it is dead now"));
    assert!(!lives(child.cast_signed()));
}

#[tokio::test]
async fn what_a_sweep_cannot_end_keeps_its_place_until_it_is_dead() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = Bench::bare_at(folder.path()).await;
    let file = folder.path().join("child");
    let token = first.start(shell(&format!("sleep 1000 & echo $! > {}; wait", file.display())));
    let ExecEvent::Started { identity, .. } = first.event().await else { panic!("not started") };
    let child: u32 = first.appears(&file).await.trim().parse().expect("a number");
    let Some(hung) = Hung::hold(child) else { return skip(here!(), "no process can be traced here") };
    let instances = std::fs::read_to_string(folder.path().join("run/instances")).expect("written");
    drop(first);
    wait_for("its first process to end", || (!lives(identity.pid.cast_signed())).then_some(())).await;
    // The next agent on the same folder.
    let next = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(next.path().join("run")).expect("made");
    std::fs::write(next.path().join("run/instances"), instances).expect("written");
    let mut bench = Bench::bare_at(next.path()).await;
    let task = TaskId::new(JobId(5), 7);
    let leftovers = [(token, Some(identity)), (Token(99), None)];
    let leftovers = leftovers.map(|(token, identity)| Leftover { token, task, identity });
    let swept = tokio::time::timeout(LIMIT, bench.exec.sweep(&leftovers)).await.expect("in time");
    assert_eq!(swept, [Swept::Survives, Swept::Dead], "A3");
    bench.exec.offer_gpus(&[3], [(token, vec![3])]);
    hung.let_go();
    let over = tokio::time::timeout(LIMIT, bench.over()).await.expect("its end is told");
    assert_eq!((over.token, over.end), (token, End::Lost), "{}", over.why);
    assert!(!lives(child.cast_signed()));
    let mut spec = shell("exit $CUDA_VISIBLE_DEVICES");
    spec.request.gpus = 1;
    assert_eq!(bench.run(spec).await.end, End::Exit(3));
}
