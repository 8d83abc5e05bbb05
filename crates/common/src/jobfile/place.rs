//! From bytes to lines and columns, and from a path in the spec back to where the file says it.

use muster_core::validate::segment;

use super::{
    Finding,
    read::MAX_FINDINGS,
    tree::{Node, Value},
};

/// What was found, still at its byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) at: u32,
    pub(super) path: String,
    pub(super) message: String,
}

/// Findings for a person: in the order of the file, each once, with lines and columns from 1. Columns count
/// characters.
pub(super) fn findings(text: &str, mut raw: Vec<Raw>) -> Vec<Finding> {
    raw.sort_by_key(|raw| raw.at);
    let mut found: Vec<Finding> = Vec::with_capacity(raw.len());
    let (mut line, mut start, mut seen) = (1, 0, 0);
    let mut last = u32::MAX;
    raw.truncate(MAX_FINDINGS);
    for Raw { at, path, message } in raw {
        if last == at && found.iter().rev().take_while(|f| f.line == line).any(|f| f.message == message) {
            continue;
        }
        last = at;
        let at = floor(text, at as usize);
        let passed = &text[seen..at];
        line += passed.bytes().filter(|b| *b == b'\n').count();
        if let Some(newline) = passed.rfind('\n') {
            start = seen + newline + 1;
        }
        seen = at;
        let column = text[start..at].chars().count() + 1;
        found.push(Finding { line, column, path, message });
    }
    found
}

/// The last character boundary of `text` at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Where the file says what the spec calls `path`, and what the file calls it. A key that a task does not have
/// itself comes from `defaults`; a key that nobody wrote is looked for as far down as the file goes.
pub(super) fn locate(root: &Node, path: &str) -> (u32, String) {
    if let Some(place) = locate_task(root, path) {
        return place;
    }
    let (at, _) = descend(root, &format!(".{path}"));
    (at, path.to_owned())
}

fn locate_task(root: &Node, path: &str) -> Option<(u32, String)> {
    let (index, rest) = path.strip_prefix("tasks[")?.split_once(']')?;
    let index: usize = index.parse().ok()?;
    let tasks = root.get("tasks")?;
    let (key_at, task, name) = match &tasks.value {
        Value::List(nodes) => (nodes.get(index)?.at, nodes.get(index)?, format!("tasks[{index}]")),
        Value::Table(entries) => {
            let entry = entries.get(index)?;
            (entry.at, &entry.node, format!("tasks{}", segment(&entry.key)))
        }
        _ => return None,
    };
    let own = descend(task, rest);
    if own.1 == rest.len() || rest.is_empty() {
        return Some((own.0, format!("{name}{rest}")));
    }
    let defaults = root.get("defaults").map(|defaults| descend(defaults, rest)).filter(|found| found.1 > own.1);
    Some(match defaults {
        Some((at, _)) => (at, format!("defaults{rest}")),
        None if own.1 == 0 => (key_at, format!("{name}{rest}")),
        None => (own.0, format!("{name}{rest}")),
    })
}

/// Follows `path` from `node`; where it ends, and how much of it was there.
fn descend(node: &Node, path: &str) -> (u32, usize) {
    let rest = |name: &str| path.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let step = match &node.value {
        Value::Table(entries) => entries.iter().find_map(|entry| Some((&entry.node, rest(&segment(&entry.key))?))),
        Value::List(nodes) => index(path).and_then(|(index, rest)| Some((nodes.get(index)?, rest))),
        _ => None,
    };
    match step {
        Some((child, rest)) => {
            let (at, matched) = descend(child, rest);
            (at, path.len() - rest.len() + matched)
        }
        None => (node.at, 0),
    }
}

fn index(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// Whether `inner` is `outer` or lies in it.
pub(super) fn is_within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}
