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
    let mut watch = Watch { about: client.place.url.clone(), client, ctl, roll: Roll::default() };
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

/// All agents that are known, looked through a page at a time.
#[derive(Debug, Default)]
struct Roll {
    known: BTreeMap<u64, muster_top::Agent>,
    round: Round,
}

impl Roll {
    /// What the next page belongs to. Whatever loses that page ends the round: the next one begins with the first page.
    fn next(&mut self) -> Round {
        std::mem::take(&mut self.round)
    }

    /// That page came; whether there are more behind it.
    fn take(&mut self, mut round: Round, page: v1::ListAgentsReply) -> bool {
        for view in page.agents {
            round.seen.insert(view.id);
            let id = view.id;
            // One that is gone for good is no news on a screen.
            if matches!(view.state.as_str(), "lost" | "stopped") {
                self.known.remove(&id);
            } else {
                self.known.insert(id, Agent::from(view).on_screen());
            }
        }
        round.token = page.next_page_token;
        if round.token.is_empty() {
            self.known.retain(|id, _| round.seen.contains(id));
            return false;
        }
        self.round = round;
        true
    }
}

struct Watch<'a> {
    ctl: &'a Ctl,
    client: Client,
    about: String,
    roll: Roll,
}

impl Watch<'_> {
    /// The next page of agents; whether there are more behind it.
    async fn look(&mut self) -> Result<bool, Error> {
        let round = self.roll.next();
        let request =
            v1::ListAgentsRequest { page_size: AGENTS, page_token: round.token.clone(), ..Default::default() };
        let page = self.client.rpc.list_agents(request).await?.into_inner();
        Ok(self.roll.take(round, page))
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
            agents: self.roll.known.values().cloned().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn page(ids: std::ops::Range<u64>, next: &str) -> v1::ListAgentsReply {
        let view = |id| v1::AgentView { id, state: "connected".to_owned(), ..Default::default() };
        v1::ListAgentsReply { agents: ids.map(view).collect(), next_page_token: next.to_owned(), ..Default::default() }
    }

    fn known(roll: &Roll) -> Vec<u64> {
        roll.known.keys().copied().collect()
    }

    #[test]
    fn a_lost_page_begins_the_round_anew_and_takes_nobody_off_the_screen() {
        let mut roll = Roll::default();
        let round = roll.next();
        assert!(roll.take(round, page(0..3, "3")));
        let round = roll.next();
        assert!(!roll.take(round, page(3..6, "")));
        assert_eq!(known(&roll), [0, 1, 2, 3, 4, 5]);

        let round = roll.next();
        assert!(roll.take(round, page(0..3, "3")));
        let lost = roll.next();
        assert_eq!(lost.token, "3");
        drop(lost);
        assert_eq!(known(&roll), [0, 1, 2, 3, 4, 5], "who was on the page that did not come stays");

        // Meanwhile some went: who was seen in the round that broke off does not count as seen in this one.
        let round = roll.next();
        assert_eq!((round.token.as_str(), round.seen.len()), ("", 0), "it goes on where nobody waits for it");
        assert!(!roll.take(round, page(2..5, "")));
        assert_eq!(known(&roll), [2, 3, 4]);
    }
}
