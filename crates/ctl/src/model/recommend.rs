//! From what attempts took to what their tasks should ask for.

use muster_common::proto::v1;
use serde::Serialize;

use super::{
    resources::{Resources, bytes},
    task::{Attempt, Task},
};
use crate::output::{
    Human, Page,
    table::{Cell, Column, Table},
};

/// The share of attempts, in hundredths, that a recommendation should hold.
const HELD: usize = 95;
/// Beyond the highest of those, in hundredths.
const MEMORY_ROOM: u64 = 120;
const CPU_ROOM: u64 = 110;
/// After an attempt that ran out of memory, nobody knows how much it wants.
const OOM_ROOM: u64 = 150;
/// Memory is recommended in these steps.
const MEMORY_STEP: u64 = 16 << 20;
/// Processors are recommended in these steps, in thousandths.
const CPU_STEP: u64 = 100;
/// Of a shorter attempt, most is the start of its program.
const SHORTEST_US: u64 = 100_000;

/// What the groups of a job should ask for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Recommendation {
    pub(crate) job: u64,
    pub(crate) groups: Vec<Advice>,
}

/// What one group should ask for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Advice {
    task: String,
    /// How many attempts this is made of.
    attempts: usize,
    /// Of these, how many ran out of memory.
    out_of_memory: usize,
    /// What 95 of 100 attempts stayed within.
    memory_used_bytes: Option<u64>,
    memory_bytes: u64,
    recommended_memory_bytes: Option<u64>,
    cpus_used: Option<f64>,
    cpus: f64,
    recommended_cpus: Option<f64>,
    /// Lines for the job file.
    change: Vec<String>,
}

impl Recommendation {
    /// From the tasks of a job and what it asks for.
    pub(crate) fn of(job: u64, spec: &v1::JobSpec, tasks: &[Task]) -> Self {
        let group = |entry: &v1::TaskSpec| {
            let is_its = |task: &&Task| task.name.split('[').next() == Some(entry.name.as_str());
            let attempts: Vec<&Attempt> = tasks.iter().filter(is_its).flat_map(|task| &task.attempts).collect();
            (entry.command.is_some()).then(|| Advice::of(&entry.name, entry.request.clone().into(), &attempts))
        };
        Self { job, groups: spec.tasks.iter().filter_map(group).collect() }
    }
}

impl Advice {
    fn of(task: &str, asked: Resources, attempts: &[&Attempt]) -> Self {
        let counted: Vec<_> = attempts.iter().filter_map(|attempt| Some((*attempt, attempt.usage.as_ref()?))).collect();
        let peaks = counted.iter().filter_map(|(_, usage)| usage.memory_peak_bytes).collect();
        let rate = |us: u64, cpu_us: u64| cpu_us.saturating_mul(1000) / us.max(1);
        let rates = counted.iter().filter_map(|(attempt, usage)| {
            attempt.ran_us().filter(|us| *us >= SHORTEST_US).map(|us| rate(us, usage.cpu_us))
        });
        let out_of_memory =
            counted.iter().filter(|(attempt, _)| attempt.end.as_ref().is_some_and(|end| end.kind == "oom"));
        // What was not enough for few of many is not enough.
        let too_little = out_of_memory.clone().filter_map(|(_, usage)| usage.memory_peak_bytes).max();
        let out_of_memory = out_of_memory.count();
        let (memory, cpu) = (held(peaks), held(rates.collect()));
        let with_room = |peak: u64, room: u64| peak.saturating_mul(room) / 100;
        let recommended_memory_bytes = memory.map(|peak| {
            let beyond = too_little.map_or(0, |peak| with_room(peak, OOM_ROOM));
            with_room(peak, MEMORY_ROOM).max(beyond).next_multiple_of(MEMORY_STEP)
        });
        let milli = cpu.map(|used| (used.saturating_mul(CPU_ROOM) / 100).max(1).next_multiple_of(CPU_STEP));
        let recommended_cpus = milli.map(thousandths);
        let mut change = Vec::new();
        if let Some(memory) = recommended_memory_bytes.filter(|memory| *memory != asked.memory_bytes) {
            change.push(format!("memory = \"{}MiB\"", memory >> 20));
        }
        if let Some(cpus) = recommended_cpus.filter(|cpus| (cpus - asked.cpus).abs() > 0.05) {
            change.push(format!("cpus = {cpus}"));
        }
        Self {
            task: task.to_owned(),
            attempts: counted.len(),
            out_of_memory,
            memory_used_bytes: memory,
            memory_bytes: asked.memory_bytes,
            recommended_memory_bytes,
            cpus_used: cpu.map(thousandths),
            cpus: asked.cpus,
            recommended_cpus,
            change,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 thousandths of a processor")]
fn thousandths(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

/// What [`HELD`] of a hundred stay within.
fn held(mut all: Vec<u64>) -> Option<u64> {
    all.sort_unstable();
    let at = (all.len() * HELD).div_ceil(100).checked_sub(1)?;
    all.get(at).copied()
}

impl Human for Recommendation {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number};
        let columns = [
            Key("TASK"),
            Number("ATTEMPTS"),
            Number("MEMORY USED"),
            Number("ASKED"),
            Number("BETTER"),
            Number("CPUS USED"),
            Number("ASKED"),
            Number("BETTER"),
        ];
        let mut table = Table::new(columns);
        let none = || "-".to_owned();
        for group in &self.groups {
            let cpus = |cpus: Option<f64>| cpus.map_or_else(none, |cpus| format!("{cpus:.1}"));
            table.row([
                Cell::from(group.task.clone()),
                group.attempts.to_string().into(),
                group.memory_used_bytes.map_or_else(none, bytes).into(),
                Some(group.memory_bytes).filter(|n| *n > 0).map_or_else(none, bytes).into(),
                group.recommended_memory_bytes.map_or_else(none, bytes).into(),
                group.cpus_used.map_or_else(none, |cpus| format!("{cpus:.2}")).into(),
                cpus(Some(group.cpus)).into(),
                cpus(group.recommended_cpus).into(),
            ]);
        }
        let mut out = page.table(&table);
        let changed: Vec<&Advice> = self.groups.iter().filter(|group| !group.change.is_empty()).collect();
        if !changed.is_empty() {
            out.push_str("\nin the job file\n");
        }
        for group in changed {
            out.push_str(&format!("  {}: {}\n", group.task, group.change.join(", ")));
        }
        if self.groups.iter().all(|group| group.attempts == 0) {
            out.push_str("\nno attempt has been counted yet\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, index: u32, peak: u64, cpu_us: u64, kind: v1::EndKind) -> Task {
        let usage = v1::Usage { memory_peak_bytes: peak, cpu_user_us: cpu_us, ..Default::default() };
        let attempt = v1::Attempt {
            number: 1,
            started_us: 1_000_000,
            ended_us: 2_000_000,
            end: Some(v1::End { kind: kind as i32, ..Default::default() }),
            usage: Some(usage),
            ..Default::default()
        };
        let task = v1::Task { attempt: Some(attempt), ..Default::default() };
        v1::TaskView { job: 7, index, name: name.into(), task: Some(task), ..Default::default() }.into()
    }

    fn advice(tasks: &[Task], memory_bytes: u64) -> Advice {
        let request = Some(v1::Request { cpu_milli: 1000, memory_bytes, ..Default::default() });
        let command = Some(v1::task_spec::Command::Shell("x".into()));
        let entry = v1::TaskSpec { name: "scan".into(), request, command, ..Default::default() };
        let spec = v1::JobSpec { tasks: vec![entry, v1::TaskSpec::default()], ..Default::default() };
        let mut found = Recommendation::of(7, &spec, tasks);
        assert_eq!(found.groups.len(), 1, "a join point takes nothing");
        found.groups.remove(0)
    }

    #[test]
    fn a_group_is_asked_for_what_nearly_all_attempts_needed_and_some_room() {
        let done = v1::EndKind::Succeeded;
        let mut tasks: Vec<Task> = (0..99).map(|n| task(&format!("scan[{n}]"), n, 100 << 20, 300_000, done)).collect();
        tasks.push(task("scan[99]", 99, 8 << 30, 4_000_000, done));
        tasks.push(task("other", 100, 1 << 40, 1, done));
        let found = advice(&tasks, 1 << 30);
        assert_eq!((found.attempts, found.memory_used_bytes), (100, Some(100 << 20)));
        assert_eq!(found.change, ["memory = \"128MiB\"", "cpus = 0.4"]);
        assert_eq!(advice(&tasks, 128 << 20).change, ["cpus = 0.4"], "what is right is left alone");
    }

    #[test]
    fn a_group_that_ran_out_of_memory_is_given_half_as_much_again() {
        let tasks = [task("scan", 0, 64 << 20, 1_000_000, v1::EndKind::Oom)];
        let found = advice(&tasks, 64 << 20);
        assert_eq!((found.out_of_memory, found.recommended_memory_bytes), (1, Some(96 << 20)));
    }

    #[test]
    fn nothing_is_recommended_that_was_not_enough_before() {
        let done = |n| task(&format!("scan[{n}]"), n, 90 << 20, 300_000, v1::EndKind::Succeeded);
        let mut tasks: Vec<Task> = (0..97).map(done).collect();
        tasks.extend((97..100).map(|n| task(&format!("scan[{n}]"), n, 1 << 30, 300_000, v1::EndKind::Oom)));
        let found = advice(&tasks, 1 << 30);
        assert_eq!((found.out_of_memory, found.recommended_memory_bytes), (3, Some(1536 << 20)));
    }

    #[test]
    fn without_counted_attempts_nothing_is_recommended() {
        let found = advice(&[], 5);
        assert_eq!((found.attempts, found.recommended_memory_bytes, found.recommended_cpus), (0, None, None));
        assert!(found.change.is_empty());
    }
}
