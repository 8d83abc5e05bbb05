//! `ctl cancel`: end work that is not over.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::change::Cancelled,
    remote::{Client, by, selector},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job, or tasks of one
    #[arg(value_name = "WORK")]
    work: String,
    /// Why; shown wherever the work is
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Cancel teardown tasks as well, which otherwise still run
    #[arg(long)]
    teardown_too: bool,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    let cancelled = cancel(&client, &args.work, &args.reason, args.teardown_too).await?;
    ctl.output.one(&cancelled)?;
    Ok(Exit::OK)
}

/// Asks for the end of what `work` names.
pub(crate) async fn cancel(client: &Client, work: &str, reason: &str, teardown_too: bool) -> Result<Cancelled, Error> {
    let request = v1::CancelRequest { selector: selector(work), reason: reason.to_owned(), by: by(), teardown_too };
    let reply = client.rpc.clone().cancel(request).await?.into_inner();
    Ok(Cancelled { job: reply.job, tasks: reply.tasks, already_final: reply.already_final })
}
