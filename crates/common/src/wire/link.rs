//! What goes between an agent and the controller: offers and reports up, leases down.

use muster_core::{
    event::{self, Report, What},
    id::{JobId, TaskId, Token},
    record::{Offer, RESULT_INLINE_MAX, TaskResult},
    spec::TaskSpec,
    time::Timestamp,
};

use super::{Error, facts, required, spec, work};
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
        facts: (offer.facts != Default::default()).then(|| facts::facts_to_proto(&offer.facts)),
        unfit: offer.unfit.clone(),
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
        facts: Box::new(offer.facts.map(facts::facts_from_proto).unwrap_or_default()),
        unfit: offer.unfit,
    }
}

/// A report as the wire carries it.
pub fn report_to_proto(report: &Report) -> v1::Report {
    let what = match &report.what {
        What::Started { at } => v1::report::What::Started(v1::Started { at_us: at.0 }),
        What::Ended { end, why, started, ended, result, usage } => v1::report::What::Ended(v1::Ended {
            end: Some(work::end_to_proto(*end, why.as_deref())),
            started_us: started.0,
            ended_us: ended.0,
            result: result.as_ref().map(payload_to_proto),
            usage: usage.as_ref().map(work::usage_to_proto),
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
            let usage = ended.usage.map(work::usage_from_proto);
            What::Ended { end, why, started, ended: ended_at, result, usage }
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
        memory_bytes: lease.memory,
    }
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
