//! A store is taken up: the same state as before, from the pieces that were committed. Counts, phases
//! and lines are derived again; only what cannot be derived is stored.

use std::{sync::Arc, time::Duration};

use super::{Cluster, Config, Due};
use crate::{
    backoff,
    event::Step,
    id::{AgentId, GroupId, JobId, TaskId, Token},
    mutant,
    record::{Job, Key, Piece},
    spec::Role,
    state::{CHUNK_TASKS, Chunk, State},
    time::{Now, Timestamp},
};

/// Why a store cannot be taken up. Nothing may be written to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A piece refers to one that is not there.
    #[error("{what} belongs to {owner}, which the store does not have")]
    Orphan {
        /// The piece.
        what: String,
        /// What it needs.
        owner: String,
    },
    /// A piece contradicts another, or its own key.
    #[error("{0}")]
    Inconsistent(String),
}

impl Cluster {
    /// Takes up what a store holds (nothing, for a new one), in any order. Every agent that was not
    /// given up has `lease_ttl + lease_margin` from `now` to come back.
    ///
    /// # Errors
    /// The pieces contradict one another; nothing should be written to such a store.
    pub fn recover(
        config: Config,
        pieces: impl IntoIterator<Item = (Key, Piece)>,
        now: Now,
    ) -> Result<(Self, Step), RecoverError> {
        let mut cluster = Self::new(config);
        let mut parts = Vec::new();
        let mut jobs = Vec::new();
        let deadline = now.mono.after(cluster.config.lease_ttl + cluster.config.lease_margin);
        for (key, piece) in pieces {
            match (key, piece) {
                (Key::Meta, Piece::Meta(meta)) => cluster.meta = meta,
                (Key::Identity(name), Piece::Identity(piece))
                    if cluster.identities.remember(name.clone(), piece.clone()) => {}
                (Key::Queue(name), Piece::Queue(queue)) => cluster.lane(&name).set(queue),
                (Key::Token(id), Piece::Token(token)) if token.id == id => _ = cluster.tokens.insert(id, token),
                (Key::Audit(n), Piece::Audit(block)) => cluster.ledger.adopt(n, block),
                (Key::Agent(id), Piece::Agent(record)) if record.id == id => cluster.remember(record, now, deadline),
                (Key::Job(id), Piece::Job(job)) if job.id == id => jobs.push(job),
                (key @ (Key::Chunk(..) | Key::Cancel(_) | Key::Result(_)), piece) => parts.push((key, piece)),
                (key, _) => {
                    return Err(RecoverError::Inconsistent(format!("the record under {key:?} is of another kind")));
                }
            }
        }
        cluster.next_token = cluster.meta.token_ceiling.max(1);
        cluster.next_agent = cluster.next_agent.max(cluster.meta.agent_floor + 1);
        cluster.next_job = cluster.meta.job_floor + 1;
        // A job depends on older ones only.
        jobs.sort_by_key(|job| job.id);
        for job in jobs {
            cluster.recover_job(job)?;
        }
        for (key, piece) in parts {
            cluster.recover_part(key, piece)?;
        }
        cluster.rebuild(now)?;
        let step = std::mem::take(&mut cluster.step);
        Ok((cluster, step))
    }

    fn recover_job(&mut self, job: Arc<Job>) -> Result<(), RecoverError> {
        let id = job.id;
        self.next_job = self.next_job.max(id.0 + 1);
        let problems = crate::validate::check_stored(&job.spec);
        if let Some(problem) = problems.first() {
            return Err(RecoverError::Inconsistent(format!(
                "the spec of job {id} is not one that was accepted: {problem}"
            )));
        }
        let entry = self
            .build_entry(job)
            .map_err(|refusal| RecoverError::Inconsistent(format!("job {id} cannot be taken up: {refusal}")))?;
        if !entry.job.key.is_empty() {
            self.keys.insert(Arc::clone(&entry.job.key), id);
        }
        self.jobs.insert(id, entry);
        Ok(())
    }

    fn recover_part(&mut self, key: Key, piece: Piece) -> Result<(), RecoverError> {
        let job = key.job().unwrap_or_default();
        let Some(entry) = self.jobs.get_mut(&job) else {
            return Err(RecoverError::Orphan { what: format!("{key:?}"), owner: format!("job {job}") });
        };
        let wrong = || RecoverError::Inconsistent(format!("{key:?} does not fit the spec of job {job}"));
        match (&key, piece) {
            (Key::Cancel(_), Piece::Cancel(cancel)) => entry.cancel = Some(cancel),
            (Key::Result(task), Piece::Result(result)) if task.index < entry.total() => {
                entry.results.insert(task.index, result);
            }
            (Key::Chunk(..), Piece::Chunk(_)) if mutant::is_on("chunks-ignored") => {}
            (Key::Chunk(_, n), Piece::Chunk(chunk)) => {
                let expected = entry.total().saturating_sub(n.saturating_mul(CHUNK_TASKS)).min(CHUNK_TASKS);
                if expected == 0 || chunk.tasks.len() != expected as usize {
                    return Err(wrong());
                }
                *entry.chunks.get_mut(*n as usize).ok_or_else(wrong)? = Some(chunk);
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Everything that is derived. First what every group's tasks say, then what follows from it: nothing
    /// is decided before all is known.
    fn rebuild(&mut self, now: Now) -> Result<(), RecoverError> {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        let mut leases = Vec::new();
        for id in &ids {
            self.recount(now, *id, &mut leases)?;
        }
        leases.sort_unstable();
        for (token, agent, task) in leases {
            self.readopt(token, agent, task)?;
        }
        for id in &ids {
            self.rejoin(now, *id);
        }
        self.settle(now);
        Ok(())
    }

    /// Counts a job's tasks from its chunks, and the phases that are not derived from dependencies.
    fn recount(&mut self, now: Now, id: JobId, leases: &mut Vec<(Token, AgentId, TaskId)>) -> Result<(), RecoverError> {
        let Some(entry) = self.jobs.get_mut(&id) else { return Ok(()) };
        let cancel = entry.cancel.clone();
        for index in 0..u32::try_from(entry.groups.len()).unwrap_or(u32::MAX) {
            let Some(group) = entry.group(index) else { continue };
            let ended = match &cancel {
                Some(cancel) if cancel.skipped.contains(&index) => Some(State::Skipped),
                Some(cancel) if group.spec.role != Role::Teardown || cancel.teardown_too => Some(State::Cancelled),
                _ => None,
            };
            if let Some(state) = ended {
                entry.set_phase(index, state, None);
            }
        }
        let mut backoffs = Vec::new();
        let (mut first_lease, mut last_end) = (Timestamp(u64::MAX), entry.job.submitted);
        for n in 0..entry.chunks.len() {
            let Some(chunk) = entry.chunks.get(n).cloned().flatten() else { continue };
            let base = u32::try_from(n).unwrap_or(u32::MAX) * CHUNK_TASKS;
            for (task, index) in chunk.tasks.iter().zip(base..) {
                for attempt in task.past.iter().chain(&task.attempt) {
                    first_lease = first_lease.min(attempt.leased);
                    last_end = last_end.max(attempt.ended);
                }
                match (task.state, task.live()) {
                    (State::Running, Some(live)) => leases.push((live.token, live.agent, TaskId::new(id, index))),
                    (State::Running, None) => {
                        return Err(RecoverError::Inconsistent(format!("task {id}.{index} runs without an attempt")));
                    }
                    _ => {}
                }
                let group = entry.group_of(index);
                let phase = entry.group(group).map_or(State::Waiting, |group| group.phase);
                entry.shift(group, phase, if is_phase(task.state) { phase } else { task.state });
                if task.state == State::Retrying {
                    backoffs.push((index, task.retry_at, u32::from(task.retries)));
                }
            }
            normalise(entry, n, base, &chunk);
        }
        entry.started = if first_lease.0 == u64::MAX { Timestamp(0) } else { first_lease };
        entry.last_end = cancel.map_or(last_end, |cancel| last_end.max(cancel.at));
        for (index, retry_at, retry) in backoffs {
            // Never longer than the policy allows, whatever became of the clock meanwhile.
            let task = TaskId::new(id, index);
            let policy = entry.group(entry.group_of(index)).map(|group| &group.spec.retry);
            let longest = policy.map_or(Duration::ZERO, |policy| backoff::delay(policy, task, retry));
            let at = now.mono.after(retry_at.since(now.wall).min(longest));
            self.backoffs.insert((at, task, retry_at));
        }
        self.ends_if_finished(id);
        Ok(())
    }

    /// A job whose every task is final by its chunks is finished; others may yet turn out to be.
    fn ends_if_finished(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        if entry.is_finished() {
            entry.finished = entry.last_end;
            self.timers.insert((entry.last_end.after(self.config.retention), Due::Expire(id)));
        }
    }

    fn readopt(&mut self, token: Token, agent: AgentId, task: TaskId) -> Result<(), RecoverError> {
        let Some(demand) = self.demand(task) else { return Ok(()) };
        let Some(agent) = self.agents.get_mut(&agent) else {
            return Err(RecoverError::Orphan {
                what: format!("the lease of task {task}"),
                owner: format!("agent {agent}"),
            });
        };
        agent.adopt(token, task, demand);
        Ok(())
    }

    /// Puts a counted job among the others and lets its groups go on.
    fn rejoin(&mut self, now: Now, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let mut open_work = 0;
        for group in &mut entry.groups {
            // Its dependants look for themselves below; later ends are told as ever.
            group.told = group.tally.is_finished();
            open_work += u32::from(!group.told && group.spec.role != Role::Teardown);
        }
        entry.open_work = open_work;
        let (queue, tally, finished) = (Arc::clone(&entry.queue), entry.tally, entry.is_finished());
        let groups = entry.groups.len();
        let lane = self.lane(&queue);
        for state in State::ALL {
            lane.add(state, u64::from(tally.get(state)));
        }
        if !finished {
            self.watch(id);
        }
        for index in 0..groups {
            self.advance(now, GroupId { job: id, index: u32::try_from(index).unwrap_or(u32::MAX) });
        }
        self.touched_job(id);
    }
}

/// States that a group gives its tasks, and that are derived.
fn is_phase(state: State) -> bool {
    matches!(state, State::Waiting | State::Scheduled | State::Queued)
}

/// Tasks that wait, in whatever way, stand where their group stands: that is derived again.
fn normalise(entry: &mut super::Entry, n: usize, base: u32, chunk: &Arc<Chunk>) {
    let stale = |index: u32, state: State| {
        let phase = entry.group(entry.group_of(index)).map_or(State::Waiting, |group| group.phase);
        (is_phase(state) && state != phase).then_some(phase)
    };
    let moves: Vec<(usize, State)> = chunk
        .tasks
        .iter()
        .zip(base..)
        .enumerate()
        .filter_map(|(place, (task, index))| stale(index, task.state).map(|phase| (place, phase)))
        .collect();
    if moves.is_empty() {
        return;
    }
    let mut fresh = (**chunk).clone();
    for (place, phase) in moves {
        if let Some(task) = fresh.tasks.get_mut(place) {
            task.state = phase;
        }
    }
    if let Some(slot) = entry.chunks.get_mut(n) {
        *slot = Some(Arc::new(fresh));
    }
}
