//! `ctl completions`: a script for the shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{cli::Cli, error::Error, exit::Exit, output};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell that shall complete ctl
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ctl", &mut script);
    output::raw(&script)?;
    Ok(Exit::OK)
}
