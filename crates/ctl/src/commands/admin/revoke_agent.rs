//! `ctl admin revoke-agent`: sends an agent away.

use muster_common::proto::v1;
use serde::Serialize;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    output::{Human, Page},
    remote::by,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The agent
    #[arg(value_name = "AGENT")]
    name: String,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
struct Revoked {
    agent: String,
    /// It was revoked before.
    already: bool,
}

impl Human for Revoked {
    fn human(&self, _: &Page) -> String {
        let agent = &self.agent;
        if self.already {
            return format!("agent {agent} was revoked before\n");
        }
        format!("agent {agent} is revoked: it is cut off within seconds, and what it ran is lost when its leases end\n")
    }
}

pub(super) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let request = v1::RevokeAgentRequest { agent: args.name.clone(), by: by() };
    let reply = ctl.client().await?.admin.revoke_agent(request).await?.into_inner();
    ctl.output.one(&Revoked { agent: args.name, already: reply.already })?;
    Ok(Exit::OK)
}
