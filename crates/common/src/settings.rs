//! A daemon's configuration file: TOML, a table of known keys, and every problem of a file told at once.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

/// One known key, and how its value is taken up. `Err` reads after the key's name: what would be accepted.
pub type Key<C> = (&'static str, fn(&mut C, &DeValue<'_>) -> Result<(), String>);

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says what cannot be.
    #[error("the configuration file {} has problems:{}", path.display(), lines(problems))]
    Invalid {
        /// Which.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counts from 1.
    pub line: usize,
    /// What, and what would be accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Reads a file with `parse`.
///
/// # Errors
/// See [`Error`].
pub fn read<C>(path: &Path, parse: impl FnOnce(&str) -> Result<C, Vec<Problem>>) -> Result<C, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|problems| Error::Invalid { path: path.to_owned(), problems })
}

/// Takes up the text of a file by the table of `keys`; what it does not name keeps its default. `finish` is told
/// which keys are there, and may add what contradicts itself.
///
/// # Errors
/// All that is wrong with it, in order of lines.
pub fn parse<C: Default>(
    text: &str,
    keys: &[Key<C>],
    finish: impl FnOnce(&mut C, &dyn Fn(&str) -> bool) -> Option<String>,
) -> Result<C, Vec<Problem>> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        vec![Problem { line: line_of(text, at), message: error.message().to_owned() }]
    })?;
    let mut config = C::default();
    let mut problems = Vec::new();
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        let done = match keys.iter().find(|(known, _)| *known == name) {
            Some((_, set)) => set(&mut config, value.get_ref()).map_err(|expected| format!("`{name}` {expected}")),
            None => Err(unknown(name, keys)),
        };
        if let Err(message) = done {
            problems.push(Problem { line: line_of(text, key.span().start), message });
        }
    }
    let contradiction = finish(&mut config, &|name| table.get_ref().contains_key(name));
    problems.extend(contradiction.map(|message| Problem { line: 1, message }));
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// A text that is not empty.
///
/// # Errors
/// What would be accepted.
pub fn words(value: &DeValue<'_>) -> Result<String, String> {
    match value.as_str() {
        Some("") => Err("must not be empty".to_owned()),
        Some(text) => Ok(text.to_owned()),
        None => Err("must be a text in quotes".to_owned()),
    }
}

fn unknown<C>(name: &str, keys: &[Key<C>]) -> String {
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let known = || keys.iter().map(|(known, _)| *known);
    match known().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|near| likeness(near) > 0.7) {
        Some(near) => format!("`{name}` is not known; did you mean `{near}`?"),
        None => format!("`{name}` is not known; known are: {}", known().collect::<Vec<_>>().join(", ")),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).map_or(1, |before| before.matches('\n').count() + 1)
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}
