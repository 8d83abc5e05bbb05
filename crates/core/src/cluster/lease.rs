//! Attempts begin and end here, and nowhere else.

use std::{sync::Arc, time::Duration};

use super::Cluster;
use crate::{
    agent::Room,
    backoff,
    event::{Effect, Lease},
    id::{AgentId, GroupId, TaskId, Token},
    record::{Key, TaskResult},
    spec::{OnLost, RetryPolicy, Role},
    state::{Attempt, End, State, Stopping, Task},
    time::{Now, Timestamp},
    usage::Usage,
};

/// Tokens are taken from the store in blocks, so that a lease costs no write of its own.
const TOKEN_BLOCK: u64 = 1 << 20;
/// Earlier attempts that are kept with a task.
const PAST_MAX: usize = 20;

/// How an attempt ended, as its agent or its agent's silence says.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) end: End,
    pub(super) why: Option<Arc<str>>,
    pub(super) started: Timestamp,
    pub(super) ended: Timestamp,
    pub(super) result: Option<TaskResult>,
    pub(super) usage: Option<Usage>,
    /// Its agent ended it to be empty: that is nobody's fault and counts as nothing.
    pub(super) free: bool,
}

impl Ending {
    /// The attempt is gone with its agent.
    pub(super) fn lost(now: Now, why: &str) -> Self {
        Self {
            end: End::Lost,
            why: Some(Arc::from(why)),
            started: Timestamp(0),
            ended: now.wall,
            result: None,
            usage: None,
            free: false,
        }
    }
}

impl Cluster {
    fn next_token(&mut self) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        if token >= self.meta.token_ceiling {
            self.meta.token_ceiling = token + TOKEN_BLOCK;
            self.changed(Key::Meta);
        }
        Token(token)
    }

    /// Gives a queued task to an agent that has room for it. The caller took it out of line.
    pub(super) fn lease(&mut self, now: Now, id: TaskId, agent_id: AgentId, room: Room) {
        let Some(session) = self.agents.get(&agent_id).and_then(|agent| agent.session) else { return };
        let token = self.next_token();
        let mut number = 0;
        let moved = self.move_task(id, State::Running, |task| {
            number = task.attempts() + 1;
            if let Some(before) = task.attempt.take() {
                if task.past.len() >= PAST_MAX {
                    task.past.remove(0);
                }
                task.past.push(before);
            }
            task.attempt = Some(Attempt {
                number,
                token,
                agent: agent_id,
                leased: now.wall,
                started: Timestamp(0),
                ended: Timestamp(0),
                end: None,
                why: None,
                usage: None,
            });
        });
        let Some(entry) = self.jobs.get_mut(&id.job).filter(|_| moved) else { return };
        if entry.started.is_never() {
            entry.started = now.wall;
        }
        let index = entry.group_of(id.index);
        let Some(group) = entry.group(index) else { return };
        let task = entry.touched(id.index);
        let demand = group.demand(task);
        let lease = Lease {
            token,
            task: id,
            attempt: number,
            group: index,
            offset: id.index - group.first,
            job: Arc::clone(&entry.job),
            has_inputs: group.has_inputs,
            memory: demand.memory,
        };
        if let Some(agent) = self.agents.get_mut(&agent_id) {
            agent.hold(token, id, demand, room);
        }
        self.step.effects.push(Effect::Lease { agent: agent_id, session, lease });
    }

    /// Ends a task's live attempt: final, or another one after it. The holding is the caller's.
    pub(super) fn end_attempt(&mut self, now: Now, id: TaskId, ending: Ending) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let index = entry.group_of(id.index);
        let Some(group) = entry.group(index) else { return };
        let Some(task) = entry.touched(id.index) else { return };
        let (shape, spec) = (group.shape_of(Some(task)), Arc::clone(&group.spec));
        let Some(ending) = self.ended_by_drain(task, ending) else { return self.undo_lease(id) };
        let free = ending.free;
        let ending_job = entry.cancel.as_ref().is_some_and(|c| spec.role != Role::Teardown || c.teardown_too);
        let climbs = group.climbs(task, ending.end) && task.stopping != Some(Stopping::Cancel) && !ending_job;
        let losses_max = if free { u16::MAX } else { self.config.losses_max };
        let to = match climbs {
            true => State::Queued,
            false => next_state(task, &spec.retry, spec.on_lost, ending.end, losses_max, ending_job),
        };
        let retry = u32::from(task.retries) + 1;
        let delay = backoff::delay(&spec.retry, id, retry);
        let retry_at = now.wall.after(delay);
        let Ending { end, why, started, ended, result, usage, .. } = ending;
        let moved = self.move_task(id, to, |task| {
            if let Some(attempt) = task.attempt.as_mut() {
                attempt.end = Some(end);
                attempt.why = why;
                attempt.ended = ended;
                attempt.usage = usage;
                if !started.is_never() {
                    attempt.started = started;
                }
            }
            task.stopping = None;
            task.retry_at = Timestamp(0);
            if end == End::Lost && !free {
                task.losses = task.losses.saturating_add(1);
            }
            if climbs {
                task.ooms = task.ooms.saturating_add(1);
            }
            if to == State::Retrying {
                task.retries = task.retries.saturating_add(1);
                task.retry_at = retry_at;
            }
        });
        if !moved {
            return;
        }
        if let Some(entry) = self.jobs.get_mut(&id.job) {
            entry.last_end = entry.last_end.max(ended);
        }
        if to == State::Retrying {
            self.backoffs.insert((now.mono.after(delay), id, retry_at));
        }
        if to == State::Queued {
            self.requeue(id, GroupId { job: id.job, index });
        }
        if to == State::Succeeded {
            self.keep_result(id, result);
        }
        if !started.is_never() && end != End::Lost {
            self.ready.learn(shape, took_us(ended.since(started)));
        }
    }

    fn keep_result(&mut self, id: TaskId, result: Option<TaskResult>) {
        let Some(result) = result else { return };
        if let Some(entry) = self.jobs.get_mut(&id.job) {
            entry.results.insert(id.index, Arc::new(result));
            self.changed(Key::Result(id));
        }
    }

    /// Undoes a lease whose attempt never began: the task stands in line again, and the attempt's
    /// number is free.
    pub(super) fn undo_lease(&mut self, id: TaskId) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let index = entry.group_of(id.index);
        let cancelled = entry.touched(id.index).is_some_and(|task| task.stopping == Some(Stopping::Cancel));
        let to = if cancelled { State::Cancelled } else { State::Queued };
        let moved = self.move_task(id, to, |task| {
            task.attempt = task.past.pop();
            task.stopping = None;
        });
        if moved && to == State::Queued {
            self.requeue(id, GroupId { job: id.job, index });
        }
    }
}

fn took_us(took: Duration) -> u64 {
    crate::time::micros(took)
}

/// What a task becomes when its attempt ends.
fn next_state(task: &Task, retry: &RetryPolicy, on_lost: OnLost, end: End, losses_max: u16, ending_job: bool) -> State {
    let stopped = task.stopping == Some(Stopping::Cancel) || ending_job;
    let retried = u32::from(task.retries) < retry.max;
    match end {
        End::Succeeded => State::Succeeded,
        End::Cancelled => State::Cancelled,
        _ if stopped => State::Cancelled,
        End::Lost => match on_lost {
            OnLost::Retry if task.losses.saturating_add(1) < losses_max => State::Queued,
            OnLost::Retry | OnLost::Fail => State::Failed,
        },
        End::Exit(code) if retried && (retry.exit_codes.is_empty() || retry.exit_codes.contains(&code)) => {
            State::Retrying
        }
        End::Signal(_) | End::Timeout | End::Oom | End::ScratchFull | End::NotStarted
            if retried && retry.exit_codes.is_empty() =>
        {
            State::Retrying
        }
        // What survives a kill may still do work: nothing may run beside it.
        End::Exit(_)
        | End::Signal(_)
        | End::Timeout
        | End::Oom
        | End::ScratchFull
        | End::NotStarted
        | End::KillFailed => State::Failed,
    }
}
