//! `ctl admin verify`: a backup is read to its end, and tried.

use std::path::PathBuf;

use muster_controller::backup;

use super::{Ctl, blocking};
use crate::{error::Error, exit::Exit, model::backup::Backup};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let (path, clock) = (args.file.clone(), ctl.output.clock());
    let contents = blocking(move || backup::check(&path, clock)).await?;
    let bytes = std::fs::metadata(&args.file).map_or(0, |about| about.len());
    ctl.output.one(&Backup::of(&args.file, bytes, &contents))?;
    Ok(Exit::OK)
}
