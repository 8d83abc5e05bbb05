//! `ctl agents`: the machines that run tasks.

use muster_common::proto::v1;

use super::Ctl;
use crate::{error::Error, exit::Exit, model::agent::Agents};

/// No arguments of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(ctl: &Ctl, _args: Args) -> Result<Exit, Error> {
    let reply = ctl.client().await?.rpc.list_agents(v1::ListAgentsRequest {}).await?.into_inner();
    let agents = Agents::of(reply);
    ctl.output.items(&agents, &agents.agents)?;
    Ok(Exit::OK)
}
