//! Job files: TOML, YAML and JSON of one schema become a `JobSpec`, or a list of everything that is wrong with them.
//!
//! A text becomes a tree with places (`syntax`), one reader walks the tree by tables of fields (`read`, `job`,
//! `task`), and `muster_core::validate` checks the whole. A file with any problem becomes nothing at all.

mod after;
mod array;
mod command;
mod files;
mod foreign;
mod job;
mod kind;
mod near;
mod place;
mod read;
mod requires;
mod retries;
mod run_as;
mod syntax;
mod task;
pub mod text;
mod tree;
mod values;

use std::{
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use muster_core::{spec::JobSpec, time::Timestamp, validate};
use serde_json::Value as Json;

pub use command::{CommandOptions, command_job};
use job::Job;
use place::{Raw, findings, is_within, locate};
use read::{Reader, Table};

/// Bytes of a job file: ten times a hundred thousand written-out tasks.
pub const MAX_FILE: usize = 64 * 1024 * 1024;

/// How a job file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.toml`
    Toml,
    /// `.yaml`, `.yml`
    Yaml,
    /// `.json`
    Json,
}

impl Format {
    /// The format that a file's name tells; none for another ending.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What a job file means depends on where and when it is read.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The submitter's folder: the `cwd` of tasks, and where a relative one starts. Empty: the agent decides.
    pub cwd: PathBuf,
    /// The job file's folder: where the files that it names are.
    pub dir: PathBuf,
    /// For `start_at = "+10m"`.
    pub now: Timestamp,
}

impl Context {
    /// The context of the job file at `path` for a submitter in `cwd`.
    pub fn of_file(path: &Path, cwd: PathBuf, now: Timestamp) -> Self {
        let dir = path.parent().map_or_else(|| cwd.clone(), |parent| cwd.join(parent));
        Self { cwd, dir, now }
    }
}

/// One thing that is wrong, or odd, in a job file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// From 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// In characters, from 1; 0 when it is about the file as a whole.
    pub column: usize,
    /// Where in the job, in the file's words: `tasks[2].after[0]`; empty for the whole.
    pub path: String,
    /// What, and what would be accepted.
    pub message: String,
}

impl Finding {
    fn whole(message: impl Into<String>) -> Self {
        Self { line: 0, column: 0, path: String::new(), message: message.into() }
    }
}

impl fmt::Display for Finding {
    /// `3:7: tasks[0].cpus: is empty…`, to be put behind a file's name and a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// A job file that can be submitted.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What it asks for, every default applied and checked.
    pub spec: JobSpec,
    /// What is accepted but probably not meant.
    pub warnings: Vec<Finding>,
}

/// Reads `text`. Every problem at once, in the order of the file, or a spec that `validate::check` accepts.
pub fn parse(text: &str, format: Format, context: &Context) -> Result<Parsed, Vec<Finding>> {
    if text.len() > MAX_FILE {
        let size = text.len();
        return Err(vec![Finding::whole(format!("has {size} bytes; a job file has at most {MAX_FILE}"))]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = syntax::parse(text, format).map_err(|faults| {
        let raw = faults.into_iter().map(|fault| Raw { at: fault.at, path: String::new(), message: fault.message });
        findings(text, raw.collect())
    })?;
    if let Some(raw) = foreign::recognise(&root) {
        return Err(findings(text, vec![raw]));
    }
    let mut reader = Reader::new(text, context);
    let mut job = Job::default();
    job.fill(&mut reader, &root);
    let spec = job.finish(&reader);
    let problems = check(&spec, &root, &reader.errors);
    reader.errors.extend(problems);
    if !reader.errors.is_empty() {
        return Err(findings(text, reader.errors));
    }
    Ok(Parsed { spec, warnings: findings(text, reader.warnings) })
}

/// What is wrong with the spec as a whole, at the places of the file. What only follows from an error that
/// the reader told already is left out.
fn check(spec: &JobSpec, root: &tree::Node, errors: &[Raw]) -> Vec<Raw> {
    let has_bad_name = errors.iter().any(|raw| raw.path.starts_with("tasks") && raw.path.ends_with(".name"));
    let problems = validate::check(spec).into_iter().map(|problem| {
        let (at, path) = locate(root, &problem.path);
        Raw { at, path, message: problem.message }
    });
    let follows = |raw: &Raw| {
        (has_bad_name && raw.path.contains(".after[")) || errors.iter().any(|error| is_within(&raw.path, &error.path))
    };
    problems.filter(|raw| !follows(raw)).collect()
}

/// Reads the job file at `path` for a submitter in `cwd`.
pub fn load(path: &Path, cwd: PathBuf, now: Timestamp) -> Result<Parsed, Vec<Finding>> {
    let whole = |message: String| vec![Finding::whole(message)];
    let format = Format::of_path(path)
        .ok_or_else(|| whole("has no ending that tells its format; call it .toml, .yaml or .json".to_owned()))?;
    let failed = |error: std::io::Error| whole(format!("cannot be read: {error}"));
    let context = Context::of_file(path, cwd, now);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    // One byte more than is accepted shows that there is more, whatever the file's size claims.
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE {
        return Err(whole(format!("is too large; a job file has at most {MAX_FILE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        vec![Finding { line, column: 1, path: String::new(), message: "is not UTF-8 text".to_owned() }]
    })?;
    parse(&text, format, &context)
}

/// The JSON Schema (draft 2020-12) of job files, made from the reader's own tables.
pub fn schema() -> Json {
    let mut defs = serde_json::Map::new();
    let job = Job::shape().schema(&mut defs);
    let mut schema = serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Muster job file",
        "description": "One job and its tasks. TOML, YAML and JSON are read alike.",
    });
    if let (Json::Object(schema), Json::Object(job)) = (&mut schema, job) {
        schema.extend(job);
        schema.insert("$defs".to_owned(), Json::Object(defs));
    }
    schema
}

/// The tables of `docs/job-file.md`: each heading with the keys below it.
pub fn reference() -> String {
    use muster_core::spec::Requires;
    let tables = [
        ("Job", Job::shape()),
        ("Task", task::Form::Entry.shape()),
        ("retries", retries::retries_shape()),
        ("oom_retries", retries::oom_retries_shape()),
        ("run_as", run_as::shape()),
        ("requires", Requires::shape()),
        ("after", after::AfterTable::shape()),
        ("array", array::ArrayTable::shape()),
    ];
    let section = |(title, shape): &(&str, kind::Shape)| format!("### {title}\n\n{}", shape.reference());
    tables.iter().map(section).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
