//! What may be large and may wait: logs and large results of agents. Fenced: only who has or had the lease may say
//! anything of an attempt.

use muster_common::proto::v1;
use muster_core::{
    id::{AgentId, JobId, TaskId, Token},
    state::Attempt,
};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::{
    grpc::{Parts, agents::Back, layout::known, machine::Speaker, status::of_logs},
    logs::{ResultWriter, Source},
    view::Snapshot,
};

/// How long an agent may not read what it is told. Its stream is then ended; it sends again.
const READ_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

pub(super) async fn logs(
    parts: Parts,
    speaker: Speaker,
    mut up: Streaming<v1::LogUp>,
    back: Back<v1::LogDown>,
) -> Result<(), Status> {
    let source = parts.logs.source();
    let take = async {
        while let Some(message) = up.message().await? {
            take_batches(&parts, &speaker, &source, message).await?;
        }
        Ok(())
    };
    let tell = async {
        loop {
            let acks = source.acks().await;
            match timeout(READ_WITHIN, back.send(Ok(v1::LogDown { acks }))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Status::aborted("the agent does not read what is acknowledged; connect again")),
            }
        }
    };
    tokio::select! {
        result = take => result,
        result = tell => result,
    }
}

async fn take_batches(parts: &Parts, speaker: &Speaker, source: &Source, message: v1::LogUp) -> Result<(), Status> {
    let snapshot = parts.view.load();
    let agent = AgentId(message.agent);
    speaker.check_agent(&snapshot, agent)?;
    for batch in message.batches {
        let task = TaskId::new(JobId(batch.job), batch.task);
        let lease = attempt(&snapshot, agent, task, Token(batch.token));
        if lease.is_some_and(|attempt| attempt.number == batch.attempt) {
            source.append(batch).await.map_err(|error| of_logs(&error))?;
        } else {
            tracing::debug!(%agent, %task, token = batch.token, "output of an attempt that nobody knows is dropped");
            source.decline(&batch);
        }
    }
    Ok(())
}

/// The attempt that an agent has or had with this token. What is leased is shown before the agent hears of it, so
/// that an attempt which is not found is none.
pub(super) fn attempt(snapshot: &Snapshot, agent: AgentId, task: TaskId, token: Token) -> Option<&Attempt> {
    let found = known(snapshot.job(task.job)?, task.index)?;
    let all = found.attempt.iter().map(|attempt| -> &Attempt { attempt }).chain(&found.past);
    all.into_iter().find(|attempt| attempt.token == token && attempt.agent == agent)
}

pub(super) async fn put_result(
    parts: &Parts,
    speaker: &Speaker,
    mut up: Streaming<v1::ResultPart>,
) -> Result<v1::ResultKept, Status> {
    let first = up.message().await?;
    let first = first.ok_or_else(|| Status::invalid_argument("no part of a result came"))?;
    let (task, token) = (TaskId::new(JobId(first.job), first.task), Token(first.token));
    let agent = AgentId(first.agent);
    let snapshot = parts.view.load();
    speaker.check_agent(&snapshot, agent)?;
    if attempt(&snapshot, agent, task, token).is_none_or(|attempt| attempt.end.is_some()) {
        return Err(Status::failed_precondition(format!(
            "lease {token} of task {task} is not, or no longer, with agent {agent}; drop the result"
        )));
    }
    let mut writer = parts.logs.put_result(task, token).await.map_err(|error| of_logs(&error))?;
    match write(&mut writer, first, &mut up).await {
        Ok(()) => writer.finish().await.map(|bytes| v1::ResultKept { bytes }).map_err(|error| of_logs(&error)),
        Err(status) => {
            writer.abort().await;
            Err(status)
        }
    }
}

async fn write(
    writer: &mut ResultWriter,
    first: v1::ResultPart,
    up: &mut Streaming<v1::ResultPart>,
) -> Result<(), Status> {
    let mut next = Some(first);
    while let Some(part) = next {
        writer.write(&part.data).await.map_err(|error| of_logs(&error))?;
        next = up.message().await?;
    }
    Ok(())
}
