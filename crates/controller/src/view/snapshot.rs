//! One state of everything, as one commit left it, and how readers find their way in it.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use imbl::{OrdMap, OrdSet};
use muster_core::{
    access, audit,
    id::{AgentId, JobId},
    identity::{self, Machine},
    record::{AgentRecord, Cancel, Job, Key, Piece, Queue, Summary, TaskResult},
    spec::TaskSpec,
    state::{CHUNK_TASKS, Chunk, JobState, State, Tally, Task},
    time::Timestamp,
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
    /// Every agent that was enrolled, by name.
    pub machines: OrdMap<Arc<str>, Arc<Machine>>,
    /// Every queue whose limits were set, by name.
    pub queues: OrdMap<Arc<str>, Arc<Queue>>,
    /// Every access token, by id.
    pub tokens: OrdMap<Arc<str>, Arc<access::Token>>,
    /// The audit log, in blocks.
    pub audit: OrdMap<u64, Arc<audit::Block>>,
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
            (Key::Identity(_), Piece::Identity(identity::Piece::Machine(machine))) => {
                self.machines.insert(Arc::clone(&machine.name), machine);
            }
            (Key::Queue(name), Piece::Queue(queue)) => _ = self.queues.insert(name, queue),
            (Key::Token(id), Piece::Token(token)) => _ = self.tokens.insert(id, token),
            (Key::Audit(n), Piece::Audit(block)) => _ = self.audit.insert(n, block),
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
            Key::Identity(identity::Name::Machine(name)) => _ = self.machines.remove(name),
            Key::Identity(_) => {}
            Key::Queue(name) => _ = self.queues.remove(name),
            Key::Token(id) => _ = self.tokens.remove(id),
            Key::Audit(n) => _ = self.audit.remove(n),
            Key::Agent(id) => _ = self.agents.remove(id),
            Key::Job(id) => self.remove_job(*id),
            Key::Cancel(id) => self.edit(*id, |job| job.cancel = None),
            Key::Chunk(id, n) => self.edit(*id, |job| _ = job.chunks.remove(n)),
            Key::Result(task) => self.edit(task.job, |job| _ = job.results.remove(&task.index)),
        }
    }

    fn put_job(&mut self, id: JobId, job: Arc<Job>) {
        match self.names.get_mut(job.spec.name.as_str()) {
            Some(jobs) => _ = jobs.insert(id),
            None => _ = self.names.insert(job.spec.name.as_str().into(), OrdSet::unit(id)),
        }
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
    /// A job of which only the header is known: its counts come with the same update.
    fn new(job: Arc<Job>) -> Self {
        static UNCOUNTED: LazyLock<Arc<Summary>> = LazyLock::new(|| {
            let (tally, never) = (Tally::default(), Timestamp(0));
            let phases = Arc::from([]);
            Arc::new(Summary { state: JobState::Waiting, tally, phases, started: never, finished: never })
        });
        let summary = Arc::clone(&UNCOUNTED);
        Self { job, summary, cancel: None, chunks: OrdMap::new(), results: OrdMap::new() }
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

#[cfg(test)]
mod tests {
    use muster_core::{
        fleet::Limits,
        id::TaskId,
        record::Offer,
        spec::{Array, JobSpec},
    };

    use super::*;
    use crate::view::View;

    const JOB: JobId = JobId(3);

    fn group(name: &str, count: u32) -> Arc<TaskSpec> {
        let array = (count != 1).then_some(Array::Range { first: 0, count, step: 1 });
        Arc::new(TaskSpec { name: name.to_owned(), array, ..TaskSpec::default() })
    }

    /// extract (1 task), scan (200), merge (1).
    fn header(id: JobId, name: &str) -> (Key, Option<Piece>) {
        let tasks = vec![group("extract", 1), group("scan", 200), group("merge", 1)];
        let spec = Arc::new(JobSpec { name: name.to_owned(), tasks, ..JobSpec::default() });
        let empty: Arc<str> = "".into();
        let (key, by, trace_parent) = (Arc::clone(&empty), Arc::clone(&empty), empty);
        (Key::Job(id), Some(Piece::Job(Arc::new(Job { id, spec, submitted: Timestamp(1), key, by, trace_parent }))))
    }

    fn summary(phases: [State; 3]) -> Summary {
        let mut tally = Tally::of(phases[0], 1);
        tally.add(phases[1], 200);
        tally.add(phases[2], 1);
        let (state, never) = (JobState::of(&tally), Timestamp(0));
        Summary { state, tally, phases: phases.into(), started: never, finished: never }
    }

    fn chunk(n: u32, states: &[(usize, State)], len: usize) -> (Key, Option<Piece>) {
        let mut tasks = vec![Task::new(State::Queued); len];
        for (at, state) in states {
            tasks[*at] = Task::new(*state);
        }
        (Key::Chunk(JOB, n), Some(Piece::Chunk(Arc::new(Chunk { tasks }))))
    }

    fn with_job() -> Snapshot {
        let mut snapshot = Snapshot::default();
        let phases = [State::Queued, State::Queued, State::Waiting];
        let pieces = vec![header(JOB, "census"), chunk(1, &[(0, State::Failed), (63, State::Running)], 64)];
        snapshot.apply(Update { pieces, summaries: vec![(JOB, Some(summary(phases)))] });
        snapshot
    }

    #[test]
    fn a_task_is_found_by_index_whether_a_chunk_tells_of_it_or_not() {
        let snapshot = with_job();
        let job = snapshot.job(JOB).expect("it is there");
        for (index, state) in [
            (0, Some(State::Queued)),
            (63, Some(State::Queued)),
            (64, Some(State::Failed)),
            (65, Some(State::Queued)),
            (127, Some(State::Running)),
            (128, Some(State::Queued)),
            (200, Some(State::Queued)),
            (201, Some(State::Waiting)),
            (202, None),
            (u32::MAX, None),
        ] {
            assert_eq!(job.state_of(index), state, "task {index}");
            assert_eq!(job.task(index).map(|task| task.state), state, "task {index}");
        }
        assert_eq!(job.task_count(), 202);
    }

    #[test]
    fn groups_know_their_tasks_and_tasks_their_group() {
        let snapshot = with_job();
        let job = snapshot.job(JOB).expect("it is there");
        let found: Vec<_> = job.groups().map(|group| (group.index, group.tasks())).collect();
        assert_eq!(found, [(0, 0..1), (1, 1..201), (2, 201..202)]);
        let of = |index| job.group_of(index).map(|group| group.index);
        assert_eq!([0, 1, 200, 201, 202].map(of), [Some(0), Some(1), Some(1), Some(2), None]);
        assert_eq!(job.group_named("merge").map(|group| group.first), Some(201));
        assert!(job.group_named("scan ").is_none());
    }

    #[test]
    fn each_group_is_counted_by_itself() {
        let snapshot = with_job();
        let tallies = snapshot.job(JOB).expect("it is there").tallies();
        let mut scan = Tally::of(State::Queued, 198);
        scan.add(State::Failed, 1);
        scan.add(State::Running, 1);
        assert_eq!(tallies, [Tally::of(State::Queued, 1), scan, Tally::of(State::Waiting, 1)]);
    }

    #[test]
    fn jobs_are_listed_newest_first_from_any_point() {
        let mut snapshot = Snapshot::default();
        for id in 1..=5 {
            snapshot.apply(Update { pieces: vec![header(JobId(id), "same")], summaries: Vec::new() });
        }
        let list = |before| snapshot.newest_first(before).map(|job| job.job.id.0).collect::<Vec<_>>();
        assert_eq!(list(None), [5, 4, 3, 2, 1]);
        assert_eq!(list(Some(JobId(4))), [3, 2, 1]);
        assert_eq!(list(Some(JobId(1))), [0; 0]);
        assert_eq!(snapshot.named("same").map(|id| id.0).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
        assert_eq!(snapshot.named("other").count(), 0);
    }

    #[test]
    fn a_deleted_job_is_gone_with_its_name_whatever_else_its_commit_says() {
        let mut snapshot = with_job();
        let keys = [Key::Job(JOB), Key::Cancel(JOB), Key::Chunk(JOB, 1), Key::Result(TaskId::new(JOB, 0))];
        let pieces = keys.into_iter().map(|key| (key, None)).collect();
        snapshot.apply(Update { pieces, summaries: vec![(JOB, None)] });
        assert!(snapshot.jobs.is_empty());
        assert!(snapshot.names.is_empty());
        snapshot.apply(Update { pieces: vec![chunk(0, &[], 64)], summaries: Vec::new() });
        assert!(snapshot.jobs.is_empty());
    }

    #[test]
    fn a_snapshot_that_a_reader_holds_never_changes() {
        let view = View::new(with_job());
        let held = view.load();
        let mut changed = view.changed();
        view.publish(Update { pieces: vec![chunk(1, &[(0, State::Succeeded)], 64)], summaries: Vec::new() });
        assert_eq!(held.job(JOB).and_then(|job| job.state_of(64)), Some(State::Failed));
        assert_eq!(view.load().job(JOB).and_then(|job| job.state_of(64)), Some(State::Succeeded));
        assert_eq!(*changed.borrow_and_update(), held.version + 1);
    }

    #[test]
    fn agents_and_queues_come_and_go() {
        let mut snapshot = Snapshot::default();
        let (uid, offer, never) = ("u".into(), Offer::default(), Timestamp(0));
        let agent = AgentRecord {
            id: AgentId(1),
            uid,
            offer,
            lost: false,
            stopped: false,
            first_seen: never,
            changed: never,
            cordon: None,
            limits: Limits::default(),
        };
        let agent = (Key::Agent(AgentId(1)), Some(Piece::Agent(Arc::new(agent))));
        let queue = (Key::Queue("q".into()), Some(Piece::Queue(Arc::new(Queue::default()))));
        snapshot.apply(Update { pieces: vec![agent, queue], summaries: Vec::new() });
        assert_eq!((snapshot.agents.len(), snapshot.queues.len()), (1, 1));
        let pieces = vec![(Key::Agent(AgentId(1)), None), (Key::Queue("q".into()), None)];
        snapshot.apply(Update { pieces, summaries: Vec::new() });
        assert_eq!((snapshot.agents.len(), snapshot.queues.len(), snapshot.version), (0, 0, 2));
    }
}
