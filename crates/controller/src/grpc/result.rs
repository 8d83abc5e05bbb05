//! What tasks left, from the store or the object store.

use bytes::Bytes;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use muster_common::proto::v1;
use muster_core::{
    access::Reach,
    id::{TaskId, Token},
    record::TaskResult,
    state::{Attempt, End, State, Task},
};
use tonic::Status;

use crate::{
    grpc::{
        Parts,
        layout::{Layout, known},
        select::{Found, resolve},
        status::of_logs,
    },
    view::JobView,
};

/// One message of a result.
const RESULT_PART: usize = 64 * 1024;

/// The attempt that left a task's result: the newest that succeeded.
fn result_token(task: &Task) -> Option<Token> {
    let all = task.attempt.iter().map(|attempt| -> &Attempt { attempt }).chain(task.past.iter().rev());
    let mut succeeded = all.filter(|attempt| attempt.end == Some(End::Succeeded));
    succeeded.next().map(|attempt| attempt.token)
}

/// A task's result, in parts.
pub(super) async fn get(
    parts: &Parts,
    reach: &Reach,
    request: v1::GetResultRequest,
) -> Result<BoxStream<'static, Result<v1::ResultChunk, Status>>, Status> {
    let found = resolve(&parts.view.load(), reach, request.selector)?;
    let index = one_result(&found)?;
    let id = TaskId::new(found.id(), index);
    let data = read(parts, &found.job, id).await?;
    let Some(data) = data else {
        let state = found.job.state_of(index).unwrap_or(State::Waiting);
        let name = Layout::new(&found.job.job).name(index);
        return Err(Status::not_found(format!(
            "{}.{name} has no result: it is {state}; a task leaves one by writing JSON to the file that MUSTER_RESULT names",
            found.id()
        )));
    };
    Ok(data.map_ok(|data| v1::ResultChunk { data: data.to_vec() }).boxed())
}

/// The task whose result is meant: the selected one, or the only one of the selected that left any.
fn one_result(found: &Found) -> Result<u32, Status> {
    let tasks = found.range();
    if tasks.end - tasks.start == 1 {
        return Ok(tasks.start);
    }
    let mut with = found.job.results.range(tasks).map(|(index, _)| *index);
    match (with.next(), with.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Status::not_found(format!("no task of {} left a result", found.text))),
        (Some(first), Some(second)) => {
            let layout = Layout::new(&found.job.job);
            let (first, second) = (layout.name(first), layout.name(second));
            let id = found.id();
            Err(Status::failed_precondition(format!(
                "several tasks of {} left results; name one: {id}.{first}, {id}.{second}, …",
                found.text
            )))
        }
    }
}

/// The bytes of a result, from the store or the object store; none: there is none.
pub(super) async fn read(
    parts: &Parts,
    job: &JobView,
    id: TaskId,
) -> Result<Option<BoxStream<'static, Result<Bytes, Status>>>, Status> {
    match job.results.get(&id.index).map(|result| &**result) {
        None => Ok(None),
        Some(TaskResult::Inline(json)) => {
            let chunks: Vec<_> = json.chunks(RESULT_PART).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
            Ok(Some(stream::iter(chunks).boxed()))
        }
        Some(TaskResult::Stored(_)) => {
            let token = known(job, id.index).and_then(result_token);
            let token =
                token.ok_or_else(|| Status::data_loss(format!("nobody knows which attempt left {id}'s result")))?;
            let data = parts.logs.get_result(id, token).await.map_err(|error| of_logs(&error))?;
            Ok(Some(data.map_err(|error| of_logs(&error)).boxed()))
        }
    }
}
