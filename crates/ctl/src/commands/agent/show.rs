//! `ctl agent show`: all that is known of machines.

use muster_common::proto::v1;

use super::Which;
use crate::{
    commands::Ctl,
    error::Error,
    exit::Exit,
    model::agent::{Agent, Shown},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
}

pub(super) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let Which { names, label } = args.which;
    let request = v1::ListAgentsRequest { names: names.clone(), labels: label, ..v1::ListAgentsRequest::default() };
    let reply = ctl.client().await?.rpc.list_agents(request).await?.into_inner();
    let agents: Vec<Agent> = reply.agents.into_iter().map(Agent::from).collect();
    if let Some(name) = names.iter().find(|name| !agents.iter().any(|agent| agent.name == **name)) {
        let error = Error::new(Exit::NOT_FOUND, format!("there is no agent `{name}`"));
        return Err(error.next("`ctl agents` lists those there are"));
    }
    let shown = Shown { agents };
    ctl.output.items(&shown, &shown.agents)?;
    Ok(Exit::OK)
}
