//! `ctl schema`: the JSON Schema of job files.

use muster_common::jobfile;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    output::{self, Format},
};

/// No arguments of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(ctl: &Ctl, _args: &Args) -> Result<Exit, Error> {
    let format = match ctl.output.format {
        Format::Table => Format::Json,
        other => other,
    };
    output::raw(output::machine(format, &jobfile::schema())?.as_bytes())?;
    Ok(Exit::OK)
}
