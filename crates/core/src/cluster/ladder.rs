//! What tasks of one group ask for, after attempts that needed more memory than they had.

use std::sync::Arc;

use super::{
    Cluster,
    entry::{Entry, Group},
};
use crate::{
    agent::Demand,
    id::{GroupId, TaskId},
    ready::{Ready, ShapeId, ShapeKey, Span},
    resources::Request,
    spec::{OomRetries, TaskSpec},
    state::{CHUNK_TASKS, End, State, Task},
};

/// What a task asks for after as many attempts for want of memory as there are steps below this one.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) memory: u64,
    pub(super) shape: ShapeId,
}

/// The steps above what `spec` itself asks for; none, usually.
pub(super) fn climb(ready: &mut Ready, queue: &Arc<str>, spec: &TaskSpec) -> Vec<Step> {
    let Some(ladder) = spec.oom_retries else { return Vec::new() };
    let steps = (1..=ladder.max.min(OomRetries::MAX)).map_while(|ooms| ladder.memory_after(spec.request.memory, ooms));
    steps
        .map(|memory| {
            let request = Request { memory, ..spec.request.clone() };
            let shape = ready.acquire(ShapeKey { queue: Arc::clone(queue), request, requires: spec.needs() });
            Step { memory, shape }
        })
        .collect()
}

impl Group {
    fn step(&self, task: Option<&Task>) -> Option<&Step> {
        let ooms = usize::from(task.map_or(0, |task| task.ooms));
        // A step that is not there any more, if ever: the highest that is.
        ooms.checked_sub(1).and_then(|place| self.ladder.get(place.min(self.ladder.len().saturating_sub(1))))
    }

    /// What the next attempt of `task` asks for.
    pub(super) fn demand(&self, task: Option<&Task>) -> Demand {
        Demand { spec: Arc::clone(&self.spec), memory: self.step(task).map(|step| step.memory) }
    }

    /// Where `task` stands in line.
    pub(super) fn shape_of(&self, task: Option<&Task>) -> ShapeId {
        self.step(task).map_or(self.shape, |step| step.shape)
    }

    /// Every place where its tasks may stand in line.
    pub(super) fn shapes(&self) -> impl Iterator<Item = ShapeId> + '_ {
        std::iter::once(self.shape).chain(self.ladder.iter().map(|step| step.shape))
    }

    /// Whether an attempt of `task` that ended like this is followed by one with more memory.
    pub(super) fn climbs(&self, task: &Task, end: End) -> bool {
        end == End::Oom && usize::from(task.ooms) < self.ladder.len()
    }
}

impl Entry {
    /// Tasks that are queued among `count` from `first`, by where they stand in line. Who never ran stands where the
    /// group does.
    pub(super) fn lines(&self, group: &Group, first: u32, count: u32) -> Vec<(ShapeId, u32, u32)> {
        if group.ladder.is_empty() {
            return vec![(group.shape, first, count)];
        }
        let mut lines: Vec<(ShapeId, u32, u32)> = Vec::new();
        let (mut index, end) = (first, first + count);
        while index < end {
            let task = self.touched(index);
            let next = if task.is_some() { index + 1 } else { end.min((index / CHUNK_TASKS + 1) * CHUNK_TASKS) };
            let shape = group.shape_of(task);
            match lines.last_mut() {
                Some((last, _, count)) if *last == shape => *count += next - index,
                _ => lines.push((shape, index, next - index)),
            }
            index = next;
        }
        lines
    }
}

impl Cluster {
    /// Puts every queued task of a group in line.
    pub(super) fn enqueue_group(&mut self, id: GroupId) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let Some(group) = entry.group(id.index) else { return };
        for (first, count, state) in entry.runs(group.first, group.end()) {
            if state == State::Queued {
                for (shape, first, count) in entry.lines(group, first, count) {
                    self.ready.push(shape, Span { priority: group.spec.priority, job: id.job, first, count });
                }
            }
        }
    }

    /// Takes tasks of a group out of line.
    pub(super) fn dequeue(&mut self, id: GroupId, first: u32, count: u32) {
        let Some(group) = self.jobs.get(&id.job).and_then(|entry| entry.group(id.index)) else { return };
        for shape in group.shapes() {
            self.ready.remove(shape, Span { priority: group.spec.priority, job: id.job, first, count });
        }
    }

    /// Puts a task that is queued again in line, or back to where its group waits.
    pub(super) fn requeue(&mut self, id: TaskId, group: GroupId) {
        let Some(entry) = self.jobs.get(&id.job) else { return };
        let Some(of) = entry.group(group.index) else { return };
        let (shape, priority, phase) = (of.shape_of(entry.touched(id.index)), of.spec.priority, of.phase);
        if phase == State::Queued {
            self.ready.push(shape, Span { priority, job: id.job, first: id.index, count: 1 });
        } else {
            // A person's retry sent the group back to wait while this task still ran.
            self.move_task(id, State::Waiting, |_| {});
            if phase != State::Waiting {
                self.move_task(id, phase, |_| {});
            }
        }
    }

    /// Gives the places of a job in line back.
    pub(super) fn release_shapes(&mut self, entry: &Entry) {
        for shape in entry.groups.iter().flat_map(Group::shapes) {
            self.ready.release(shape);
        }
    }

    /// What a task asks for when it runs next.
    pub(super) fn demand(&self, id: TaskId) -> Option<Demand> {
        let entry = self.jobs.get(&id.job)?;
        let group = entry.group(entry.group_of(id.index))?;
        Some(group.demand(entry.touched(id.index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job is held for as long as it is kept, and what a task reads alone may be a mebibyte.
    #[test]
    fn a_step_holds_nothing_of_what_its_entry_is_but_the_memory() {
        let spec = TaskSpec {
            request: Request { memory: 1 << 20, ..Request::default() },
            oom_retries: Some(OomRetries { max: 32, factor_milli: 1100, cap: None }),
            stdin: Some("x".repeat(1 << 20).into()),
            ..TaskSpec::default()
        };
        let steps = climb(&mut Ready::default(), &Arc::from("default"), &spec);
        assert_eq!(steps.len(), 32);
        assert!(format!("{steps:?}").len() < 100 * steps.len(), "a step holds its entry");
    }
}
