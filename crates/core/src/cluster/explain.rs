//! Why tasks are where they are: every reason at once, from the code that decides (S2).

use std::sync::Arc;

use super::{
    Cluster,
    deps::Said,
    entry::{Entry, Group, Source},
};
use crate::{
    agent::{Agent, Demand, HOLDINGS_MAX},
    event::{Refusal, Target},
    fleet::Cordon,
    id::TaskId,
    resources::{Request, Shortage},
    spec::{Requires, Role},
    state::{State, Stopping, Task},
    time::{Now, Timestamp},
};

/// About so many reasons are told at one time, for the one writer makes them. All that is to be said of the last tasks is.
const REASONS_MAX: usize = 10_000;

/// Why tasks are where they are: one answer for neighbours that share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The first of them.
    pub task: TaskId,
    /// How many share this answer.
    pub count: u32,
    /// Where they are.
    pub state: State,
    /// All reasons; never empty for a task that waits (S2).
    pub reasons: Vec<Reason>,
}

/// Why tasks are where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// In order of their tasks.
    pub answers: Vec<Explanation>,
    /// Tasks that were asked about and of which nothing is told, for there would be too much.
    pub untold: u32,
}

/// One reason why a task does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Stable, for machines: `waiting-for`, `teardown`, `start-at`, `retry-at`, `queue-full`,
    /// `queue-paused`, `no-agent`, `agent-mismatch`, `agent-too-small`, `agent-busy`, `agent-cordoned`, `agent-unfit`, `agent-draining`, `agent-silent`,
    /// `behind`, `next-round`, `stopping`, `draining`, `on-agent`, `agent-away`, `skipped`, `cancelled`, `ended`.
    pub code: &'static str,
    /// For people.
    pub text: String,
    /// What would unblock it, for people; may be empty.
    pub unblock: String,
    /// The agent that this is about.
    pub agent: Option<Arc<str>>,
}

impl Reason {
    fn new(code: &'static str, text: String, unblock: impl Into<String>) -> Self {
        Self { code, text, unblock: unblock.into(), agent: None }
    }

    fn about(code: &'static str, agent: &Agent, text: String, unblock: impl Into<String>) -> Self {
        Self { code, text, unblock: unblock.into(), agent: Some(Arc::from(agent.record.offer.name.as_str())) }
    }
}

impl Cluster {
    /// Why tasks are where they are.
    ///
    /// # Errors
    /// There is no such work.
    pub fn explain(&self, now: Now, target: Target) -> Result<Explained, Refusal> {
        let job = target.job();
        let entry = self.jobs.get(&job).ok_or_else(|| Refusal::NotFound(format!("job {job}")))?;
        let (first, end) = match target {
            Target::Job(_) => (0, entry.total()),
            Target::Tasks { first, count, .. } => (first, first.saturating_add(count).min(entry.total())),
        };
        if first >= end {
            return Err(Refusal::NotFound(format!("task {first} of job {job}")));
        }
        let mut told = Explained::default();
        let mut spent = 0;
        for (group, index) in entry.groups.iter().zip(0_u32..) {
            let (from, to) = (group.first.max(first), group.end().min(end));
            if from >= to {
                continue;
            }
            for (start, count, state) in entry.runs(from, to) {
                for (start, count) in alike(entry, group, (start, count, state)) {
                    if spent >= REASONS_MAX {
                        told.untold += count;
                        continue;
                    }
                    let reasons = self.reasons(now, entry, (index, group), start, state);
                    // Agents were looked at, whether there was something to say of them or not.
                    let looked_at = if state == State::Queued { self.agents.len() } else { 0 };
                    spent += reasons.len().max(looked_at).max(1);
                    told.answers.push(Explanation { task: entry.task_id(start), count, state, reasons });
                }
            }
        }
        Ok(told)
    }

    fn reasons(&self, now: Now, entry: &Entry, of: (u32, &Group), index: u32, state: State) -> Vec<Reason> {
        let (_, group) = of;
        let task = entry.touched(index);
        let why = task.and_then(|task| task.why.as_deref()).unwrap_or_default();
        match state {
            State::Waiting => self.open_edges(entry, group),
            State::Scheduled => {
                let at = group.spec.start_at.unwrap_or_default();
                vec![Reason::new("start-at", format!("starts in {}", ago(at, now.wall)), "its start time comes")]
            }
            State::Retrying => {
                let at = task.map_or(Timestamp(0), |task| task.retry_at);
                let last = task.and_then(ended_how).unwrap_or_default();
                vec![Reason::new(
                    "retry-at",
                    format!("{last}; tries again in {}", ago(at, now.wall)),
                    "its back-off ends",
                )]
            }
            State::Queued => self.why_queued(entry, group, index),
            State::Running => self.why_running(now, &group.demand(task), task),
            State::Skipped => {
                vec![Reason::new("skipped", self.why_skipped(entry, group, why), "retry what it depends on")]
            }
            State::Cancelled => {
                let by =
                    entry.cancel.as_ref().map_or(why.to_owned(), |c| format!("cancelled by {}: {}", c.by, c.reason));
                vec![Reason::new("cancelled", if why.is_empty() { by } else { why.to_owned() }, "`ctl retry`")]
            }
            State::Succeeded => vec![Reason::new("ended", "it succeeded".to_owned(), "")],
            State::Failed => {
                let how = task.and_then(ended_how).unwrap_or_default();
                let tries = task.map_or(0, Task::attempts);
                let text = format!("{how}, after {tries} attempt(s) of at most {}", group.spec.retry.max + 1);
                vec![Reason::new("ended", text, "`ctl logs` shows what it wrote; `ctl retry` tries again")]
            }
        }
    }

    fn open_edges(&self, entry: &Entry, group: &Group) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for edge in &group.edges {
            if self.said(entry, *edge) != Said::Open {
                continue;
            }
            let (source, part, name) = match edge.source {
                Source::Group(index) => (
                    Some(entry),
                    Some(index),
                    entry.group(index).map_or_else(String::new, |g| format!("`{}`", g.spec.name)),
                ),
                Source::Job(job, part) => (self.jobs.get(&job), part, format!("job {job}")),
            };
            let tally = source.map(|source| part.and_then(|part| source.group(part)).map_or(source.tally, |g| g.tally));
            let (done, total) = tally.map_or((0, 0), |tally| (tally.finished(), tally.total()));
            let text = format!("waits for {name}, of which {done} of {total} tasks have ended");
            reasons.push(Reason::new("waiting-for", text, format!("{name} ends")));
        }
        if group.spec.role == Role::Teardown && entry.open_work > 0 {
            let text = format!("tears down after all other work; {} entries are open", entry.open_work);
            reasons.push(Reason::new("teardown", text, "the rest of the job ends"));
        }
        reasons
    }

    fn why_skipped(&self, entry: &Entry, group: &Group, why: &str) -> String {
        let broken = group.edges.iter().find_map(|edge| match self.said(entry, *edge) {
            Said::Broken(why) => Some(why),
            Said::Met | Said::Open => None,
        });
        match broken {
            Some(why) => format!("can never start: {why}"),
            None => format!("can never start: {why}"),
        }
    }

    fn why_queued(&self, entry: &Entry, group: &Group, index: u32) -> Vec<Reason> {
        let task = entry.touched(index);
        let (demand, shape) = (group.demand(task), group.shape_of(task));
        let mut reasons: Vec<Reason> = why_more_memory(&demand, task).into_iter().collect();
        if let Some(reason) = reasons.first_mut() {
            let has = |agent: &Agent| !agent.record.lost && agent.capacity().memory >= demand.request().memory;
            if !self.agents.values().any(has) {
                let cap = "an agent with that much; or `ctl cancel`, and submit it again with a `cap` in `oom_retries`";
                cap.clone_into(&mut reason.unblock);
            }
        }
        if let Some(lane) = self.queues.get(&entry.queue) {
            let name = &lane.queue.name;
            if lane.queue.paused {
                let unblock = format!("`ctl queue set {name} --resume`");
                reasons.push(Reason::new("queue-paused", format!("queue `{name}` is paused"), unblock));
            } else if lane.room() == 0 {
                let text = format!("queue `{name}` runs {} tasks, which is its limit", lane.running);
                reasons.push(Reason::new(
                    "queue-full",
                    text,
                    format!("one of them ends, or `ctl queue set {name} --max-running`"),
                ));
            }
        }
        let mean_us = self.ready.mean_us(shape);
        let (request, needs) = (demand.request(), demand.spec.needs());
        for agent in self.agents.values() {
            reasons.extend(why_not(agent, &request, &needs, mean_us));
        }
        if self.agents.is_empty() {
            reasons.push(Reason::new(
                "no-agent",
                "no agent has ever connected".to_owned(),
                "start one: `muster-agent`",
            ));
        }
        let before = self.ready.ahead_of(shape, group.spec.priority, entry.job.id, index);
        if before > 0 {
            reasons.push(Reason::new("behind", format!("{before} tasks that ask for the same go first"), "they start"));
        }
        if reasons.iter().all(|reason| reason.code == "more-memory") {
            reasons.push(Reason::new("next-round", "it is about to be leased".to_owned(), ""));
        }
        reasons
    }

    fn why_running(&self, now: Now, demand: &Demand, task: Option<&Task>) -> Vec<Reason> {
        let Some(attempt) = task.and_then(Task::live) else { return Vec::new() };
        let agent = self.agents.get(&attempt.agent);
        let name = agent.map_or_else(|| attempt.agent.to_string(), |agent| agent.record.offer.name.clone());
        let text = format!("attempt {} is with agent `{name}`", attempt.number);
        let mut reasons = vec![Reason::new("on-agent", text, "")];
        reasons.extend(why_more_memory(demand, task));
        if let Some(agent) = agent.filter(|agent| agent.session.is_none()) {
            let away = now.mono.since(agent.last_seen);
            let ttl = self.config.lease_ttl;
            let left = (demand.spec.goes_on_for(ttl) + self.config.lease_margin).saturating_sub(away);
            let text = format!(
                "agent `{name}` has been away for {} s; the attempt is kept for {} s more",
                away.as_secs(),
                left.as_secs()
            );
            reasons.push(Reason::about("agent-away", agent, text, "it connects again"));
        }
        match task.and_then(|task| task.stopping) {
            Some(Stopping::Cancel) => {
                let text = "it is being ended; it counts as cancelled once its processes are seen dead".to_owned();
                reasons.push(Reason::new("stopping", text, ""));
            }
            Some(Stopping::Drain) => {
                let why = agent.and_then(|agent| agent.record.cordon.as_deref()).map(Cordon::text);
                let why = why.unwrap_or_else(|| "was drained".to_owned());
                let text = format!("agent `{name}` {why}; it is being ended there and starts again elsewhere");
                reasons.push(Reason::new("draining", text, "its processes are seen dead"));
            }
            None => {}
        }
        reasons
    }
}

/// Parts of a run whose tasks share an answer: neighbours do only where the answer is the group's, or the line's.
fn alike(entry: &Entry, group: &Group, run: (u32, u32, State)) -> Box<dyn Iterator<Item = (u32, u32)>> {
    let (start, count, state) = run;
    match state {
        State::Running | State::Retrying | State::Failed => Box::new((start..start + count).map(|task| (task, 1))),
        State::Queued => {
            let lines = entry.lines(group, start, count).into_iter();
            Box::new(lines.map(|(_, start, count)| (start, count)))
        }
        State::Waiting | State::Scheduled | State::Succeeded | State::Cancelled | State::Skipped => {
            Box::new(std::iter::once((start, count)))
        }
    }
}

/// That a task asks for more memory than its entry does.
fn why_more_memory(demand: &Demand, task: Option<&Task>) -> Option<Reason> {
    let ooms = task.map(|task| task.ooms).filter(|ooms| *ooms > 0)?;
    let memory = bytes(demand.request().memory);
    let text = format!("asks for {memory} of memory: {ooms} attempt(s) needed more than they had");
    Some(Reason::new("more-memory", text, ""))
}

/// Everything that keeps a task from one agent; empty: it has room.
fn why_not(agent: &Agent, request: &Request, needs: &Requires, mean_us: u64) -> Vec<Reason> {
    let offer = &agent.record.offer;
    let name = &offer.name;
    if agent.record.lost {
        return Vec::new();
    }
    let mut reasons = Vec::new();
    if agent.session.is_none() {
        reasons.push(Reason::about("agent-silent", agent, format!("agent `{name}` is silent"), "it connects again"));
    }
    for mismatch in needs.mismatches(offer) {
        let unblock = "an agent that fits, or another `requires`";
        reasons.push(Reason::about("agent-mismatch", agent, format!("agent `{name}`: {mismatch}"), unblock));
    }
    let never = request.shortages(agent.capacity());
    for short in &never {
        let text = format!(
            "agent `{name}` has {} of {} in all, {} asked for",
            amount(short, short.there),
            short.resource,
            amount(short, short.wanted)
        );
        reasons.push(Reason::about("agent-too-small", agent, text, "ask for less, or a larger agent"));
    }
    if let Some(cordon) = agent.record.cordon.as_ref().filter(|_| never.is_empty() && reasons.is_empty()) {
        let text = format!("agent `{name}` takes no new work: {}", cordon.text());
        return vec![Reason::about("agent-cordoned", agent, text, format!("`ctl agent resume {name}`"))];
    }
    if !offer.unfit.is_empty() && never.is_empty() && reasons.is_empty() {
        let text = format!("agent `{name}` takes no new work: {}", offer.unfit);
        return vec![Reason::about("agent-unfit", agent, text, "that is over, or another agent")];
    }
    if never.is_empty() && reasons.is_empty() && agent.room(request, mean_us).is_none() {
        reasons.extend(request.shortages(agent.free()).iter().map(|short| {
            let text = format!(
                "agent `{name}` has {} of {} free, {} asked for",
                amount(short, short.there),
                short.resource,
                amount(short, short.wanted)
            );
            Reason::about("agent-busy", agent, text, "something there ends")
        }));
        if reasons.is_empty() {
            if agent.draining {
                let text = format!("agent `{name}` is stopping and takes nothing new");
                return vec![Reason::about("agent-draining", agent, text, "it comes back, or another agent")];
            }
            if agent.is_deaf() {
                let text = format!("agent `{name}` connects, and nothing shows that it hears the controller");
                return vec![Reason::about("agent-silent", agent, text, "it answers, or another agent")];
            }
            if agent.is_overfull() {
                let text = format!("agent `{name}` gives less than before, and what runs there takes more than that");
                return vec![Reason::about("agent-busy", agent, text, "something there ends")];
            }
            let full = agent.holdings.len() >= HOLDINGS_MAX;
            let what =
                if full { "holds as many leases as it may" } else { "has leases that wait for room before this" };
            reasons.push(Reason::about("agent-busy", agent, format!("agent `{name}` {what}"), "something there ends"));
        }
    }
    reasons
}

fn amount(short: &Shortage, n: u64) -> String {
    match short.resource.as_str() {
        "cpus" if n.is_multiple_of(1000) => (n / 1000).to_string(),
        "cpus" => format!("{}.{:03}", n / 1000, n % 1000).trim_end_matches('0').to_owned(),
        "memory" => bytes(n),
        _ => n.to_string(),
    }
}

/// A size, for people.
pub(super) fn bytes(n: u64) -> String {
    if n >= 1 << 20 { format!("{} MiB", n >> 20) } else { format!("{n} bytes") }
}

fn ended_how(task: &Task) -> Option<String> {
    let attempt = task.attempt.as_ref()?;
    let end = attempt.end?;
    Some(match &attempt.why {
        Some(why) => format!("{end}: {why}"),
        None => end.to_string(),
    })
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    let wait = at.since(now);
    if wait.as_secs() >= 1 { format!("{} s", wait.as_secs()) } else { format!("{} ms", wait.as_millis()) }
}
