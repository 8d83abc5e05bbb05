//! The one place that writes to standard output: tables, machine formats, raw bytes, progress.

pub(crate) mod progress;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod time;

use std::io::{self, IsTerminal as _, Write as _};

use muster_common::clock::Clock;
use muster_core::time::Timestamp;
use serde::Serialize;

use self::{
    style::{Look, Style, When},
    table::{Table, harmless},
};
use crate::error::Error;
use crate::exit::Exit;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; may change between versions.
    #[default]
    Table,
    /// One JSON object.
    Json,
    /// One JSON object per line, one line per item.
    Jsonl,
    /// One YAML document.
    Yaml,
}

/// Where the answer goes and how it looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) style: Style,
    pub(crate) error_style: Style,
    /// Whether a person sees standard output as it is written.
    pub(crate) is_terminal: bool,
    clock: Clock,
}

/// Something that is a table to people.
pub(crate) trait Human {
    /// The text for people, each line ended.
    fn human(&self, page: &Page) -> String;
}

/// What a text for people is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) style: Style,
    pub(crate) width: Option<usize>,
    pub(crate) now: Timestamp,
}

impl Page {
    /// The text of a table on this page.
    pub(crate) fn table(&self, table: &Table) -> String {
        table.render(self.style, self.width)
    }

    /// `text` as `look` looks here.
    pub(crate) fn paint(&self, look: Look, text: &str) -> String {
        self.style.paint(look, text)
    }
}

impl Output {
    /// The output that the flags ask for.
    pub(crate) fn new(format: Format, when: When) -> Self {
        let (style, error_style) = (Style::stdout(when), Style::stderr(when));
        Self { format, style, error_style, is_terminal: io::stdout().is_terminal(), clock: Clock::system() }
    }

    /// Whether a program reads the answer.
    pub(crate) fn is_machine(&self) -> bool {
        self.format != Format::Table
    }

    /// Both clocks.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// The page that standard output is now.
    pub(crate) fn page(&self) -> Page {
        let width = self.is_terminal.then(|| usize::from(console::Term::stdout().size().1));
        Page { style: self.style, width, now: self.clock.wall() }
    }

    /// One answer.
    pub(crate) fn one<T: Serialize + Human>(&self, value: &T) -> Result<(), Error> {
        self.items(value, std::slice::from_ref(value))
    }

    /// One answer whose `items` are lines of their own in `jsonl`.
    pub(crate) fn items<T: Serialize + Human, I: Serialize>(&self, whole: &T, items: &[I]) -> Result<(), Error> {
        let text = match self.format {
            Format::Table => whole.human(&self.page()),
            Format::Jsonl => items.iter().map(|item| machine(Format::Jsonl, item)).collect::<Result<_, _>>()?,
            Format::Json | Format::Yaml => machine(self.format, whole)?,
        };
        raw(text.as_bytes())
    }

    /// A line for people on standard error: notes that are not the answer.
    pub(crate) fn note(&self, look: Look, text: &str) {
        // Nothing can be done where even standard error is closed.
        let _ = writeln!(io::stderr(), "{}", self.noted(look, text));
    }

    /// Why the command failed.
    pub(crate) fn error(&self, error: &Error) {
        if let Some(text) = self.told(error) {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn noted(&self, look: Look, text: &str) -> String {
        self.error_style.paint(look, &harmless(text))
    }

    fn told(&self, error: &Error) -> Option<String> {
        let Error::Told(told) = error else { return None };
        Some(format!("{} {}", self.error_style.paint(Look::Bad, "error:"), harmless(&told.to_string())))
    }
}

/// `value` in a machine format, its last line ended.
pub(crate) fn machine<T: Serialize>(format: Format, value: &T) -> Result<String, Error> {
    let fault = |error: &dyn std::fmt::Display| Error::new(Exit::FAULT, format!("cannot write the answer: {error}"));
    let mut text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| fault(&error))?,
        Format::Json => serde_json::to_string_pretty(value).map_err(|error| fault(&error))?,
        Format::Table | Format::Jsonl => serde_json::to_string(value).map_err(|error| fault(&error))?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Bytes on standard output as they are, flushed.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Bytes on standard error as they are.
pub(crate) fn raw_error(bytes: &[u8]) -> Result<(), Error> {
    Ok(io::stderr().lock().write_all(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_nothing_to_the_terminal_in_notes_and_errors() {
        let output = Output::new(Format::Table, When::Never);
        let evil = "a\u{1b}]52;c;aGk=\u{7}b";
        let error = Error::new(Exit::FAULT, evil).detail(evil).next(evil);
        for text in [output.noted(Look::Warn, evil), output.told(&error).unwrap()] {
            assert!(text.contains('a') && !text.contains(['\u{1b}', '\u{7}']), "{text:?}");
        }
        assert_eq!(output.told(&error).unwrap().lines().count(), 3);
    }
}
