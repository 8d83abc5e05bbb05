//! `ctl admin backup`: the whole installation in one file, which is there when it is whole, and not before.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use muster_common::proto::v1;
use muster_controller::backup;
use tonic::Streaming;

use super::{Ctl, blocking};
use crate::{
    error::Error,
    exit::Exit,
    model::backup::Backup,
    output::{self, style::Look},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to make, which must not exist; `-`: standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also what tasks wrote: logs and large results
    #[arg(long)]
    with_logs: bool,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let to_stdout = args.file == Path::new("-");
    if !to_stdout && args.file.exists() {
        return Err(Error::new(Exit::USAGE, format!("{} exists already", args.file.display()))
            .next("choose another name; a backup is never written over"));
    }
    let mut client = ctl.client().await?;
    let request = v1::TakeRequest { with_objects: args.with_logs };
    let parts = client.backup.take(request).await?.into_inner();
    if to_stdout {
        let bytes = copy(parts, output::raw).await?;
        // What was written cannot be read again here: `verify` can.
        ctl.output.note(Look::Warn, &format!("{bytes} bytes; `ctl admin verify FILE` checks them where they lie"));
        return Ok(Exit::OK);
    }
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refused = |error: std::io::Error| {
        Error::new(Exit::FAULT, format!("cannot write the backup to {}: {error}", args.file.display()))
    };
    // Readable by its owner only, and gone if this ends early.
    let mut file = tempfile::Builder::new().prefix(".muster-backup-").tempfile_in(folder).map_err(refused)?;
    let bytes = copy(parts, |part| file.write_all(part).map_err(refused)).await?;
    file.as_file().sync_all().map_err(refused)?;
    let (path, clock) = (file.path().to_owned(), ctl.output.clock());
    let contents = blocking(move || backup::check(&path, clock)).await?;
    file.persist_noclobber(&args.file).map_err(|error| refused(error.error))?;
    ctl.output.one(&Backup::of(&args.file, bytes, &contents))?;
    Ok(Exit::OK)
}

/// Takes all parts; how many bytes they were.
async fn copy(
    mut parts: Streaming<v1::TakePart>,
    mut to: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let mut bytes = 0;
    while let Some(part) = parts.message().await? {
        to(&part.data)?;
        bytes += part.data.len() as u64;
    }
    Ok(bytes)
}
