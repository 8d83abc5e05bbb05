//! What a key may hold, as a value: the reader, the JSON Schema and the reference are all made from it.

use serde_json::{Map, Value as Json, json};

/// What a value may be.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Text,
    /// `true` or `false`.
    Truth,
    /// Text that matches a pattern (ECMA 262).
    Pattern(&'static str),
    /// Whole numbers from, to.
    Integer(i64, i64),
    /// Numbers from, to.
    Number(f64, f64),
    Words(Vec<&'static str>),
    List(Box<Kind>),
    /// A list with at least one entry.
    Some(Box<Kind>),
    /// Keys of the person's choice.
    Map(Box<Kind>),
    Table(Shape),
    OneOf(Vec<Kind>),
    Any,
}

/// A table with known keys.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Its name in the schema's `$defs`.
    pub(super) name: &'static str,
    pub(super) keys: Vec<Key>,
    pub(super) rules: Vec<Rule>,
}

/// One key of a table.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What it takes, in a few words.
    pub(super) wants: String,
    pub(super) doc: &'static str,
    /// What holds without it; empty when nothing does.
    pub(super) default: &'static str,
    pub(super) is_required: bool,
}

/// What holds between the keys of one table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// At most one of the two.
    Apart(&'static str, &'static str),
    /// At least one of them.
    AnyOf(&'static [&'static str]),
    /// Exactly one of the groups, and that one whole.
    OneOf(&'static [&'static [&'static str]]),
}

impl Kind {
    /// This as a JSON Schema; tables are put into `defs` and referred to.
    pub(super) fn schema(&self, defs: &mut Map<String, Json>) -> Json {
        match self {
            Kind::Text => json!({ "type": "string" }),
            Kind::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
            Kind::Truth => json!({ "type": "boolean" }),
            Kind::Integer(from, to) => json!({ "type": "integer", "minimum": from, "maximum": to }),
            Kind::Number(from, to) => json!({ "type": "number", "minimum": from, "maximum": to }),
            Kind::Words(words) => json!({ "enum": words }),
            Kind::List(kind) => json!({ "type": "array", "items": kind.schema(defs) }),
            Kind::Some(kind) => json!({ "type": "array", "items": kind.schema(defs), "minItems": 1 }),
            Kind::Map(kind) => json!({ "type": "object", "additionalProperties": kind.schema(defs) }),
            Kind::OneOf(kinds) => {
                let kinds: Vec<Json> = kinds.iter().map(|kind| kind.schema(defs)).collect();
                json!({ "anyOf": kinds })
            }
            Kind::Any => json!(true),
            Kind::Table(shape) => {
                if !defs.contains_key(shape.name) {
                    let schema = shape.schema(defs);
                    defs.insert(shape.name.to_owned(), schema);
                }
                json!({ "$ref": format!("#/$defs/{}", shape.name) })
            }
        }
    }
}

impl Shape {
    /// The table itself, not a reference to it.
    pub(super) fn schema(&self, defs: &mut Map<String, Json>) -> Json {
        let mut properties = Map::new();
        for key in &self.keys {
            let mut schema = match key.kind.schema(defs) {
                Json::Object(schema) => schema,
                _ => Map::new(),
            };
            schema.insert("description".to_owned(), Json::from(key.doc));
            properties.insert(key.name.to_owned(), Json::Object(schema));
        }
        let mut schema = Map::new();
        schema.insert("type".to_owned(), Json::from("object"));
        schema.insert("properties".to_owned(), Json::Object(properties));
        schema.insert("additionalProperties".to_owned(), Json::Bool(false));
        let required: Vec<&str> = self.keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
        if !required.is_empty() {
            schema.insert("required".to_owned(), Json::from(required));
        }
        if !self.rules.is_empty() {
            schema.insert("allOf".to_owned(), self.rules.iter().map(Rule::schema).collect());
        }
        Json::Object(schema)
    }

    /// The keys as a table of Markdown.
    pub(super) fn reference(&self) -> String {
        let mut text = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
        for key in &self.keys {
            let default = match (key.is_required, key.default) {
                (true, _) => "*required*".to_owned(),
                (false, "") => String::new(),
                (false, default) => format!("`{default}`"),
            };
            let cell = |text: &str| text.replace('|', "\\|");
            text.push_str(&format!("| `{}` | {} | {default} | {} |\n", key.name, cell(&key.wants), cell(key.doc)));
        }
        text
    }
}

impl Rule {
    fn schema(&self) -> Json {
        match self {
            Rule::Apart(a, b) => json!({ "not": { "required": [a, b] } }),
            Rule::AnyOf(keys) => {
                let each: Vec<Json> = keys.iter().map(|key| json!({ "required": [key] })).collect();
                json!({ "anyOf": each })
            }
            Rule::OneOf(groups) => {
                let each: Vec<Json> = groups.iter().map(|group| json!({ "required": group })).collect();
                json!({ "oneOf": each })
            }
        }
    }
}
