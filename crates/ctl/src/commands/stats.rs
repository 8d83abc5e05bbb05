//! `ctl stats`: counts and times.

use muster_common::proto::v1;

use super::Ctl;
use crate::{error::Error, exit::Exit, model::stats::Stats, remote::selector};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job, or tasks of one; without it, everything the controller knows
    #[arg(value_name = "WORK")]
    work: Option<String>,
    /// How many of the slowest tasks to name
    #[arg(long, value_name = "N", default_value_t = 5)]
    slowest: u32,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let request = v1::StatsRequest { selector: args.work.as_deref().and_then(selector), slowest: args.slowest };
    let reply = ctl.client().await?.rpc.stats(request).await?.into_inner();
    ctl.output.one(&Stats::from(reply))?;
    Ok(Exit::OK)
}
