//! Agents and queues as people see them.

use std::sync::Arc;

use muster_common::{
    proto::v1,
    wire::{link, record, spec},
};
use muster_core::{
    access::{Caller, Reach},
    cluster::AgentStatus,
    event::Event,
    time::{Now, Timestamp, micros},
};
use tonic::Status;

use crate::grpc::{
    Parts,
    status::{of_engine, of_field},
};

pub(super) async fn agents(parts: &Parts) -> Result<v1::ListAgentsReply, Status> {
    let agents = parts.handle.agents().await.map_err(of_engine)?;
    let now = parts.clock.now();
    Ok(v1::ListAgentsReply { agents: agents.iter().map(|agent| agent_view(agent, now)).collect() })
}

fn agent_view(agent: &AgentStatus, now: Now) -> v1::AgentView {
    let AgentStatus { session, kept_until, record, .. } = agent;
    let state = match (session, record.lost, record.stopped) {
        (Some(_), _, _) => "connected",
        (None, false, _) if kept_until.is_some() => "away",
        (None, false, _) => "silent",
        (None, true, true) => "stopped",
        (None, true, false) => "lost",
    };
    let kept_until_us = kept_until.map_or(0, |until| now.wall.after(until.since(now.mono)).0);
    let silent_for = micros(now.mono.since(agent.last_seen));
    v1::AgentView {
        id: agent.record.id.0,
        offer: Some(link::offer_to_proto(&agent.record.offer)),
        state: state.to_owned(),
        used: Some(spec::request_to_proto(&agent.used)),
        running: agent.running,
        prefetched: agent.ahead,
        last_seen_us: Timestamp(now.wall.0.saturating_sub(silent_for)).0,
        kept_until_us,
    }
}

pub(super) async fn queues(parts: &Parts, reach: &Reach) -> Result<v1::ListQueuesReply, Status> {
    let queues = parts.handle.queues().await.map_err(of_engine)?;
    let view = queues.into_iter().filter(|status| reach.covers(&status.queue.name)).map(|status| v1::QueueView {
        queue: Some(record::queue_to_proto(&status.queue)),
        running: status.running,
        queued: status.waiting,
    });
    Ok(v1::ListQueuesReply { queues: view.collect() })
}

pub(super) async fn set_queue(
    parts: &Parts,
    caller: &Arc<Caller>,
    request: v1::SetQueueRequest,
) -> Result<v1::SetQueueReply, Status> {
    let queue = record::queue_from_proto(request.queue.ok_or_else(|| of_field("queue", "is missing"))?);
    let odd = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-');
    if queue.name.is_empty() || queue.name.len() > 128 || queue.name.contains(odd) {
        let message =
            format!("`{}` is no name of a queue; use up to 128 letters, digits, `_`, `.` and `-`", queue.name);
        return Err(of_field("queue.name", message));
    }
    parts.handle.ask(Event::SetQueue(queue).by(caller)).await.map_err(of_engine)?;
    Ok(v1::SetQueueReply {})
}
