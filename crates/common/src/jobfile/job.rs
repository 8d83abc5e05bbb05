//! The whole file: its keys, and how it becomes a `JobSpec`.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use muster_core::spec::{DEFAULT_QUEUE, JobSpec};

use super::{
    kind::Kind,
    read::{Field, Read, Reader, Table, field},
    task::{Draft, Form},
    tree::{Node, Value},
};
use muster_core::validate::segment;

/// A job while it is read.
#[derive(Default)]
pub(super) struct Job {
    name: String,
    labels: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
    queue: Option<String>,
    defaults: Draft,
    tasks: Vec<Draft>,
}

impl Table for Job {
    const NAME: &'static str = "job";

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<Job>>> = LazyLock::new(|| {
            vec![
                field("$schema", |_: &mut Job, _: String| {}, "For editors; Muster does not read it."),
                field(
                    "name",
                    |j: &mut Job, v: String| j.name = v,
                    "What people call it: letters, digits, `_`, `.`, `-`; not a number.",
                )
                .required(),
                field("queue", |j: &mut Job, v: String| j.queue = Some(v), "The queue it runs in.").or("\"default\""),
                field(
                    "labels",
                    |j: &mut Job, v: BTreeMap<String, String>| j.labels = v,
                    "For filters: `ctl list --label team=data`.",
                ),
                field(
                    "metadata",
                    |j: &mut Job, v: BTreeMap<String, String>| j.metadata = v,
                    "For people and their programs; Muster never looks inside.",
                ),
                // Before `tasks`, which start from it.
                field(
                    "defaults",
                    |_: &mut Job, _: Defaults| {},
                    "Any key of a task but `name`, `after`, `array`, `role`; what a task says itself comes first.",
                )
                .by(defaults),
                field(
                    "tasks",
                    |_: &mut Job, _: Tasks| {},
                    "The tasks, in one of two forms: `[[tasks]]` with a `name` each, or `[tasks.NAME]`.",
                )
                .by(tasks)
                .required(),
            ]
        });
        &FIELDS
    }
}

impl Job {
    /// The spec, every default applied.
    pub(super) fn finish(self, reader: &Reader<'_>) -> JobSpec {
        JobSpec {
            name: self.name,
            labels: self.labels,
            metadata: self.metadata,
            queue: self.queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned()),
            tasks: self.tasks.into_iter().map(|draft| Arc::new(draft.finish(reader))).collect(),
        }
    }
}

fn defaults(job: &mut Job, reader: &mut Reader<'_>, node: &Node) {
    job.defaults.fill(reader, node, Form::Defaults);
}

/// One draft for each entry, good or bad: `tasks[3]` is the same in the file and in the spec.
fn tasks(job: &mut Job, reader: &mut Reader<'_>, node: &Node) {
    let mut read = |reader: &mut Reader<'_>, node: &Node, form, name: &str| {
        let mut draft = Draft::from_defaults(&job.defaults);
        name.clone_into(&mut draft.spec.name);
        draft.fill(reader, node, form);
        job.tasks.push(draft);
    };
    match &node.value {
        Value::List(nodes) => {
            for (index, task) in nodes.iter().enumerate() {
                reader.within(&format!("[{index}]"), |reader| read(reader, task, Form::Entry, ""));
            }
        }
        Value::Table(entries) => {
            for entry in entries {
                reader.within(&segment(&entry.key), |reader| read(reader, &entry.node, Form::Named, &entry.key));
            }
        }
        _ => reader.mistyped(node, &Tasks::wants()).unwrap_or_default(),
    }
}

/// Stands for `defaults` in the schema; `defaults` reads it.
struct Defaults;

impl Read for Defaults {
    fn kind() -> Kind {
        Kind::Table(Form::Defaults.shape())
    }

    fn wants() -> String {
        "a table of task keys".to_owned()
    }

    fn read(_: &mut Reader<'_>, _: &Node) -> Option<Self> {
        Some(Self)
    }
}

/// Stands for `tasks` in the schema; `tasks` reads them.
struct Tasks;

impl Read for Tasks {
    fn kind() -> Kind {
        let named = Kind::Map(Box::new(Kind::Table(Form::Named.shape())));
        Kind::OneOf(vec![Kind::List(Box::new(Kind::Table(Form::Entry.shape()))), named])
    }

    fn wants() -> String {
        "a list of tasks, or a table of tasks by name".to_owned()
    }

    fn read(_: &mut Reader<'_>, _: &Node) -> Option<Self> {
        Some(Self)
    }
}
