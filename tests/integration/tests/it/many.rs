//! Two hundred tasks whose agent and keeper are killed in turn: they end as undisturbed ones do. Also run on version 2 of
//! cgroups (`cargo xtask vm`).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    system::{Options, System},
    wait::{self, Look},
};
use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};
use serde_json::Value;

use crate::heirs::{Gate, Keepers, all_run, task, tasks};

const TASKS: usize = 200;
/// Lines that each of them writes to both streams.
const LINES: usize = 400;
/// Lines that are asked for at once, of whoever comes first: together with all kills fewer than one task has.
const BURST: usize = 2000;

/// Tasks that write a known text, a line for each that they read, and the rest of it at the end of their input; with ends and peaks
/// of their own. Nothing of it starts a process while they are disturbed: where processors are emulated, that takes long.
fn many(gate: &Gate) -> String {
    let says = "echo \"$MUSTER_TASK line $n\"; echo \"$MUSTER_TASK error $n\" >&2; n=$((n+1))";
    let shell = format!(
        "dd if=/dev/zero bs=100000 count=$((MUSTER_TASK % 3 * 80)) 2>/dev/null | tail -c 20000000 >/dev/null\n\
         exec 3<{}\n{}n=0; while read -r line <&3; do test $n -eq {LINES} || {{ {says}; }}; done\n\
         while test $n -lt {LINES}; do {says}; done\n\
         echo the end; echo the end >&2; test $((MUSTER_TASK % 4)) != 3 || kill -15 $$; exit $((MUSTER_TASK % 4))",
        gate.path,
        gate.begin(),
    );
    "name = \"many\"\n".to_owned() + &task("many", &format!("array = {TASKS}\ncpus = 0.1\nmemory = \"24MiB\""), &shell)
}

/// What such tasks read; dropped, it is at its end.
struct Input(File);

impl Input {
    fn new(gate: &Gate) -> Result<Self> {
        mkfifo(gate.path.as_str(), Mode::S_IRWXU)?;
        // Open for both, it waits for no reader; a full pipe is a mistake of this test.
        let file = File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(&gate.path)?;
        Ok(Self(file))
    }

    /// Has tasks write, while and after this returns.
    fn burst(&mut self) -> Result<()> {
        match self.0.write_all(&[b'\n'; BURST]) {
            // They have not come to the last ones.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            done => done.context("could not ask for lines"),
        }
    }
}

/// What each task of a job wrote to `stream`, once all of them have said that they are done.
fn all_output(ctl: &Ctl, job: u64, stream: &str) -> Result<BTreeMap<String, String>> {
    wait::until("all output of all tasks", || {
        let text = ctl.run(&["logs", &job.to_string(), "--stream", stream])?.expect(0)?.text();
        let mut of: BTreeMap<String, String> = BTreeMap::new();
        for line in text.lines() {
            let (task, said) = line.split_once(" | ").with_context(|| format!("whose is `{line}`?"))?;
            let task = task.split_once('.').map_or(task, |(_, task)| task).trim().to_owned();
            *of.entry(task).or_default() += &format!("{said}\n");
        }
        let done = of.values().filter(|text| text.ends_with("the end\n")).count();
        Ok(if done == TASKS { Look::Done(of) } else { Look::not_yet((done, of.len(), text.len())) })
    })
}

/// How each task of a job ended, and the most memory that it had.
fn ends(ctl: &Ctl, job: u64) -> Result<Vec<(Value, u64)>> {
    ctl.finished(job, wait::LIMIT * 2)?;
    let of = |task: &Value| {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1, "it was tried again: {task}");
        let peak = attempts[0]["usage"]["memory_peak_bytes"].as_u64();
        Ok((attempts[0]["end"].clone(), peak.unwrap_or(0)))
    };
    tasks(ctl, job)?.iter().map(of).collect()
}

#[test]
fn two_hundred_tasks_end_as_undisturbed_ones_while_agent_and_keeper_are_killed_in_turn() -> Result<()> {
    let mut system = System::start(Options { cpus: 20, ..Options::default() })?;
    let ctl = system.ctl();
    let calm = Gate::new(&system, "calm");
    let input = Input::new(&calm)?;
    let job = system.submit("calm.toml", &many(&calm))?;
    calm.shells(TASKS)?;
    drop(input);
    let expected = ends(&ctl, job)?;
    let texts = [all_output(&ctl, job, "stdout")?, all_output(&ctl, job, "stderr")?];
    calm.check(TASKS)?;

    let gate = Gate::new(&system, "many");
    let mut input = Input::new(&gate)?;
    let job = system.submit("many.toml", &many(&gate))?;
    all_run(&ctl, job, TASKS)?;
    gate.shells(TASKS)?;
    let mut keepers = Keepers::of(&system)?;
    for _ in 0..2 {
        input.burst()?;
        keepers.kill(&system)?;
        input.burst()?;
        system.agent()?.kill9()?;
        input.burst()?;
        system.start_agent()?;
        input.burst()?;
        // Both at once.
        system.agent()?.kill9()?;
        keepers.kill(&system)?;
        system.start_agent()?;
    }
    drop(input);
    let found = ends(&ctl, job)?;
    gate.check(TASKS)?;
    ensure!(found.len() == TASKS && expected.len() == TASKS, "{} tasks", found.len());
    for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
        ensure!(found.0 == expected.0, "task {n}: {} instead of {}", found.0, expected.0);
        // Two runs of one program never take the same to the page.
        ensure!(found.1.abs_diff(expected.1) < 4 << 20, "task {n}: a peak of {} instead of {}", found.1, expected.1);
    }
    for (stream, expected) in ["stdout", "stderr"].into_iter().zip(&texts) {
        for (task, text) in all_output(&ctl, job, stream)? {
            ensure!(expected.get(&task) == Some(&text), "{task}: its {stream} is another:\n{text}");
        }
    }
    system.agent()?.expect_no_errors()?;
    system.finish()
}
