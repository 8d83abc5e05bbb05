//! `after`: what a task waits for.

use std::sync::LazyLock;

use muster_core::{
    id::JobId,
    spec::{After, On},
};

use super::{
    kind::{Kind, Rule},
    read::{Element, Field, Read, Reader, Table, field},
    text,
    tree::{Node, Value},
};

/// A job by number or by name.
struct JobName(After);

impl Read for JobName {
    fn kind() -> Kind {
        Kind::OneOf(vec![Kind::Integer(1, i64::MAX), Kind::Text])
    }

    fn wants() -> String {
        "a job's number or name".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let mut after = After::blank();
        match &node.value {
            Value::Int(number) if *number > 0 => after.job = Some(JobId(number.unsigned_abs())),
            Value::Text(text) if text::is_number(text) => after.job = Some(reader.judge(node, text::job_number(text))?),
            Value::Text(text) => after.job_name = Some(text.clone()),
            _ => return reader.mistyped(node, &Self::wants()),
        }
        Some(Self(after))
    }
}

/// The long form of one dependency.
pub(super) struct AfterTable(After);

impl Table for AfterTable {
    const NAME: &'static str = "after";
    const RULES: &'static [Rule] = &[Rule::AnyOf(&["task", "job"])];

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<AfterTable>>> = LazyLock::new(|| {
            vec![
                field(
                    "task",
                    |a: &mut AfterTable, v: String| a.0.task = Some(v),
                    "The task that is waited for; without it, the whole of `job`.",
                ),
                field(
                    "job",
                    |a: &mut AfterTable, v: JobName| (a.0.job, a.0.job_name) = (v.0.job, v.0.job_name),
                    "Another job, by number or by name; without it, this one.",
                ),
                field("on", |a: &mut AfterTable, v: On| a.0.on = v, "Which end counts. Any other end skips the task.")
                    .or("success"),
            ]
        });
        &FIELDS
    }
}

impl Read for After {
    fn kind() -> Kind {
        Kind::OneOf(vec![Kind::Text, Kind::Table(AfterTable::shape())])
    }

    fn wants() -> String {
        "`\"name\"`, `\"name:failure\"`, `\"17.name\"`, or a table ([below](#after))".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.judge(node, text::after(text)),
            Value::Table(_) => {
                let mut after = AfterTable(Self::blank());
                after.fill(reader, node).then_some(after.0)
            }
            _ => reader.mistyped(node, "\"name\", \"name:failure\", \"17.name\" or a table"),
        }
    }
}

impl Element for After {
    fn blank() -> Self {
        Self { job: None, job_name: None, task: None, on: On::Success }
    }
}
