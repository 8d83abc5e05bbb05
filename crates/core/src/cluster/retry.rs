//! A person asks for new attempts at final tasks: the only way out of a final state (T2).

use super::{Cluster, Due, deps::Said, entry::Group};
use crate::{
    event::{Answer, Refusal, Target, Which},
    id::{GroupId, JobId, TaskId},
    record::Key,
    spec::Role,
    state::{State, Stopping, Task},
    time::{Now, Timestamp},
};

fn qualifies(state: State, which: Which) -> bool {
    match which {
        Which::All => state.is_final(),
        Which::Failed => matches!(state, State::Failed | State::Cancelled | State::Skipped),
    }
}

fn reset(task: &mut Task) {
    task.retries = 0;
    task.losses = 0;
    task.ooms = 0;
    task.stopping = None;
    task.retry_at = Timestamp(0);
    task.why = None;
}

impl Cluster {
    pub(super) fn retry(&mut self, now: Now, target: Target, which: Which) -> Result<Answer, Refusal> {
        let job = target.job();
        let Some(entry) = self.jobs.get(&job) else { return Err(Refusal::NotFound(format!("job {job}"))) };
        let (first, end) = match target {
            Target::Job(_) => (0, entry.total()),
            Target::Tasks { first, count, .. } if first < entry.total() => (first, first.saturating_add(count)),
            Target::Tasks { first, .. } => return Err(Refusal::NotFound(format!("task {first} of job {job}"))),
        };
        if entry.cancel.is_some() && !matches!(target, Target::Job(_)) {
            return Err(Refusal::Conflict(format!(
                "job {job} was cancelled as a whole; retry it as a whole: `ctl retry {job}`"
            )));
        }
        if let Some(index) = self.still_ending(job, first, end) {
            return Err(Refusal::Conflict(format!(
                "task {job}.{index} was cancelled and its processes are still being ended; wait for that: `ctl wait {job}`"
            )));
        }
        let open_before = entry.tally.total() - entry.tally.finished();
        let groups = self.groups_to_reopen(job, first, end, which);
        if groups.is_empty() {
            return Err(Refusal::Conflict(format!("nothing in {job} has ended in a way that this would retry")));
        }
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.finished = Timestamp(0);
            if entry.cancel.take().is_some() {
                self.changed(Key::Cancel(job));
            }
        }
        self.watch(job);
        for (group, first, end, which) in &groups {
            self.reopen(*group, *first, *end, *which);
        }
        self.look_again(now, job);
        let tally = self.jobs.get(&job).map(|entry| entry.tally).unwrap_or_default();
        let open_after = tally.total() - tally.finished();
        Ok(Answer::Retried { tasks: open_after.saturating_sub(open_before) })
    }

    /// A task that was cancelled and whose processes are not seen dead yet: what becomes of it is open.
    fn still_ending(&self, job: JobId, first: u32, end: u32) -> Option<u32> {
        let entry = self.jobs.get(&job)?;
        let running = entry.runs(first, end).into_iter().filter(|(_, _, state)| *state == State::Running);
        let mut indices = running.flat_map(|(first, count, _)| first..first + count);
        let ending = entry.cancel.is_some();
        indices.find(|index| {
            entry.touched(*index).is_some_and(|task| task.stopping == Some(Stopping::Cancel))
                || ending && entry.is_work(*index)
        })
    }

    /// Groups with something to do again: those asked for, what was skipped because of them, and,
    /// where work is done again, setup and teardown around it.
    fn groups_to_reopen(&self, job: JobId, first: u32, end: u32, which: Which) -> Vec<(GroupId, u32, u32, Which)> {
        let Some(entry) = self.jobs.get(&job) else { return Vec::new() };
        let asked = |group: &Group| {
            let (from, to) = (group.first.max(first), group.end().min(end));
            let any = from < to && entry.runs(from, to).iter().any(|(_, _, state)| qualifies(*state, which));
            any.then_some((from, to))
        };
        let asked: Vec<Option<(u32, u32)>> = entry.groups.iter().map(asked).collect();
        if asked.iter().all(Option::is_none) {
            return Vec::new();
        }
        let work =
            entry.groups.iter().zip(&asked).any(|(group, asked)| asked.is_some() && group.spec.role == Role::Work);
        let mut found = Vec::new();
        for ((group, asked), index) in entry.groups.iter().zip(asked).zip(0_u32..) {
            let id = GroupId { job, index };
            if work && group.spec.role != Role::Work && group.tally.is_finished() {
                found.push((id, group.first, group.end(), Which::All));
            } else if let Some((from, to)) = asked {
                found.push((id, from, to, which));
            } else if group.tally.get(State::Skipped) > 0 {
                found.push((id, group.first, group.end(), Which::Failed));
            }
        }
        found
    }

    fn reopen(&mut self, id: GroupId, first: u32, end: u32, which: Which) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let Some(group) = entry.group(id.index) else { return };
        let (told, role, phase) = (group.told, group.spec.role, group.phase);
        let (whole_first, whole_count) = (group.first, group.count);
        if phase == State::Queued {
            self.dequeue(id, whole_first, whole_count);
        }
        // Back to waiting: the group, and with it every task that stands where it stands.
        self.reopen_group(id);
        let Some(entry) = self.jobs.get_mut(&id.job) else { return };
        if told && role != Role::Teardown {
            entry.open_work += 1;
        }
        if let Some(group) = entry.groups.get_mut(id.index as usize) {
            group.told = false;
            group.open_edge = 0;
        }
        for index in first..end {
            let task = TaskId::new(id.job, index);
            let touched = self.jobs.get(&id.job).and_then(|entry| entry.touched(index)).map(|task| task.state);
            match touched {
                None => {}
                Some(State::Waiting) => self.edit_task(task, reset),
                Some(state) if qualifies(state, which) => {
                    self.reopen_task(task, reset);
                    self.drop_result(task);
                }
                Some(_) => {}
            }
        }
    }

    fn reopen_group(&mut self, id: GroupId) {
        self.timers.retain(|(_, due)| *due != Due::Start(id));
        self.move_group(id, State::Waiting, None);
    }

    /// What is now done again is waited for again: by work that was free to start because of it, and by work
    /// that had this dependency behind it. What runs goes on.
    fn look_again(&mut self, now: Now, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else { return };
        let own = (0..u32::try_from(entry.groups.len()).unwrap_or(u32::MAX)).map(|index| GroupId { job, index });
        let others = self.watchers.get(&job).into_iter().flatten().copied();
        let groups: Vec<GroupId> = own.chain(others).collect();
        for id in &groups {
            if self.started_early(*id) {
                let Some(group) = self.jobs.get(&id.job).and_then(|entry| entry.group(id.index)) else { continue };
                let (first, count) = (group.first, group.count);
                self.dequeue(*id, first, count);
                self.reopen_group(*id);
            }
            if let Some(group) = self.jobs.get_mut(&id.job).and_then(|entry| entry.groups.get_mut(id.index as usize)) {
                group.open_edge = 0;
            }
        }
        for id in groups {
            self.advance(now, id);
        }
    }

    fn started_early(&self, id: GroupId) -> bool {
        let Some(entry) = self.jobs.get(&id.job) else { return false };
        let Some(group) = entry.group(id.index) else { return false };
        let free = matches!(group.phase, State::Queued | State::Scheduled) && !group.tally.is_finished();
        let held = group.spec.role == Role::Teardown && entry.open_work > 0;
        free && (held || group.edges.iter().any(|edge| self.said(entry, *edge) == Said::Open))
    }

    fn drop_result(&mut self, id: TaskId) {
        if self.jobs.get_mut(&id.job).is_some_and(|entry| entry.results.remove(&id.index).is_some()) {
            self.changed(Key::Result(id));
        }
    }
}
