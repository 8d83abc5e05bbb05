//! Tasks page by page.

use muster_common::proto::v1;

use super::{Client, selector};
use crate::{
    error::Error,
    model::task::{Task, Tasks},
};

/// The largest page: an answer of well under a mebibyte.
pub(crate) const PAGE: u32 = 1000;

/// The final states, as filters.
pub(crate) const ENDED: [&str; 4] = ["succeeded", "failed", "cancelled", "skipped"];

/// One page of the tasks that `what` names.
pub(crate) async fn page(
    client: &Client,
    what: &str,
    states: &[String],
    size: u32,
    token: &str,
) -> Result<Tasks, Error> {
    let request = v1::ListTasksRequest {
        selector: selector(what),
        states: states.to_vec(),
        page_size: size,
        page_token: token.to_owned(),
    };
    let reply = client.rpc.clone().list_tasks(request).await?.into_inner();
    let tasks = reply.tasks.into_iter().map(Task::from).collect();
    Ok(Tasks { tasks, next_page_token: crate::model::some(&reply.next_page_token) })
}

/// The first `limit` tasks that `what` names, over as many pages as it takes.
pub(crate) async fn first(client: &Client, what: &str, states: &[String], limit: usize) -> Result<Tasks, Error> {
    let mut all = Tasks { tasks: Vec::new(), next_page_token: None };
    let mut token = String::new();
    while all.tasks.len() < limit {
        let room = u32::try_from(limit - all.tasks.len()).unwrap_or(PAGE).min(PAGE);
        let part = page(client, what, states, room, &token).await?;
        all.tasks.extend(part.tasks);
        all.next_page_token = part.next_page_token;
        match &all.next_page_token {
            Some(next) => token.clone_from(next),
            None => break,
        }
    }
    Ok(all)
}
