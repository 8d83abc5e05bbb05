//! TOML 1.1, by the `toml` crate, which tells where each key and value stands.

use toml::{
    Spanned,
    de::{DeArray, DeInteger, DeTable, DeValue, Error},
};

use crate::jobfile::tree::{Entry, Fault, MAX_DEPTH, Node, Value, place};

/// After this many the parser is lost, and so is the reader.
const MAX_FAULTS: usize = 20;

pub(super) fn parse(text: &str) -> Result<Node, Vec<Fault>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(faults(text, &errors));
    }
    let mut faults = Vec::new();
    let entries = table(root.get_ref(), 1, &mut faults);
    if faults.is_empty() { Ok(Node::new(0, Value::Table(entries))) } else { Err(faults) }
}

/// The first error of each line: those behind it come from where the parser took up again.
fn faults(text: &str, errors: &[Error]) -> Vec<Fault> {
    let mut faults: Vec<Fault> = errors.iter().map(|error| fault(text, error)).collect();
    faults.sort_by_key(|fault| fault.at);
    let newline =
        |a: &Fault, b: &Fault| text.as_bytes().get(a.at as usize..b.at as usize).is_some_and(|t| t.contains(&b'\n'));
    faults.dedup_by(|next, kept| !newline(kept, next));
    faults.truncate(MAX_FAULTS);
    faults
}

fn fault(text: &str, error: &Error) -> Fault {
    let span = error.span().unwrap_or(0..0);
    let message = match (error.message(), text.get(span.clone())) {
        ("duplicate key", Some(key)) if !key.is_empty() => format!("the key `{key}` is written twice"),
        (message, _) => message.to_owned(),
    };
    Fault::new(span.start, message)
}

/// The crate sorts keys; people expect findings, and tasks, in the order of their file.
fn table(table: &DeTable<'_>, depth: usize, faults: &mut Vec<Fault>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            at: place(key.span().start),
            node: node(value, depth, faults),
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn list(array: &DeArray<'_>, depth: usize, faults: &mut Vec<Fault>) -> Vec<Node> {
    array.iter().map(|value| node(value, depth, faults)).collect()
}

fn node(spanned: &Spanned<DeValue<'_>>, depth: usize, faults: &mut Vec<Fault>) -> Node {
    let at = spanned.span().start;
    if depth > MAX_DEPTH {
        faults.push(Fault::too_deep(at));
        return Node::new(at, Value::Null);
    }
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(array) => Value::List(list(array, depth + 1, faults)),
        DeValue::Table(inner) => Value::Table(table(inner, depth + 1, faults)),
        DeValue::Integer(number) => integer(number).unwrap_or_else(|message| {
            faults.push(Fault::new(at, message));
            Value::Null
        }),
        DeValue::Float(number) => number.as_str().parse().map(Value::Float).unwrap_or_else(|_| {
            faults.push(Fault::new(at, format!("{number} is not a number")));
            Value::Null
        }),
    };
    Node::new(at, value)
}

fn integer(number: &DeInteger<'_>) -> Result<Value, String> {
    let value = i64::from_str_radix(number.as_str(), number.radix()).map(Value::Int);
    value.map_err(|_| format!("the number {number} does not fit 64 bits; write it as text, in quotes"))
}
