//! `ctl agent`: what a person wishes of machines, and all that is known of one.

mod set;
mod show;
mod tend;
mod wait;

use muster_common::proto::v1;

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
    /// Show all that is known of agents
    Show(show::Args),
    /// Give agents no new work; what runs there goes on
    Cordon(tend::CordonArgs),
    /// Give agents no new work until nothing runs there
    Drain(tend::DrainArgs),
    /// Give agents work again
    Resume(tend::ResumeArgs),
    /// Let tasks take less of agents than they offer, while they run
    Set(set::Args),
}

/// Which agents are meant.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Which {
    /// The agents
    #[arg(value_name = "AGENT", required_unless_present = "label")]
    names: Vec<String>,
    /// All agents with this label: key, key=value, 'key in (a, b)' …; several must all hold
    #[arg(long, value_name = "RULE")]
    label: Vec<String>,
}

/// A request that wishes nothing yet.
fn request(which: &Which, reason: Option<&str>) -> v1::TendAgentsRequest {
    v1::TendAgentsRequest {
        names: which.names.clone(),
        labels: which.label.clone(),
        reason: reason.unwrap_or_default().to_owned(),
        by: crate::remote::by(),
        wish: None,
    }
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    match args.command {
        Command::Show(args) => show::run(ctl, args).await,
        Command::Cordon(args) => tend::cordon(ctl, args).await,
        Command::Drain(args) => tend::drain(ctl, args).await,
        Command::Resume(args) => tend::resume(ctl, args).await,
        Command::Set(args) => set::run(ctl, args).await,
    }
}
