//! Groups: the entries of a job's `tasks`, each one task or an array.

use muster_common::proto::v1;
use serde::Serialize;

use super::{
    resources::{Resources, bytes},
    tally::Tally,
};
use crate::output::{
    Page,
    table::{Cell, Column, Table},
    time,
};

/// One entry of the spec's `tasks` and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) role: &'static str,
    first_task: u32,
    pub(crate) tasks: u32,
    pub(crate) is_array: bool,
    tally: Tally,
    /// Program and arguments; none for a shell text or an empty task.
    run: Option<Vec<String>>,
    shell: Option<String>,
    /// What it runs in; none: the machine itself.
    image: Option<String>,
    after: Vec<After>,
    resources: Resources,
    limits: Limits,
    priority: i32,
    timeout_seconds: Option<f64>,
    retries_max: u32,
    tags: Vec<String>,
}

/// What one attempt is held to beside `resources`; what is not there is not limited, or as its agent says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Limits {
    cpu: bool,
    pids: Option<u64>,
    io_read_bytes: Option<u64>,
    io_write_bytes: Option<u64>,
    io_read_ops: Option<u64>,
    io_write_ops: Option<u64>,
    scratch_bytes: Option<u64>,
    output_bytes: Option<u64>,
    /// In a second.
    log_rate_bytes: Option<u64>,
    /// Variables whose values its output does not show.
    mask: Vec<String>,
}

impl Limits {
    fn of(spec: &v1::TaskSpec) -> Self {
        let io = spec.io.unwrap_or_default();
        Self {
            cpu: spec.cpu_limit,
            pids: spec.pids,
            io_read_bytes: io.read_bytes,
            io_write_bytes: io.write_bytes,
            io_read_ops: io.read_ops,
            io_write_ops: io.write_ops,
            scratch_bytes: spec.scratch_size_bytes,
            output_bytes: spec.output_limit_bytes,
            log_rate_bytes: spec.log_rate_bytes,
            mask: spec.mask.clone(),
        }
    }

    /// `at most 40 processes, 50.0 MiB/s read`; those of the machine alone.
    fn text(&self) -> Option<String> {
        let rate = |amount: Option<u64>, what| Some(format!("{}/s {what}", bytes(amount?)));
        let often = |amount: Option<u64>, what| Some(format!("{} {what}/s", amount?));
        let all = [
            self.cpu.then(|| "its cpus".to_owned()),
            self.pids.map(|pids| format!("{pids} processes")),
            rate(self.io_read_bytes, "read"),
            rate(self.io_write_bytes, "written"),
            often(self.io_read_ops, "reads"),
            often(self.io_write_ops, "writes"),
            self.scratch_bytes.map(|size| format!("{} of scratch", bytes(size))),
        ];
        let all: Vec<String> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| format!("at most {}", all.join(", ")))
    }
}

/// What a group waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct After {
    /// Another job; none: this one.
    job: Option<u64>,
    /// A group there; none: the whole job.
    task: Option<String>,
    on: &'static str,
}

impl From<v1::After> for After {
    fn from(after: v1::After) -> Self {
        let on = match after.on() {
            v1::On::Success => "success",
            v1::On::Failure => "failure",
            v1::On::Any => "any",
        };
        Self { job: (after.job > 0).then_some(after.job), task: super::some(&after.task), on }
    }
}

impl After {
    fn text(&self) -> String {
        let place = match (self.job, &self.task) {
            (Some(job), Some(task)) => format!("{job}.{task}"),
            (Some(job), None) => format!("job {job}"),
            (None, task) => task.clone().unwrap_or_default(),
        };
        if self.on == "success" { place } else { format!("{place} ({})", self.on) }
    }
}

/// Puts what is asked for beside how it stands; entry by entry.
pub(crate) fn of(groups: Vec<v1::GroupSummary>, spec: Option<v1::JobSpec>) -> Vec<Group> {
    let mut specs = spec.unwrap_or_default().tasks.into_iter();
    groups.into_iter().map(|group| one(group, specs.next().unwrap_or_default())).collect()
}

fn one(group: v1::GroupSummary, spec: v1::TaskSpec) -> Group {
    let role = match spec.role() {
        v1::Role::Work => "work",
        v1::Role::Setup => "setup",
        v1::Role::Teardown => "teardown",
    };
    let limits = Limits::of(&spec);
    let (run, shell) = match spec.command {
        Some(v1::task_spec::Command::Argv(argv)) => (Some(argv.args), None),
        Some(v1::task_spec::Command::Shell(text)) => (None, Some(text)),
        None => (None, None),
    };
    Group {
        name: group.name,
        role,
        first_task: group.first_task,
        tasks: group.tasks,
        is_array: spec.array.is_some(),
        tally: group.tally.into(),
        run,
        shell,
        image: spec.container.map(|container| container.image),
        after: spec.after.into_iter().map(After::from).collect(),
        resources: spec.request.into(),
        limits,
        priority: spec.priority,
        timeout_seconds: spec.timeout_ms.map(|ms| time::seconds(ms.saturating_mul(1000))),
        retries_max: spec.retry.map_or(0, |retry| retry.max),
        tags: spec.tags,
    }
}

impl Group {
    fn needs(&self) -> String {
        let limits = self.limits.text().map(|limits| format!("; {limits}"));
        format!("{}{}", self.resources.text(), limits.unwrap_or_default())
    }

    fn command(&self) -> String {
        match (&self.run, &self.shell) {
            (Some(argv), _) => argv.join(" "),
            (None, Some(text)) => text.trim().to_owned(),
            (None, None) => "(join point)".to_owned(),
        }
    }
}

/// The groups for people.
pub(crate) fn table(groups: &[Group], page: &Page) -> String {
    use Column::{Number, Text};
    let mut table =
        Table::new([Column::Key("GROUP"), Number("TASKS"), Text("STANDS"), Text("AFTER"), Text("NEEDS"), Text("RUNS")]);
    for group in groups {
        let name = match group.role {
            "work" => group.name.clone(),
            role => format!("{} ({role})", group.name),
        };
        let after = group.after.iter().map(After::text).collect::<Vec<_>>().join(", ");
        table.row([
            Cell::from(name),
            group.tasks.to_string().into(),
            group.tally.text().into(),
            if after.is_empty() { "-".into() } else { after.into() },
            group.needs().into(),
            group.command().into(),
        ]);
    }
    page.table(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_attempt_is_held_to_is_told_beside_what_it_needs() {
        let io = v1::IoLimits { read_bytes: Some(50 << 20), write_ops: Some(7), ..v1::IoLimits::default() };
        let spec = v1::TaskSpec {
            request: Some(v1::Request { cpu_milli: 1000, ..v1::Request::default() }),
            cpu_limit: true,
            pids: Some(40),
            io: Some(io),
            scratch_size_bytes: Some(1 << 30),
            mask: vec!["TOKEN".into()],
            ..v1::TaskSpec::default()
        };
        let group = one(v1::GroupSummary::default(), spec);
        let text = "1 cpu; at most its cpus, 40 processes, 50.0 MiB/s read, 7 writes/s, 1.0 GiB of scratch";
        assert_eq!(group.needs(), text);
        assert_eq!(group.limits.mask, ["TOKEN"]);
        assert_eq!(one(v1::GroupSummary::default(), v1::TaskSpec::default()).needs(), "");
    }
}
