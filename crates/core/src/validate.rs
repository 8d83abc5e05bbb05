//! Whether a spec can be accepted: every problem at once, each with the place it is at.
//!
//! The doors call this before a spec becomes work, so everything behind them may rely on it. Paths speak the words of
//! a job file (`tasks[2].after[0]`), whichever door the spec came through. The work is linear in the size of the spec:
//! an array of a million indexes costs what a single task does.

mod graph;
mod offer;
mod run_as;
mod task;
mod text;

use std::{collections::BTreeMap, fmt};

pub use offer::{agent_name, agent_name_of, label_key, offer, resource_name};
pub use text::segment;

use crate::spec::{Array, Command, JobSpec, TaskSpec};

/// Tasks of one job over all its arrays: their state alone then takes some hundred megabytes.
pub const MAX_TASKS: u64 = 10_000_000;
/// Entries of `tasks`. Each is written out and has a state of its own; arrays are the way to more.
pub const MAX_GROUPS: usize = 100_000;
/// Entries of one `after`. A join of more is a join of joins.
pub const MAX_AFTER: usize = 10_000;
/// Bytes of one word of a command, of a script and of an item: Linux passes no longer string to a
/// program (`MAX_ARG_STRLEN`, 128 KiB with the closing zero).
pub const MAX_WORD: usize = 128 * 1024 - 1;
/// Bytes of all words of one command; with the environment this stays below the 2 MiB that Linux
/// gives both by default.
pub const MAX_ARGV: usize = 1024 * 1024;
/// Bytes of one task's environment, names and values.
pub const MAX_ENV: usize = 128 * 1024;
/// Bytes of one task's stdin: it is written to the store with the spec.
pub const MAX_STDIN: usize = 1024 * 1024;
/// Bytes of a whole spec: it is written to the store, and kept in memory while the job lives.
pub const MAX_SPEC: usize = 64 * 1024 * 1024;
/// Bytes of the labels of one job, and of the metadata of one job.
pub const MAX_LABELS: usize = 64 * 1024;
/// Problems listed for one spec; a person repairs the first ones and asks again.
pub const MAX_PROBLEMS: usize = 1000;

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `name`, `tasks[2].after[0]`, `tasks[0].env["odd key"]`, ...
    pub path: String,
    /// What, and what would be accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Everything that is wrong with `spec`; empty when it can be accepted. At most `MAX_PROBLEMS`.
pub fn check(spec: &JobSpec) -> Vec<Problem> {
    let mut problems = of_any(spec);
    for (index, task) in spec.tasks.iter().enumerate() {
        task::check_new(task, &mut problems.at(format_args!("tasks[{index}]")));
    }
    problems.found
}

/// The same for a spec that was accepted once, maybe by an older build: rules that came later do not hold for it.
pub fn check_stored(spec: &JobSpec) -> Vec<Problem> {
    of_any(spec).found
}

fn of_any(spec: &JobSpec) -> Problems {
    let mut problems = Problems::default();
    job(spec, &mut problems);
    for (index, task) in spec.tasks.iter().enumerate() {
        task::check(task, &mut problems.at(format_args!("tasks[{index}]")));
    }
    graph::check(spec, &mut problems);
    problems
}

/// What was found so far; stops growing at `MAX_PROBLEMS`.
#[derive(Default)]
struct Problems {
    found: Vec<Problem>,
}

impl Problems {
    fn add(&mut self, path: impl fmt::Display, message: impl Into<String>) {
        if self.found.len() < MAX_PROBLEMS {
            self.found.push(Problem { path: path.to_string(), message: message.into() });
        }
    }

    fn at<'a>(&'a mut self, prefix: fmt::Arguments<'a>) -> At<'a> {
        At { problems: self, prefix }
    }
}

/// The problems of one task: every path is below it.
struct At<'a> {
    problems: &'a mut Problems,
    prefix: fmt::Arguments<'a>,
}

impl At<'_> {
    fn add(&mut self, key: impl fmt::Display, message: impl Into<String>) {
        let prefix = self.prefix;
        self.problems.add(format_args!("{prefix}.{key}"), message);
    }

    /// Adds what `verdict` says, if it is bad.
    fn expect(&mut self, key: impl fmt::Display, verdict: Result<(), String>) {
        if let Err(message) = verdict {
            self.add(key, message);
        }
    }
}

fn job(spec: &JobSpec, problems: &mut Problems) {
    if let Err(message) = text::job_name(&spec.name) {
        problems.add("name", message);
    }
    if let Err(message) = text::name(&spec.queue) {
        problems.add("queue", message);
    }
    labels("labels", &spec.labels, problems);
    labels("metadata", &spec.metadata, problems);
    match spec.tasks.len() {
        0 => problems.add("tasks", "is empty; a job has at least one task"),
        1..=MAX_GROUPS => {}
        n => problems.add(
            "tasks",
            format!("has {n} entries; at most {MAX_GROUPS} are accepted (an array makes many tasks of one entry)"),
        ),
    }
    let tasks = spec.task_count();
    if tasks > MAX_TASKS {
        problems.add("tasks", format!("stands for {tasks} tasks; at most {MAX_TASKS} are accepted in one job"));
    }
    let size = size(spec);
    if size > MAX_SPEC {
        problems.add("tasks", format!("takes {size} bytes; at most {MAX_SPEC} are accepted in one job"));
    }
}

fn labels(key: &str, labels: &BTreeMap<String, String>, problems: &mut Problems) {
    let size: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_LABELS {
        problems.add(key, format!("takes {size} bytes; at most {MAX_LABELS} are accepted"));
    }
    for (label, value) in labels {
        if let Err(message) = text::label_key(label) {
            problems.add(format_args!("{key}{}", segment(label)), message);
        } else if let Err(message) = text::no_nul(value) {
            problems.add(format_args!("{key}{}", segment(label)), message);
        }
    }
}

/// About how many bytes the spec takes in the store: its texts, and a little for every entry.
fn size(spec: &JobSpec) -> usize {
    const ENTRY: usize = 32;
    let map = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let one = |task: &TaskSpec| {
        let command = match &task.command {
            Command::Empty => 0,
            Command::Argv(words) => words.iter().map(String::len).sum(),
            Command::Shell(script) => script.len(),
        };
        let items = match &task.array {
            Some(Array::Items(items)) => items.iter().map(String::len).sum(),
            Some(Array::Range { .. }) | None => 0,
        };
        let after: usize = task.after.iter().map(|after| after.task.as_ref().map_or(8, String::len)).sum();
        let stdin = task.stdin.as_ref().map_or(0, Vec::len);
        ENTRY + command + items + after + stdin + map(&task.env)
    };
    map(&spec.labels) + map(&spec.metadata) + spec.tasks.iter().map(|task| one(task)).sum::<usize>()
}

#[cfg(test)]
mod tests;
