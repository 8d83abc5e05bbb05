//! `array`: many tasks of one spec.

use std::sync::{Arc, LazyLock};

use muster_core::spec::Array;

use super::{
    files::Content,
    kind::{Kind, Rule},
    read::{Field, Read, Reader, Table, field},
    text,
    tree::{Node, Value},
};

/// One line of a file is one item.
struct Lines(Arc<[String]>);

impl Read for Lines {
    fn kind() -> Kind {
        Content::kind()
    }

    fn wants() -> String {
        "a text file, from the job file's folder".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let content = Content::read(reader, node)?.0;
        let text = String::from_utf8(content).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            format!("line {line} of the file is not UTF-8")
        });
        let lines: Arc<[String]> = reader.judge(node, text)?.lines().map(str::to_owned).collect();
        if lines.is_empty() {
            reader.wrong(node.at, "makes an array of no task: the file is empty");
            return None;
        }
        Some(Self(lines))
    }
}

/// JSON values: text as it is, all else as compact JSON.
struct Items(Arc<[String]>);

impl Read for Items {
    fn kind() -> Kind {
        Kind::Some(Box::new(Kind::Any))
    }

    fn wants() -> String {
        "a list; text reaches the task as it is, all else as JSON".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::List(nodes) = &node.value else {
            return reader.mistyped(node, &Self::wants());
        };
        if nodes.is_empty() {
            reader.wrong(node.at, "makes an array of no task; give at least one item");
            return None;
        }
        let item = |(index, node): (usize, &Node)| match &node.value {
            Value::Text(text) | Value::Date(text) => Some(text.clone()),
            _ => match node.to_json() {
                Some(json) => Some(json.to_string()),
                None => {
                    let message = "holds a number that JSON does not have";
                    reader.within(&format!("[{index}]"), |reader| reader.wrong(node.at, message));
                    None
                }
            },
        };
        nodes.iter().enumerate().map(item).collect::<Option<_>>().map(Self)
    }
}

/// The long form of `array`.
#[derive(Default)]
pub(super) struct ArrayTable {
    range: Vec<i64>,
    from: i64,
    to: i64,
    step: Option<i64>,
    items: Option<Arc<[String]>>,
}

impl Table for ArrayTable {
    const NAME: &'static str = "array";
    const RULES: &'static [Rule] = &[
        Rule::OneOf(&[&["range"], &["from", "to"], &["lines"], &["items"]]),
        Rule::Apart("lines", "step"),
        Rule::Apart("items", "step"),
    ];

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<ArrayTable>>> = LazyLock::new(|| {
            vec![
                field(
                    "range",
                    |a: &mut ArrayTable, v: Vec<i64>| a.range = v,
                    "The first and the last index: `[0, 99]`.",
                ),
                field("from", |a: &mut ArrayTable, v: i64| a.from = v, "The first index."),
                field(
                    "to",
                    |a: &mut ArrayTable, v: i64| a.to = v,
                    "The last index; it is part of the array if the steps lead to it.",
                ),
                field(
                    "step",
                    |a: &mut ArrayTable, v: i64| a.step = Some(v),
                    "From one index to the next; may be negative.",
                )
                .or("1"),
                field(
                    "lines",
                    |a: &mut ArrayTable, v: Lines| a.items = Some(v.0),
                    "A text file, read at submission; each line is one item.",
                ),
                field(
                    "items",
                    |a: &mut ArrayTable, v: Items| a.items = Some(v.0),
                    "The items themselves. Text reaches the task as it is, all else as compact JSON.",
                ),
            ]
        });
        &FIELDS
    }
}

impl ArrayTable {
    fn finish(self, reader: &mut Reader<'_>, node: &Node) -> Option<Array> {
        if let Some(items) = self.items {
            return Some(Array::Items(items));
        }
        let (from, to) = match (node.get("range"), &self.range[..]) {
            (None, _) => (self.from, self.to),
            (Some(_), [from, to]) => (*from, *to),
            (Some(range), other) => {
                let message = format!("has {} entries; give two, the first and the last index", other.len());
                reader.within(".range", |reader| reader.wrong(range.at, message));
                return None;
            }
        };
        reader.judge(node, text::span(from, to, self.step.unwrap_or(1)))
    }
}

impl Read for Array {
    fn kind() -> Kind {
        Kind::OneOf(vec![
            Kind::Pattern(text::ARRAY),
            Kind::Integer(1, i64::from(u32::MAX)),
            Kind::Table(ArrayTable::shape()),
        ])
    }

    fn wants() -> String {
        "`\"0-99\"`, `\"0-99:2\"`, a number n (for 0 to n - 1), or a table ([below](#array))".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.judge(node, text::array(text)),
            Value::Int(n) => reader.judge(node, text::count(*n)),
            Value::Table(_) => {
                let mut table = ArrayTable::default();
                if table.fill(reader, node) { table.finish(reader, node) } else { None }
            }
            Value::List(_) => reader.mistyped(node, "`{ items = […] }` for a list of items"),
            _ => reader.mistyped(node, "\"0-99\", a number, or a table"),
        }
    }
}
