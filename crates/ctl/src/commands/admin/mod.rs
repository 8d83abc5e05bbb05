//! `ctl admin`: what those do who run an installation. One file per word.

mod join_token;
mod revoke_agent;

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
    /// Make a token with which an agent joins
    JoinToken(join_token::Args),
    /// Refuse an agent from now on, until it joins again
    RevokeAgent(revoke_agent::Args),
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    match args.command {
        Command::JoinToken(args) => join_token::run(ctl, args).await,
        Command::RevokeAgent(args) => revoke_agent::run(ctl, args).await,
    }
}
