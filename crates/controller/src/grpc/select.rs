//! What a person means by `17`, `17.0`, `17.extract`, `17.scan[3]`, `census`, `census.merge`.

use std::{ops::Range, sync::Arc};

use muster_common::proto::v1::Selector;
use muster_core::{access::Reach, event::Target, id::JobId};
use tonic::Status;

use crate::{
    grpc::{layout::Layout, status::nearest},
    view::{JobView, Snapshot},
};

/// Jobs of one name that are listed where the name is not enough.
const CANDIDATES: usize = 5;
/// Names that are compared with one that is not known.
const COMPARED: usize = 10_000;

/// What was meant.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) job: Arc<JobView>,
    /// Tasks of it; none: all, and the job itself.
    pub(super) tasks: Option<Range<u32>>,
    /// As it was typed.
    pub(super) text: String,
}

impl Found {
    pub(super) fn id(&self) -> JobId {
        self.job.job.id
    }

    /// For the engine.
    pub(super) fn target(&self) -> Target {
        match &self.tasks {
            None => Target::Job(self.id()),
            Some(tasks) => Target::Tasks { job: self.id(), first: tasks.start, count: tasks.end - tasks.start },
        }
    }

    /// The tasks that are meant.
    pub(super) fn range(&self) -> Range<u32> {
        self.tasks.clone().unwrap_or(0..self.job.task_count())
    }
}

/// Finds what a selector means, within reach of who asks. What is out of it does not exist.
pub(super) fn resolve(snapshot: &Snapshot, reach: &Reach, selector: Option<Selector>) -> Result<Found, Status> {
    let text = selector.unwrap_or_default().text;
    let text = text.trim();
    if text.is_empty() {
        return Err(Status::invalid_argument(
            "which work? give a job's number or name, or a task: 17, 17.0, 17.extract, 17.scan[3], census, census.merge",
        ));
    }
    let found = |job: &Arc<JobView>, tasks| Found { job: Arc::clone(job), tasks, text: text.to_owned() };
    if let Some(job) = job_named(snapshot, reach, text)? {
        return Ok(found(job, None));
    }
    // A job's name may hold dots and a task's may not: the last one stands between them.
    let Some((head, tail)) = text.rsplit_once('.') else { return Err(unknown_job(snapshot, reach, text)) };
    let Some(job) = job_named(snapshot, reach, head)? else { return Err(unknown_job(snapshot, reach, head)) };
    Ok(found(job, Some(tasks_named(job, tail)?)))
}

/// The one job of this number or name.
pub(super) fn job_named<'a>(
    snapshot: &'a Snapshot,
    reach: &Reach,
    text: &str,
) -> Result<Option<&'a Arc<JobView>>, Status> {
    let within = |job: &&Arc<JobView>| reach.covers(&job.job.spec.queue);
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(text.parse().ok().and_then(|id| snapshot.job(JobId(id))).filter(within));
    }
    let all = || snapshot.named(text).filter_map(|id| snapshot.job(id)).filter(within);
    let mut named = all();
    let Some(newest) = named.next() else { return Ok(None) };
    match named.next() {
        None => Ok(Some(newest)),
        Some(second) => {
            let count = all().count();
            let all = [newest, second].into_iter().chain(named);
            let listed: Vec<_> =
                all.take(CANDIDATES).map(|job| format!("{} ({})", job.job.id, job.summary.state)).collect();
            let more = if count > listed.len() { ", …" } else { "" };
            Err(Status::failed_precondition(format!(
                "{count} jobs are called `{text}`; give one of their numbers: {}{more}",
                listed.join(", ")
            )))
        }
    }
}

fn unknown_job(snapshot: &Snapshot, reach: &Reach, text: &str) -> Status {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Status::not_found(format!("job {text} does not exist; `ctl list` shows those that do"));
    }
    let is_seen = |id: &JobId| snapshot.job(*id).is_some_and(|job| reach.covers(&job.job.spec.queue));
    let names = snapshot.names.iter().take(COMPARED).filter(|(_, jobs)| jobs.iter().any(is_seen));
    let names = names.map(|(name, _)| &**name);
    Status::not_found(match nearest(text, names) {
        Some(near) => format!("no job is called `{text}`; did you mean `{near}`?"),
        None => format!("no job is called `{text}`; `ctl list` shows all"),
    })
}

/// `0`, `extract`, `scan`, `scan[3]`.
fn tasks_named(job: &JobView, text: &str) -> Result<Range<u32>, Status> {
    let (id, count) = (job.job.id, job.task_count());
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let index = text.parse().ok().filter(|index| *index < count);
        let index: u32 = index.ok_or_else(|| {
            Status::not_found(format!("job {id} has no task {text}; its tasks are 0 to {}", count.saturating_sub(1)))
        })?;
        return Ok(index..index + 1);
    }
    let layout = Layout::new(&job.job);
    let (name, element) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((name, element)) => (name, Some(element)),
        None => (text, None),
    };
    let Some(group) = layout.named(name) else {
        let names = job.job.spec.tasks.iter().take(COMPARED).map(|task| task.name.as_str());
        return Err(Status::not_found(match nearest(name, names) {
            Some(near) => format!("job {id} has no task `{name}`; did you mean `{near}`?"),
            None => format!("job {id} has no task `{name}`; `ctl show {id}` lists them"),
        }));
    };
    let Some(element) = element else { return Ok(group.tasks) };
    let offset = element.trim().parse().ok().and_then(|index| group.spec.offset_of(index));
    let Some(offset) = offset else {
        let last = group.spec.count().saturating_sub(1);
        let ends = (group.spec.element(0), group.spec.element(last));
        return Err(Status::not_found(match ends {
            (Some((first, _)), Some((last, _))) => {
                format!("`{name}` of job {id} has no element {element}; they go from {first} to {last}")
            }
            _ => format!("`{name}` of job {id} is one task, not an array; leave `[{element}]` out"),
        }));
    };
    let index = group.tasks.start.saturating_add(offset);
    Ok(index..index.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use muster_core::{
        record::{Job, Key, Piece},
        spec::{Array, JobSpec, TaskSpec},
        time::Timestamp,
    };

    use super::*;

    fn task(name: &str, array: Option<Array>) -> Arc<TaskSpec> {
        Arc::new(TaskSpec { name: name.to_owned(), array, ..TaskSpec::default() })
    }

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, name) in [(1, "census"), (2, "twice"), (3, "twice"), (4, "v1.2")] {
            let range = Array::Range { first: 10, count: 5, step: -2 };
            let tasks = vec![task("extract", None), task("scan", Some(range)), task("merge", None)];
            let spec = Arc::new(JobSpec { name: name.to_owned(), tasks, ..JobSpec::default() });
            let (id, none) = (JobId(id), || Arc::from(""));
            let job = Job { id, spec, submitted: Timestamp(1), key: none(), by: none(), trace_parent: none() };
            snapshot.put(Key::Job(id), Piece::Job(Arc::new(job)));
        }
        snapshot
    }

    fn look_up(text: &str) -> Result<(u64, Option<Range<u32>>), Status> {
        resolve(&snapshot(), &Reach::All, Some(Selector { text: text.to_owned() }))
            .map(|found| (found.id().0, found.tasks))
    }

    #[test]
    fn work_is_found_by_every_name_it_has() {
        let cases = [
            ("1", (1, None)),
            (" census ", (1, None)),
            ("v1.2", (4, None)),
            ("1.0", (1, Some(0..1))),
            ("1.6", (1, Some(6..7))),
            ("1.extract", (1, Some(0..1))),
            ("census.merge", (1, Some(6..7))),
            ("v1.2.merge", (4, Some(6..7))),
            ("3.scan", (3, Some(1..6))),
            ("1.scan[10]", (1, Some(1..2))),
            ("1.scan[2]", (1, Some(5..6))),
        ];
        for (text, expected) in cases {
            assert_eq!(look_up(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_does_not_exist_is_refused_in_words_that_help() {
        let cases = [
            ("", tonic::Code::InvalidArgument, "which work?"),
            ("9", tonic::Code::NotFound, "job 9 does not exist"),
            ("99999999999999999999999", tonic::Code::NotFound, "does not exist"),
            ("cencus", tonic::Code::NotFound, "did you mean `census`?"),
            ("zebra.x", tonic::Code::NotFound, "no job is called `zebra`"),
            ("1.7", tonic::Code::NotFound, "its tasks are 0 to 6"),
            ("1.scna", tonic::Code::NotFound, "did you mean `scan`?"),
            ("1.scan[3]", tonic::Code::NotFound, "they go from 10 to 2"),
            ("1.scan[]", tonic::Code::NotFound, "has no element"),
            ("1.merge[0]", tonic::Code::NotFound, "leave `[0]` out"),
            ("twice", tonic::Code::FailedPrecondition, "3 (waiting), 2 (waiting)"),
            ("twice.merge", tonic::Code::FailedPrecondition, "2 jobs are called `twice`"),
            (".", tonic::Code::NotFound, ""),
            ("1.", tonic::Code::NotFound, ""),
        ];
        for (text, code, part) in cases {
            let status = look_up(text).unwrap_err();
            assert_eq!(status.code(), code, "{text}: {status}");
            assert!(status.message().contains(part), "{text}: {status}");
        }
    }
}
