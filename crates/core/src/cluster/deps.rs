//! Dependencies: whether a group may start (D1), and who is told when one has ended.

use std::sync::Arc;

use super::{
    Cluster, Due,
    entry::{Edge, Entry, Source},
};
use crate::{
    id::{GroupId, JobId},
    mutant,
    record::Key,
    spec::{On, Role},
    state::State,
    time::Now,
};

/// What one dependency says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Its source has ended as asked.
    Met,
    /// Its source has not ended.
    Open,
    /// Its source has ended otherwise, or is gone.
    Broken(Arc<str>),
}

enum Verdict {
    Start,
    Wait,
    Never(Arc<str>),
}

impl Cluster {
    /// What a dependency of a group of `entry` says now.
    pub(super) fn said(&self, entry: &Entry, edge: Edge) -> Said {
        let (source, group, name) = match edge.source {
            Source::Group(index) => {
                let name = entry.group(index).map_or_else(String::new, |group| group.spec.name.clone());
                (entry, Some(index), name)
            }
            Source::Job(job, group) => {
                let Some(source) = self.jobs.get(&job) else {
                    return Said::Broken(Arc::from(format!("job {job} no longer exists")));
                };
                (source, group, format!("job {job}"))
            }
        };
        let outcome = source.outcome(group);
        if mutant::is_on("dependencies-ignored") {
            return Said::Met;
        }
        if !outcome.finished {
            return Said::Open;
        }
        if mutant::is_on("outcome-ignored") {
            return Said::Met;
        }
        match edge.on {
            On::Any => Said::Met,
            On::Success if outcome.succeeded => Said::Met,
            On::Failure if outcome.failed => Said::Met,
            On::Success => Said::Broken(Arc::from(format!("`{name}` did not succeed"))),
            On::Failure => Said::Broken(Arc::from(format!("`{name}` did not fail"))),
        }
    }

    fn verdict(&self, id: GroupId) -> Option<(Verdict, usize)> {
        let entry = self.jobs.get(&id.job)?;
        let group = entry.group(id.index)?;
        for (place, edge) in group.edges.iter().enumerate().skip(group.open_edge) {
            match self.said(entry, *edge) {
                Said::Met => {}
                Said::Open => return Some((Verdict::Wait, place)),
                Said::Broken(why) => return Some((Verdict::Never(why), place)),
            }
        }
        let met = group.edges.len();
        let held = group.spec.role == Role::Teardown && entry.open_work > 0;
        Some((if held { Verdict::Wait } else { Verdict::Start }, met))
    }

    /// Looks again at a group that waits.
    pub(super) fn advance(&mut self, now: Now, id: GroupId) {
        let waits = self.jobs.get(&id.job).and_then(|entry| entry.group(id.index));
        if waits.is_none_or(|group| group.phase != State::Waiting || group.tally.is_finished()) {
            return;
        }
        let Some((verdict, open_edge)) = self.verdict(id) else { return };
        if let Some(group) = self.jobs.get_mut(&id.job).and_then(|entry| entry.groups.get_mut(id.index as usize)) {
            group.open_edge = open_edge;
        }
        match verdict {
            Verdict::Start => self.activate(now, id),
            Verdict::Wait => {}
            Verdict::Never(why) => self.move_group(id, State::Skipped, Some(&why)),
        }
    }

    /// Dependencies allow the group; its start time may not.
    pub(super) fn activate(&mut self, now: Now, id: GroupId) {
        let Some(entry) = self.jobs.get_mut(&id.job) else { return };
        let has_inputs = entry.group(id.index).is_some_and(|group| has_results(entry, &group.edges));
        let Some(group) = entry.groups.get_mut(id.index as usize) else { return };
        group.has_inputs = has_inputs;
        if let Some(at) = group.spec.start_at.filter(|at| *at > now.wall) {
            self.move_group(id, State::Scheduled, None);
            self.timers.insert((at, Due::Start(id)));
            return;
        }
        self.move_group(id, State::Queued, None);
        self.enqueue_group(id);
    }

    /// Tells everybody who waits about every group that has ended, and about those that end by that.
    pub(super) fn settle(&mut self, now: Now) {
        while let Some(id) = self.ended.pop() {
            let Some(entry) = self.jobs.get_mut(&id.job) else { continue };
            let Some(group) = entry.groups.get_mut(id.index as usize) else { continue };
            if group.told || !group.tally.is_finished() {
                continue;
            }
            group.told = true;
            let dependants = std::mem::take(&mut group.dependants);
            if group.spec.role != Role::Teardown {
                entry.open_work = entry.open_work.saturating_sub(1);
            }
            for (dependant, place) in &dependants {
                self.tell(now, GroupId { job: id.job, index: *dependant }, *place as usize);
            }
            self.after_group(now, id.job);
            if let Some(group) = self.jobs.get_mut(&id.job).and_then(|e| e.groups.get_mut(id.index as usize)) {
                group.dependants = dependants;
            }
        }
    }

    /// One dependency of a waiting group has ended.
    fn tell(&mut self, now: Now, id: GroupId, place: usize) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let Some(group) = entry.group(id.index) else { return };
        let Some(edge) = group.edges.get(place) else { return };
        if group.phase != State::Waiting {
            return;
        }
        match self.said(entry, *edge) {
            Said::Met if place == group.open_edge => self.advance(now, id),
            Said::Broken(why) => self.move_group(id, State::Skipped, Some(&why)),
            Said::Met | Said::Open => {}
        }
    }

    fn after_group(&mut self, now: Now, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else { return };
        if entry.open_work == 0 {
            let teardowns: Vec<u32> = (0..)
                .zip(&entry.groups)
                .filter(|(_, group)| group.spec.role == Role::Teardown)
                .map(|(index, _)| index)
                .collect();
            for index in teardowns {
                self.advance(now, GroupId { job, index });
            }
        }
        for watcher in self.watchers.get(&job).cloned().unwrap_or_default() {
            self.advance(now, watcher);
        }
        self.finish_job(now, job);
    }

    fn finish_job(&mut self, now: Now, job: JobId) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        if !entry.is_finished() || !entry.finished.is_never() {
            return;
        }
        entry.finished = entry.last_end;
        let expiry = now.wall.after(self.config.retention);
        self.timers.insert((expiry, Due::Expire(job)));
        self.unwatch(job);
        self.touched_job(job);
    }

    /// A finished job waits for nobody.
    pub(super) fn unwatch(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else { return };
        let sources = entry.groups.iter().flat_map(|group| &group.edges).filter_map(|edge| match edge.source {
            Source::Job(source, _) => Some(source),
            Source::Group(_) => None,
        });
        for source in sources {
            if let Some(watchers) = self.watchers.get_mut(&source) {
                watchers.retain(|watcher| watcher.job != job);
                if watchers.is_empty() {
                    self.watchers.remove(&source);
                }
            }
        }
    }

    /// Deletes a finished job and all that belongs to it, unless somebody still waits for it.
    pub(super) fn forget(&mut self, job: JobId) -> bool {
        if self.watchers.contains_key(&job) {
            return false;
        }
        let Some(entry) = self.jobs.remove(&job) else { return true };
        self.release_shapes(&entry);
        if let Some(lane) = self.queues.get_mut(&entry.queue) {
            for state in State::ALL {
                lane.remove(state, u64::from(entry.tally.get(state)));
            }
        }
        if self.keys.get(&entry.job.key) == Some(&job) {
            self.keys.remove(&entry.job.key);
        }
        let chunks = (0..).zip(&entry.chunks).filter(|(_, chunk)| chunk.is_some()).map(|(n, _)| Key::Chunk(job, n));
        self.step.changes.extend(chunks);
        let results = entry.results.keys().map(|index| Key::Result(entry.task_id(*index)));
        self.step.changes.extend(results);
        if entry.cancel.is_some() {
            self.changed(Key::Cancel(job));
        }
        self.meta.job_floor = self.meta.job_floor.max(job.0);
        self.changed(Key::Job(job));
        self.changed(Key::Meta);
        self.touched_job(job);
        self.step.effects.push(crate::event::Effect::Forget(job));
        true
    }
}

/// Whether any source of these edges left a result.
fn has_results(entry: &Entry, edges: &[Edge]) -> bool {
    edges.iter().any(|edge| match edge.source {
        Source::Group(index) => {
            entry.group(index).is_some_and(|group| entry.results.range(group.first..group.end()).next().is_some())
        }
        // Looked at by whoever gathers the inputs: another job's results may be in the object store.
        Source::Job(..) => true,
    })
}
