//! All that is known, and the one function through which it changes.

mod access;
mod agents;
mod audit;
mod cancel;
pub mod check;
mod deps;
mod entry;
mod explain;
mod fleet;
mod identity;
mod ladder;
mod lease;
mod queues;
mod recover;
mod report;
mod retry;
mod round;
mod submit;
mod tick;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use explain::{Explained, Explanation, Reason};
pub use fleet::{Fleet, FleetQuery, Presence, Totals};
pub use queues::QueueStatus;
pub use recover::RecoverError;

pub use crate::config::{Config, Placement};
use crate::{
    agent::Agent,
    event::{Answer, Event, Refusal, Step},
    id::{AgentId, GroupId, JobId, SessionId, TaskId},
    ready::Ready,
    record::{AgentRecord, Key, Meta, Piece, Summary},
    resources::Request,
    state::{CHUNK_TASKS, State, Task},
    time::{Mono, Now, Timestamp},
};
use audit::Ledger;
use entry::Entry;
use identity::Identities;
use queues::Lane;

/// When `Event::Tick` is next of use, by each clock; none: not before something happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakeup {
    /// By the wall clock.
    pub wall: Option<Timestamp>,
    /// By the monotonic clock.
    pub mono: Option<Mono>,
}

/// One agent as `ctl agents` shows it.
#[derive(Clone, Debug)]
pub struct AgentStatus {
    /// What is stored of it.
    pub record: Arc<AgentRecord>,
    /// Its connection; none: silent.
    pub session: Option<SessionId>,
    /// What tasks may take of it: its offer, and less where a person says so.
    pub capacity: Request,
    /// What running leases take of it.
    pub used: Request,
    /// Leases that take resources.
    pub running: u32,
    /// Leases sent ahead, which wait there for room.
    pub ahead: u32,
    /// When it last gave a sign.
    pub last_seen: Mono,
    /// It is about to stop and takes nothing new.
    pub stops: bool,
    /// It is away, and something of it may go on alone until then; none: nothing does.
    pub kept_until: Option<Mono>,
}

/// Something that time alone brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A group's start time.
    Start(GroupId),
    /// The end of a finished job's retention.
    Expire(JobId),
}

/// All that is known.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    meta: Meta,
    next_token: u64,
    next_job: u64,
    next_agent: u64,
    jobs: BTreeMap<JobId, Entry>,
    /// Clients' keys, for repeated submissions.
    keys: BTreeMap<Arc<str>, JobId>,
    /// Groups of unfinished jobs that wait for something of another job.
    watchers: BTreeMap<JobId, BTreeSet<GroupId>>,
    agents: BTreeMap<AgentId, Agent>,
    uids: BTreeMap<Arc<str>, AgentId>,
    deadlines: BTreeSet<(Mono, AgentId)>,
    /// When what still runs on a drained agent is ended, by the clock that never jumps.
    drains: BTreeSet<(Mono, AgentId)>,
    identities: Identities,
    queues: BTreeMap<Arc<str>, Lane>,
    tokens: BTreeMap<Arc<str>, Arc<crate::access::Token>>,
    ledger: Ledger,
    ready: Ready,
    timers: BTreeSet<(Timestamp, Due)>,
    /// Ends of back-offs, by the clock that never jumps, each with the `retry_at` that it stands for.
    backoffs: BTreeSet<(Mono, TaskId, Timestamp)>,
    /// Groups whose last task became final and whose dependants were not told yet.
    ended: Vec<GroupId>,
    step: Step,
}

impl Cluster {
    /// A cluster that knows nothing.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            meta: Meta::default(),
            next_token: 1,
            next_job: 1,
            next_agent: 1,
            jobs: BTreeMap::new(),
            keys: BTreeMap::new(),
            watchers: BTreeMap::new(),
            agents: BTreeMap::new(),
            uids: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            drains: BTreeSet::new(),
            identities: Identities::default(),
            queues: BTreeMap::new(),
            tokens: BTreeMap::new(),
            ledger: Ledger::default(),
            ready: Ready::default(),
            timers: BTreeSet::new(),
            backoffs: BTreeSet::new(),
            ended: Vec::new(),
            step: Step::default(),
        }
    }

    /// The one way in which anything changes. A refusal changes nothing but may carry effects that
    /// tell somebody so (an acknowledgement of a report that came too late).
    pub fn handle(&mut self, now: Now, event: Event) -> (Step, Result<Answer, Refusal>) {
        let answer = self.dispatch(now, event);
        self.settle(now);
        (std::mem::take(&mut self.step), answer)
    }

    fn dispatch(&mut self, now: Now, event: Event) -> Result<Answer, Refusal> {
        match event {
            Event::Submit(submission) => self.submit(now, submission),
            Event::Cancel { target, by, reason, teardown_too } => self.cancel(now, target, &by, &reason, teardown_too),
            Event::Retry { target, which } => self.retry(now, target, which),
            Event::SetQueue(queue) => self.set_queue(queue),
            Event::Tend(tending) => self.tend(now, tending),
            Event::Identity(change) => self.identify(now, change),
            Event::By { caller, event } => self.by(now, &caller, *event),
            Event::Note(note) => {
                self.note(now, note);
                Ok(Answer::Done)
            }
            Event::CreateToken(new) => self.create_token(now, new),
            Event::RevokeToken { which } => self.revoke_token(now, &which),
            Event::Attach { uid, offer, session, holding } => self.attach(now, uid, offer, session, &holding),
            Event::Offer { agent, session, offer } => self.offer(now, agent, session, offer),
            Event::Heartbeat { agent, session, stamp } => self.heartbeat(now, agent, session, stamp),
            Event::Report { agent, session, report } => self.report(now, agent, session, report),
            Event::Detach { agent, session } => self.detach(agent, session),
            Event::Drain { agent, session } => self.drain(agent, session),
            Event::Leave { agent, session } => self.leave(now, agent, session),
            Event::Tick => {
                self.tick(now);
                Ok(Answer::Done)
            }
            Event::Round => {
                self.round(now);
                Ok(Answer::Done)
            }
        }
    }

    /// The piece behind a changed key, as it is now; none: it is to be deleted.
    pub fn piece(&self, key: &Key) -> Option<Piece> {
        let entry = |job: &JobId| self.jobs.get(job);
        match key {
            Key::Meta => Some(Piece::Meta(self.meta)),
            Key::Identity(name) => self.identities.piece(name).map(Piece::Identity),
            Key::Queue(name) => self.queues.get(name)?.stored().map(Piece::Queue),
            Key::Token(id) => self.tokens.get(id).cloned().map(Piece::Token),
            Key::Audit(n) => self.ledger.block(*n).cloned().map(Piece::Audit),
            Key::Agent(id) => self.agents.get(id).map(|agent| Piece::Agent(Arc::clone(&agent.record))),
            Key::Job(id) => entry(id).map(|entry| Piece::Job(Arc::clone(&entry.job))),
            Key::Cancel(id) => entry(id)?.cancel.clone().map(Piece::Cancel),
            Key::Chunk(id, n) => entry(id)?.chunks.get(*n as usize)?.clone().map(Piece::Chunk),
            Key::Result(task) => entry(&task.job)?.results.get(&task.index).cloned().map(Piece::Result),
        }
    }

    /// A job's counts; none: there is no such job.
    pub fn summary(&self, job: JobId) -> Option<Summary> {
        self.jobs.get(&job).map(Entry::summary)
    }

    /// When time alone will change something.
    pub fn wakeup(&self) -> Wakeup {
        let silence = self.deadlines.first().map(|(at, _)| *at);
        let backoff = self.backoffs.first().map(|(at, ..)| *at);
        let drain = self.drains.first().map(|(at, _)| *at);
        Wakeup {
            wall: self.timers.first().map(|(at, _)| *at),
            mono: silence.into_iter().chain(backoff).chain(drain).min(),
        }
    }

    /// Every agent, by number.
    pub fn agents(&self) -> Vec<AgentStatus> {
        self.agents.values().map(|agent| self.status(agent)).collect()
    }

    fn status(&self, agent: &Agent) -> AgentStatus {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        AgentStatus {
            record: Arc::clone(&agent.record),
            session: agent.session,
            capacity: agent.capacity().clone(),
            used: agent.used().clone(),
            stops: agent.draining,
            running: count(agent.active()),
            ahead: count(agent.ahead()),
            last_seen: agent.last_seen,
            kept_until: agent.kept_until(self.config.lease_ttl, self.config.lease_margin),
        }
    }

    /// Whether anything stands in line that a round could give out.
    pub fn has_ready_work(&self) -> bool {
        self.ready.busy().next().is_some()
    }

    fn changed(&mut self, key: Key) {
        self.step.changes.push(key);
    }

    fn touched_job(&mut self, job: JobId) {
        if self.step.jobs.last() != Some(&job) {
            self.step.jobs.push(job);
        }
    }

    /// Moves one task and tells its counts, its queue and, when it was the last, its group (T1). Returns
    /// false, with nothing changed, when the table does not allow it.
    fn move_task(&mut self, id: TaskId, to: State, change: impl FnOnce(&mut Task)) -> bool {
        let Some(entry) = self.jobs.get_mut(&id.job) else { return false };
        let Some(from) = entry.state_of(id.index) else { return false };
        if !from.may_become(to) {
            return false;
        }
        self.put_task(id, from, to, change)
    }

    /// `move_task` for a person's retry, which alone leaves final states (T2).
    fn reopen_task(&mut self, id: TaskId, change: impl FnOnce(&mut Task)) -> bool {
        let from = self.jobs.get(&id.job).and_then(|entry| entry.state_of(id.index));
        match from {
            Some(from) if from.is_final() => self.put_task(id, from, State::Waiting, change),
            _ => false,
        }
    }

    fn put_task(&mut self, id: TaskId, from: State, to: State, change: impl FnOnce(&mut Task)) -> bool {
        let Some(entry) = self.jobs.get_mut(&id.job) else { return false };
        let group = entry.group_of(id.index);
        let Some(task) = entry.touch(id.index) else { return false };
        task.state = to;
        change(task);
        let ended = entry.shift(group, from, to);
        if let Some(lane) = self.queues.get_mut(&entry.queue) {
            lane.shift(from, to, 1);
        }
        if ended {
            self.ended.push(GroupId { job: id.job, index: group });
        }
        self.changed(Key::Chunk(id.job, id.index / CHUNK_TASKS));
        self.touched_job(id.job);
        true
    }

    /// Changes a task without moving it.
    fn edit_task(&mut self, id: TaskId, change: impl FnOnce(&mut Task)) {
        let Some(task) = self.jobs.get_mut(&id.job).and_then(|entry| entry.touch(id.index)) else { return };
        change(task);
        self.changed(Key::Chunk(id.job, id.index / CHUNK_TASKS));
        self.touched_job(id.job);
    }

    /// Moves a group and all its tasks that stand where it stands.
    fn move_group(&mut self, id: GroupId, to: State, why: Option<&Arc<str>>) {
        let Some(entry) = self.jobs.get_mut(&id.job) else { return };
        let Some(group) = entry.group(id.index) else { return };
        let from = group.phase;
        let n = group.tally.get(from);
        let chunks = entry.set_phase(id.index, to, why);
        let ended = entry.group(id.index).is_some_and(|group| group.tally.is_finished());
        if let Some(lane) = self.queues.get_mut(&entry.queue) {
            lane.shift(from, to, u64::from(n));
        }
        if ended {
            self.ended.push(id);
        }
        for n in chunks {
            self.changed(Key::Chunk(id.job, n));
        }
        self.touched_job(id.job);
    }
}
