//! Which tasks of a job are called what.

use std::{ops::Range, sync::Arc};

use muster_core::{record::Job, spec::TaskSpec, state::Task};

use crate::view::JobView;

/// A job's groups by the index of their first task. Made once a request; every question then takes a binary search.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    job: Arc<Job>,
    firsts: Vec<u32>,
}

/// One group: its place, its tasks, its spec.
#[derive(Clone, Debug)]
pub(super) struct Group<'a> {
    pub(super) index: u32,
    pub(super) tasks: Range<u32>,
    pub(super) spec: &'a Arc<TaskSpec>,
}

impl Layout {
    pub(super) fn new(job: &Arc<Job>) -> Self {
        let firsts = job.spec.tasks.iter().scan(0_u32, |next, task| {
            let first = *next;
            *next = next.saturating_add(task.count());
            Some(first)
        });
        Self { firsts: firsts.collect(), job: Arc::clone(job) }
    }

    /// The group that a task belongs to.
    pub(super) fn group_of(&self, task: u32) -> Option<Group<'_>> {
        let at = self.firsts.partition_point(|first| *first <= task).checked_sub(1)?;
        self.group(at).filter(|group| group.tasks.contains(&task))
    }

    /// The group of this name.
    pub(super) fn named(&self, name: &str) -> Option<Group<'_>> {
        self.group(self.job.spec.tasks.iter().position(|task| task.name == name)?)
    }

    /// All groups, in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        (0..self.firsts.len()).filter_map(|at| self.group(at))
    }

    /// A task as people call it within its job: `extract`, `scan[3]`.
    pub(super) fn name(&self, task: u32) -> String {
        match self.group_of(task) {
            Some(group) => group.name(task),
            None => task.to_string(),
        }
    }

    fn group(&self, at: usize) -> Option<Group<'_>> {
        let (first, spec) = (*self.firsts.get(at)?, self.job.spec.tasks.get(at)?);
        let tasks = first..first.saturating_add(spec.count());
        Some(Group { index: u32::try_from(at).unwrap_or(u32::MAX), tasks, spec })
    }
}

impl Group<'_> {
    /// A task of it as people call it within its job.
    pub(super) fn name(&self, task: u32) -> String {
        match self.spec.element(task.saturating_sub(self.tasks.start)) {
            Some((index, _)) => format!("{}[{index}]", self.spec.name),
            None => self.spec.name.clone(),
        }
    }
}

/// A task as it stands in its chunk; none: it has not left its first state, or is none of the job's.
pub(super) fn known(job: &JobView, index: u32) -> Option<&Task> {
    use muster_core::state::CHUNK_TASKS;
    job.chunks.get(&(index / CHUNK_TASKS))?.tasks.get((index % CHUNK_TASKS) as usize)
}
