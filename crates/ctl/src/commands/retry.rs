//! `ctl retry`: run work again that is over.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::change::Retried,
    remote::{by, selector},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job, or tasks of one
    #[arg(value_name = "WORK")]
    work: String,
    /// Only tasks that did not succeed, and those that were skipped for them
    #[arg(long)]
    failed: bool,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let request = v1::RetryRequest { selector: selector(&args.work), failed_only: args.failed, by: by() };
    let reply = ctl.client().await?.rpc.retry(request).await?.into_inner();
    ctl.output.one(&Retried { job: reply.job, tasks: reply.tasks })?;
    Ok(Exit::OK)
}
