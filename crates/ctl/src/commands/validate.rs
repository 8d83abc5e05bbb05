//! `ctl validate`: check job files without handing them in.

use std::path::PathBuf;

use serde::Serialize;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::change::Validated,
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
        let source = Source::read(path, args.format)?;
        files.push(check(ctl, &source, path.display().to_string()));
    }
    let valid = files.iter().all(|file| file.valid);
    let answer = Answer { files };
    ctl.output.items(&answer, &answer.files)?;
    Ok(if valid { Exit::OK } else { Exit::USAGE })
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
