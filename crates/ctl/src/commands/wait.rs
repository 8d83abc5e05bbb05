//! `ctl wait`: until jobs, or tasks of them, are over.

use std::time::Duration;

use futures::future;
use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::{change::Waited, job::Job},
    output::Output,
    remote::{Client, follow::Watch, selector, tasks},
};

/// The states that a task leaves, as filters.
const OPEN: [&str; 5] = ["scheduled", "waiting", "queued", "running", "retrying"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Jobs, or tasks of them
    #[arg(value_name = "WORK", required = true)]
    work: Vec<String>,
    /// Stop waiting after this (30s, 5m, 2h); the work goes on
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    let all = future::try_join_all(args.work.iter().map(|work| wait(&client, ctl.output, work)));
    let ended = match args.timeout {
        Some(limit) => tokio::time::timeout(limit, all).await.ok(),
        None => Some(all.await),
    };
    let (waited, exit) = match ended {
        Some(ended) => {
            let ended = ended?;
            let exit = ended.iter().fold(Exit::OK, |exit, (_, other)| exit.and(*other));
            (Waited { jobs: ended.into_iter().map(|(job, _)| job).collect(), timed_out: false }, exit)
        }
        None => {
            let jobs = future::try_join_all(args.work.iter().map(|work| get(&client, work))).await?;
            let jobs = jobs.into_iter().map(|(job, _)| job).collect();
            (Waited { jobs, timed_out: true }, Exit::WAIT_TIMED_OUT)
        }
    };
    ctl.output.items(&waited, &waited.jobs)?;
    Ok(exit)
}

/// What a job that is over means to the one who waited.
pub(crate) fn exit_of(job: &Job) -> Exit {
    match job.state {
        "succeeded" => Exit::OK,
        "cancelled" => Exit::CANCELLED,
        "skipped" => Exit::SKIPPED,
        _ => Exit::FAILED,
    }
}

async fn wait(client: &Client, output: Output, work: &str) -> Result<(Job, Exit), Error> {
    let (job, named) = get(client, work).await?;
    // By its number: a name may come to stand for a second job while this waits.
    let mut watch = Watch::new(client, output, job.id.to_string());
    if named.is_none() {
        let job = watch.finish().await?;
        let exit = exit_of(&job);
        return Ok((job, exit));
    }
    let tail = work.rsplit_once('.').map_or(work, |(_, tail)| tail);
    let work = format!("{}.{tail}", job.id);
    loop {
        // Tasks of a job: its summary changes whenever they do.
        let job = watch.next().await?;
        match of_tasks(client, &work, job.is_final()).await {
            Ok(Some(exit)) => return Ok((job, exit)),
            Ok(None) => {}
            // The watch is gone as well: it finds the controller again, or says that it did not.
            Err(error) if error.is_unreachable() && !job.is_final() => {}
            Err(error) => return Err(error),
        }
    }
}

/// The end of tasks that are over.
async fn of_tasks(client: &Client, work: &str, is_over: bool) -> Result<Option<Exit>, Error> {
    if !is_over && any(client, work, &OPEN).await? {
        return Ok(None);
    }
    let table = [("failed", Exit::FAILED), ("cancelled", Exit::CANCELLED), ("succeeded", Exit::OK)];
    for (state, exit) in table {
        if any(client, work, &[state]).await? {
            return Ok(Some(exit));
        }
    }
    Ok(Some(Exit::SKIPPED))
}

async fn any(client: &Client, work: &str, states: &[&str]) -> Result<bool, Error> {
    let states: Vec<_> = states.iter().map(|state| (*state).to_owned()).collect();
    Ok(!tasks::page(client, work, &states, 1, "").await?.tasks.is_empty())
}

/// The job that is meant, and the tasks of it where not all of it is.
async fn get(client: &Client, work: &str) -> Result<(Job, Option<v1::TaskRange>), Error> {
    let request = v1::GetJobRequest { selector: selector(work) };
    let reply = client.rpc.clone().get_job(request).await?.into_inner();
    Ok((Job::from(reply.summary.unwrap_or_default()), reply.tasks))
}
