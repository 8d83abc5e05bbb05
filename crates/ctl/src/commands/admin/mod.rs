//! `ctl admin`: what those do who run an installation. One file per word.

mod backup;
mod join_token;
mod promote;
mod restore;
mod revoke_agent;
pub(crate) mod token;
mod verify;

use super::Ctl;
use crate::{error::Error, exit::Exit};

#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make, list and revoke access tokens
    Token(token::Args),
    /// Make a token with which an agent joins
    JoinToken(join_token::Args),
    /// Refuse an agent from now on, until it joins again
    RevokeAgent(revoke_agent::Args),
    /// Copy the whole installation into a file while it runs
    Backup(backup::Args),
    /// Make an installation of a backup
    Restore(restore::Args),
    /// Say whether a backup is whole and what it holds
    Verify(verify::Args),
    /// Move the running installation from its own store to etcd
    Promote(promote::Args),
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    match args.command {
        Command::Token(args) => Box::pin(token::run(ctl, args)).await,
        Command::JoinToken(args) => join_token::run(ctl, args).await,
        Command::RevokeAgent(args) => revoke_agent::run(ctl, args).await,
        Command::Backup(args) => backup::run(ctl, args).await,
        Command::Restore(args) => restore::run(ctl, args).await,
        Command::Verify(args) => verify::run(ctl, args).await,
        Command::Promote(args) => promote::run(ctl, args).await,
    }
}

/// What went wrong with a file or a store, with its causes.
fn told(error: impl Into<anyhow::Error>) -> Error {
    Error::new(Exit::REFUSED, format!("{:#}", error.into()))
}

/// Work that waits for disks, on a thread of its own.
async fn blocking<T: Send + 'static, E: Into<anyhow::Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::new(Exit::FAULT, format!("it was cut short: {error}")))?.map_err(told)
}
