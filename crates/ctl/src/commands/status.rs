//! `ctl status`: the installation on one screen.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::{change::mismatch, status::Status},
    output::style::Look,
};

/// No arguments of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(ctl: &Ctl, _args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    let status = client.rpc.status(v1::StatusRequest {}).await?.into_inner();
    if let Some(problem) = status.info.as_ref().and_then(mismatch) {
        ctl.output.note(Look::Warn, &format!("warning: {problem}"));
    }
    let agents = client.rpc.list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
    let queues = client.rpc.list_queues(v1::ListQueuesRequest {}).await?.into_inner();
    let status = Status::of(status, agents, queues);
    ctl.output.one(&status)?;
    Ok(if status.has_problems() { Exit::FAILED } else { Exit::OK })
}
