//! Keepers that are killed under work of many kinds: another one goes on with it, and nothing shows it but the log.

use std::{fs, os::unix::net::UnixStream};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    daemon::freeze,
    system::{Options, System},
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::keeper::keeper;

/// Of the system's keepers, one after another.
pub(crate) struct Keepers {
    pid: i32,
}

impl Keepers {
    pub(crate) fn of(system: &System) -> Result<Self> {
        Ok(Self { pid: keeper(system)? })
    }

    /// SIGKILL to the one that is there; returns when the next one listens.
    pub(crate) fn kill(&mut self, system: &System) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).context("could not kill the keeper")?;
        let socket = system.folder().join("agent/run/keeper.sock");
        self.pid = wait::until("another keeper to listen", || {
            let pid = keeper(system)?;
            let listens = pid != self.pid && UnixStream::connect(&socket).is_ok();
            Ok(if listens { Look::Done(pid) } else { Look::not_yet((self.pid, pid)) })
        })?;
        Ok(())
    }
}

pub(crate) fn tasks(ctl: &Ctl, job: u64) -> Result<Vec<Value>> {
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    shown["tasks"].as_array().cloned().with_context(|| format!("no tasks in {shown}"))
}

/// What a job left: of each task its only attempt, with what it wrote.
fn outcome(ctl: &Ctl, job: u64) -> Result<Vec<(Value, String, String)>> {
    ctl.finished(job, wait::LIMIT * 2)?;
    let of = |task: &Value| {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1, "it was tried again: {task}");
        let id = &format!("{job}.{}", task["index"].as_u64().context("an index")?);
        let text = |stream: &str| {
            wait::until("all output", || {
                let ran = ctl.run(&["logs", id, "--stream", stream])?.expect(0)?;
                let text = ran.text();
                // Every task here says so last, unless it is ended.
                let is_whole = text.ends_with("the end\n") || attempts[0]["end"]["kind"] != "succeeded";
                Ok(if is_whole { Look::Done(text) } else { Look::not_yet(text) })
            })
        };
        Ok((attempts[0].clone(), text("stdout")?, text("stderr")?))
    };
    tasks(ctl, job)?.iter().map(of).collect()
}

/// Waits until all tasks of a job are known to have begun. Before that a lease is all that "running" tells of, and what a
/// keeper starts in the moment in which it is killed is lost with it.
pub(crate) fn all_run(ctl: &Ctl, job: u64, count: usize) -> Result<()> {
    wait::within(wait::LIMIT * 2, "all tasks to run", || {
        let running = tasks(ctl, job)?.iter().filter(|task| task["attempts"][0]["started_at"].is_string()).count();
        Ok(Look::when(running == count, running))
    })
}

/// A file that holds tasks up until a test makes it, and one to which each start of `name` adds a line.
pub(crate) struct Gate {
    pub(crate) path: String,
    pub(crate) starts: String,
}

impl Gate {
    pub(crate) fn new(system: &System, name: &str) -> Self {
        let at = |file: &str| system.folder().join(format!("{file}-{name}")).display().to_string();
        Self { path: at("gate"), starts: at("starts") }
    }

    fn open(&self) -> Result<()> {
        Ok(fs::write(&self.path, "")?)
    }

    /// What a task does first.
    pub(crate) fn begin(&self) -> String {
        format!("echo \"$MUSTER_TASK $$\" >>{}\n", self.starts)
    }

    fn wait(&self) -> String {
        format!("while ! test -e {}; do sleep 0.02; done\n", self.path)
    }

    /// The shells of `count` tasks, once each has begun: a process that was started may not have come to that yet.
    pub(crate) fn shells(&self, count: usize) -> Result<Vec<i32>> {
        wait::until("all to begin", || {
            let text = fs::read_to_string(&self.starts).unwrap_or_default();
            let pids: Vec<i32> = text.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
            Ok(if pids.len() == count && text.ends_with('\n') { Look::Done(pids) } else { Look::not_yet(text) })
        })
    }

    /// Waits until the shells of all `count` tasks are dead.
    fn all_dead(&self, count: usize) -> Result<()> {
        let pids = self.shells(count)?;
        wait::until("all to be dead", || {
            let is_dead = |pid: &&i32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
                state.is_empty() || state.starts_with('Z')
            };
            let dead = pids.iter().filter(is_dead).count();
            Ok(Look::when(dead == count, dead))
        })
    }

    /// Nothing ran twice.
    pub(crate) fn check(&self, count: usize) -> Result<()> {
        let text = fs::read_to_string(&self.starts)?;
        ensure!(text.lines().count() == count, "{count} tasks were started {} times:\n{text}", text.lines().count());
        Ok(())
    }
}

pub(crate) fn task(name: &str, more: &str, shell: &str) -> String {
    format!("[[tasks]]\nname = \"{name}\"\non_lost = \"fail\"\n{more}\nshell = '''\n{shell}'''\n")
}

fn kinds(gate: &Gate) -> String {
    let (begin, wait) = (gate.begin(), gate.wait());
    let mut text = "name = \"kinds\"\n".to_owned();
    text += &task("code", "array = 4", &format!("{begin}{wait}echo the end; echo the end >&2; exit $MUSTER_TASK"));
    text += &task("signal", "", &format!("{begin}{wait}kill -9 $$"));
    let feeds: String = (0..60_000).map(|n| format!("{n}\n")).collect();
    let fed = format!("stdin = \"\"\"\n{feeds}\"\"\"");
    text +=
        &task("fed", &fed, &format!("{begin}read -r first; echo $first\n{wait}cksum; echo the end; echo the end >&2"));
    text += &task(
        "result",
        "",
        &format!("{begin}echo '{{\"n\": 7}}' >$MUSTER_RESULT\n{wait}echo the end; echo the end >&2"),
    );
    text += &task("late", "timeout = \"4s\"", &format!("{begin}while :; do sleep 0.1; done"));
    text += &task(
        "large",
        "memory = \"200MiB\"",
        &format!("{begin}head -c 60000000 /dev/zero | tail -c 60000000 | wc -c\n{wait}echo the end; echo the end >&2"),
    );
    text += &task(
        "bursts",
        "",
        &format!(
            "{begin}n=0; while ! test -e {}; do seq $n $((n+4999)); seq $n $((n+4999)) >&2; n=$((n+5000)); sleep 0.1; done\n\
             echo $n >{}.bursts; echo the end; echo the end >&2",
            gate.path, gate.starts
        ),
    );
    text += &task("child", "", &format!("{begin}(sleep 0.01; {wait}echo the end; echo the end >&2) &\nwait; exit 0"));
    text
}

#[test]
fn work_of_every_kind_goes_on_while_its_keeper_is_killed_again_and_again() -> Result<()> {
    let system = System::start(Options { cpus: 20, ..Options::default() })?;
    let (ctl, gate) = (system.ctl(), Gate::new(&system, "kinds"));
    let job = system.submit("kinds.toml", &kinds(&gate))?;
    all_run(&ctl, job, 11)?;
    let mut keepers = Keepers::of(&system)?;
    for _ in 0..4 {
        keepers.kill(&system)?;
    }
    gate.open()?;
    let found = outcome(&ctl, job)?;
    gate.check(11)?;
    let end = |n: usize| &found[n].0["end"];
    ensure!(end(0)["kind"] == "succeeded", "{}", end(0));
    for code in 1..4 {
        ensure!(end(code)["kind"] == "exit" && end(code)["exit_code"] == code, "{}", end(code));
    }
    ensure!(end(4)["kind"] == "signal" && end(4)["signal"] == 9, "{}", end(4));
    let rest: String = (1..60_000).map(|n| format!("{n}\n")).collect();
    ensure!(end(5)["kind"] == "succeeded", "{}", end(5));
    let sum = cksum(&rest)?;
    ensure!(found[5].1 == format!("0\n{sum}the end\n"), "what it was fed: {} instead of {sum}", found[5].1);
    ensure!(end(6)["kind"] == "succeeded", "{}", end(6));
    let result = ctl.run(&["result", &format!("{job}.result")])?.expect(0)?.text();
    ensure!(result.contains("\"n\""), "its result is lost: {result}");
    ensure!(end(7)["kind"] == "timeout", "{}", end(7));
    ensure!(end(8)["kind"] == "succeeded", "{}", end(8));
    let peak = found[8].0["usage"]["memory_peak_bytes"].as_u64().context("a peak")?;
    ensure!(peak > 50_000_000, "its peak was before the keeper died: {peak}");
    let last: u64 = fs::read_to_string(format!("{}.bursts", gate.starts))?.trim().parse()?;
    let all: String = (0..last).map(|n| format!("{n}\n")).collect::<String>() + "the end\n";
    for text in [&found[9].1, &found[9].2] {
        ensure!(*text == all, "of its bursts {} bytes came of {}", text.len(), all.len());
    }
    ensure!(end(10)["kind"] == "succeeded" && found[10].1 == "the end\n", "{:?}", found[10]);
    system.finish()
}

/// What `cksum` says of a text.
fn cksum(text: &str) -> Result<String> {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let mut child = Command::new("cksum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

#[test]
fn a_kill_that_was_under_way_is_brought_to_its_end_by_the_next_keeper() -> Result<()> {
    let system = System::start(Options { cpus: 4, ..Options::default() })?;
    let (ctl, gate) = (system.ctl(), Gate::new(&system, "deaf"));
    let shell = format!("{}trap 'echo asked' TERM\nwhile :; do sleep 0.02; done", gate.begin());
    let text = "name = \"deaf\"\n".to_owned() + &task("deaf", "grace = \"3s\"", &shell);
    let job = system.submit("deaf.toml", &text)?;
    all_run(&ctl, job, 1)?;
    ctl.run(&["cancel", &job.to_string()])?.expect(0)?;
    wait::until("it to be asked", || {
        let text = ctl.run(&["logs", &format!("{job}.deaf")])?.text();
        Ok(Look::when(text.contains("asked"), text))
    })?;
    let mut keepers = Keepers::of(&system)?;
    keepers.kill(&system)?;
    let found = outcome(&ctl, job)?;
    ensure!(found[0].0["end"]["kind"] == "cancelled", "{}", found[0].0);
    ensure!(found[0].1 == "asked\n", "it was asked once: {}", found[0].1);
    gate.check(1)?;
    system.finish()
}

#[test]
fn what_ended_while_no_keeper_was_there_is_told_as_it_ended() -> Result<()> {
    let system = System::start(Options { cpus: 8, ..Options::default() })?;
    let (ctl, gate) = (system.ctl(), Gate::new(&system, "soon"));
    let shell = format!("{}{}echo the end; echo the end >&2; exit $MUSTER_TASK", gate.begin(), gate.wait());
    let job = system.submit("soon.toml", &("name = \"soon\"\n".to_owned() + &task("soon", "array = 8", &shell)))?;
    all_run(&ctl, job, 8)?;
    let (pids, mut keepers) = (gate.shells(8)?, Keepers::of(&system)?);
    // Stopped, it sees nothing of their ends; then it is killed over them.
    freeze(keepers.pid)?;
    gate.open()?;
    wait::until("all to be dead", || {
        let dead = |pid: &&i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
        };
        let dead = pids.iter().filter(dead).count();
        Ok(Look::when(dead == 8, dead))
    })?;
    keepers.kill(&system)?;
    for (code, (attempt, out, err)) in outcome(&ctl, job)?.into_iter().enumerate() {
        let end = &attempt["end"];
        ensure!(if code == 0 { end["kind"] == "succeeded" } else { end["exit_code"] == code }, "{code}: {end}");
        ensure!((out.as_str(), err.as_str()) == ("the end\n", "the end\n"), "{code}: {out:?} {err:?}");
    }
    gate.check(8)?;
    system.finish()
}

#[test]
fn without_an_agent_the_next_keeper_ends_work_with_its_leases() -> Result<()> {
    let mut system =
        System::start(Options { cpus: 4, lease_ttl: std::time::Duration::from_secs(4), ..Options::default() })?;
    let (ctl, gate) = (system.ctl(), Gate::new(&system, "alone"));
    let shell = format!("{}{}", gate.begin(), gate.wait());
    let job = system.submit("alone.toml", &("name = \"alone\"\n".to_owned() + &task("alone", "array = 4", &shell)))?;
    all_run(&ctl, job, 4)?;
    gate.shells(4)?;
    let mut keepers = Keepers::of(&system)?;
    system.agent()?.kill9()?;
    keepers.kill(&system)?;
    gate.all_dead(4)?;
    system.start_agent()?;
    ctl.finished(job, wait::LIMIT)?;
    for task in tasks(&ctl, job)? {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1 && attempts[0]["end"]["kind"] == "lost", "{task}");
    }
    gate.check(4)?;
    system.finish()
}

#[test]
fn what_a_keeper_had_read_and_not_yet_written_when_it_was_killed_is_kept_once() -> Result<()> {
    let system = System::start(Options { cpus: 4, ..Options::default() })?;
    let (ctl, gate) = (system.ctl(), Gate::new(&system, "held"));
    // Opening its spool file to write waits until somebody reads, and nobody does.
    let spool = system.folder().join("agent/spool").display().to_string();
    let shell = format!(
        "{}mkfifo {spool}/$MUSTER_TOKEN.log\necho $MUSTER_TOKEN >{spool}-token\n\
         echo precious; echo words >&2\n{}echo the end; echo the end >&2",
        gate.begin(),
        gate.wait()
    );
    let job = system.submit("held.toml", &("name = \"held\"\n".to_owned() + &task("held", "", &shell)))?;
    all_run(&ctl, job, 1)?;
    let mut keepers = Keepers::of(&system)?;
    wait::until("the keeper to wait with what it read", || {
        let threads = fs::read_dir(format!("/proc/{}/task", keepers.pid))?.flatten();
        let waits = |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
        let waits: Vec<String> = threads.map(|thread| waits(&thread)).collect();
        Ok(Look::when(waits.iter().any(|what| what.contains("partner") || what.contains("fifo")), waits))
    })?;
    let token = fs::read_to_string(format!("{spool}-token"))?;
    fs::remove_file(format!("{spool}/{}.log", token.trim()))?;
    keepers.kill(&system)?;
    gate.open()?;
    let found = outcome(&ctl, job)?;
    ensure!(found[0].1 == "precious\nthe end\n" && found[0].2 == "words\nthe end\n", "{:?}", found[0]);
    gate.check(1)?;
    system.finish()
}
