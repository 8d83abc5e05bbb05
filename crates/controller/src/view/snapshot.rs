//! One state of everything, as one commit left it, and how readers find their way in it.

use std::{ops::Range, sync::Arc};

use imbl::{OrdMap, OrdSet};
use muster_core::{
    id::{AgentId, JobId},
    record::{AgentRecord, Cancel, Job, Key, Piece, Queue, Summary, TaskResult},
    spec::TaskSpec,
    state::{CHUNK_TASKS, Chunk, State, Tally, Task},
};

use crate::view::Update;

/// All that is committed. Cheap to clone: everything is shared.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each snapshot.
    pub version: u64,
    /// Every job, by number.
    pub jobs: OrdMap<JobId, Arc<JobView>>,
    /// Every agent that was here, by number.
    pub agents: OrdMap<AgentId, Arc<AgentRecord>>,
    /// Every queue whose limits were set, by name.
    pub queues: OrdMap<Arc<str>, Arc<Queue>>,
    /// Which jobs have a name.
    pub names: OrdMap<Arc<str>, OrdSet<JobId>>,
}

/// One job.
#[derive(Clone, Debug)]
pub struct JobView {
    /// As it was accepted.
    pub job: Arc<Job>,
    /// Its counts.
    pub summary: Arc<Summary>,
    /// A person's wish that it end.
    pub cancel: Option<Arc<Cancel>>,
    /// The tasks that have left their first state, 64 at a time.
    pub chunks: OrdMap<u32, Arc<Chunk>>,
    /// What tasks left, by index.
    pub results: OrdMap<u32, Arc<TaskResult>>,
}

/// One entry of a job's spec and the tasks that it stands for.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Its place in `JobSpec::tasks`.
    pub index: u32,
    /// The index of its first task.
    pub first: u32,
    /// What was asked for.
    pub spec: &'a Arc<TaskSpec>,
}

impl Group<'_> {
    /// The indices of its tasks.
    pub fn tasks(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.spec.count())
    }
}

impl Snapshot {
    /// The jobs that are called `name`, newest first.
    pub fn named(&self, name: &str) -> impl Iterator<Item = JobId> {
        self.names.get(name).into_iter().flat_map(|jobs| jobs.iter().rev().copied())
    }

    /// Every job older than `before` (none: every job), newest first.
    pub fn newest_first(&self, before: Option<JobId>) -> impl Iterator<Item = &Arc<JobView>> {
        let end = before.unwrap_or(JobId(u64::MAX));
        self.jobs.range(..end).rev().map(|(_, job)| job)
    }

    /// The job of this number.
    pub fn job(&self, id: JobId) -> Option<&Arc<JobView>> {
        self.jobs.get(&id)
    }

    /// Takes what one commit changed. A piece of a job that is not there is left out: its header
    /// was deleted in the same commit.
    pub fn apply(&mut self, update: Update) {
        self.version += 1;
        for (key, piece) in update.pieces {
            match piece {
                Some(piece) => self.put(key, piece),
                None => self.remove(&key),
            }
        }
        for (id, summary) in update.summaries {
            if let Some(summary) = summary {
                self.edit(id, |job| job.summary = Arc::new(summary));
            }
        }
    }

    /// Puts one piece in its place. A job's header comes before its other pieces.
    pub fn put(&mut self, key: Key, piece: Piece) {
        match (key, piece) {
            (Key::Queue(name), Piece::Queue(queue)) => _ = self.queues.insert(name, queue),
            (Key::Agent(id), Piece::Agent(agent)) => _ = self.agents.insert(id, agent),
            (Key::Job(id), Piece::Job(job)) => self.put_job(id, job),
            (Key::Cancel(id), Piece::Cancel(cancel)) => self.edit(id, |job| job.cancel = Some(cancel)),
            (Key::Chunk(id, n), Piece::Chunk(chunk)) => self.edit(id, |job| _ = job.chunks.insert(n, chunk)),
            (Key::Result(task), Piece::Result(result)) => {
                self.edit(task.job, |job| _ = job.results.insert(task.index, result));
            }
            // Counters are nobody's business, and a piece under another's key does not exist:
            // `core` makes both together and the store's decoder refuses it.
            _ => {}
        }
    }

    fn remove(&mut self, key: &Key) {
        match key {
            Key::Meta => {}
            Key::Queue(name) => _ = self.queues.remove(name),
            Key::Agent(id) => _ = self.agents.remove(id),
            Key::Job(id) => self.remove_job(*id),
            Key::Cancel(id) => self.edit(*id, |job| job.cancel = None),
            Key::Chunk(id, n) => self.edit(*id, |job| _ = job.chunks.remove(n)),
            Key::Result(task) => self.edit(task.job, |job| _ = job.results.remove(&task.index)),
        }
    }

    fn put_job(&mut self, id: JobId, job: Arc<Job>) {
        let name: Arc<str> = Arc::from(job.spec.name.as_str());
        self.names.entry(name).or_default().insert(id);
        self.jobs.insert(id, Arc::new(JobView::new(job)));
    }

    fn remove_job(&mut self, id: JobId) {
        let Some(view) = self.jobs.remove(&id) else { return };
        let name = view.job.spec.name.as_str();
        if let Some(jobs) = self.names.get_mut(name) {
            jobs.remove(&id);
            if jobs.is_empty() {
                self.names.remove(name);
            }
        }
    }

    fn edit(&mut self, id: JobId, change: impl FnOnce(&mut JobView)) {
        if let Some(job) = self.jobs.get_mut(&id) {
            change(Arc::make_mut(job));
        }
    }
}

impl JobView {
    /// A job of which only the header is known: every task waits.
    fn new(job: Arc<Job>) -> Self {
        let phases: Arc<[State]> = job.spec.tasks.iter().map(|_| State::Waiting).collect();
        let count = u32::try_from(job.spec.task_count()).unwrap_or(u32::MAX);
        let tally = Tally::of(State::Waiting, count);
        let summary = Summary {
            state: muster_core::state::JobState::of(&tally),
            tally,
            phases,
            started: muster_core::time::Timestamp(0),
            finished: muster_core::time::Timestamp(0),
        };
        Self { job, summary: Arc::new(summary), cancel: None, chunks: OrdMap::new(), results: OrdMap::new() }
    }

    /// How many tasks it has.
    pub fn task_count(&self) -> u32 {
        u32::try_from(self.job.spec.task_count()).unwrap_or(u32::MAX)
    }

    /// The entries of its spec, in order.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        let mut first = 0_u32;
        self.job.spec.tasks.iter().zip(0..).map(move |(spec, index)| {
            let group = Group { index, first, spec };
            first = group.tasks().end;
            group
        })
    }

    /// The entry that a task belongs to.
    pub fn group_of(&self, task: u32) -> Option<Group<'_>> {
        self.groups().find(|group| group.tasks().contains(&task))
    }

    /// The entry of this name.
    pub fn group_named(&self, name: &str) -> Option<Group<'_>> {
        self.groups().find(|group| group.spec.name == name)
    }

    /// What became of a task; none: the job has no such task.
    pub fn task(&self, index: u32) -> Option<Task> {
        match self.known(index) {
            Some(task) => Some(task.clone()),
            None => self.group_of(index).map(|group| Task::new(self.phase(group.index))),
        }
    }

    /// Where a task stands; cheaper than `task`. None: the job has no such task.
    pub fn state_of(&self, index: u32) -> Option<State> {
        match self.known(index) {
            Some(task) => Some(task.state),
            None => self.group_of(index).map(|group| self.phase(group.index)),
        }
    }

    /// Where the tasks of a group stand that no chunk tells of.
    pub fn phase(&self, group: u32) -> State {
        self.summary.phases.get(group as usize).copied().unwrap_or(State::Waiting)
    }

    /// The counts of every group, in order, in one pass over the chunks.
    pub fn tallies(&self) -> Vec<Tally> {
        if let [_] = self.job.spec.tasks.as_slice() {
            return vec![self.summary.tally];
        }
        let groups: Vec<_> = self.groups().collect();
        let mut tallies: Vec<_> = groups.iter().map(|g| Tally::of(self.phase(g.index), g.spec.count())).collect();
        let mut at = 0;
        for (index, task) in self.known_tasks() {
            while groups.get(at).is_some_and(|group| group.tasks().end <= index) {
                at += 1;
            }
            if let (Some(group), Some(tally)) = (groups.get(at), tallies.get_mut(at)) {
                tally.shift(self.phase(group.index), task.state, 1);
            }
        }
        tallies
    }

    /// Every task that a chunk tells of, in order of index.
    pub fn known_tasks(&self) -> impl Iterator<Item = (u32, &Task)> {
        self.chunks.iter().flat_map(|(n, chunk)| (n.saturating_mul(CHUNK_TASKS)..).zip(&chunk.tasks))
    }

    fn known(&self, index: u32) -> Option<&Task> {
        let chunk = self.chunks.get(&(index / CHUNK_TASKS))?;
        chunk.tasks.get((index % CHUNK_TASKS) as usize)
    }
}
