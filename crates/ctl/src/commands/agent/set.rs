//! `ctl agent set`: less than an agent offers, and all of it again.

use muster_agent::config;
use muster_common::proto::v1::{self, tend_agents_request::Wish};

use super::{Which, request, tend::tend};
use crate::{commands::Ctl, error::Error, exit::Exit};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Processors that tasks may take together, like 4 or 0.5
    #[arg(long, value_name = "N", group = "change", value_parser = config::cpus)]
    cpus: Option<u64>,
    /// Memory that tasks may take together, like 16GiB
    #[arg(long, value_name = "SIZE", group = "change", value_parser = config::bytes)]
    memory: Option<u64>,
    /// GPUs that tasks may take together
    #[arg(long, value_name = "N", group = "change")]
    gpus: Option<u64>,
    /// All that the agent offers
    #[arg(long, group = "change", conflicts_with_all = ["cpus", "memory", "gpus"])]
    all: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let limits = v1::Limits { cpu_milli: args.cpus, memory_bytes: args.memory, gpus: args.gpus };
    let wish = Wish::Limit(v1::LimitWish { limits: Some(limits), lift: args.all });
    let request = v1::TendAgentsRequest { wish: Some(wish), ..request(&args.which, args.reason.as_deref()) };
    let (_, tended) = tend(ctl, request).await?;
    let what = if args.all { "gives all that it offers" } else { "gives at most that; what runs there goes on" };
    ctl.output.one(&tended.told(what))?;
    Ok(Exit::OK)
}
