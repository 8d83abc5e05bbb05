//! What an outsider sees: executions in real time, what was promised to clients, what was committed. It
//! asks nothing of the product but its committed pieces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_core::{
    audit,
    event::{Report, What},
    id::{JobId, TaskId, Token},
    record::{Job, Key, Piece},
    spec::{On, OnLost, Role},
    state::{Attempt, Chunk, End, State, Task},
};

/// Everything that was seen, and everything that was wrong with it.
#[derive(Debug, Default)]
pub struct Witness {
    /// What went against an invariant, in order.
    pub violations: Vec<String>,
    /// Executions that are going on.
    running: BTreeMap<TaskId, (Token, usize)>,
    /// Tasks of which an execution was cut short together with its agent, since the last retry by a person.
    lost: BTreeSet<TaskId>,
    /// The highest token each task was seen with.
    tokens: BTreeMap<TaskId, Token>,
    /// Every attempt whose process began, and how that ended as far as it did before its agent's eyes.
    began: BTreeMap<Token, Option<End>>,
    /// Jobs that a client was told of.
    acknowledged: BTreeMap<JobId, String>,
    /// Final states that were committed.
    finals: BTreeMap<TaskId, State>,
    /// Jobs that a person asked to do again, until a commit shows it.
    reopening: BTreeSet<JobId>,
    reopened_now: BTreeSet<JobId>,
    /// Jobs that a person asked to do again at any time.
    redone: BTreeSet<JobId>,
    /// Jobs of which a person cancelled something at any time.
    cancelled: BTreeSet<JobId>,
}

impl Witness {
    fn wrong(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }

    /// A process of this attempt begins on that agent.
    pub fn process_starts(&mut self, task: TaskId, token: Token, agent: usize, store: &BTreeMap<Key, Piece>) {
        if let Some((other, on)) = self.running.insert(task, (token, agent)) {
            self.wrong(format!("T3: {task} starts with {token} on agent {agent} while {other} runs on agent {on}"));
        }
        if self.tokens.get(&task).is_some_and(|seen| *seen >= token) {
            self.wrong(format!("T4: {task} starts with {token}, which is not newer than those before"));
        }
        let before = self.tokens.insert(task, token);
        self.began.insert(token, None);
        self.is_recorded(task, token, before, store);
        let Some(Piece::Job(job)) = store.get(&Key::Job(task.job)) else {
            self.wrong(format!("C1: {task} starts, but its job is not committed"));
            return;
        };
        let job = Arc::clone(job);
        if stored(store, task).and_then(|task| task.attempt.as_ref()).is_none_or(|attempt| attempt.token != token) {
            let newer = stored(store, task).and_then(|task| task.attempt.as_ref()).is_some_and(|a| a.token > token);
            if !newer {
                self.wrong(format!("C1: {task} starts with {token}, which is not committed"));
            }
        }
        if self.lost.contains(&task) && on_lost(&job, task.index) == OnLost::Fail {
            self.wrong(format!("T3: {task} may run at most once, was lost, and starts again"));
        }
        self.dependencies_ended(&job, task, token, store);
    }

    /// The process of this attempt and all that it started are dead.
    pub fn process_is_dead(&mut self, task: TaskId, token: Token) {
        if self.running.get(&task).is_some_and(|(running, _)| *running == token) {
            self.running.remove(&task);
        }
    }

    /// Its agent saw it end so.
    pub fn process_ended(&mut self, token: Token, end: End) {
        self.began.insert(token, Some(end));
    }

    /// A2: the attempt that began before this one is told of, not undone as if it had never begun.
    fn is_recorded(&mut self, task: TaskId, token: Token, before: Option<Token>, store: &BTreeMap<Key, Piece>) {
        let Some(before) = before else { return };
        let Some(known) = stored(store, task).filter(|t| t.attempt.as_ref().is_some_and(|a| a.token == token)) else {
            return;
        };
        if known.past.len() < 20 && known.past.iter().all(|attempt| attempt.token != before) {
            self.wrong(format!("A2: {task} starts with {token}, and nothing tells of {before}, which began before"));
        }
    }

    /// A3, T4: what is committed of an attempt that began is what became of its process.
    fn is_true(&mut self, task: TaskId, attempt: &Attempt) {
        let (Some(end), Some(seen)) = (attempt.end, self.began.get(&attempt.token).copied()) else { return };
        let token = attempt.token;
        if self.running.get(&task).is_some_and(|(running, _)| *running == token) {
            self.wrong(format!("A3: {task} with {token} is committed as ended ({end}) and its process runs"));
        } else if end != End::Lost && seen != Some(end) {
            self.wrong(format!("T4: {task} with {token} is committed as ended ({end}); its process: {seen:?}"));
        }
    }

    /// C1: an agent is told to end an attempt.
    pub fn stop_leaves(&mut self, token: Token, store: &BTreeMap<Key, Piece>) {
        let Some(task) = self.running.iter().find(|(_, (running, _))| *running == token).map(|(task, _)| *task) else {
            return;
        };
        let live = |task: &&Task| task.live().is_some_and(|attempt| attempt.token == token);
        if stored(store, task).filter(live).is_some_and(|task| task.stopping.is_none()) {
            self.wrong(format!("C1: {task} with {token} is stopped, and that is not committed"));
        }
    }

    /// C1, A2: an agent may forget this report.
    pub fn acknowledged(&mut self, report: &Report, store: &BTreeMap<Key, Piece>) {
        let live = |task: &Task| task.live().is_some_and(|attempt| attempt.token == report.token);
        if !matches!(report.what, What::Started { .. }) && stored(store, report.task).is_some_and(live) {
            self.wrong(format!("C1: the end of {} is acknowledged and not committed", report.token));
        }
    }

    /// The execution ended with its agent: nobody knows how far it came.
    pub fn process_is_lost(&mut self, task: TaskId, token: Token) {
        self.process_is_dead(task, token);
        self.lost.insert(task);
    }

    /// D1, by what was committed.
    fn dependencies_ended(&mut self, job: &Job, task: TaskId, token: Token, store: &BTreeMap<Key, Piece>) {
        let Some((spec, _)) = spec_of(job, task.index) else { return };
        let mut first = 0;
        for other in &job.spec.tasks {
            let named =
                spec.after.iter().any(|after| after.job.is_none() && after.task.as_deref() == Some(&other.name));
            let before = named
                || (other.role == Role::Setup && spec.role == Role::Work)
                || (spec.role == Role::Teardown && other.role != Role::Teardown);
            let asks = |on: On| {
                let after = |a: &muster_core::spec::After| a.task.as_deref() == Some(&other.name) && a.on == on;
                spec.after.iter().any(after)
                    || (on == On::Success && other.role == Role::Setup && spec.role == Role::Work)
            };
            if before && !self.redone.contains(&task.job) {
                let is =
                    |index, state| stored(store, TaskId::new(task.job, index)).is_some_and(|task| task.state == state);
                let all = (first..first + other.count()).all(|index| is(index, State::Succeeded));
                if (asks(On::Success) && !all) || (asks(On::Failure) && all) {
                    self.wrong(format!("D1: {task} starts although `{}` did not end as it asks", other.name));
                }
            }
            for index in first..first + other.count() {
                let id = TaskId::new(task.job, index);
                if before && self.running.get(&id).is_some_and(|(other, _)| *other < token) {
                    self.wrong(format!("D1: {task} starts while {id}, which it waits for, runs"));
                }
                // A person may have it done again after this lease was given; then its own token is newer.
                let older = |task: &Task| task.attempt.as_ref().is_some_and(|attempt| attempt.token < token);
                let open = |task: &Task| matches!(task.state, State::Running | State::Retrying);
                if before && stored(store, id).is_some_and(|task| open(task) && older(task)) {
                    self.wrong(format!("D1: {task} starts before {id} has ended"));
                }
            }
            first += other.count();
        }
    }

    /// A client was told that its job is accepted.
    pub fn accepted(&mut self, job: JobId, key: &str, store: &BTreeMap<Key, Piece>) {
        match store.get(&Key::Job(job)) {
            Some(Piece::Job(stored)) if *stored.key == *key => {}
            _ => self.wrong(format!("K1: job {job} was promised for key {key} and is not stored")),
        }
        if let Some(other) = self.acknowledged.iter().find(|(other, known)| known.as_str() == key && **other != job) {
            let other = *other.0;
            self.wrong(format!("K1: key {key} is job {other} and job {job}"));
        }
        self.acknowledged.insert(job, key.to_owned());
    }

    /// A person asked for new attempts: tasks of this job may leave their final states, in one commit.
    pub fn reopened(&mut self, job: JobId) {
        self.reopening.insert(job);
        self.redone.insert(job);
        self.lost.retain(|task| task.job != job);
    }

    /// A person asked for an end of this job, or of some of it.
    pub fn cancels(&mut self, job: JobId) {
        self.cancelled.insert(job);
    }

    /// Before a commit becomes true: no lease in it is new on an agent that was cordoned before and still is.
    pub fn cordons_hold(&mut self, pieces: &[(Key, Option<Piece>)], store: &BTreeMap<Key, Piece>) {
        let touched = |agent| pieces.iter().any(|(key, _)| *key == Key::Agent(agent));
        for (key, piece) in pieces {
            let (Key::Chunk(job, n), Some(Piece::Chunk(chunk))) = (key, piece) else { continue };
            for (task, index) in chunk.tasks.iter().zip(n * muster_core::state::CHUNK_TASKS..) {
                let (id, Some(live)) = (TaskId::new(*job, index), task.live()) else { continue };
                let known = stored(store, id).is_some_and(|task| {
                    task.past.iter().chain(&task.attempt).any(|attempt| attempt.token == live.token)
                });
                let Some(Piece::Agent(agent)) = store.get(&Key::Agent(live.agent)) else { continue };
                if !known && agent.cordon.is_some() && !touched(live.agent) {
                    let (token, agent) = (live.token, live.agent);
                    self.wrong(format!("{id} is leased with {token} to agent {agent}, which is cordoned"));
                }
            }
        }
    }

    /// All pieces of a commit were seen: what a person asked for has happened, if it did.
    pub fn commit_is_over(&mut self) {
        for job in std::mem::take(&mut self.reopened_now) {
            self.reopening.remove(&job);
        }
    }

    /// A piece of a commit became true.
    pub fn committed(&mut self, key: &Key, before: Option<&Piece>, after: Option<&Piece>) {
        match (key, before, after) {
            (Key::Chunk(job, n), _, Some(Piece::Chunk(chunk))) => self.chunk(*job, *n, chunk),
            (Key::Job(job), Some(_), Some(_)) => self.wrong(format!("the spec of job {job} was written twice")),
            (Key::Job(job), _, None) if self.acknowledged.contains_key(job) => {
                self.wrong(format!("K1: job {job} was promised and is gone"));
            }
            (Key::Cancel(job), _, Some(Piece::Cancel(cancel))) if &*cancel.by == "stranger" => {
                self.wrong(format!("R1: job {job} was cancelled by somebody who may not touch it"));
            }
            _ => {}
        }
    }

    fn chunk(&mut self, job: JobId, n: u32, chunk: &Chunk) {
        for (task, index) in chunk.tasks.iter().zip(n * muster_core::state::CHUNK_TASKS..) {
            let id = TaskId::new(job, index);
            task.past.iter().chain(&task.attempt).for_each(|attempt| self.is_true(id, attempt));
            let before = self.finals.get(&id).copied().filter(|state| *state != task.state);
            match before {
                Some(_) if self.reopening.contains(&job) => {
                    self.reopened_now.insert(job);
                    self.finals.remove(&id);
                }
                Some(state) => self.wrong(format!("T2: {id} was {state} and is {}", task.state)),
                None => {}
            }
            if task.state == State::Cancelled && !self.cancelled.contains(&job) {
                self.wrong(format!("{id} is cancelled, and nobody asked for that"));
            }
            if task.state.is_final() {
                self.finals.insert(id, task.state);
            }
        }
    }

    /// At the end: the chain of the audit log holds, and each promised job has one record of its submission.
    pub fn audited(&mut self, store: &BTreeMap<Key, Piece>) {
        let blocks = store.values().filter_map(|piece| match piece {
            Piece::Audit(block) => Some(block),
            _ => None,
        });
        let records: Vec<_> = blocks.flat_map(|block| &block.records).collect();
        if let Err(broken) = audit::verify(records.iter().copied()) {
            self.wrong(format!("I23: the audit log does not hold together: {broken}"));
        }
        for job in self.acknowledged.keys().copied().collect::<Vec<_>>() {
            let is_its = |record: &&&audit::Record| *record.action == *"submit" && *record.object == *job.to_string();
            let count = records.iter().filter(is_its).count();
            if count != 1 {
                self.wrong(format!("I23: the submission of job {job} is recorded {count} times"));
            }
        }
    }

    /// What was promised and is not finished, when all faults are over and time has passed.
    pub fn unfinished(&mut self, is_finished: impl Fn(JobId) -> bool) {
        let open: Vec<JobId> = self.acknowledged.keys().copied().filter(|job| !is_finished(*job)).collect();
        if let Some(job) = open.first() {
            self.wrong(format!("L1: {} promised jobs never finished, first job {job}", open.len()));
        }
        if let Some((task, (token, agent))) = self.running.first_key_value() {
            let text = format!("A3: {task} still runs with {token} on agent {agent}");
            self.wrong(text);
        }
    }

    /// How many jobs were promised.
    pub fn promised(&self) -> usize {
        self.acknowledged.len()
    }
}

/// The task as the store has it; none: no chunk tells of it.
pub fn stored(store: &BTreeMap<Key, Piece>, task: TaskId) -> Option<&Task> {
    let size = muster_core::state::CHUNK_TASKS;
    match store.get(&Key::Chunk(task.job, task.index / size)) {
        Some(Piece::Chunk(chunk)) => chunk.tasks.get((task.index % size) as usize),
        _ => None,
    }
}

fn spec_of(job: &Job, index: u32) -> Option<(&muster_core::spec::TaskSpec, u32)> {
    let mut first = 0;
    for spec in &job.spec.tasks {
        if index < first + spec.count() {
            return Some((spec, index - first));
        }
        first += spec.count();
    }
    None
}

fn on_lost(job: &Job, index: u32) -> OnLost {
    spec_of(job, index).map_or(OnLost::Retry, |(spec, _)| spec.on_lost)
}
