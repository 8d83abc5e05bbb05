//! What a group's dependencies left, as one JSON document: `{"list": {…}, "count": [1, null, 3]}`.

use std::{ops::Range, sync::Arc};

use futures::StreamExt as _;
use muster_common::proto::v1;
use muster_core::{
    id::{AgentId, JobId, TaskId, Token},
    spec::After,
};
use tonic::Status;

use crate::{
    grpc::{Parts, agents::Back, bulk::attempt, layout::Layout, machine::Speaker, result},
    view::{JobView, Snapshot},
};

/// One message.
const PART: usize = 64 * 1024;

/// One entry of the document.
#[derive(Debug)]
pub(super) struct Entry {
    key: String,
    job: Arc<JobView>,
    tasks: Range<u32>,
    is_array: bool,
}

/// Which entries the document has: every named dependency, once. Only who has a lease in that group is told.
pub(super) fn plan(parts: &Parts, speaker: &Speaker, request: &v1::InputsRequest) -> Result<Vec<Entry>, Status> {
    let snapshot = parts.view.load();
    let (id, agent, token) = (JobId(request.job), AgentId(request.agent), Token(request.token));
    speaker.check_agent(&snapshot, agent)?;
    let job = snapshot.job(id).ok_or_else(|| Status::not_found(format!("job {id} does not exist")))?;
    let has_lease = match request.task {
        Some(task) => {
            let task = TaskId::new(id, task);
            let is_of_group = job.group_of(task.index).is_some_and(|group| group.index == request.group);
            is_of_group && attempt(&snapshot, agent, task, token).is_some_and(|attempt| attempt.end.is_none())
        }
        // An agent of an earlier release does not say which task.
        None => job.known_tasks().any(|(index, task)| {
            task.live().is_some_and(|attempt| attempt.token == token && attempt.agent == agent)
                && job.group_of(index).is_some_and(|group| group.index == request.group)
        }),
    };
    if !has_lease {
        let group = request.group;
        let text =
            format!("agent {agent} has no lease {token} in entry {group} of job {id}; its inputs are not for it");
        return Err(Status::permission_denied(text));
    }
    let group = usize::try_from(request.group).ok().and_then(|group| job.job.spec.tasks.get(group));
    let group = group.ok_or_else(|| Status::not_found(format!("job {id} has no entry {}", request.group)))?;
    let mut entries: Vec<Entry> = Vec::with_capacity(group.after.len());
    for after in &group.after {
        if let Some(entry) = entry(&snapshot, job, after)
            && !entries.iter().any(|known| known.key == entry.key)
        {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// A dependency on a task; none: it is on a whole job, or on what is deleted.
fn entry(snapshot: &Snapshot, own: &Arc<JobView>, after: &After) -> Option<Entry> {
    let name = after.task.as_deref()?;
    let (job, key) = match after.job {
        None => (own, name.to_owned()),
        Some(id) => {
            let other = after.job_name.clone().unwrap_or_else(|| id.to_string());
            (snapshot.job(id)?, format!("{other}.{name}"))
        }
    };
    let layout = Layout::new(&job.job);
    let group = layout.named(name)?;
    Some(Entry { key, job: Arc::clone(job), tasks: group.tasks.clone(), is_array: group.spec.array.is_some() })
}

/// Collects small pieces into messages.
struct Document {
    buffer: Vec<u8>,
    back: Back<v1::InputsPart>,
}

impl Document {
    async fn add(&mut self, bytes: &[u8]) -> Result<(), Status> {
        for part in bytes.chunks(PART) {
            if self.buffer.len() + part.len() > PART {
                self.flush().await?;
            }
            self.buffer.extend_from_slice(part);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Status> {
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART));
        // Waits as long as the agent reads slowly; its keep-alive ends what is dead.
        self.back.send(Ok(v1::InputsPart { data })).await.map_err(|_| Status::cancelled("the agent went away"))
    }
}

pub(super) async fn send(parts: Parts, entries: Vec<Entry>, back: Back<v1::InputsPart>) -> Result<(), Status> {
    let mut document = Document { buffer: Vec::with_capacity(PART), back };
    document.add(b"{").await?;
    for (n, entry) in entries.iter().enumerate() {
        if n > 0 {
            document.add(b",").await?;
        }
        // Names hold letters, digits, `_`, `.`, `-` only: nothing to escape.
        document.add(format!("\"{}\":", entry.key).as_bytes()).await?;
        if !entry.is_array {
            add_result(&parts, &mut document, entry, entry.tasks.start).await?;
            continue;
        }
        document.add(b"[").await?;
        for index in entry.tasks.clone() {
            if index > entry.tasks.start {
                document.add(b",").await?;
            }
            add_result(&parts, &mut document, entry, index).await?;
        }
        document.add(b"]").await?;
    }
    document.add(b"}").await?;
    document.flush().await
}

async fn add_result(parts: &Parts, document: &mut Document, entry: &Entry, index: u32) -> Result<(), Status> {
    let id = TaskId::new(entry.job.job.id, index);
    let Some(mut data) = result::read(parts, &entry.job, id).await? else { return document.add(b"null").await };
    while let Some(part) = data.next().await {
        document.add(&part?).await?;
    }
    Ok(())
}
