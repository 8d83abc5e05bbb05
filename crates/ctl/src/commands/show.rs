//! `ctl show`: one job with its groups, or tasks of it.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::{agent::Agents, group, job::Detail, task::Task},
    output::style::Look,
    remote::{Client, selector, tasks},
};

/// What a filter may ask for: the states of tasks, and two words for several of them.
const STATES: [&str; 11] = [
    "scheduled",
    "waiting",
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
    "pending",
    "completed",
];

/// A job of at most this many tasks is shown with them to people.
const SMALL: u64 = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job (17, census) or tasks of one (17.0, census.scan)
    #[arg(value_name = "WORK")]
    work: String,
    /// The tasks of the job as well
    #[arg(long)]
    tasks: bool,
    /// Only tasks in this state; several may be given; implies --tasks
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = STATES)]
    state: Vec<String>,
    /// How many tasks at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    if args.work.contains('.') {
        show_tasks(ctl, &client, &args).await?;
    } else {
        show_job(ctl, client, &args).await?;
    }
    Ok(Exit::OK)
}

async fn show_tasks(ctl: &Ctl, client: &Client, args: &Args) -> Result<(), Error> {
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut found = tasks::first(client, &args.work, &args.state, limit).await?;
    look_at_agents(client, &mut found.tasks).await?;
    match found.tasks.as_slice() {
        [one] if args.state.is_empty() && found.next_page_token.is_none() => ctl.output.one(one)?,
        all => ctl.output.items(&found, all)?,
    }
    if found.next_page_token.is_some() {
        ctl.output.note(Look::Dim, "there are more tasks: --limit N, or --state STATE");
    }
    Ok(())
}

/// What runs on an agent that is away says so.
async fn look_at_agents(client: &Client, tasks: &mut [Task]) -> Result<(), Error> {
    if tasks.iter().all(|task| task.state != "running") {
        return Ok(());
    }
    let reply = client.rpc.clone().list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
    let agents = Agents::of(reply).agents;
    tasks.iter_mut().filter(|task| task.state == "running").for_each(|task| task.look_at(&agents));
    Ok(())
}

async fn show_job(ctl: &Ctl, mut client: Client, args: &Args) -> Result<(), Error> {
    let request = v1::GetJobRequest { selector: selector(&args.work) };
    let reply = client.rpc.get_job(request).await?.into_inner();
    let summary = reply.summary.ok_or_else(|| Error::new(Exit::FAULT, "the controller's answer holds no job"))?;
    let job = crate::model::job::Job::from(summary);
    let wanted = args.tasks || !args.state.is_empty();
    let small = !ctl.output.is_machine() && job.tasks.total <= SMALL;
    let mut more = false;
    let tasks = if wanted || small {
        let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
        let mut found = tasks::first(&client, &job.id.to_string(), &args.state, limit).await?;
        look_at_agents(&client, &mut found.tasks).await?;
        more = found.next_page_token.is_some();
        Some(found.tasks)
    } else {
        None
    };
    let metadata = reply.spec.as_ref().map(|spec| spec.metadata.clone().into_iter().collect()).unwrap_or_default();
    let detail = Detail { job, metadata, groups: group::of(reply.groups, reply.spec), tasks };
    ctl.output.one(&detail)?;
    if more {
        ctl.output.note(Look::Dim, "there are more tasks: --limit N, or --state STATE");
    }
    Ok(())
}
