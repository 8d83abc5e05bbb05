//! A person ends work.

use std::sync::Arc;

use super::Cluster;
use crate::{
    event::{Answer, Effect, Refusal, Target},
    id::{GroupId, JobId, TaskId},
    mutant,
    record::{Cancel, Key},
    spec::Role,
    state::{State, Stopping},
    time::Now,
};

#[derive(Default)]
struct Count {
    ended: u32,
    already: u32,
}

impl Cluster {
    pub(super) fn cancel(
        &mut self,
        now: Now,
        target: Target,
        by: &Arc<str>,
        reason: &Arc<str>,
        teardown_too: bool,
    ) -> Result<Answer, Refusal> {
        let job = target.job();
        if !self.jobs.contains_key(&job) {
            return Err(Refusal::NotFound(format!("job {job}")));
        }
        let count = match target {
            Target::Job(job) => self.cancel_job(now, job, by, reason, teardown_too),
            Target::Tasks { job, first, count } => self.cancel_tasks(job, first, count, &why(by, reason))?,
        };
        Ok(Answer::Cancelled { tasks: count.ended, already_final: count.already })
    }

    fn cancel_job(&mut self, now: Now, job: JobId, by: &Arc<str>, reason: &Arc<str>, teardown_too: bool) -> Count {
        let mut count = Count::default();
        let why = why(by, reason);
        let Some(entry) = self.jobs.get_mut(&job) else { return count };
        if entry.is_finished() {
            count.already = entry.total();
            return count;
        }
        let teardown_too = teardown_too || entry.cancel.as_ref().is_some_and(|cancel| cancel.teardown_too);
        let skipped = (0..).zip(&entry.groups).filter(|(_, g)| g.phase == State::Skipped).map(|(i, _)| i).collect();
        let cancel = Cancel { at: now.wall, by: Arc::clone(by), reason: Arc::clone(reason), teardown_too, skipped };
        entry.cancel = Some(Arc::new(cancel));
        entry.last_end = entry.last_end.max(now.wall);
        let groups: Vec<GroupId> = (0..)
            .zip(&entry.groups)
            .filter(|(_, group)| group.spec.role != Role::Teardown || teardown_too)
            .map(|(index, _)| GroupId { job, index })
            .collect();
        self.changed(Key::Cancel(job));
        self.touched_job(job);
        for group in groups {
            self.cancel_group(group, &why, &mut count);
        }
        count
    }

    fn cancel_group(&mut self, id: GroupId, why: &Arc<str>, count: &mut Count) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let Some(group) = entry.group(id.index) else { return };
        let (first, n, phase) = (group.first, group.count, group.phase);
        let moved = if phase.is_final() { 0 } else { group.tally.get(phase) };
        count.already += group.tally.finished();
        let alone: Vec<TaskId> = entry
            .runs(first, first + n)
            .into_iter()
            .filter(|(_, _, state)| matches!(state, State::Running | State::Retrying))
            .flat_map(|(first, n, _)| (first..first + n).map(|index| entry.task_id(index)))
            .collect();
        if !phase.is_final() {
            self.dequeue(id, first, n);
            self.move_group(id, State::Cancelled, Some(why));
        }
        count.ended += moved;
        for task in alone {
            self.cancel_task(task, why, count);
        }
    }

    fn cancel_tasks(&mut self, job: JobId, first: u32, n: u32, why: &Arc<str>) -> Result<Count, Refusal> {
        let mut count = Count::default();
        let total = self.jobs.get(&job).map_or(0, super::Entry::total);
        if n == 0 || first >= total || n > total - first {
            return Err(Refusal::NotFound(format!("task {first} of job {job}, which has {total} tasks,")));
        }
        for index in first..first + n {
            self.cancel_task(TaskId::new(job, index), why, &mut count);
        }
        Ok(count)
    }

    fn cancel_task(&mut self, id: TaskId, why: &Arc<str>, count: &mut Count) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let Some(state) = entry.state_of(id.index) else { return };
        let group = GroupId { job: id.job, index: entry.group_of(id.index) };
        match state {
            State::Succeeded | State::Failed | State::Cancelled | State::Skipped => count.already += 1,
            State::Running => {
                count.ended += 1;
                self.stop(id, why);
            }
            State::Scheduled | State::Waiting | State::Queued | State::Retrying => {
                count.ended += 1;
                self.dequeue(group, id.index, 1);
                self.move_task(id, State::Cancelled, |task| task.why = Some(Arc::clone(why)));
            }
        }
    }

    /// The task is cancelled when its process is seen dead, not before (A3).
    fn stop(&mut self, id: TaskId, why: &Arc<str>) {
        let Some(task) = self.jobs.get(&id.job).and_then(|entry| entry.touched(id.index)) else { return };
        let Some(attempt) = task.live() else { return };
        let (agent, token) = (attempt.agent, attempt.token);
        self.edit_task(id, |task| {
            task.stopping = Some(Stopping::Cancel);
            task.why = Some(Arc::clone(why));
        });
        if mutant::is_on("freed-at-cancel")
            && let Some(agent) = self.agents.get_mut(&agent)
        {
            agent.drop_holding(token);
        }
        if let Some(session) = self.agents.get(&agent).and_then(|agent| agent.session) {
            self.step.effects.push(Effect::Stop { agent, session, token, why: Stopping::Cancel });
        }
    }
}

fn why(by: &str, reason: &str) -> Arc<str> {
    let by = if by.is_empty() { "somebody" } else { by };
    match reason {
        "" => Arc::from(format!("cancelled by {by}")),
        _ => Arc::from(format!("cancelled by {by}: {reason}")),
    }
}
