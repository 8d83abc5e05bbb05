//! Work comes in: checked, numbered, and put where it can start.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Cluster,
    entry::{Edge, Entry, Group, Source},
    explain::bytes,
    ladder,
};
use crate::{
    agent::Agent,
    event::{Answer, Refusal, Submission},
    id::{GroupId, JobId},
    mutant,
    ready::ShapeKey,
    record::{Job, Key},
    spec::{After, JobSpec, On, Role},
    state::{State, Tally},
    time::Now,
    validate::{self, Problem},
};

impl Cluster {
    /// Whether this names a job that was accepted before, so that handling it makes nothing new.
    pub fn is_repeated(&self, submission: &Submission) -> bool {
        self.keys.contains_key(&submission.key)
    }

    pub(super) fn submit(&mut self, now: Now, submission: Submission) -> Result<Answer, Refusal> {
        let Submission { spec, key, by, trace_parent } = submission;
        if let Some(job) = self.keys.get(&key).copied().filter(|_| !mutant::is_on("key-ignored")) {
            return Ok(self.repeated(job, &spec));
        }
        let problems = validate::check(&spec);
        if !problems.is_empty() {
            return Err(Refusal::Invalid(problems));
        }
        self.check_queue(&spec)?;
        let id = JobId(self.next_job);
        let job = Arc::new(Job { id, spec, submitted: now.wall, key, by, trace_parent });
        let entry = self.build_entry(job)?;
        let warnings = self.warnings(&entry);
        self.next_job += 1;
        self.insert_entry(entry);
        self.changed(Key::Job(id));
        self.touched_job(id);
        let groups = self.jobs.get(&id).map_or(0, |entry| entry.groups.len());
        for index in 0..groups {
            self.advance(now, GroupId { job: id, index: u32::try_from(index).unwrap_or(u32::MAX) });
        }
        Ok(Answer::Submitted { job: id, duplicate: false, warnings })
    }

    fn repeated(&self, job: JobId, spec: &Arc<JobSpec>) -> Answer {
        let same = self.jobs.get(&job).is_none_or(|entry| entry.job.spec == *spec);
        let warnings = if same {
            Vec::new()
        } else {
            vec![format!("job {job} was submitted with this key before, from a different job file; that one stands")]
        };
        Answer::Submitted { job, duplicate: true, warnings }
    }

    fn check_queue(&self, spec: &JobSpec) -> Result<(), Refusal> {
        let Some(lane) = self.queues.get(spec.queue.as_str()) else { return Ok(()) };
        let Some(limit) = lane.queue.max_waiting else { return Ok(()) };
        let held = lane.waiting + lane.running;
        if held.saturating_add(spec.task_count()) > limit {
            return Err(Refusal::QueueFull { queue: spec.queue.clone(), held, limit });
        }
        Ok(())
    }

    /// A job in memory, with nothing done. Every group waits.
    pub(super) fn build_entry(&mut self, job: Arc<Job>) -> Result<Entry, Refusal> {
        let spec = Arc::clone(&job.spec);
        let names: BTreeMap<&str, u32> =
            spec.tasks.iter().zip(0..).map(|(task, index)| (task.name.as_str(), index)).collect();
        let setups: Vec<u32> =
            spec.tasks.iter().zip(0..).filter(|(t, _)| t.role == Role::Setup).map(|(_, i)| i).collect();
        let mut edges = Vec::with_capacity(spec.tasks.len());
        let mut problems = Vec::new();
        for (task, place) in spec.tasks.iter().zip(0_usize..) {
            let mut of_task = Vec::with_capacity(task.after.len());
            if task.role == Role::Work {
                of_task.extend(setups.iter().map(|setup| Edge { source: Source::Group(*setup), on: On::Success }));
            }
            for (after, n) in task.after.iter().zip(0_usize..) {
                match self.edge(&names, after) {
                    Ok(edge) => of_task.push(edge),
                    Err(message) => problems.push(Problem { path: format!("tasks[{place}].after[{n}]"), message }),
                }
            }
            edges.push(of_task);
        }
        if !problems.is_empty() {
            return Err(Refusal::Invalid(problems));
        }
        let queue: Arc<str> = Arc::from(spec.queue.as_str());
        let mut groups = Vec::with_capacity(spec.tasks.len());
        let mut first = 0;
        for (task, edges) in spec.tasks.iter().zip(edges) {
            let count = task.count();
            let shape = self.ready.acquire(ShapeKey {
                queue: Arc::clone(&queue),
                request: task.request.clone(),
                requires: task.needs(),
            });
            let ladder = ladder::climb(&mut self.ready, &queue, task);
            groups.push(Group {
                spec: Arc::clone(task),
                first,
                count,
                phase: State::Waiting,
                tally: Tally::of(State::Waiting, count),
                edges,
                open_edge: 0,
                shape,
                ladder,
                has_inputs: false,
                told: false,
                dependants: Vec::new(),
            });
            first += count;
        }
        link_dependants(&mut groups);
        Ok(Entry::new(job, groups))
    }

    fn edge(&self, names: &BTreeMap<&str, u32>, after: &After) -> Result<Edge, String> {
        let Some(job) = after.job else {
            let name = after.task.as_deref().unwrap_or_default();
            let group = names.get(name).ok_or_else(|| format!("no task is called `{name}`"))?;
            return Ok(Edge { source: Source::Group(*group), on: after.on });
        };
        let entry = self.jobs.get(&job).ok_or_else(|| no_such_job(job))?;
        let group = match &after.task {
            None => None,
            Some(name) => {
                let place = entry.job.spec.tasks.iter().zip(0..).find(|(task, _)| task.name == *name);
                Some(place.ok_or_else(|| format!("job {job} has no task called `{name}`"))?.1)
            }
        };
        Ok(Edge { source: Source::Job(job, group), on: after.on })
    }

    /// Puts a job among the others and counts it everywhere.
    pub(super) fn insert_entry(&mut self, entry: Entry) {
        let id = entry.job.id;
        if !entry.job.key.is_empty() {
            self.keys.insert(Arc::clone(&entry.job.key), id);
        }
        let (queue, tally) = (Arc::clone(&entry.queue), entry.tally);
        let lane = self.lane(&queue);
        for state in State::ALL {
            lane.add(state, u64::from(tally.get(state)));
        }
        self.jobs.insert(id, entry);
        self.watch(id);
    }

    /// Notes which other jobs this one waits for.
    pub(super) fn watch(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get(&id) else { return };
        for (group, index) in entry.groups.iter().zip(0..) {
            for edge in &group.edges {
                if let Source::Job(source, _) = edge.source {
                    self.watchers.entry(source).or_default().insert(GroupId { job: id, index });
                }
            }
        }
    }

    /// What a person should know: work that no known agent can ever run, or not to its end.
    fn warnings(&self, entry: &Entry) -> Vec<String> {
        let here = || self.agents.values().filter(|agent| agent.deadline.is_some());
        if here().next().is_none() {
            return vec!["no agent is connected; the work waits for one".to_owned()];
        }
        let mut warnings = Vec::new();
        for group in &entry.groups {
            let (needs, name) = (group.spec.needs(), &group.spec.name);
            let mut able = here().filter(|agent| {
                needs.matches(&agent.record.offer) && group.spec.request.fits(&agent.record.offer.capacity)
            });
            let Some(first) = able.next() else {
                warnings.push(format!(
                    "no agent that is here can ever run `{name}`; `ctl explain {}.{name}` says what is missing",
                    entry.job.id
                ));
                continue;
            };
            let memory = |agent: &Agent| agent.record.offer.capacity.memory;
            let most = able.map(memory).fold(memory(first), u64::max);
            if let Some(top) = group.ladder.last().map(|step| step.memory).filter(|top| *top > most) {
                warnings.push(format!(
                    "by `oom_retries` tasks of `{name}` may ask for {} of memory, and no agent that is here and can run them \
                     has more than {}: they would wait for one; `cap` in `oom_retries` lets them fail instead",
                    bytes(top),
                    bytes(most)
                ));
            }
        }
        warnings
    }
}

fn link_dependants(groups: &mut [Group]) {
    let mut links = Vec::new();
    for (group, index) in groups.iter().zip(0_u32..) {
        for (edge, place) in group.edges.iter().zip(0_u32..) {
            if let Source::Group(source) = edge.source {
                links.push((source, index, place));
            }
        }
    }
    for (source, index, place) in links {
        if let Some(group) = groups.get_mut(source as usize) {
            group.dependants.push((index, place));
        }
    }
}

/// Also said of a job that is out of a caller's reach: the two must not be told apart.
pub(super) fn no_such_job(job: JobId) -> String {
    format!("job {job} does not exist, or was deleted; `ctl list` shows the jobs there are")
}
