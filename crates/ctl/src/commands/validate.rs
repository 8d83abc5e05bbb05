//! `ctl validate`: check job files without handing them in.

use std::path::PathBuf;

use serde::Serialize;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::change::{Finding, Validated},
    output::{Human, Page, style::Look},
    work::{self, FileFormat, Source, Where},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Job files; `-` reads standard input
    #[arg(value_name = "JOBFILE", required = true)]
    files: Vec<PathBuf>,
    /// What the files are written in, where their names do not say it
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<FileFormat>,
}

/// All files as one answer.
#[derive(Debug, Serialize)]
struct Answer {
    files: Vec<Validated>,
}

impl Human for Answer {
    fn human(&self, page: &Page) -> String {
        self.files.iter().map(|file| file.human(page)).collect()
    }
}

pub(crate) fn run(ctl: &Ctl, args: &Args) -> Result<Exit, Error> {
    let mut files = Vec::new();
    for path in &args.files {
        let file = path.display().to_string();
        files.push(match Source::read(path, args.format) {
            Ok(source) => check(ctl, &source, file),
            Err(error) => unreadable(ctl, &error, file),
        });
    }
    let valid = files.iter().all(|file| file.valid);
    let answer = Answer { files };
    ctl.output.items(&answer, &answer.files)?;
    Ok(if valid { Exit::OK } else { Exit::USAGE })
}

/// A file of which nothing could be read: one answer among the others.
fn unreadable(ctl: &Ctl, error: &Error, file: String) -> Validated {
    if !ctl.output.is_machine() {
        let head = ctl.output.error_style.paint(Look::Bad, "error");
        ctl.output.note(Look::Plain, &format!("{head}: {error}"));
    }
    let message = error.to_string();
    let finding = Finding { severity: "error", line: 0, column: 0, path: String::new(), message };
    Validated { file, valid: false, tasks: 0, name: None, findings: vec![finding] }
}

fn check(ctl: &Ctl, source: &Source, file: String) -> Validated {
    let (look, severity, found, spec) = match source.check(ctl.output, Where::Here) {
        Ok(parsed) => (Look::Warn, "warning", parsed.warnings, Some(parsed.spec)),
        Err(findings) => (Look::Bad, "error", findings, None),
    };
    if !ctl.output.is_machine() {
        found.iter().for_each(|finding| work::show(ctl.output, source, look, finding));
    }
    Validated {
        file,
        valid: spec.is_some(),
        tasks: spec.as_ref().map_or(0, |spec| spec.task_count()),
        name: spec.map(|spec| spec.name),
        findings: found.iter().map(|finding| work::machine(severity, finding)).collect(),
    }
}
