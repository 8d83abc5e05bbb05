//! The one reader: walks a tree by tables of fields, and finds everything that is wrong at once.
//!
//! A type that can be read says what it takes (`Read::kind`), and the same type reads it, so that the schema, the
//! reference and the reader cannot drift apart.

use std::collections::BTreeMap;

use muster_core::validate::segment;

use super::{
    Context,
    kind::{Key, Kind, Rule, Shape},
    near::{meant, nearest},
    place::Raw,
    tree::{Node, Value},
};

/// Findings that are told; a person repairs the first ones and asks again.
pub(super) const MAX_FINDINGS: usize = 1000;

/// What can stand in a job file.
pub(super) trait Read: Sized {
    /// What it takes.
    fn kind() -> Kind;
    /// The same in a few words, for messages and the reference.
    fn wants() -> String;
    /// The value of `node`; `None` after a finding.
    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self>;
}

/// What can stand in a list: a bad entry is kept as a blank, so that the places of the others hold.
pub(super) trait Element: Read {
    fn blank() -> Self;
}

/// What is known while a file is read.
pub(super) struct Reader<'a> {
    pub(super) source: &'a str,
    pub(super) context: &'a Context,
    path: String,
    pub(super) errors: Vec<Raw>,
    pub(super) warnings: Vec<Raw>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a str, context: &'a Context) -> Self {
        Self { source, context, path: String::new(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// Notes what is wrong with the value being read.
    pub(super) fn wrong(&mut self, at: u32, message: impl Into<String>) {
        if self.errors.len() < MAX_FINDINGS {
            self.errors.push(Raw { at, path: self.path.clone(), message: message.into() });
        }
    }

    /// Notes what is odd about it, but accepted.
    pub(super) fn warn(&mut self, at: u32, message: impl Into<String>) {
        if self.warnings.len() < MAX_FINDINGS {
            self.warnings.push(Raw { at, path: self.path.clone(), message: message.into() });
        }
    }

    /// `verdict`'s value, or a finding.
    pub(super) fn judge<T>(&mut self, node: &Node, verdict: Result<T, String>) -> Option<T> {
        verdict.map_err(|message| self.wrong(node.at, message)).ok()
    }

    /// Notes that `node` is not of the type that its key takes.
    pub(super) fn mistyped<T>(&mut self, node: &Node, wants: &str) -> Option<T> {
        // `wants` is written for the reference too, where examples stand as code and tables are linked.
        let wants = wants.split(" ([below]").next().unwrap_or(wants).replace("`\"", "\"").replace("\"`", "\"");
        let message = format!("{}; it takes {wants}", self.describe(node));
        self.wrong(node.at, message);
        None
    }

    /// Reads below `segment` (`.key` or `[3]`).
    pub(super) fn within<T>(&mut self, segment: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(if length == 0 { segment.trim_start_matches('.') } else { segment });
        let result = read(self);
        self.path.truncate(length);
        result
    }

    fn describe(&self, node: &Node) -> String {
        match &node.value {
            Value::Null => "is empty".to_owned(),
            Value::Bool(value) => format!("is {value}"),
            Value::Int(_) | Value::Float(_) => format!("is the number {}", self.written(node)),
            Value::Text(text) => format!("is the text {}", quoted(text)),
            Value::Date(date) => format!("is the date {date}"),
            Value::List(_) => "is a list".to_owned(),
            Value::Table(_) => "is a table".to_owned(),
        }
    }

    /// A scalar as the file has it: `1.10` stays `1.10`.
    fn written(&self, node: &Node) -> &'a str {
        let rest = self.source.get(node.at as usize..).unwrap_or_default();
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}' | '#')).unwrap_or(rest.len());
        &rest[..end]
    }
}

/// `text` in quotes, cut where it would fill the screen.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A type that is read key by key.
pub(super) trait Table: Sized + 'static {
    /// Its name in the schema.
    const NAME: &'static str;
    /// Its keys, in the order in which they are read.
    fn fields() -> &'static [Field<Self>];
    /// What holds between them.
    const RULES: &'static [Rule] = &[];

    fn shape() -> Shape {
        shape(Self::NAME, Self::fields(), Self::RULES)
    }

    /// Fills `self` from `node`; whether it was a table without a fault of its own.
    fn fill(&mut self, reader: &mut Reader<'_>, node: &Node) -> bool {
        fill(self, reader, node, Self::fields(), Self::RULES)
    }
}

type Set<T> = Box<dyn Fn(&mut T, &mut Reader<'_>, &Node) + Send + Sync>;

/// One key of a table: its words, and how it is read.
pub(super) struct Field<T> {
    pub(super) name: &'static str,
    doc: &'static str,
    default: &'static str,
    is_required: bool,
    kind: fn() -> Kind,
    wants: fn() -> String,
    set: Set<T>,
}

/// The key `name`, which holds a `V`.
pub(super) fn field<T: 'static, V: Read + 'static>(
    name: &'static str,
    set: fn(&mut T, V),
    doc: &'static str,
) -> Field<T> {
    let set = move |into: &mut T, reader: &mut Reader<'_>, node: &Node| {
        if let Some(value) = V::read(reader, node) {
            set(into, value);
        }
    };
    Field { name, doc, default: "", is_required: false, kind: V::kind, wants: V::wants, set: Box::new(set) }
}

impl<T: 'static> Field<T> {
    pub(super) fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    pub(super) fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// Read by hand, where what is read depends on what was read before.
    pub(super) fn by(self, set: fn(&mut T, &mut Reader<'_>, &Node)) -> Self {
        Self { set: Box::new(set), ..self }
    }
}

pub(super) fn shape<T>(name: &'static str, fields: &[Field<T>], rules: &[Rule]) -> Shape {
    let key = |field: &Field<T>| Key {
        name: field.name,
        kind: (field.kind)(),
        wants: (field.wants)(),
        doc: field.doc,
        default: field.default,
        is_required: field.is_required,
    };
    Shape { name, keys: fields.iter().map(key).collect(), rules: rules.to_vec() }
}

/// Reads the keys of `node` into `into`, in the order of `fields`.
pub(super) fn fill<T>(into: &mut T, reader: &mut Reader<'_>, node: &Node, fields: &[Field<T>], rules: &[Rule]) -> bool {
    let Value::Table(entries) = &node.value else {
        reader.mistyped::<()>(node, "a table");
        return false;
    };
    let before = reader.errors.len();
    for entry in entries {
        if !fields.iter().any(|field| field.name == entry.key) {
            let names = || fields.iter().map(|field| field.name);
            let hint = match meant(&entry.key, names()).or_else(|| nearest(&entry.key, names())) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys here are {}", names().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("there is no key {}; {hint}", ticked(&entry.key));
            reader.within(&segment(&entry.key), |reader| reader.wrong(entry.at, message));
        }
    }
    for field in fields {
        match node.get(field.name) {
            Some(value) => reader.within(&segment(field.name), |reader| (field.set)(into, reader, value)),
            None if field.is_required => reader.within(&segment(field.name), |reader| {
                let message = format!("is missing; it takes {}", (field.wants)());
                reader.wrong(node.at, message);
            }),
            None => {}
        }
    }
    for rule in rules {
        obey(reader, node, rule);
    }
    reader.errors.len() == before
}

fn ticked(key: &str) -> String {
    if segment(key).starts_with('.') { format!("`{key}`") } else { quoted(key) }
}

fn obey(reader: &mut Reader<'_>, node: &Node, rule: &Rule) {
    let has = |key: &&str| node.get(key).is_some();
    match rule {
        Rule::Apart(a, b) => {
            if let (Some(_), Some(second)) = (node.get(a), node.entries().iter().find(|entry| entry.key == *b)) {
                let message = format!("`{b}` and `{a}` exclude one another; keep one of them");
                reader.within(&segment(b), |reader| reader.wrong(second.at, message));
            }
        }
        Rule::AnyOf(keys) => {
            if !keys.iter().any(has) {
                reader.wrong(node.at, format!("holds none of {}; give one", listed(keys)));
            }
        }
        Rule::OneOf(groups) => {
            let begun: Vec<_> = groups.iter().filter(|group| group.iter().any(has)).collect();
            if let [group] = begun[..] {
                if let (Some(there), Some(missing)) =
                    (group.iter().find(|key| has(key)), group.iter().find(|key| !has(key)))
                {
                    reader.wrong(node.at, format!("holds `{there}` without `{missing}`"));
                }
            } else {
                let all = groups.iter().map(|group| listed(group)).collect::<Vec<_>>().join(", ");
                let how_many = if begun.is_empty() { "none".to_owned() } else { begun.len().to_string() };
                reader.wrong(node.at, format!("holds {how_many} of {all}; give exactly one"));
            }
        }
    }
}

fn listed(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" and ")
}

impl Read for String {
    fn kind() -> Kind {
        Kind::Text
    }

    fn wants() -> String {
        "text".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Date(_) => {
                let wants = format!("text, in quotes: {:?}", reader.written(node));
                reader.mistyped(node, &wants)
            }
            Value::Null | Value::List(_) | Value::Table(_) => reader.mistyped(node, "text"),
        }
    }
}

impl Element for String {
    fn blank() -> Self {
        String::new()
    }
}

impl<V: Element> Read for Vec<V> {
    fn kind() -> Kind {
        Kind::List(Box::new(V::kind()))
    }

    fn wants() -> String {
        format!("a list; each entry takes {}", V::wants())
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::List(nodes) = &node.value else {
            let wants = format!("a list, in brackets, of {}", V::wants());
            return reader.mistyped(node, &wants);
        };
        let entry = |(index, node)| reader.within(&format!("[{index}]"), |reader| V::read(reader, node));
        Some(nodes.iter().enumerate().map(entry).map(|entry| entry.unwrap_or_else(V::blank)).collect())
    }
}

impl<V: Read> Read for BTreeMap<String, V> {
    fn kind() -> Kind {
        Kind::Map(Box::new(V::kind()))
    }

    fn wants() -> String {
        format!("a table; each value takes {}", V::wants())
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let Value::Table(entries) = &node.value else {
            return reader.mistyped(node, &Self::wants());
        };
        let mut map = BTreeMap::new();
        for entry in entries {
            let value = reader.within(&segment(&entry.key), |reader| V::read(reader, &entry.node));
            if let Some(value) = value {
                map.insert(entry.key.clone(), value);
            }
        }
        Some(map)
    }
}
