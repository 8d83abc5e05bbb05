//! `ctl agents`: the machines that run tasks.

use muster_common::proto::v1;

use super::Ctl;
use crate::{error::Error, exit::Exit, model::agent::Agents};

/// Agents that are asked for at once.
const PAGE: u32 = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only agents with this label: key, key=value, 'key in (a, b)' …; several must all hold
    #[arg(long, value_name = "RULE")]
    label: Vec<String>,
    /// How the machines are, too: load, free memory, free disk
    #[arg(long)]
    wide: bool,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    let mut request = v1::ListAgentsRequest { labels: args.label, page_size: PAGE, ..Default::default() };
    let mut agents = Agents { agents: Vec::new(), wide: args.wide };
    loop {
        let reply = client.rpc.list_agents(request.clone()).await?.into_inner();
        request.page_token.clone_from(&reply.next_page_token);
        agents.agents.extend(Agents::of(reply).agents);
        if request.page_token.is_empty() {
            break;
        }
    }
    ctl.output.items(&agents, &agents.agents)?;
    Ok(Exit::OK)
}
