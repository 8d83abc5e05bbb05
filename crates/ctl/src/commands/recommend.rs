//! `ctl recommend`: what the tasks of a job should ask for, from what their attempts took.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::recommend::Recommendation,
    output::style::Look,
    remote::{selector, tasks},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job (17, census) whose attempts were counted
    #[arg(value_name = "JOB")]
    job: String,
    /// How many tasks at most are looked at
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    let request = v1::GetJobRequest { selector: selector(&args.job) };
    let reply = client.rpc.get_job(request).await?.into_inner();
    let fault = || Error::new(Exit::FAULT, "the controller's answer holds no job");
    let (id, spec) = (reply.summary.map(|summary| summary.id).ok_or_else(fault)?, reply.spec.ok_or_else(fault)?);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let found = tasks::first(&client, &id.to_string(), &[], limit).await?;
    ctl.output.one(&Recommendation::of(id, &spec, &found.tasks))?;
    if found.next_page_token.is_some() {
        ctl.output.note(Look::Dim, "there are more tasks: --limit N looks at more of them");
    }
    Ok(Exit::OK)
}
