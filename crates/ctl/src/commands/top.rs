//! `ctl top`: the cluster on a live screen; without a terminal, one frame of it as text.
//!
//! It asks for pages only: a cluster of ten thousand agents is looked through a page at a time, and its totals come with
//! each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal as _,
    time::Duration,
};

use muster_common::{proto::v1, shutdown};
use muster_core::time::Timestamp;
use muster_top::{Picture, Share, View};
use tokio::time::timeout;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::{agent::Agent, job::Job, task::Task},
    output::{self, time},
    remote::{Client, selector},
};

/// Agents that are asked for at once.
const AGENTS: u32 = 500;
/// Jobs that are looked at for tasks that run, and jobs that ended.
const JOBS: u32 = 8;
const ENDS: u32 = 30;
/// Tasks of one job, and of all.
const TASKS_EACH: u32 = 20;
const TASKS: usize = 60;
/// Nobody waits longer for an answer before the screen says so.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// The one frame of who has no terminal.
const SIZE: (u16, u16) = (100, 40);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Between two looks
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Only lines that hold this text
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    let mut watch =
        Watch { about: client.place.url.clone(), client, ctl, agents: BTreeMap::new(), round: Round::default() };
    let view = View { filter: args.filter, ..View::default() };
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        while watch.look().await? {}
        let text = muster_top::frame(&watch.picture().await?, &view, SIZE).map_err(|error| broken(&error))?;
        output::raw(text.as_bytes())?;
        return Ok(Exit::OK);
    }
    let colours = ctl.output.style.is_on();
    let interval = args.interval.max(Duration::from_millis(100));
    // What is wrong already is told before the screen is taken.
    watch.look().await?;
    let first = watch.picture().await?;
    let mut last = first.clone();
    let look = async || {
        match timeout(LOOK_LIMIT, async {
            watch.look().await.map(drop)?;
            watch.picture().await
        })
        .await
        {
            Ok(Ok(picture)) => last = picture,
            Ok(Err(error)) => {
                let words = error.to_string().lines().next().unwrap_or_default().to_owned();
                let is_away = error.is_unreachable();
                last.problem = Some(if is_away { format!("{} does not answer: {words}", watch.about) } else { words });
            }
            Err(_) => last.problem = Some(format!("{} has not answered for {} s", watch.about, LOOK_LIMIT.as_secs())),
        }
        last.clone()
    };
    tokio::select! {
        shown = muster_top::run(first, view, look, interval, colours) => shown.map_err(|error| broken(&error))?,
        // The terminal is put back before we end.
        _ = shutdown::signal() => return Err(Error::Quiet(Exit::INTERRUPTED)),
    }
    Ok(Exit::OK)
}

fn broken(error: &std::io::Error) -> Error {
    let exit = if error.kind() == std::io::ErrorKind::Unsupported { Exit::USAGE } else { Exit::FAULT };
    Error::new(exit, format!("the live screen cannot be shown: {error}"))
}

/// One way through all agents.
#[derive(Debug, Default)]
struct Round {
    token: String,
    seen: BTreeSet<u64>,
}

struct Watch<'a> {
    ctl: &'a Ctl,
    client: Client,
    about: String,
    agents: BTreeMap<u64, muster_top::Agent>,
    round: Round,
}

impl Watch<'_> {
    /// The next page of agents; whether there are more behind it.
    async fn look(&mut self) -> Result<bool, Error> {
        // Whatever ends this look early ends the round: the next one begins with the first page.
        let mut round = std::mem::take(&mut self.round);
        let page_token = std::mem::take(&mut round.token);
        let request = v1::ListAgentsRequest { page_size: AGENTS, page_token, ..Default::default() };
        let reply = self.client.rpc.list_agents(request).await?.into_inner();
        for view in reply.agents {
            round.seen.insert(view.id);
            let id = view.id;
            // One that is gone for good is no news on a screen.
            if matches!(view.state.as_str(), "lost" | "stopped") {
                self.agents.remove(&id);
            } else {
                self.agents.insert(id, Agent::from(view).on_screen());
            }
        }
        round.token = reply.next_page_token;
        if round.token.is_empty() {
            self.agents.retain(|id, _| round.seen.contains(id));
            return Ok(false);
        }
        self.round = round;
        Ok(true)
    }

    async fn picture(&mut self) -> Result<Picture, Error> {
        let now = self.ctl.output.clock().wall();
        let request = v1::ListAgentsRequest { only_totals: true, ..Default::default() };
        let totals = self.client.rpc.list_agents(request).await?.into_inner().totals.unwrap_or_default();
        let queues = self.client.rpc.list_queues(v1::ListQueuesRequest {}).await?.into_inner().queues;
        let queued = queues.iter().map(|queue| queue.queued).sum();
        let (tasks, ends) = (self.tasks(now).await?, self.ends(now).await?);
        Ok(Picture {
            about: self.about.clone(),
            clock: time::instant(now.0).and_then(|at| Some(at.get(11..19)?.to_owned() + " UTC")).unwrap_or_default(),
            problem: None,
            totals: totals_of(totals, queued),
            agents: self.agents.values().cloned().collect(),
            tasks,
            queues: queues.into_iter().map(queue).collect(),
            ends,
        })
    }

    async fn jobs(&mut self, states: &[&str], page_size: u32) -> Result<Vec<v1::JobSummary>, Error> {
        let states = states.iter().map(|state| (*state).to_owned()).collect();
        let request = v1::ListJobsRequest { states, page_size, ..Default::default() };
        Ok(self.client.rpc.list_jobs(request).await?.into_inner().jobs)
    }

    async fn tasks(&mut self, now: Timestamp) -> Result<Vec<muster_top::Task>, Error> {
        let mut found = Vec::new();
        for job in self.jobs(&["running"], JOBS).await? {
            if found.len() >= TASKS || job.tally.as_ref().is_none_or(|tally| tally.running == 0) {
                continue;
            }
            let states = vec!["running".to_owned()];
            let selector = selector(&job.id.to_string());
            let request = v1::ListTasksRequest { selector, states, page_size: TASKS_EACH, ..Default::default() };
            // It may have been deleted since.
            let Ok(reply) = self.client.rpc.list_tasks(request).await else { continue };
            found.extend(reply.into_inner().tasks.into_iter().map(|task| Task::from(task).on_screen(&job.name, now)));
        }
        found.truncate(TASKS);
        Ok(found)
    }

    async fn ends(&mut self, now: Timestamp) -> Result<Vec<muster_top::End>, Error> {
        let mut jobs = self.jobs(&["succeeded", "failed", "cancelled", "skipped"], ENDS).await?;
        jobs.sort_by_key(|job| std::cmp::Reverse(job.finished_us));
        let end = |job: v1::JobSummary| muster_top::End {
            job: format!("{} {}", job.id, job.name),
            ago: time::age(job.finished_us, now),
            state: Job::from(job).state.to_owned(),
        };
        Ok(jobs.into_iter().map(end).collect())
    }
}

#[expect(clippy::cast_precision_loss, reason = "bars and short numbers")]
fn totals_of(totals: v1::AgentTotals, queued: u64) -> muster_top::Totals {
    let (used, all) = (totals.used.unwrap_or_default(), totals.capacity.unwrap_or_default());
    let share = |used: u64, all: u64, unit: f64| Share { used: used as f64 / unit, all: all as f64 / unit };
    muster_top::Totals {
        connected: totals.connected,
        cordoned: totals.cordoned,
        silent: totals.silent + totals.away,
        lost: totals.lost,
        cpus: share(used.cpu_milli, all.cpu_milli, 1000.0),
        memory: share(used.memory_bytes, all.memory_bytes, 1.0),
        gpus: share(used.gpus, all.gpus, 1.0),
        running: totals.running,
        queued,
    }
}

fn queue(view: v1::QueueView) -> muster_top::Queue {
    let queue = view.queue.unwrap_or_default();
    let name = if queue.paused { format!("{} (paused)", queue.name) } else { queue.name };
    muster_top::Queue { name, running: view.running, queued: view.queued }
}
