//! Tasks as people see them, page by page.

use std::sync::Arc;

use muster_common::{proto::v1, wire::work};
use muster_core::{
    access::Reach,
    id::AgentId,
    state::{CHUNK_TASKS, State, Task},
};
use tonic::Status;

use crate::{
    grpc::{
        filter::{page_size, page_start, page_token, task_states},
        layout::{Layout, known},
        select::{Found, resolve},
    },
    view::{JobView, Snapshot},
};

pub(super) async fn list(
    snapshot: Arc<Snapshot>,
    reach: &Reach,
    request: v1::ListTasksRequest,
) -> Result<v1::ListTasksReply, Status> {
    let states = task_states(&request.states)?;
    let found = resolve(&snapshot, reach, request.selector)?;
    let start = page_start(&request.page_token)?.and_then(|at| u32::try_from(at).ok()).unwrap_or(0);
    let size = page_size(request.page_size);
    let scan = move || {
        let layout = Layout::new(&found.job.job);
        let mut next = next_task(&found, &layout, &states, start.max(found.range().start));
        let mut tasks = Vec::new();
        while let Some(index) = next.filter(|_| tasks.len() < size) {
            tasks.push(view(&snapshot, &found.job, &layout, index));
            next = next_task(&found, &layout, &states, index + 1);
        }
        let next_page_token = next.map(|index| page_token(index.into())).unwrap_or_default();
        v1::ListTasksReply { tasks, next_page_token }
    };
    // A million tasks of which few are wanted take some milliseconds.
    tokio::task::spawn_blocking(scan).await.map_err(|_| Status::internal("the list of tasks was cut short"))
}

/// The first task at or after `from` that is selected and in one of `states`. Steps over whole chunks of which nothing
/// is known.
fn next_task(found: &Found, layout: &Layout, states: &[State], from: u32) -> Option<u32> {
    let end = found.range().end;
    let is_wanted = |state: State| states.is_empty() || states.contains(&state);
    let mut index = from;
    while index < end {
        let group = layout.group_of(index)?;
        let chunk_end = (index / CHUNK_TASKS + 1).saturating_mul(CHUNK_TASKS);
        if let Some(task) = known(&found.job, index) {
            if is_wanted(task.state) {
                return Some(index);
            }
            index += 1;
        } else if is_wanted(found.job.phase(group.index)) {
            return Some(index);
        } else {
            index = chunk_end.min(group.tasks.end);
        }
    }
    None
}

/// A task's line in a list.
pub(super) fn view(snapshot: &Snapshot, job: &JobView, layout: &Layout, index: u32) -> v1::TaskView {
    let task = match known(job, index) {
        Some(task) => work::task_to_proto(task),
        None => {
            let state = layout.group_of(index).map_or(State::Waiting, |group| job.phase(group.index));
            work::task_to_proto(&Task::new(state))
        }
    };
    let agent = task.attempt.as_ref().map(|attempt| AgentId(attempt.agent));
    let agent = agent.and_then(|agent| snapshot.agents.get(&agent));
    v1::TaskView {
        job: job.job.id.0,
        index,
        name: layout.name(index),
        task: Some(task),
        agent_name: agent.map(|agent| agent.offer.name.clone()).unwrap_or_default(),
        has_result: job.results.contains_key(&index),
    }
}
