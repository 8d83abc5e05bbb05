//! How the words of a spec are read from a file: what each takes, and what it becomes.

use std::time::Duration;

use muster_core::{
    container::Volume,
    run_as::Scratch,
    spec::{On, OnLost, Priority, Role},
};

use super::{
    kind::Kind,
    read::{Element, Read, Reader},
    run_as, text,
    tree::{Node, Value},
};

/// A type that is one of a few words.
macro_rules! words {
    ($type:ty, $table:expr) => {
        impl Read for $type {
            fn kind() -> Kind {
                Kind::Words($table.iter().map(|(name, _)| *name).collect())
            }

            fn wants() -> String {
                $table.iter().map(|(name, _)| format!("`\"{name}\"`")).collect::<Vec<_>>().join(" or ")
            }

            fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
                match &node.value {
                    Value::Text(text) => reader.judge(node, text::word(text, &$table)),
                    _ => reader.mistyped(node, &Self::wants()),
                }
            }
        }
    };
}

words!(On, text::ON);
words!(Role, [("work", Role::Work), ("setup", Role::Setup), ("teardown", Role::Teardown)]);
words!(OnDisconnect, [("stop", OnDisconnect::Stop), ("continue", OnDisconnect::Continue)]);
words!(Scratch, run_as::SCRATCH);
words!(OnLost, [("retry", OnLost::Retry), ("fail", OnLost::Fail)]);

/// What follows when agent and controller do not hear of one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnDisconnect {
    /// The attempt ends with its lease.
    Stop,
    /// It goes on for a while.
    Continue,
}

impl Read for bool {
    fn kind() -> Kind {
        Kind::Truth
    }

    fn wants() -> String {
        "`true` or `false`".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match node.value {
            Value::Bool(truth) => Some(truth),
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

/// The words of a command, as a list.
pub(super) struct Argv(pub(super) Vec<String>);

impl Read for Argv {
    fn kind() -> Kind {
        Kind::Some(Box::new(Kind::Text))
    }

    fn wants() -> String {
        "a list of text: a program and its arguments".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        if let Value::Text(line) = &node.value {
            let words: Vec<&str> = line.split_whitespace().take(8).collect();
            let message =
                format!("is one text; write a list, each word by itself: {words:?}, or use `shell` for a script");
            reader.wrong(node.at, message);
            return None;
        }
        Vec::read(reader, node).map(Self)
    }
}

impl Read for Volume {
    fn kind() -> Kind {
        Kind::Pattern(text::VOLUME)
    }

    fn wants() -> String {
        "`\"/on/the/machine:/in/the/container\"`, with `:ro` behind it if nothing may be changed".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.judge(node, text.parse::<Volume>().map_err(|error| error.to_string())),
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

impl Element for Volume {
    fn blank() -> Self {
        Self::default()
    }
}

impl Read for Duration {
    fn kind() -> Kind {
        Kind::OneOf(vec![Kind::Pattern(text::DURATION), Kind::Number(0.0, 4e9)])
    }

    fn wants() -> String {
        "a duration: `\"90s\"`, `\"1h30m\"` or a number of seconds".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.judge(node, text::duration(text)),
            _ => match number(node) {
                Some(seconds) => reader.judge(node, text::seconds(seconds).and_then(at_most(4e9, seconds))),
                None => reader.mistyped(node, &Self::wants()),
            },
        }
    }
}

/// Passes on what it is given, unless `number` is more than `most`.
fn at_most<T>(most: f64, number: f64) -> impl FnOnce(T) -> Result<T, String> {
    move |value| if number > most { Err(format!("{number} is more than {most}")) } else { Ok(value) }
}

/// A number of bytes.
pub(super) struct Bytes(pub(super) u64);

impl Read for Bytes {
    fn kind() -> Kind {
        Kind::OneOf(vec![Kind::Pattern(text::SIZE), Kind::Integer(0, i64::MAX)])
    }

    fn wants() -> String {
        "a size: `\"512MiB\"`, `\"2GB\"` or a number of bytes".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => reader.judge(node, text::size(text)).map(Self),
            Value::Int(_) => Amount::read(reader, node).map(|amount| Self(amount.0)),
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

/// A whole number from 0.
#[derive(Clone, Copy)]
pub(super) struct Amount(pub(super) u64);

impl Read for Amount {
    fn kind() -> Kind {
        Kind::Integer(0, i64::MAX)
    }

    fn wants() -> String {
        "a whole number from 0".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::Int(value) = &node.value else {
            return reader.mistyped(node, &Self::wants());
        };
        let value = u64::try_from(*value).map_err(|_| format!("{value} is negative; it takes a number from 0"));
        reader.judge(node, value).map(Self)
    }
}

/// Processors, in thousandths.
pub(super) struct Cpus(pub(super) u64);

impl Read for Cpus {
    fn kind() -> Kind {
        Kind::Number(0.0, 1e6)
    }

    fn wants() -> String {
        "a number of processors, such as 2 or 0.5".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match number(node) {
            Some(value) => reader.judge(node, text::cpu_milli(value).and_then(at_most(1e6, value))).map(Self),
            None => reader.mistyped(node, &Self::wants()),
        }
    }
}

/// A share of one, or a factor; in thousandths.
pub(super) struct Milli<const FROM: u32, const TO: u32>(pub(super) u32);

impl<const FROM: u32, const TO: u32> Read for Milli<FROM, TO> {
    fn kind() -> Kind {
        Kind::Number(f64::from(FROM), f64::from(TO))
    }

    fn wants() -> String {
        format!("a number from {FROM} to {TO}")
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Some(value) = number(node) else {
            return reader.mistyped(node, &Self::wants());
        };
        let milli = text::milli(value).and_then(|milli| u32::try_from(milli).ok());
        let good = milli.filter(|_| value >= f64::from(FROM) && value <= f64::from(TO));
        reader.judge(node, good.ok_or_else(|| format!("{value} is not {}, in steps of 0.001", Self::wants()))).map(Self)
    }
}

/// How many, up to what 32 bits hold.
pub(super) struct Count(pub(super) u32);

impl Read for Count {
    fn kind() -> Kind {
        Kind::Integer(0, 1_000_000)
    }

    fn wants() -> String {
        "a whole number from 0 to 1000000".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::Int(value) = &node.value else {
            return reader.mistyped(node, &Self::wants());
        };
        let count = u32::try_from(*value).ok().filter(|count| *count <= 1_000_000);
        reader.judge(node, count.ok_or_else(|| format!("{value} is not {}", Self::wants()))).map(Self)
    }
}

impl Read for i64 {
    fn kind() -> Kind {
        Kind::Integer(i64::MIN, i64::MAX)
    }

    fn wants() -> String {
        "a whole number".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Int(value) => Some(*value),
            _ => reader.mistyped(node, "a whole number"),
        }
    }
}

impl Element for i64 {
    fn blank() -> Self {
        0
    }
}

impl Read for i32 {
    fn kind() -> Kind {
        Kind::Integer(i64::from(i32::MIN), i64::from(i32::MAX))
    }

    fn wants() -> String {
        "an exit code".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let value = i64::read(reader, node)?;
        reader.judge(node, Self::try_from(value).map_err(|_| format!("{value} is no exit code")))
    }
}

impl Element for i32 {
    fn blank() -> Self {
        0
    }
}

impl Read for Priority {
    fn kind() -> Kind {
        let words = text::PRIORITIES.iter().map(|(name, _)| *name).collect();
        let (low, high) = (*Priority::RANGE.start(), *Priority::RANGE.end());
        Kind::OneOf(vec![Kind::Words(words), Kind::Integer(low.into(), high.into())])
    }

    fn wants() -> String {
        "`\"low\"`, `\"normal\"` (`\"medium\"`), `\"high\"`, `\"critical\"`, or -1000 to 1000".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(name) => reader.judge(node, text::word(name, &text::PRIORITIES)),
            Value::Int(value) => {
                let number = i32::try_from(*value).ok().filter(|number| Priority::RANGE.contains(number));
                reader.judge(node, number.map(Priority).ok_or_else(|| format!("{value} is outside -1000 to 1000")))
            }
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

/// A moment, in microseconds since 1970.
pub(super) struct Start(pub(super) muster_core::time::Timestamp);

impl Read for Start {
    fn kind() -> Kind {
        Kind::Pattern(text::START)
    }

    fn wants() -> String {
        "a time with its zone: `\"2030-01-31T06:00:00Z\"`, or `\"+10m\"` for ten minutes from now".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) | Value::Date(text) => {
                reader.judge(node, text::start_at(text, reader.context.now)).map(Self)
            }
            _ => reader.mistyped(node, &Self::wants()),
        }
    }
}

fn number(node: &Node) -> Option<f64> {
    match &node.value {
        #[expect(clippy::cast_precision_loss, reason = "numbers beyond 2^53 are refused by every caller")]
        Value::Int(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
}
