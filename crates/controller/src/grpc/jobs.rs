//! Jobs as people see them: submitted, listed, shown, watched. A list never touches tasks.

use std::{sync::Arc, time::Duration};

use futures::{Stream, stream};
use muster_common::{
    proto::v1,
    telemetry,
    wire::{spec as wire_spec, work},
};
use muster_core::{
    access::{Caller, Reach},
    event::{Answer, Event, Submission},
    id::JobId,
    spec::JobSpec,
    state::JobState,
    time::Timestamp,
    validate::{self, Problem},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::Status;
use tracing::Instrument as _;

use crate::{
    grpc::{
        Parts,
        filter::{LabelFilter, glob, job_states, page_size, page_start, page_token},
        layout::Layout,
        orders::by,
        select::{job_named, resolve},
        status::{of_engine, of_field, of_problems, of_wire},
    },
    view::{JobView, Snapshot, View},
};

/// Between two summaries to one watcher: 20 a second are enough for any eye.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// A spec of more groups than this is checked where it stops nobody else.
const CHECKED_INLINE: usize = 1000;
/// The longest client key.
const KEY_MAX: usize = 256;

pub(super) async fn submit(
    parts: &Parts,
    caller: &Arc<Caller>,
    request: v1::SubmitRequest,
) -> Result<v1::SubmitReply, Status> {
    let spec = request.spec.ok_or_else(|| of_field("spec", "is missing; say what to run"))?;
    if request.key.len() > KEY_MAX {
        return Err(of_field("key", format!("has {} bytes; at most {KEY_MAX} are accepted", request.key.len())));
    }
    let mut spec = wire_spec::job_from_proto(spec).map_err(|error| of_wire("", &error))?;
    may_use(caller, &spec.queue)?;
    let mut problems = name_jobs(&parts.view.load(), &caller.reach, &mut spec);
    let (spec, more) = check(spec).await?;
    problems.extend(more);
    if !problems.is_empty() {
        return Err(of_problems(&problems));
    }
    let span = tracing::info_span!("submit", job_name = spec.name);
    telemetry::set_parent(&span, &request.trace_parent);
    let own = span.in_scope(telemetry::trace_parent_of_current_span);
    let trace_parent = if own.is_empty() { telemetry::trace_parent_from(&request.trace_parent) } else { own };
    let submission = Submission {
        spec: Arc::new(spec),
        key: request.key.into(),
        by: by(caller, request.by),
        trace_parent: trace_parent.into(),
    };
    let answer = parts.handle.ask(Event::Submit(submission).by(caller)).instrument(span).await.map_err(of_engine)?;
    match answer {
        Answer::Submitted { job, duplicate, warnings } => Ok(v1::SubmitReply { job: job.0, duplicate, warnings }),
        other => Err(unexpected(&other)),
    }
}

/// Whether this caller may submit to this queue.
fn may_use(caller: &Caller, queue: &str) -> Result<(), Status> {
    if caller.reach.covers(queue) {
        return Ok(());
    }
    let (name, queues) = (caller.who.name(), caller.reach.queues().join("`, `"));
    Err(Status::permission_denied(format!(
        "this token ({name}) is limited to `{queues}`; the job is for the queue `{queue}`: submit it to one of those \
         (`queue` in the job file), or ask an admin for another token"
    )))
}

/// Another kind of answer than the question has: a bug, told as one.
pub(super) fn unexpected(answer: &Answer) -> Status {
    tracing::error!(?answer, "the engine answered another question");
    Status::internal("the controller answered another question; this is a bug, please report it")
}

async fn check(spec: JobSpec) -> Result<(JobSpec, Vec<Problem>), Status> {
    if spec.tasks.len() <= CHECKED_INLINE {
        let problems = validate::check(&spec);
        return Ok((spec, problems));
    }
    let work = move || {
        let problems = validate::check(&spec);
        (spec, problems)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the check of the job was cut short"))
}

/// Puts the numbers of other jobs in the place of their names; says which names are none.
fn name_jobs(snapshot: &Snapshot, reach: &Reach, spec: &mut JobSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, task) in spec.tasks.iter_mut().enumerate() {
        let beyond = |job| snapshot.job(job).is_some_and(|job| !reach.covers(&job.job.spec.queue));
        for (place, job) in task.after.iter().enumerate().filter_map(|(place, after)| Some((place, after.job?))) {
            if beyond(job) {
                problems.push(Problem {
                    path: format!("tasks[{index}].after[{place}]"),
                    message: format!("job {job} does not exist, or was deleted; `ctl list` shows the jobs there are"),
                });
            }
        }
        if !task.after.iter().any(|after| after.job.is_none() && after.job_name.is_some()) {
            continue;
        }
        for (place, after) in Arc::make_mut(task).after.iter_mut().enumerate() {
            let Some(name) = after.job_name.as_deref().filter(|_| after.job.is_none()) else { continue };
            match job_named(snapshot, reach, name) {
                Ok(Some(job)) => after.job = Some(job.job.id),
                Ok(None) => problems.push(Problem {
                    path: format!("tasks[{index}].after[{place}]"),
                    message: format!("no job is called `{name}`; submit it first, or name one that `ctl list` shows"),
                }),
                Err(status) => problems.push(Problem {
                    path: format!("tasks[{index}].after[{place}]"),
                    message: status.message().to_owned(),
                }),
            }
        }
    }
    problems
}

/// What a list asks for.
pub(super) struct Wanted {
    states: Vec<JobState>,
    labels: Vec<LabelFilter>,
    name: String,
    queue: String,
    after: Timestamp,
    before: Timestamp,
}

impl Wanted {
    pub(super) fn new(request: &v1::ListJobsRequest) -> Result<Self, Status> {
        Ok(Self {
            states: job_states(&request.states)?,
            labels: request.labels.iter().map(|label| LabelFilter::parse(label)).collect::<Result<_, _>>()?,
            name: request.name.clone(),
            queue: request.queue.clone(),
            after: Timestamp(request.after_us),
            before: Timestamp(request.before_us),
        })
    }

    pub(super) fn matches(&self, job: &JobView) -> bool {
        let spec = &job.job.spec;
        let submitted = job.job.submitted;
        (self.states.is_empty() || self.states.contains(&job.summary.state))
            && (self.name.is_empty() || glob(&self.name, &spec.name))
            && (self.queue.is_empty() || self.queue == spec.queue)
            && (self.after.is_never() || submitted >= self.after)
            && (self.before.is_never() || submitted < self.before)
            && self.labels.iter().all(|label| label.matches(&spec.labels))
    }
}

pub(super) fn list(
    snapshot: &Snapshot,
    reach: &Reach,
    request: &v1::ListJobsRequest,
) -> Result<v1::ListJobsReply, Status> {
    let wanted = Wanted::new(request)?;
    let before = page_start(&request.page_token)?.map(JobId);
    let size = page_size(request.page_size);
    let mut found =
        snapshot.newest_first(before).filter(|job| reach.covers(&job.job.spec.queue) && wanted.matches(job));
    let jobs: Vec<_> = found.by_ref().take(size).map(|job| summary(job)).collect();
    let last = jobs.last().map(|job| job.id);
    let next_page_token = found.next().and(last).map(page_token).unwrap_or_default();
    Ok(v1::ListJobsReply { jobs, next_page_token })
}

/// A job's line in a list.
pub(super) fn summary(job: &JobView) -> v1::JobSummary {
    let (header, counts) = (&job.job, &job.summary);
    v1::JobSummary {
        id: header.id.0,
        name: header.spec.name.clone(),
        queue: header.spec.queue.clone(),
        labels: header.spec.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        state: work::job_state_to_proto(counts.state).into(),
        tally: Some(work::tally_to_proto(&counts.tally)),
        submitted_us: header.submitted.0,
        started_us: counts.started.0,
        finished_us: counts.finished.0,
        submitted_by: header.by.to_string(),
        cancel_reason: job.cancel.as_ref().map(|cancel| cancel.reason.to_string()).unwrap_or_default(),
    }
}

pub(super) fn get(snapshot: &Snapshot, reach: &Reach, request: v1::GetJobRequest) -> Result<v1::GetJobReply, Status> {
    let found = resolve(snapshot, reach, request.selector)?;
    let (job, tasks) = (found.job, found.tasks);
    let layout = Layout::new(&job.job);
    let groups = layout.groups().zip(job.tallies()).map(|(group, tally)| v1::GroupSummary {
        name: group.spec.name.clone(),
        first_task: group.tasks.start,
        tasks: group.spec.count(),
        tally: Some(work::tally_to_proto(&tally)),
    });
    let groups = groups.collect();
    let tasks = tasks.map(|tasks| v1::TaskRange { first: tasks.start, count: tasks.end.saturating_sub(tasks.start) });
    let spec = Some(wire_spec::job_to_proto(&job.job.spec));
    Ok(v1::GetJobReply { summary: Some(summary(&job)), spec, groups, tasks })
}

/// What a watcher has been told.
struct Watch {
    view: View,
    changed: watch::Receiver<u64>,
    id: JobId,
    told: Option<Told>,
}

struct Told {
    summary: v1::JobSummary,
    at: Instant,
    last: bool,
}

/// A summary at once, then one whenever it changed, not too often but the last one at once.
pub(super) fn watch(
    view: View,
    reach: &Reach,
    request: v1::WatchJobRequest,
) -> Result<impl Stream<Item = Result<v1::JobSummary, Status>> + Send + 'static, Status> {
    let changed = view.changed();
    let id = resolve(&view.load(), reach, request.selector)?.id();
    let watch = Watch { view, changed, id, told: None };
    Ok(stream::try_unfold(watch, |mut watch| async move {
        let next = watch.next().await?;
        Ok(next.map(|summary| (summary, watch)))
    }))
}

impl Watch {
    async fn next(&mut self) -> Result<Option<v1::JobSummary>, Status> {
        loop {
            if self.told.as_ref().is_some_and(|told| told.last) {
                return Ok(None);
            }
            self.changed.borrow_and_update();
            let snapshot = self.view.load();
            let Some(job) = snapshot.job(self.id) else {
                return Err(Status::not_found(format!("job {} was deleted meanwhile", self.id)));
            };
            let last = job.summary.state.is_final();
            let too_soon = self.told.as_ref().map(|told| told.at + WATCH_EVERY).filter(|at| *at > Instant::now());
            if last || too_soon.is_none() {
                let now = summary(job);
                if self.told.as_ref().is_none_or(|told| told.summary != now || last) {
                    self.told = Some(Told { summary: now.clone(), at: Instant::now(), last });
                    return Ok(Some(now));
                }
            }
            drop(snapshot);
            self.wait(too_soon).await?;
        }
    }

    async fn wait(&mut self, until: Option<Instant>) -> Result<(), Status> {
        let timer = async {
            match until {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.changed.changed() => changed.map_err(|_| super::status::stopping()),
            () = timer => Ok(()),
        }
    }
}
