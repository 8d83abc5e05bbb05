//! What follows an attempt that failed: `retries`, and `oom_retries`.

use std::{sync::LazyLock, time::Duration};

use muster_core::spec::{OomRetries, RetryPolicy};

use super::{
    kind::{Kind, Shape},
    read::{Field, Read, Reader, Table, field},
    tree::{Node, Value},
    values::{Bytes, Count, Milli},
};

/// `retries` while it is read.
#[derive(Default)]
struct Retries {
    policy: RetryPolicy,
    cap: Option<Duration>,
}

impl Table for Retries {
    const NAME: &'static str = "retries";

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<Retries>>> = LazyLock::new(|| {
            vec![
                field("max", |r: &mut Retries, v: Count| r.policy.max = v.0, "Attempts after the first.").required(),
                field("delay", |r: &mut Retries, v: Duration| r.policy.delay = v, "Before the first retry.")
                    .or("\"1s\""),
                field(
                    "factor",
                    |r: &mut Retries, v: Milli<1, 1000>| r.policy.factor_milli = v.0,
                    "Each delay is the one before times this; 1 keeps it.",
                )
                .or("2"),
                field("cap", |r: &mut Retries, v: Duration| r.cap = Some(v), "No delay is longer. At least `delay`.")
                    .or("\"5m\""),
                field(
                    "jitter",
                    |r: &mut Retries, v: Milli<0, 1>| r.policy.jitter_milli = v.0,
                    "The share of a delay by which it may be shorter or longer.",
                )
                .or("0.1"),
                field(
                    "exit_codes",
                    |r: &mut Retries, v: Vec<i32>| r.policy.exit_codes = v,
                    "Only these exit codes are retried. Every failure, if it is not given.",
                ),
            ]
        });
        &FIELDS
    }
}

impl Read for RetryPolicy {
    fn kind() -> Kind {
        Kind::OneOf(vec![Count::kind(), Kind::Table(Retries::shape())])
    }

    fn wants() -> String {
        "a number of retries, or a table ([below](#retries))".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Int(_) => Count::read(reader, node).map(|max| Self { max: max.0, ..Self::default() }),
            Value::Table(_) => {
                let mut retries = Retries::default();
                let is_good = retries.fill(reader, node);
                let policy = retries.policy;
                // A first delay beyond the usual cap is meant; the cap gives way.
                let cap = retries.cap.unwrap_or(policy.cap.max(policy.delay));
                is_good.then_some(Self { cap, ..policy })
            }
            _ => reader.mistyped(node, "a number of retries, or a table"),
        }
    }
}

/// The shape of the long form of `retries`.
pub(super) fn retries_shape() -> Shape {
    Retries::shape()
}

/// Each attempt asks for twice as much, if nothing is said.
const DOUBLE: u32 = 2000;

impl Table for OomRetries {
    const NAME: &'static str = "oom_retries";

    fn fields() -> &'static [Field<Self>] {
        static FIELDS: LazyLock<Vec<Field<OomRetries>>> = LazyLock::new(|| {
            vec![
                field("max", |o: &mut OomRetries, v: Count| o.max = v.0, "Attempts with more memory, at most 32.")
                    .required(),
                field(
                    "factor",
                    |o: &mut OomRetries, v: Milli<1, 1000>| o.factor_milli = v.0,
                    "Each asks for what the one before did times this; more than 1.",
                )
                .or("2"),
                field("cap", |o: &mut OomRetries, v: Bytes| o.cap = Some(v.0), "None asks for more than this."),
            ]
        });
        &FIELDS
    }
}

impl Read for OomRetries {
    fn kind() -> Kind {
        Kind::OneOf(vec![Count::kind(), Kind::Table(Self::shape())])
    }

    fn wants() -> String {
        "a number of attempts with more memory, or a table ([below](#oom_retries))".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let mut ladder = Self { max: 0, factor_milli: DOUBLE, cap: None };
        match &node.value {
            Value::Int(_) => Count::read(reader, node).map(|max| Self { max: max.0, ..ladder }),
            Value::Table(_) => ladder.fill(reader, node).then_some(ladder),
            _ => reader.mistyped(node, "a number of attempts with more memory, or a table"),
        }
    }
}

/// The shape of the long form of `oom_retries`.
pub(super) fn oom_retries_shape() -> Shape {
    OomRetries::shape()
}
