//! What goes between an agent and the controller: offers and reports up, leases down.

use std::{collections::BTreeMap, sync::Arc};

use muster_core::{
    event::{self, Report, What},
    id::{JobId, TaskId, Term, Token},
    record::{Offer, RESULT_INLINE_MAX, TaskResult},
    spec::TaskSpec,
    time::Timestamp,
};

use super::{Error, narrow, required, spec, work};
use crate::proto::v1;

/// A machine as the wire carries it.
pub fn offer_to_proto(offer: &Offer) -> v1::Offer {
    v1::Offer {
        name: offer.name.clone(),
        os: offer.os.clone(),
        arch: offer.arch.clone(),
        labels: offer.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        capacity: Some(spec::request_to_proto(&offer.capacity)),
        version: offer.version.clone(),
        host: offer.host.clone(),
    }
}

/// A machine as it is meant.
pub fn offer_from_proto(offer: v1::Offer) -> Offer {
    Offer {
        name: offer.name,
        os: offer.os,
        arch: offer.arch,
        labels: offer.labels.into_iter().collect(),
        capacity: spec::request_from_proto(offer.capacity.unwrap_or_default()),
        version: offer.version,
        host: offer.host,
    }
}

/// A report as the wire carries it.
pub fn report_to_proto(report: &Report) -> v1::Report {
    let what = match &report.what {
        What::Started { at } => v1::report::What::Started(v1::Started { at_us: at.0 }),
        What::Ended { end, why, started, ended, result } => v1::report::What::Ended(v1::Ended {
            end: Some(work::end_to_proto(*end, why.as_deref())),
            started_us: started.0,
            ended_us: ended.0,
            result: result.as_ref().map(payload_to_proto),
        }),
        What::Returned { why } => v1::report::What::Returned(v1::Returned { reason: why.to_string() }),
    };
    v1::Report {
        seq: report.seq,
        token: report.token.0,
        job: report.task.job.0,
        task: report.task.index,
        what: Some(what),
    }
}

/// A report as it is meant. Whether an inline result is JSON is not judged here.
///
/// # Errors
/// A field says what cannot be.
pub fn report_from_proto(report: v1::Report) -> Result<Report, Error> {
    let what = match required(report.what, "what")? {
        v1::report::What::Started(started) => What::Started { at: Timestamp(started.at_us) },
        v1::report::What::Ended(ended) => {
            let (end, why) = work::required_end(ended.end)?;
            let (started, ended_at) = (Timestamp(ended.started_us), Timestamp(ended.ended_us));
            let result = ended.result.map(payload_from_proto).transpose()?;
            What::Ended { end, why, started, ended: ended_at, result }
        }
        v1::report::What::Returned(returned) => What::Returned { why: returned.reason.into() },
    };
    let task = TaskId::new(JobId(report.job), report.task);
    Ok(Report { seq: report.seq, token: Token(report.token), task, what })
}

fn payload_to_proto(result: &TaskResult) -> v1::ResultPayload {
    match result {
        TaskResult::Inline(json) => v1::ResultPayload { json: json.to_vec(), stored_bytes: 0 },
        TaskResult::Stored(bytes) => v1::ResultPayload { json: Vec::new(), stored_bytes: *bytes },
    }
}

fn payload_from_proto(payload: v1::ResultPayload) -> Result<TaskResult, Error> {
    if payload.json.len() > RESULT_INLINE_MAX {
        let problem = format!("{} bytes; more than {RESULT_INLINE_MAX} go by PutResult", payload.json.len());
        return Err(Error::field("result.json", problem));
    }
    result_of(payload.json, payload.stored_bytes).map_err(|error| error.inside("result"))
}

/// A result is here, or so many bytes of it are elsewhere.
pub(super) fn result_of(json: Vec<u8>, stored_bytes: u64) -> Result<TaskResult, Error> {
    match (json.is_empty(), stored_bytes) {
        (_, 0) => Ok(TaskResult::Inline(json.into())),
        (true, bytes) => Ok(TaskResult::Stored(bytes)),
        (false, _) => Err(Error::field("stored_bytes", "a result is either inline or stored, this one is both")),
    }
}

/// What the leases of one group share, as the wire carries it. The task is the part of its entry
/// that an agent needs: neither its dependencies nor its array go along.
pub fn lease_spec_to_proto(lease: &event::Lease) -> v1::LeaseSpec {
    let job = &lease.job;
    let group = usize::try_from(lease.group).ok().and_then(|group| job.spec.tasks.get(group));
    v1::LeaseSpec {
        job: job.id.0,
        group: lease.group,
        job_name: job.spec.name.clone(),
        queue: job.spec.queue.clone(),
        task: group.map(|task| spec::runnable_to_proto(task)),
        trace_parent: job.trace_parent.to_string(),
        has_inputs: lease.has_inputs,
    }
}

/// A lease as the wire carries it; `spec` is the place of its [`lease_spec_to_proto`] in the message.
pub fn lease_to_proto(lease: &event::Lease, spec: u32) -> v1::Lease {
    let group = usize::try_from(lease.group).ok().and_then(|group| lease.job.spec.tasks.get(group));
    let element = group.and_then(|task| task.element(lease.offset));
    v1::Lease {
        token: lease.token.0,
        job: lease.task.job.0,
        task: lease.task.index,
        attempt: lease.attempt,
        spec,
        array_index: element.map(|(index, _)| index),
        array_item: element.and_then(|(_, item)| item).map(str::to_owned),
    }
}

/// One message for all of `leases`, each spec once.
pub fn leases_to_proto(term: Term, leases: &[event::Lease]) -> v1::Leases {
    let mut specs = Vec::new();
    let mut places = BTreeMap::new();
    let leases = leases.iter().map(|lease| {
        let place = *places.entry((lease.task.job, lease.group, lease.has_inputs)).or_insert_with(|| {
            specs.push(lease_spec_to_proto(lease));
            u32::try_from(specs.len() - 1).unwrap_or(u32::MAX)
        });
        lease_to_proto(lease, place)
    });
    let leases = leases.collect();
    v1::Leases { term: term.0, specs, leases }
}

/// What the leases of one group share, as an agent has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSpec {
    /// The job.
    pub job: JobId,
    /// The entry of its spec.
    pub group: u32,
    /// The job's name.
    pub job_name: String,
    /// The queue it runs in.
    pub queue: String,
    /// What to run. `after` and `array` are empty here: an agent needs neither.
    pub task: TaskSpec,
    /// The W3C trace context of the submission; empty: none.
    pub trace_parent: String,
    /// Whether `Inputs` has anything for this group.
    pub has_inputs: bool,
}

/// The right to run one attempt, as an agent has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Fences everything said about it.
    pub token: Token,
    /// What to run.
    pub task: TaskId,
    /// Which try.
    pub attempt: u32,
    /// Shared with the other leases of its group in this message.
    pub spec: Arc<LeaseSpec>,
    /// Array tasks only: the index that the user counts by.
    pub array_index: Option<i64>,
    /// Tasks of item arrays only: the item.
    pub array_item: Option<Arc<str>>,
}

/// The leases of one message, as an agent has them.
#[derive(Debug)]
pub struct Leases {
    /// The leadership that gave them.
    pub term: Term,
    /// What can be run.
    pub leases: Vec<Lease>,
    /// What cannot, because this build does not understand it: to be reported as returned.
    pub refused: Vec<RefusedLease>,
}

/// A lease that this build does not understand.
#[derive(Debug)]
pub struct RefusedLease {
    /// Its token.
    pub token: Token,
    /// Its task.
    pub task: TaskId,
    /// Why, for a person.
    pub why: String,
}

/// The leases of one message. One that is not understood costs only itself: the others run.
pub fn leases_from_proto(message: v1::Leases) -> Leases {
    let specs: Vec<_> = message.specs.into_iter().map(|spec| lease_spec_from_proto(spec).map(Arc::new)).collect();
    let mut all =
        Leases { term: Term(message.term), leases: Vec::with_capacity(message.leases.len()), refused: vec![] };
    for lease in message.leases {
        let (token, task) = (Token(lease.token), TaskId::new(JobId(lease.job), lease.task));
        match spec_at(&specs, &lease) {
            Ok(spec) => all.leases.push(lease_from_proto(&lease, spec)),
            Err(why) => all.refused.push(RefusedLease { token, task, why }),
        }
    }
    all
}

fn spec_at(specs: &[Result<Arc<LeaseSpec>, Error>], lease: &v1::Lease) -> Result<Arc<LeaseSpec>, String> {
    let place: usize = narrow(lease.spec, "spec").map_err(|error| error.to_string())?;
    match specs.get(place) {
        Some(Ok(spec)) if spec.job.0 == lease.job => Ok(Arc::clone(spec)),
        Some(Ok(spec)) => Err(format!("a lease of job {} refers to the spec of job {}", lease.job, spec.job)),
        Some(Err(error)) => Err(format!("specs[{place}].{error}")),
        None => Err(format!("the lease refers to spec {place} of {}", specs.len())),
    }
}

/// What the leases of one group share.
///
/// # Errors
/// A field says what cannot be.
pub fn lease_spec_from_proto(spec: v1::LeaseSpec) -> Result<LeaseSpec, Error> {
    let task = required(spec.task, "task")?;
    Ok(LeaseSpec {
        task: spec::task_from_proto(task).map_err(|error| error.inside("task"))?,
        job: JobId(spec.job),
        group: spec.group,
        job_name: spec.job_name,
        queue: spec.queue,
        trace_parent: spec.trace_parent,
        has_inputs: spec.has_inputs,
    })
}

/// A lease whose spec was found.
pub fn lease_from_proto(lease: &v1::Lease, spec: Arc<LeaseSpec>) -> Lease {
    Lease {
        token: Token(lease.token),
        task: TaskId::new(JobId(lease.job), lease.task),
        attempt: lease.attempt,
        spec,
        array_index: lease.array_index,
        array_item: lease.array_item.as_deref().map(Arc::from),
    }
}
