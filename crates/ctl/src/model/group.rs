//! Groups: the entries of a job's `tasks`, each one task or an array.

use muster_common::proto::v1;
use serde::Serialize;

use super::{resources::Resources, tally::Tally};
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
    priority: i32,
    timeout_seconds: Option<f64>,
    retries_max: u32,
    tags: Vec<String>,
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
        priority: spec.priority,
        timeout_seconds: spec.timeout_ms.map(|ms| time::seconds(ms.saturating_mul(1000))),
        retries_max: spec.retry.map_or(0, |retry| retry.max),
        tags: spec.tags,
    }
}

impl Group {
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
            group.resources.text().into(),
            group.command().into(),
        ]);
    }
    page.table(&table)
}
