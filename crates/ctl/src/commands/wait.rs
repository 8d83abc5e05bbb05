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
        _ => Exit::FAILED,
    }
}

async fn wait(client: &Client, output: Output, work: &str) -> Result<(Job, Exit), Error> {
    // Tasks of a job: its summary changes whenever they do.
    let Some((job, _)) = work.split_once('.') else {
        let job = Watch::new(client, output, work).finish().await?;
        let exit = exit_of(&job);
        return Ok((job, exit));
    };
    let mut watch = Watch::new(client, output, job);
    loop {
        let job = watch.next().await?;
        if job.is_final() || !any(client, work, &OPEN).await? {
            let exit = if any(client, work, &["failed"]).await? {
                Exit::FAILED
            } else if any(client, work, &["cancelled"]).await? {
                Exit::CANCELLED
            } else {
                Exit::OK
            };
            return Ok((job, exit));
        }
    }
}

async fn any(client: &Client, work: &str, states: &[&str]) -> Result<bool, Error> {
    let states: Vec<_> = states.iter().map(|state| (*state).to_owned()).collect();
    Ok(!tasks::page(client, work, &states, 1, "").await?.tasks.is_empty())
}

async fn get(client: &Client, work: &str) -> Result<Job, Error> {
    let job = work.split_once('.').map_or(work, |(job, _)| job);
    let request = v1::GetJobRequest { selector: selector(job) };
    let reply = client.rpc.clone().get_job(request).await?.into_inner();
    Ok(Job::from(reply.summary.unwrap_or_default()))
}
