//! `kill -9` in the middle of a job of a thousand tasks: nothing is lost, nothing runs twice at once, order is kept.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    system::{Options, System},
    wait::{self, Look},
    witness::{History, Witness},
};
use serde_json::Value;

/// The middle tasks; one stands before all of them and one behind.
const MIDDLE: u32 = 998;
const TASKS: u32 = MIDDLE + 2;

/// How long the whole job may take on a slow machine, with a lost agent's lease in it.
const LIMIT: Duration = Duration::from_secs(240);

fn options() -> Options {
    Options { lease_ttl: Duration::from_secs(3), cpus: 8, ..Options::default() }
}

/// One, then many, then one. Some of the many take a while, so that a kill hits them in their middle.
fn thousand(witness: &Witness) -> String {
    let quick = witness.around(":");
    let slow = witness.around("case $MUSTER_TASK in *7) sleep 0.2;; esac");
    format!(
        r#"
name = "thousand"

[[tasks]]
name = "first"
shell = '''{quick}'''

[[tasks]]
name = "middle"
shell = '''{slow}'''
array = {MIDDLE}
after = ["first"]

[[tasks]]
name = "last"
shell = '''{quick}'''
after = ["middle"]
"#
    )
}

/// Submits the job and waits until it is well under way.
fn under_way(system: &System, witness: &Witness) -> Result<u64> {
    let job = system.submit("thousand.toml", &thousand(witness))?;
    wait::within(LIMIT, "200 lines of the witness and a task in its middle", || {
        let (lines, under_way) = (witness.lines()?, witness.under_way()?);
        Ok(Look::when(lines >= 200 && under_way > 0, (lines, under_way)))
    })?;
    ensure!(witness.lines()? < 2 * TASKS as usize, "the job was over before anything could be killed");
    Ok(job)
}

/// Every task as the controller tells it, page by page.
fn all_tasks(ctl: &Ctl, job: u64) -> Result<Vec<Value>> {
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    shown["tasks"].as_array().cloned().with_context(|| format!("no tasks in {shown}"))
}

/// What both sides say must fit: the product's record and the witness, which knows nothing of it.
fn check(tasks: &[Value], histories: &BTreeMap<u32, History>) -> Result<()> {
    ensure!(tasks.len() == TASKS as usize, "{} tasks of {TASKS} are shown", tasks.len());
    for task in tasks {
        let index =
            task["index"].as_u64().and_then(|index| u32::try_from(index).ok()).context("a task has an index")?;
        ensure!(task["state"] == "succeeded", "task {index} is not done: {task}");
        let attempts: Vec<u64> =
            task["attempts"].as_array().context("attempts")?.iter().filter_map(|a| a["number"].as_u64()).collect();
        let history = histories.get(&index).with_context(|| format!("task {index} succeeded, yet never started"))?;
        for (attempt, _) in &history.starts {
            ensure!(
                attempts.contains(&u64::from(*attempt)),
                "task {index}: attempt {attempt} ran but is not on record: {task}"
            );
        }
        let last = *attempts.last().context("a task that succeeded has an attempt")?;
        ensure!(
            history.ends.iter().any(|end| u64::from(*end) == last),
            "task {index}: attempt {last} counts, yet never came to its end"
        );
    }
    check_order(histories)
}

fn check_order(histories: &BTreeMap<u32, History>) -> Result<()> {
    let middle = || histories.range(1..=MIDDLE);
    let first_end = histories[&0].last_end;
    for (index, history) in middle() {
        ensure!(history.first_start > first_end, "task {index} started before `first` had ended");
    }
    let middle_end = middle().map(|(_, history)| history.last_end).max().unwrap_or_default();
    ensure!(histories[&(TASKS - 1)].first_start > middle_end, "`last` started before all of `middle` had ended");
    Ok(())
}

fn finish(system: &System, witness: &Witness, job: u64) -> Result<()> {
    let ctl = system.ctl();
    let finished = ctl.finished(job, LIMIT)?;
    ensure!(finished["state"] == "succeeded", "the job ended otherwise: {finished}");
    check(&all_tasks(&ctl, job)?, &witness.histories()?)
}

#[test]
fn a_killed_controller_loses_nothing_and_runs_nothing_twice() -> Result<()> {
    let mut system = System::start(options())?;
    let witness = Witness::new(system.folder())?;
    let job = under_way(&system, &witness)?;
    system.controller()?.kill9()?;
    system.start_controller()?;
    finish(&system, &witness, job)?;
    // Running work is not disturbed by a controller that comes back.
    for (task, history) in witness.histories()? {
        ensure!(history.starts.len() == 1, "task {task} was started again: {history:?}");
    }
    system.finish()
}

#[test]
fn a_killed_agent_loses_nothing_and_runs_nothing_twice_at_once() -> Result<()> {
    let mut system = System::start(options())?;
    let witness = Witness::new(system.folder())?;
    let job = under_way(&system, &witness)?;
    system.agent()?.kill9()?;
    system.start_agent()?;
    finish(&system, &witness, job)?;
    system.finish()
}

#[test]
fn both_killed_at_once_lose_nothing() -> Result<()> {
    let mut system = System::start(options())?;
    let witness = Witness::new(system.folder())?;
    let job = under_way(&system, &witness)?;
    system.agent()?.kill9()?;
    system.controller()?.kill9()?;
    system.start_controller()?;
    system.start_agent()?;
    finish(&system, &witness, job)?;
    system.finish()
}

#[test]
fn every_acknowledged_submission_survives_a_kill() -> Result<()> {
    let mut system = System::start(options())?;
    let ctl = system.ctl();
    let file = system.file("one.toml", "name = \"one\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    let mut acknowledged = Vec::new();
    for _ in 0..20 {
        acknowledged.push(ctl.submit(&file)?);
    }
    system.controller()?.kill9()?;
    system.start_controller()?;
    for job in acknowledged {
        let finished = ctl.finished(job, LIMIT)?;
        ensure!(finished["state"] == "succeeded", "job {job}: {finished}");
    }
    system.finish()
}

#[test]
fn the_checker_sees_what_it_must_see() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let witness = Witness::new(folder.path())?;
    let lines = |order: &[u32]| {
        let line = |task: &u32| format!("start {task} 1 {}\nend {task} 1 {}\n", task + 1, task + 1);
        std::fs::write(folder.path().join("witness/lines"), order.iter().map(line).collect::<String>())
    };
    let task = |index: u32| serde_json::json!({"index": index, "state": "succeeded", "attempts": [{"number": 1}]});
    let tasks: Vec<Value> = (0..TASKS).map(task).collect();
    let order: Vec<u32> = (0..TASKS).collect();
    lines(&order)?;
    check(&tasks, &witness.histories()?)?;

    let refused = |tasks: &[Value], expected: &str| -> Result<()> {
        let error = check(tasks, &witness.histories()?).err().context(expected.to_owned())?;
        ensure!(error.to_string().contains(expected), "expected {expected:?}, got {error}");
        Ok(())
    };
    refused(&tasks[1..], "tasks of")?;
    let mut unfinished = tasks.clone();
    unfinished[5]["state"] = "running".into();
    refused(&unfinished, "is not done")?;
    let mut unknown = tasks.clone();
    unknown[5]["attempts"][0]["number"] = 2.into();
    refused(&unknown, "is not on record")?;
    lines(&order[..order.len() - 1])?;
    refused(&tasks, "never started")?;
    let mut early = order.clone();
    early.swap(0, 1);
    lines(&early)?;
    refused(&tasks, "before `first`")?;
    let mut hasty = order;
    hasty.swap(998, 999);
    lines(&hasty)?;
    refused(&tasks, "`last` started before")
}
