//! Agents and queues as people see them, and what they wish of agents.

use std::{sync::Arc, time::Duration};

use muster_common::{
    proto::v1::{self, tend_agents_request::Wish as Asked},
    wire::{facts, link, record, spec},
};
use muster_core::{
    access::{Caller, Reach},
    cluster::{AgentStatus, FleetQuery, Totals},
    event::{Answer, Event},
    fleet::{Selection, Tending, Wish},
    id::AgentId,
    spec::LabelRule,
    time::{Now, Timestamp, micros},
};
use tonic::Status;

use crate::grpc::{
    Parts,
    filter::{page_start, page_token},
    jobs::unexpected,
    orders::by,
    status::{of_engine, of_field},
};

/// Reasons are shown beside agents and kept in their records.
const REASON_MAX: usize = 1024;
/// Of names and of label rules in one call.
const NAMED_MAX: usize = 10_000;

pub(super) async fn agents(parts: &Parts, request: v1::ListAgentsRequest) -> Result<v1::ListAgentsReply, Status> {
    let limit = match (request.only_totals, request.page_size) {
        (true, _) => 0,
        (false, 0) => usize::MAX,
        (false, size) => usize::try_from(size).unwrap_or(usize::MAX),
    };
    let which = selection(request.names, &request.labels)?;
    let query = FleetQuery { which, after: page_start(&request.page_token)?.map(AgentId), limit };
    let fleet = parts.handle.fleet(query).await.map_err(of_engine)?;
    let now = parts.clock.now();
    let last = fleet.agents.last().map(|status| status.record.id.0);
    Ok(v1::ListAgentsReply {
        agents: fleet.agents.iter().map(|agent| agent_view(parts, agent, now)).collect(),
        next_page_token: last.filter(|_| fleet.more).map(page_token).unwrap_or_default(),
        totals: Some(totals(&fleet.totals)),
    })
}

fn totals(totals: &Totals) -> v1::AgentTotals {
    v1::AgentTotals {
        connected: totals.connected,
        cordoned: totals.cordoned,
        silent: totals.silent,
        away: totals.away,
        stopped: totals.stopped,
        lost: totals.lost,
        capacity: Some(spec::request_to_proto(&totals.capacity)),
        used: Some(spec::request_to_proto(&totals.used)),
        running: totals.running,
    }
}

fn agent_view(parts: &Parts, agent: &AgentStatus, now: Now) -> v1::AgentView {
    let record = &agent.record;
    let kept_until_us = agent.kept_until.map_or(0, |until| now.wall.after(until.since(now.mono)).0);
    let silent_for = micros(now.mono.since(agent.last_seen));
    v1::AgentView {
        id: record.id.0,
        offer: Some(link::offer_to_proto(&record.offer)),
        state: agent.presence().as_str().to_owned(),
        used: Some(spec::request_to_proto(&agent.used)),
        running: agent.running,
        prefetched: agent.ahead,
        last_seen_us: Timestamp(now.wall.0.saturating_sub(silent_for)).0,
        kept_until_us,
        cordon: record.cordon.as_deref().map(facts::cordon_to_proto),
        stops: agent.stops,
        capacity: Some(spec::request_to_proto(&agent.capacity)),
        limits: (!record.limits.is_none()).then(|| facts::limits_to_proto(record.limits)),
        load: parts.loads.of(record.id),
    }
}

/// Who is meant by names and by label rules.
fn selection(names: Vec<String>, labels: &[String]) -> Result<Selection, Status> {
    if names.len() + labels.len() > NAMED_MAX {
        return Err(of_field("names", format!("has too many entries; at most {NAMED_MAX} are accepted")));
    }
    let rule = |text: &String| text.parse::<LabelRule>().map_err(|error| of_field("labels", error.to_string()));
    Ok(Selection { names, labels: labels.iter().map(rule).collect::<Result<_, _>>()? })
}

pub(super) async fn tend(
    parts: &Parts,
    caller: &Arc<Caller>,
    request: v1::TendAgentsRequest,
) -> Result<v1::TendAgentsReply, Status> {
    if request.reason.len() > REASON_MAX {
        return Err(of_field("reason", format!("must have at most {REASON_MAX} bytes")));
    }
    let wish = request.wish.ok_or_else(|| of_field("wish", "is missing: cordon, drain, resume or limit"))?;
    let tending = Tending {
        agents: selection(request.names, &request.labels)?,
        wish: wish_of(wish),
        by: by(caller, request.by),
        reason: request.reason.into(),
    };
    let (what, agents) = (tending.wish.action(), tending.agents.to_string());
    match parts.handle.ask(Event::Tend(tending).by(caller)).await.map_err(of_engine)? {
        Answer::Tended { changed, same } => {
            tracing::info!(what, agents, changed = changed.len(), "a person's wish for agents");
            Ok(v1::TendAgentsReply { changed, same })
        }
        other => Err(unexpected(&other)),
    }
}

fn wish_of(wish: Asked) -> Wish {
    match wish {
        Asked::Cordon(_) => Wish::Cordon,
        Asked::Drain(drain) => Wish::Drain { within: drain.within_ms.map(Duration::from_millis) },
        Asked::Resume(_) => Wish::Resume,
        Asked::Limit(limit) if limit.lift => Wish::Unlimit,
        Asked::Limit(limit) => Wish::Limit(facts::limits_from_proto(limit.limits.unwrap_or_default())),
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
