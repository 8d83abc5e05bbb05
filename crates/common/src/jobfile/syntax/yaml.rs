//! YAML 1.2 by the events of granit-parser (the parser inside serde-saphyr). Booleans are `true` and `false` only;
//! anchors, aliases and merge keys work, within a budget that stops alias bombs.

use std::{borrow::Cow, collections::BTreeMap};

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::jobfile::tree::{Entry, Fault, MAX_DEPTH, Node, Value, number, place, repeated};

/// Values that aliases may add to a file, and bytes of text in them: far more than a job's defaults
/// need, far less than a bomb makes.
const MAX_COPIED_NODES: usize = 250_000;
const MAX_COPIED_BYTES: usize = 16 * 1024 * 1024;

pub(super) fn parse(text: &str) -> Result<Node, Vec<Fault>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let step = event.map_err(|error| scan_fault(text, &error)).and_then(|(event, span)| builder.take(event, &span));
        if let Err(fault) = step {
            builder.faults.push(fault);
            return Err(builder.faults);
        }
    }
    let root = builder.root.unwrap_or_else(|| Node::new(0, Value::Null));
    if builder.faults.is_empty() { Ok(root) } else { Err(builder.faults) }
}

/// A list or table that is still open.
struct Open {
    at: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    /// The key whose value comes next, and what `<<` brings.
    Table {
        entries: Vec<Entry>,
        key: Option<(String, u32, IsMerge)>,
        merged: Vec<Node>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum IsMerge {
    Yes,
    No,
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    copied_nodes: usize,
    copied_bytes: usize,
    faults: Vec<Fault>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fault> {
        let at = span.start.byte_offset().unwrap_or(0);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(Fault::new(at, "a second document starts here; a job file holds one"))
            }
            Event::Scalar(text, style, anchor, tag) => self.scalar(at, text, style, anchor, tag.as_deref()),
            Event::SequenceStart(_, anchor, tag) => {
                known_tag(at, tag.as_deref(), "seq")?;
                self.start(at, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                known_tag(at, tag.as_deref(), "map")?;
                self.start(at, anchor, Content::Table { entries: Vec::new(), key: None, merged: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(at, anchor),
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        at: usize,
        text: Cow<'_, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Result<(), Fault> {
        let is_plain = style == ScalarStyle::Plain;
        if let Some(Open { content: Content::Table { key: key @ None, .. }, .. }) = self.open.last_mut() {
            let is_merge = if is_plain && text == "<<" { IsMerge::Yes } else { IsMerge::No };
            *key = Some((text.into_owned(), place(at), is_merge));
            return Ok(());
        }
        let value = match tag.map(|tag| tag.core_suffix()) {
            Some(Some("str")) => Value::Text(text.into_owned()),
            None if !is_plain => Value::Text(text.into_owned()),
            None | Some(Some("int" | "float" | "bool" | "null")) => plain(at, text)?,
            Some(_) => return Err(unknown_tag(at, tag)),
        };
        self.done(anchor, Node::new(at, value))
    }

    fn start(&mut self, at: usize, anchor: usize, content: Content) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Fault::too_deep(at));
        }
        if let Some(Open { content: Content::Table { key: None, .. }, .. }) = self.open.last() {
            return Err(Fault::new(at, "a key is a list or a table; keys are text"));
        }
        self.open.push(Open { at, anchor, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some(Open { at, anchor, content }) = self.open.pop() else {
            return Ok(());
        };
        let value = match content {
            Content::List(nodes) => Value::List(nodes),
            Content::Table { mut entries, merged, .. } => {
                self.faults.extend(repeated(&entries));
                merge(&mut entries, merged)?;
                Value::Table(entries)
            }
        };
        self.done(anchor, Node::new(at, value))
    }

    /// A value is whole: it goes where it stands, and is kept if it has an anchor.
    fn done(&mut self, anchor: usize, node: Node) -> Result<(), Fault> {
        if anchor != 0 {
            // A kept copy costs what it holds: anchors inside anchors are a bomb too.
            self.pay(&node, 0)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(nodes)) => nodes.push(node),
            Some(Content::Table { entries, key, merged }) => match key.take() {
                Some((_, _, IsMerge::Yes)) => merged.push(node),
                Some((key, at, IsMerge::No)) => entries.push(Entry { key, at, node }),
                None => return Err(Fault { at: node.at, message: "a value without a key".to_owned() }),
            },
        }
        Ok(())
    }

    fn alias(&mut self, at: usize, anchor: usize) -> Result<(), Fault> {
        if let Some(Open { content: Content::Table { key: None, .. }, .. }) = self.open.last() {
            return Err(Fault::new(at, "a key is an alias; write the key itself"));
        }
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Fault::new(at, "this alias stands for a key, or for what it is itself a part of"));
        };
        let copy = Node::new(at, node.value.clone());
        // What is copied may be fine where it stands first; the alias is what goes too far.
        self.pay(&copy, self.open.len()).map_err(|fault| Fault { at: place(at), ..fault })?;
        self.done(0, copy)
    }

    /// Counts a copy of `node`, to be put at `depth`, against the budget.
    fn pay(&mut self, node: &Node, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::too_deep(node.at as usize));
        }
        self.copied_nodes += 1;
        if let Value::Text(text) = &node.value {
            self.copied_bytes += text.len();
        }
        if self.copied_nodes > MAX_COPIED_NODES || self.copied_bytes > MAX_COPIED_BYTES {
            return Err(Fault { at: node.at, message: "anchors and aliases make this file too large".to_owned() });
        }
        match &node.value {
            Value::List(nodes) => nodes.iter().try_for_each(|node| self.pay(node, depth + 1)),
            Value::Table(entries) => entries.iter().try_for_each(|entry| {
                self.copied_bytes += entry.key.len();
                self.pay(&entry.node, depth + 1)
            }),
            _ => Ok(()),
        }
    }
}

/// `<<`: keys of the merged tables that the table does not have itself; the first table wins.
fn merge(entries: &mut Vec<Entry>, merged: Vec<Node>) -> Result<(), Fault> {
    if merged.len() > 1 {
        let message = "`<<` is written twice; give one list of aliases: `<<: [*a, *b]`".to_owned();
        return Err(Fault { at: merged[1].at, message });
    }
    let Some(node) = merged.into_iter().next() else {
        return Ok(());
    };
    let tables = match node.value {
        Value::List(nodes) => nodes,
        _ => vec![node],
    };
    let mut have: std::collections::BTreeSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    for table in tables {
        let Value::Table(more) = table.value else {
            return Err(Fault { at: table.at, message: "`<<` takes a table, or a list of tables".to_owned() });
        };
        entries.extend(more.into_iter().filter(|entry| have.insert(entry.key.clone())));
    }
    Ok(())
}

/// A word without quotes, by the core schema.
fn plain(at: usize, text: Cow<'_, str>) -> Result<Value, Fault> {
    Ok(match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        word => match number(word) {
            Some(value) => value.map_err(|message| Fault::new(at, message))?,
            None => Value::Text(text.into_owned()),
        },
    })
}

fn known_tag(at: usize, tag: Option<&Tag>, expected: &str) -> Result<(), Fault> {
    match tag {
        Some(found) if found.core_suffix() != Some(expected) => Err(unknown_tag(at, tag)),
        _ => Ok(()),
    }
}

fn unknown_tag(at: usize, tag: Option<&Tag>) -> Fault {
    let tag = tag.map_or(String::new(), |tag| format!("{}{}", tag.original_handle(), tag.suffix()));
    Fault::new(at, format!("the tag `{tag}` means nothing here; leave it out"))
}

fn scan_fault(text: &str, error: &ScanError) -> Fault {
    let marker = error.marker();
    let at = marker.byte_offset().unwrap_or_else(|| {
        let line: usize = text.split_inclusive('\n').take(marker.line().saturating_sub(1)).map(str::len).sum();
        let rest = text.get(line..).unwrap_or_default();
        line + rest.char_indices().nth(marker.col()).map_or(0, |(at, _)| at)
    });
    Fault::new(at.min(text.len()), error.info())
}
