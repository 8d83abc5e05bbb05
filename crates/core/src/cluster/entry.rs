//! One job in memory: its groups, its chunks, its counts. A chunk exists once one of its tasks has
//! left the state that its group gives it; a million untouched tasks cost nothing.

use std::{collections::BTreeMap, sync::Arc};

use super::ladder::Step;
use crate::{
    id::{JobId, TaskId},
    ready::ShapeId,
    record::{Cancel, Job, Summary, TaskResult},
    spec::{On, Role, TaskSpec},
    state::{CHUNK_TASKS, Chunk, JobState, State, Tally, Task},
    time::Timestamp,
};

/// Where a dependency points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A group of this job.
    Group(u32),
    /// A group of another job, or all of it.
    Job(JobId, Option<u32>),
}

/// One dependency of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) source: Source,
    pub(super) on: On,
}

/// One entry of the spec's `tasks`.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) spec: Arc<TaskSpec>,
    pub(super) first: u32,
    pub(super) count: u32,
    /// Where its tasks stand that no chunk tells of; also every task in `Waiting`, `Scheduled` or
    /// `Queued` that a chunk does tell of.
    pub(super) phase: State,
    pub(super) tally: Tally,
    pub(super) edges: Vec<Edge>,
    /// The first edge that may be open; those before it are met.
    pub(super) open_edge: usize,
    pub(super) shape: ShapeId,
    /// What tasks ask for that needed more memory.
    pub(super) ladder: Vec<Step>,
    /// Whether its dependencies left results.
    pub(super) has_inputs: bool,
    /// Its end was told to its dependants.
    pub(super) told: bool,
    /// Groups of this job with an edge to this one, and the place of that edge there.
    pub(super) dependants: Vec<(u32, u32)>,
}

impl Group {
    pub(super) fn end(&self) -> u32 {
        self.first + self.count
    }
}

/// One job.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Arc<Job>,
    pub(super) queue: Arc<str>,
    pub(super) groups: Vec<Group>,
    pub(super) chunks: Vec<Option<Arc<Chunk>>>,
    pub(super) results: BTreeMap<u32, Arc<TaskResult>>,
    pub(super) cancel: Option<Arc<Cancel>>,
    pub(super) tally: Tally,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    /// The newest of what ended something here. Derived alike live and at a restart.
    pub(super) last_end: Timestamp,
    /// Groups other than teardown that are not finished.
    pub(super) open_work: u32,
    phases: Arc<[State]>,
    total: u32,
}

impl Entry {
    pub(super) fn new(job: Arc<Job>, groups: Vec<Group>) -> Self {
        let total = groups.last().map_or(0, Group::end);
        let open_work = groups.iter().filter(|group| group.spec.role != Role::Teardown).count();
        let mut tally = Tally::default();
        groups.iter().for_each(|group| tally.merge(&group.tally));
        let submitted = job.submitted;
        Self {
            queue: Arc::from(job.spec.queue.as_str()),
            job,
            phases: groups.iter().map(|group| group.phase).collect(),
            groups,
            chunks: vec![None; total.div_ceil(CHUNK_TASKS) as usize],
            results: BTreeMap::new(),
            cancel: None,
            tally,
            started: Timestamp(0),
            finished: Timestamp(0),
            last_end: submitted,
            open_work: u32::try_from(open_work).unwrap_or(u32::MAX),
            total,
        }
    }

    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// The group that the task at `index` belongs to.
    pub(super) fn group_of(&self, index: u32) -> u32 {
        let after = self.groups.partition_point(|group| group.first <= index);
        u32::try_from(after.saturating_sub(1)).unwrap_or(u32::MAX)
    }

    pub(super) fn group(&self, index: u32) -> Option<&Group> {
        self.groups.get(index as usize)
    }

    /// Whether the task is neither setup nor teardown.
    pub(super) fn is_work(&self, index: u32) -> bool {
        self.group(self.group_of(index)).is_some_and(|group| group.spec.role == Role::Work)
    }

    pub(super) fn task_id(&self, index: u32) -> TaskId {
        TaskId::new(self.job.id, index)
    }

    /// The task, if a chunk tells of it.
    pub(super) fn touched(&self, index: u32) -> Option<&Task> {
        let chunk = self.chunks.get((index / CHUNK_TASKS) as usize)?.as_ref()?;
        chunk.tasks.get((index % CHUNK_TASKS) as usize)
    }

    /// Where the task stands.
    pub(super) fn state_of(&self, index: u32) -> Option<State> {
        if index >= self.total {
            return None;
        }
        match self.touched(index) {
            Some(task) => Some(task.state),
            None => self.group(self.group_of(index)).map(|group| group.phase),
        }
    }

    /// The task, for change; its chunk is made if there is none. `None` past the end.
    pub(super) fn touch(&mut self, index: u32) -> Option<&mut Task> {
        if index >= self.total {
            return None;
        }
        let n = index / CHUNK_TASKS;
        if self.chunks.get(n as usize)?.is_none() {
            let chunk = self.untouched_chunk(n);
            *self.chunks.get_mut(n as usize)? = Some(Arc::new(chunk));
        }
        let chunk = self.chunks.get_mut(n as usize)?.as_mut()?;
        Arc::make_mut(chunk).tasks.get_mut((index % CHUNK_TASKS) as usize)
    }

    fn untouched_chunk(&self, n: u32) -> Chunk {
        let first = n * CHUNK_TASKS;
        let end = self.total.min(first + CHUNK_TASKS);
        let mut tasks = Vec::with_capacity((end - first) as usize);
        for group in self.groups.iter().skip(self.group_of(first) as usize) {
            if group.first >= end {
                break;
            }
            let n = group.end().min(end) - group.first.max(first);
            tasks.extend(std::iter::repeat_n(Task::new(group.phase), n as usize));
        }
        Chunk { tasks }
    }

    /// Moves a group and all its tasks that stand where it stands. Returns the chunks that changed.
    pub(super) fn set_phase(&mut self, index: u32, to: State, why: Option<&Arc<str>>) -> Vec<u32> {
        let Some(group) = self.groups.get_mut(index as usize) else { return Vec::new() };
        let from = group.phase;
        if from == to {
            return Vec::new();
        }
        let moved = group.tally.get(from);
        group.phase = to;
        group.tally.shift(from, to, moved);
        self.tally.shift(from, to, moved);
        let (first, end) = (group.first, group.end());
        Arc::make_mut(&mut self.phases)[index as usize] = to;
        let mut changed = Vec::new();
        for n in first / CHUNK_TASKS..end.div_ceil(CHUNK_TASKS) {
            let Some(chunk) = self.chunks.get_mut(n as usize).and_then(Option::as_mut) else { continue };
            let base = n * CHUNK_TASKS;
            let range = (first.max(base) - base) as usize..(end.min(base + CHUNK_TASKS) - base) as usize;
            if !chunk.tasks.get(range.clone()).is_some_and(|tasks| tasks.iter().any(|task| task.state == from)) {
                continue;
            }
            for task in Arc::make_mut(chunk).tasks[range].iter_mut().filter(|task| task.state == from) {
                task.state = to;
                task.why = why.cloned();
            }
            changed.push(n);
        }
        changed
    }

    /// Counts a task's move; the task itself was changed by the caller. Says whether its group's
    /// last open task became final with it.
    pub(super) fn shift(&mut self, group: u32, from: State, to: State) -> bool {
        self.tally.shift(from, to, 1);
        let Some(group) = self.groups.get_mut(group as usize) else { return false };
        group.tally.shift(from, to, 1);
        to.is_final() && group.tally.is_finished()
    }

    /// Runs of neighbours in `first .. end` that stand in the same state.
    pub(super) fn runs(&self, first: u32, end: u32) -> Vec<(u32, u32, State)> {
        let mut runs: Vec<(u32, u32, State)> = Vec::new();
        let mut index = first;
        let end = end.min(self.total);
        while index < end {
            let (n, state) = match self.touched(index) {
                Some(task) => (1, task.state),
                None => {
                    let Some(group) = self.group(self.group_of(index)) else { break };
                    let chunk_end = (index / CHUNK_TASKS + 1) * CHUNK_TASKS;
                    (chunk_end.min(group.end()).min(end) - index, group.phase)
                }
            };
            match runs.last_mut() {
                Some((start, count, last)) if *last == state && *start + *count == index => *count += n,
                _ => runs.push((index, n, state)),
            }
            index += n;
        }
        runs
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            state: JobState::of(&self.tally),
            tally: self.tally,
            phases: Arc::clone(&self.phases),
            started: self.started,
            finished: self.finished,
        }
    }

    /// Whether every task of the job is final.
    pub(super) fn is_finished(&self) -> bool {
        self.tally.is_finished()
    }

    /// What a group's dependants see: (finished, all succeeded, some failed or were cancelled).
    pub(super) fn outcome(&self, group: Option<u32>) -> Outcome {
        let tally = match group {
            Some(index) => self.group(index).map_or(&self.tally, |group| &group.tally),
            None => &self.tally,
        };
        let state = JobState::of(tally);
        let all = match group {
            Some(_) => tally.get(State::Succeeded) == tally.total(),
            None => state == JobState::Succeeded,
        };
        Outcome {
            finished: tally.is_finished(),
            succeeded: all,
            failed: tally.get(State::Failed) + tally.get(State::Cancelled) > 0,
        }
    }
}

/// What dependants see of a group or job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) finished: bool,
    pub(super) succeeded: bool,
    pub(super) failed: bool,
}
