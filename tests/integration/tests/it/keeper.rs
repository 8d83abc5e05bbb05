//! Agents that come and go over work that goes on: nothing of it is lost, cut or done twice.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    system::{Options, System},
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::heirs::{all_run, tasks};

/// `count` tasks that each write numbered lines until the file `gate` is there, and end with a code of their own.
fn writers(system: &System, count: u32, lines: u32) -> String {
    let gate = system.folder().join("gate");
    let shell = format!(
        "n=0; while test $n -lt {lines} || ! test -e {gate}; do n=$((n+1)); echo \"$MUSTER_TASK line $n\"; \
         echo \"$MUSTER_TASK error $n\" >&2; sleep 0.05; done; echo $n >{folder}/count.$MUSTER_TASK; exit $((MUSTER_TASK % 3))",
        gate = gate.display(),
        folder = system.folder().display(),
    );
    format!("name = \"writers\"\n[[tasks]]\nname = \"a\"\narray = {count}\non_lost = \"fail\"\nshell = '''{shell}'''\n")
}

/// Each task ran once, ended with its own code, and all that it wrote is there, in order.
fn check(system: &System, job: u64, count: u32) -> Result<()> {
    let ctl = system.ctl();
    ctl.finished(job, wait::LIMIT)?;
    let tasks = tasks(&ctl, job)?;
    ensure!(tasks.len() == count as usize, "{} tasks", tasks.len());
    for task in &tasks {
        let index = task["index"].as_u64().context("an index")?;
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1, "task {index} was tried again: {task}");
        let end = &attempts[0]["end"];
        let as_it_ended = match index % 3 {
            0 => end["kind"] == "succeeded",
            code => end["kind"] == "exit" && end["exit_code"] == code,
        };
        ensure!(as_it_ended, "task {index}: {end}");
        let lines: u64 = fs::read_to_string(system.folder().join(format!("count.{index}")))?.trim().parse()?;
        for (stream, word) in [("stdout", "line"), ("stderr", "error")] {
            let expected: String = (1..=lines).map(|n| format!("{index} {word} {n}\n")).collect();
            let text = wait::until("all output", || {
                let ran = ctl.run(&["logs", &format!("{job}.a[{index}]"), "--stream", stream])?.expect(0)?;
                let text = ran.text();
                Ok(if text.len() >= expected.len() { Look::Done(text) } else { Look::not_yet(text.len()) })
            })?;
            ensure!(text == expected, "task {index}: {stream} is not what it wrote:\n{text}");
        }
    }
    Ok(())
}

#[test]
fn work_goes_on_while_its_agent_is_killed_and_started_again_and_again() -> Result<()> {
    let mut system = System::start(Options { cpus: 20, ..Options::default() })?;
    let ctl = system.ctl();
    let job = system.submit("writers.toml", &writers(&system, 20, 40))?;
    all_run(&ctl, job, 20)?;
    for _ in 0..5 {
        system.agent()?.kill9()?;
        system.start_agent()?;
    }
    fs::write(system.folder().join("gate"), "")?;
    check(&system, job, 20)?;
    system.finish()
}

#[test]
fn a_restart_of_the_service_leaves_work_alone() -> Result<()> {
    let mut system = System::start(Options { cpus: 4, ..Options::default() })?;
    let ctl = system.ctl();
    let job = system.submit("writers.toml", &writers(&system, 4, 10))?;
    all_run(&ctl, job, 4)?;
    system.agent()?.stop()?;
    // It ends while nobody is there.
    fs::write(system.folder().join("gate"), "")?;
    wait::until("all tasks to have ended", || {
        let ended = (0..4).filter(|n| system.folder().join(format!("count.{n}")).exists()).count();
        Ok(Look::when(ended == 4, ended))
    })?;
    system.start_agent()?;
    check(&system, job, 4)?;
    system.finish()
}

/// The process number of the keeper of this system's agent.
pub(crate) fn keeper(system: &System) -> Result<i32> {
    keeper_of(&system.folder().join("agent"))
}

/// The process number of the keeper of the agent on this folder.
pub(crate) fn keeper_of(folder: &Path) -> Result<i32> {
    let folder = folder.to_string_lossy().into_owned();
    wait::until("a keeper to be there", || {
        let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&&b"keeper"[..]) && words.contains(&folder.as_bytes())
        };
        let found: Vec<i32> = pids.filter(is_it).collect();
        Ok(match found[..] {
            [pid] => Look::Done(pid),
            _ => Look::NotYet(format!("{found:?}")),
        })
    })
}

fn open_files(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn agents_that_come_and_go_leave_nothing_open_in_their_keeper() -> Result<()> {
    let mut system = System::start(Options { cpus: 4, ..Options::default() })?;
    let ctl = system.ctl();
    let job = system.submit("writers.toml", &writers(&system, 4, 10))?;
    all_run(&ctl, job, 4)?;
    // By then all that work needs is open.
    wait::until("all tasks to be heard", || {
        let said = ctl.run(&["logs", &job.to_string()])?.text();
        Ok(Look::when((0..4).all(|n| said.contains(&format!("{n} line 1\n"))), said))
    })?;
    let pid = keeper(&system)?;
    let before = open_files(pid)?;
    for _ in 0..10 {
        system.agent()?.kill9()?;
        system.start_agent()?;
    }
    ensure!(keeper(&system)? == pid, "the keeper was replaced");
    wait::until("no more files to be open than before", || {
        let now = open_files(pid)?;
        Ok(Look::when(now <= before, (before, now)))
    })?;
    fs::write(system.folder().join("gate"), "")?;
    check(&system, job, 4)?;
    system.finish()
}

/// The parent of a process; of a keeper it is the safe.
pub(crate) fn parent(pid: i32) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("a parent")?;
    Ok(line.trim().parse()?)
}

#[test]
fn a_keeper_that_is_killed_after_its_safe_takes_its_work_with_it_says_so_and_the_agent_works_on() -> Result<()> {
    let mut system = System::start(Options { cpus: 4, ..Options::default() })?;
    let ctl = system.ctl();
    let job = system.submit("writers.toml", &writers(&system, 4, 10))?;
    all_run(&ctl, job, 4)?;
    let first = keeper(&system)?;
    let safe = parent(first)?;
    kill(Pid::from_raw(safe), Signal::SIGKILL).context("could not kill the safe")?;
    wait::until("the keeper to have a guard", || {
        let guard = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let guards = guard.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            parent(*pid).is_ok_and(|parent| parent == first)
                && line.split(|byte| *byte == 0).any(|word| word == b"guard")
        });
        let count = guards.count();
        Ok(Look::when(count == 1, count))
    })?;
    ensure!(tasks(&ctl, job)?.iter().all(|task| task["state"] == "running"), "without its safe it works on");
    kill(Pid::from_raw(first), Signal::SIGKILL).context("could not kill the keeper")?;
    let done = ctl.finished(job, wait::LIMIT)?;
    ensure!(done["state"] == "failed", "on_lost is fail: {done}");
    for task in tasks(&ctl, job)? {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1 && attempts[0]["end"]["kind"] == "lost", "{task}");
        ensure!(task.to_string().contains("the keeper that ran it died"), "{task}");
    }
    // A3: they were seen dead before anybody was told.
    let alive = fs::read_dir("/proc")?.flatten().filter(|entry| {
        let text = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(&*system.folder().join("gate").to_string_lossy())
    });
    ensure!(alive.count() == 0, "a process of the first keeper lives");
    let next = system.submit("b.toml", "name = \"b\"\n[[tasks]]\nname = \"b\"\nrun = [\"true\"]\n")?;
    ensure!(ctl.finished(next, wait::LIMIT)?["state"] == "succeeded", "the agent takes new work");
    ensure!(keeper(&system)? != first, "another keeper is there");
    system.agent()?.interrupt()?;
    Ok(())
}

/// The files below `folder` that somebody else may read, write or run.
fn open_to_others(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        // A folder may, too.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let (entry, path) = entry.map(|entry| (entry.metadata(), entry.path()))?;
        // A file may go while we look.
        let Ok(about) = entry else { continue };
        if about.is_dir() {
            found.extend(open_to_others(&path)?);
        } else if about.permissions().mode() & 0o077 != 0 {
            found.push(format!("{} ({:o})", path.display(), about.permissions().mode()));
        }
    }
    Ok(found)
}

#[test]
fn no_file_of_an_agent_is_for_others_to_read() -> Result<()> {
    let mut system = System::plain()?;
    let ctl = system.ctl();
    let gate = system.folder().join("gate");
    let text = format!(
        "name = \"secret\"\n[[tasks]]\nname = \"a\"\nshell = 'echo 41 >\"$MUSTER_RESULT\"'\n\
         [[tasks]]\nname = \"b\"\nafter = [\"a\"]\nshell = 'echo said; until test -e {}; do sleep 0.05; done'\n",
        gate.display()
    );
    let job = system.submit("secret.toml", &text)?;
    wait::until("the second task to say something", || {
        let ran = ctl.run(&["logs", &format!("{job}.b")])?;
        Ok(Look::when(ran.text().contains("said"), ran.to_string()))
    })?;
    let files = system.folder().join("agent/run/files");
    let inputs = fs::read_dir(&files)?.flatten().any(|file| file.path().extension().is_some_and(|end| end == "inputs"));
    ensure!(inputs, "there are no inputs to look at");
    // An agent that starts begins another journal, and its keeper, which closed the folder's files, was there before.
    for _ in 0..2 {
        let open = open_to_others(&system.folder().join("agent"))?;
        ensure!(open.is_empty(), "others can read {open:?}");
        system.agent()?.kill9()?;
        system.start_agent()?;
    }
    fs::write(&gate, "")?;
    ensure!(ctl.finished(job, wait::LIMIT)?["state"] == "succeeded", "it did not go on");
    system.finish()
}

#[test]
fn of_thousands_of_short_tasks_each_end_is_told_once_and_none_is_left_out() -> Result<()> {
    const COUNT: u64 = 3000;
    let mut system = System::start(Options { cpus: 4, ..Options::default() })?;
    let ctl = system.ctl();
    let file = system.folder().join("ran").display().to_string();
    // Far more than fit are sent ahead: ends are told together then.
    let text = format!(
        "name = \"short\"\n[[tasks]]\nname = \"a\"\narray = {COUNT}\non_lost = \"fail\"\n\
         shell = 'echo $MUSTER_TASK >>{file}; exit $((MUSTER_TASK % 3))'\n"
    );
    let job = system.submit("short.toml", &text)?;
    let done = ctl.finished(job, wait::LIMIT * 2)?;
    ensure!(done["state"] == "failed", "{done}");
    for (n, task) in (0..COUNT).zip(
        ctl.json(&["show", &job.to_string(), "--tasks", "--limit", "3000"])?["tasks"].as_array().context("tasks")?,
    ) {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1, "it was tried again: {task}");
        let end = &attempts[0]["end"];
        ensure!(if n % 3 == 0 { end["kind"] == "succeeded" } else { end["exit_code"] == n % 3 }, "task {n}: {end}");
    }
    let ran = fs::read_to_string(&file)?.lines().count();
    ensure!(ran as u64 == COUNT, "{COUNT} tasks ran {ran} times");
    system.agent()?.expect_no_errors()?;
    system.finish()
}
