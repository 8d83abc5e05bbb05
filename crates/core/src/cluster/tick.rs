//! What time alone brings: start times, ends of back-off, silent agents, the end of retention.

use super::{Cluster, Due};
use crate::{
    id::{GroupId, JobId, TaskId},
    state::State,
    time::{Now, Timestamp},
};

impl Cluster {
    pub(super) fn tick(&mut self, now: Now) {
        self.expire_agents(now);
        self.end_drains(now);
        while let Some((at, task, retry_at)) = self.backoffs.first().copied() {
            if at > now.mono {
                break;
            }
            self.backoffs.remove(&(at, task, retry_at));
            self.backoff_ends(task, retry_at);
        }
        while let Some((at, due)) = self.timers.first().copied() {
            if at > now.wall {
                return;
            }
            self.timers.remove(&(at, due));
            match due {
                Due::Start(group) => self.start(now, group),
                Due::Expire(job) => self.expire_job(now, job),
            }
        }
    }

    fn start(&mut self, now: Now, id: GroupId) {
        let group = self.jobs.get(&id.job).and_then(|entry| entry.group(id.index));
        if group.is_some_and(|group| group.phase == State::Scheduled) {
            self.activate(now, id);
        }
    }

    fn backoff_ends(&mut self, id: TaskId, retry_at: Timestamp) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let due =
            entry.touched(id.index).is_some_and(|task| task.state == State::Retrying && task.retry_at == retry_at);
        let group = entry.group_of(id.index);
        if due && self.move_task(id, State::Queued, |_| {}) {
            self.requeue(id, GroupId { job: id.job, index: group });
        }
    }

    fn expire_job(&mut self, now: Now, id: JobId) {
        let Some(entry) = self.jobs.get(&id) else { return };
        let expiry = entry.finished.after(self.config.retention);
        if entry.finished.is_never() || expiry > now.wall {
            return;
        }
        if !self.forget(id) {
            // Somebody still waits for it; ask again later.
            self.timers.insert((now.wall.after(self.config.retention), Due::Expire(id)));
        }
    }
}
