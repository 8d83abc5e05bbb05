//! What people want done with work, and why it is where it is: asked of the engine.

use std::sync::Arc;

use muster_common::{proto::v1, wire::work};
use muster_core::{
    access::{Caller, Reach, Who},
    cluster::Reason,
    event::{Answer, Event, Target, Which},
    id::TaskId,
};
use tonic::Status;

use crate::grpc::{Parts, jobs::unexpected, layout::Layout, select::resolve, status::of_engine};

pub(super) async fn cancel(
    parts: &Parts,
    caller: &Arc<Caller>,
    request: v1::CancelRequest,
) -> Result<v1::CancelReply, Status> {
    let target = target(parts, caller, request.selector)?;
    let event = Event::Cancel {
        target,
        by: by(caller, request.by),
        reason: request.reason.into(),
        teardown_too: request.teardown_too,
    };
    match parts.handle.ask(event.by(caller)).await.map_err(of_engine)? {
        Answer::Cancelled { tasks, already_final } => Ok(v1::CancelReply { job: target.job().0, tasks, already_final }),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn retry(
    parts: &Parts,
    caller: &Arc<Caller>,
    request: v1::RetryRequest,
) -> Result<v1::RetryReply, Status> {
    let target = target(parts, caller, request.selector)?;
    let which = if request.failed_only { Which::Failed } else { Which::All };
    match parts.handle.ask(Event::Retry { target, which }.by(caller)).await.map_err(of_engine)? {
        Answer::Retried { tasks } => Ok(v1::RetryReply { job: target.job().0, tasks }),
        other => Err(unexpected(&other)),
    }
}

/// Who asks, as it is shown with the work: who they proved to be, or else who they say they are.
pub(super) fn by(caller: &Caller, said: String) -> Arc<str> {
    match &caller.who {
        Who::Anonymous => said.into(),
        known => known.name().into(),
    }
}

fn target(parts: &Parts, caller: &Caller, selector: Option<v1::Selector>) -> Result<Target, Status> {
    Ok(resolve(&parts.view.load(), &caller.reach, selector)?.target())
}

pub(super) async fn explain(
    parts: &Parts,
    reach: &Reach,
    request: v1::ExplainRequest,
) -> Result<v1::ExplainReply, Status> {
    let found = resolve(&parts.view.load(), reach, request.selector)?;
    let layout = Layout::new(&found.job.job);
    let told = parts.handle.explain(found.target()).await.map_err(of_engine)?;
    let explanations = told.answers.into_iter().map(|explanation| v1::Explanation {
        subject: subject(&layout, explanation.task, explanation.count),
        tasks: explanation.count.into(),
        state: work::state_to_proto(explanation.state).into(),
        reasons: explanation.reasons.into_iter().map(reason).collect(),
    });
    Ok(v1::ExplainReply { explanations: explanations.collect(), untold: told.untold.into() })
}

fn reason(reason: Reason) -> v1::ReasonView {
    v1::ReasonView {
        code: reason.code.to_owned(),
        text: reason.text,
        unblock: reason.unblock,
        agent: reason.agent.map(|agent| agent.to_string()).unwrap_or_default(),
    }
}

/// `17.merge`, `17.scan[3]`; of neighbours `17.scan` when it is all of them, else `17.scan[3] to scan[9]`.
fn subject(layout: &Layout, task: TaskId, count: u32) -> String {
    let last = task.index.saturating_add(count.saturating_sub(1));
    match layout.group_of(task.index) {
        Some(group) if count > 1 && (group.tasks.start, group.tasks.end) == (task.index, last.saturating_add(1)) => {
            format!("{}.{}", task.job, group.spec.name)
        }
        _ if count <= 1 => format!("{}.{}", task.job, layout.name(task.index)),
        _ => format!("{}.{} to {}", task.job, layout.name(task.index), layout.name(last)),
    }
}
