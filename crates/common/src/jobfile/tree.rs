//! What a file says, whatever its format: one tree of values, each with the byte at which it stands.
//!
//! A place is a byte and becomes line and column only when a finding is told: most never are.

use std::collections::BTreeSet;

use serde_json::Value as Json;

/// Levels of lists and tables. A job needs six; readers of deeper trees would need a deeper stack.
pub(super) const MAX_DEPTH: usize = 64;

/// A value and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: u32,
    pub(super) value: Value,
}

/// What the three formats have in common.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A date of TOML, as it is written there.
    Date(String),
    List(Vec<Node>),
    /// In the order of the file.
    Table(Vec<Entry>),
}

/// One key of a table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: u32,
    pub(super) node: Node,
}

/// Why a text is not of its format.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: u32,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at: place(at), message: message.into() }
    }

    pub(super) fn too_deep(at: usize) -> Self {
        Self::new(at, format!("is nested deeper than {MAX_DEPTH} levels"))
    }
}

/// A byte of the file; files are far smaller than 4 GiB.
pub(super) fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Node {
    pub(super) fn new(at: usize, value: Value) -> Self {
        Self { at: place(at), value }
    }

    /// The value of `key`, if this is a table that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The entries of a table; nothing of anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The same value for programs that speak JSON; `None` where JSON has no such number.
    pub(super) fn to_json(&self) -> Option<Json> {
        Some(match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => Json::from(*value),
            Value::Float(value) => Json::Number(serde_json::Number::from_f64(*value)?),
            Value::Text(text) | Value::Date(text) => Json::String(text.clone()),
            Value::List(nodes) => Json::Array(nodes.iter().map(Node::to_json).collect::<Option<_>>()?),
            Value::Table(entries) => {
                let pairs = entries.iter().map(|entry| Some((entry.key.clone(), entry.node.to_json()?)));
                Json::Object(pairs.collect::<Option<_>>()?)
            }
        })
    }
}

/// The keys that `entries` has twice. JSON and YAML parsers leave that to their callers.
pub(super) fn repeated(entries: &[Entry]) -> Vec<Fault> {
    let mut seen = BTreeSet::new();
    let again = entries.iter().filter(|entry| !seen.insert(entry.key.as_str()));
    again.map(|entry| Fault { at: entry.at, message: format!("the key `{}` is written twice", entry.key) }).collect()
}

/// What a plain word is in YAML 1.2's core schema and in JSON: a number, or `None`.
pub(super) fn number(text: &str) -> Option<Result<Value, String>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix = |prefix: &str, radix| {
        let digits = digits.strip_prefix(prefix)?;
        let good = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        good.then(|| i64::from_str_radix(digits, radix).map_err(|_| too_large(text)))
    };
    if let Some(value) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Some(value.map(|value| Value::Int(if text.starts_with('-') { -value } else { value })));
    }
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().map(Value::Int).map_err(|_| too_large(text)));
    }
    let special = match digits {
        ".inf" | ".Inf" | ".INF" => Some(f64::INFINITY),
        _ => None,
    };
    if let Some(value) = special {
        return Some(Ok(Value::Float(if text.starts_with('-') { -value } else { value })));
    }
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Ok(Value::Float(f64::NAN)));
    }
    is_float(digits).then(|| match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Value::Float(value)),
        _ => Err(too_large(text)),
    })
}

/// `[0-9]* [.[0-9]*] [e[+-][0-9]+]` with a digit before the exponent.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let (whole, rest) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let power = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    digits(whole) && digits(rest) && !(whole.is_empty() && rest.is_empty()) && power
}

fn too_large(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("the number {start} does not fit 64 bits; write it as text, in quotes")
}
