//! Records: what a store keeps under which key. Embedded store and etcd alike, same bytes.
//!
//! Keys (below the store's own prefix) are padded to a fixed width, so that the order of bytes is the
//! order of numbers, and a job stands right before its pieces:
//!
//! ```text
//! meta  queues/<name>  agents/<20 digits>  identity/{ca,joins/<hash>,machines/<name>}  tokens/<id>  audit/<20 digits>
//! jobs/<20 digits>  jobs/<20 digits>/{c/<10 digits>,cancel,r/<10 digits>}
//! ```
//!
//! Every record is protobuf with a version in its first field. Version 1 is written, but where a record says what a
//! build of that version would not read. Fields are only added, so an older record reads as one whose new fields are
//! empty. A record of a higher version is refused, never guessed at: prost drops fields that it does not know, so that
//! a build would lose them silently, and hand out a task without the image that it runs in. Whoever adds a field that must
//! survive an older build therefore raises the version of records that use it; an older build then refuses the store as a
//! whole, and one that uses nothing new goes back to it.

use std::sync::Arc;

use muster_core::{
    id::{AgentId, JobId, TaskId},
    record::{AgentRecord, Cancel, Job, Key, Meta, Piece, Queue, TaskResult},
    resources::IoLimits,
    spec::{JobSpec, TaskSpec},
    state::{Attempt, CHUNK_TASKS, Chunk, End, Task},
    time::Timestamp,
};
use prost::Message;

use super::{Error, access, facts, identity, link, narrow, required, spec, work};
use crate::proto::v1;

/// The version of records that say nothing new.
pub const VERSION: u32 = 1;

/// The version of jobs whose tasks run in images, mask variables, or are limited in output, scratch space or use of
/// disks, and of attempts that ended for want of scratch space.
const LATER: u32 = 2;

/// What writes a store or a backup, for the message that refuses it.
pub const WRITTEN_BY: &str = concat!("muster ", env!("CARGO_PKG_VERSION"));

/// The key as the store has it.
pub fn key_bytes(key: &Key) -> String {
    match key {
        Key::Meta => "meta".to_owned(),
        Key::Identity(name) => format!("identity/{}", identity::key(name)),
        Key::Queue(name) => format!("queues/{name}"),
        Key::Token(id) => format!("tokens/{id}"),
        Key::Audit(n) => format!("audit/{n:020}"),
        Key::Agent(id) => format!("agents/{id:020}", id = id.0),
        Key::Job(job) => format!("jobs/{id:020}", id = job.0),
        Key::Cancel(job) => format!("jobs/{id:020}/cancel", id = job.0),
        Key::Chunk(job, n) => format!("jobs/{id:020}/c/{n:010}", id = job.0),
        Key::Result(task) => format!("jobs/{id:020}/r/{index:010}", id = task.job.0, index = task.index),
    }
}

/// The reverse of [`key_bytes`].
///
/// # Errors
/// It is none of the keys that `key_bytes` makes, byte for byte.
pub fn parse_key(bytes: &[u8]) -> Result<Key, Error> {
    let refuse = || Error::Key { key: bytes.escape_ascii().to_string() };
    std::str::from_utf8(bytes).ok().and_then(parse).ok_or_else(refuse)
}

fn parse(text: &str) -> Option<Key> {
    if text == "meta" {
        return Some(Key::Meta);
    }
    let (room, rest) = text.split_once('/')?;
    match room {
        "queues" => (!rest.is_empty()).then(|| Key::Queue(rest.into())),
        "identity" => identity::parse(rest).map(Key::Identity),
        "tokens" => (!rest.is_empty()).then(|| Key::Token(rest.into())),
        "audit" => number(rest, 20).map(Key::Audit),
        "agents" => number(rest, 20).map(|id| Key::Agent(AgentId(id))),
        "jobs" => {
            let (job, piece) = rest.split_once('/').map_or((rest, None), |(job, piece)| (job, Some(piece)));
            let job = JobId(number(job, 20)?);
            match piece.map(|piece| piece.split_once('/').unwrap_or((piece, ""))) {
                None => Some(Key::Job(job)),
                Some(("cancel", "")) if piece == Some("cancel") => Some(Key::Cancel(job)),
                Some(("c", n)) => Some(Key::Chunk(job, u32::try_from(number(n, 10)?).ok()?)),
                Some(("r", n)) => Some(Key::Result(TaskId::new(job, u32::try_from(number(n, 10)?).ok()?))),
                Some(_) => None,
            }
        }
        _ => None,
    }
}

/// Exactly `width` digits.
fn number(text: &str, width: usize) -> Option<u64> {
    let digits = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The record of `piece`, which stands under `key`.
pub fn encode(piece: &Piece, key: &Key) -> Vec<u8> {
    debug_assert!(belongs(piece, key), "{piece:?} does not belong under {key:?}");
    match piece {
        Piece::Meta(meta) => meta_to_proto(meta).encode_to_vec(),
        Piece::Identity(piece) => identity::encode(piece),
        Piece::Queue(queue) => queue_to_proto(queue).encode_to_vec(),
        Piece::Token(token) => access::token_to_proto(token).encode_to_vec(),
        Piece::Audit(block) => access::block_to_proto(block).encode_to_vec(),
        Piece::Agent(agent) => agent_to_proto(agent).encode_to_vec(),
        Piece::Job(job) => job_to_proto(job).encode_to_vec(),
        Piece::Cancel(cancel) => cancel_to_proto(cancel).encode_to_vec(),
        Piece::Chunk(chunk) => chunk_to_proto(chunk).encode_to_vec(),
        Piece::Result(result) => result_to_proto(result).encode_to_vec(),
    }
}

/// The piece that the record under `key` holds.
///
/// # Errors
/// A newer Muster wrote it, it is damaged, or it belongs under another key.
pub fn decode(key: &Key, bytes: &[u8]) -> Result<Piece, Error> {
    check_version(key, bytes)?;
    let damaged = |source| Error::Damaged { key: key_bytes(key), source };
    piece_of(key, bytes).map_err(damaged)
}

/// A record of which only the version is read: the rest may have changed past recognition.
#[derive(Clone, PartialEq, Message)]
struct Versioned {
    #[prost(uint32, tag = "1")]
    version: u32,
}

fn check_version(key: &Key, bytes: &[u8]) -> Result<(), Error> {
    // What this build wrote: the first field, and it is 1.
    if bytes.starts_with(&[0x08, VERSION as u8]) {
        return Ok(());
    }
    let damaged = |source| Error::Damaged { key: key_bytes(key), source };
    match Versioned::decode(bytes).map_err(|error| damaged(error.into()))?.version {
        0 => Err(damaged("it has no version".into())),
        found if found <= known(key) => Ok(()),
        found => Err(Error::Newer { key: key_bytes(key), found, known: known(key) }),
    }
}

/// The highest version that this build reads under a key.
fn known(key: &Key) -> u32 {
    match key {
        Key::Job(_) | Key::Chunk(..) => LATER,
        Key::Meta
        | Key::Identity(_)
        | Key::Queue(_)
        | Key::Token(_)
        | Key::Audit(_)
        | Key::Agent(_)
        | Key::Cancel(_)
        | Key::Result(_) => VERSION,
    }
}

/// The version of a job with these tasks.
fn version_of_job(spec: &JobSpec) -> u32 {
    let is_later = |task: &Arc<TaskSpec>| {
        let TaskSpec { container, mask, io, log_rate, scratch_size, .. } = &**task;
        let limits = *io != IoLimits::default() || log_rate.is_some() || scratch_size.is_some();
        container.is_some() || !mask.is_empty() || limits
    };
    if spec.tasks.iter().any(is_later) { LATER } else { VERSION }
}

/// The version of tasks with these attempts.
fn version_of_tasks(tasks: &[Task]) -> u32 {
    let is_later = |attempt: &Attempt| attempt.end == Some(End::ScratchFull);
    let attempts = |task: &Task| task.attempt.iter().chain(&task.past).any(is_later);
    if tasks.iter().any(attempts) { LATER } else { VERSION }
}

fn belongs(piece: &Piece, key: &Key) -> bool {
    match (key, piece) {
        (Key::Meta, Piece::Meta(_))
        | (Key::Audit(_), Piece::Audit(_))
        | (Key::Cancel(_), Piece::Cancel(_))
        | (Key::Chunk(..), Piece::Chunk(_))
        | (Key::Result(_), Piece::Result(_)) => true,
        (Key::Identity(name), Piece::Identity(piece)) => identity::belongs(piece, name),
        (Key::Queue(name), Piece::Queue(queue)) => **name == *queue.name,
        (Key::Token(id), Piece::Token(token)) => *id == token.id,
        (Key::Agent(id), Piece::Agent(agent)) => *id == agent.id,
        (Key::Job(id), Piece::Job(job)) => *id == job.id,
        _ => false,
    }
}

type Damage = Box<dyn std::error::Error + Send + Sync>;

fn piece_of(key: &Key, bytes: &[u8]) -> Result<Piece, Damage> {
    let piece = match key {
        Key::Meta => Piece::Meta(meta_from_proto(&v1::MetaRecord::decode(bytes)?)),
        Key::Identity(name) => Piece::Identity(identity::decode(name, bytes)?),
        Key::Queue(_) => Piece::Queue(Arc::new(queue_from_proto(v1::QueueRecord::decode(bytes)?))),
        Key::Token(_) => Piece::Token(Arc::new(access::token_from_proto(v1::TokenRecord::decode(bytes)?)?)),
        Key::Audit(_) => Piece::Audit(Arc::new(access::block_from_proto(v1::AuditBlockRecord::decode(bytes)?)?)),
        Key::Agent(_) => Piece::Agent(Arc::new(agent_from_proto(v1::AgentRecord::decode(bytes)?)?)),
        Key::Job(_) => Piece::Job(Arc::new(job_from_proto(v1::JobRecord::decode(bytes)?)?)),
        Key::Cancel(_) => Piece::Cancel(Arc::new(cancel_from_proto(v1::CancelRecord::decode(bytes)?))),
        Key::Chunk(..) => Piece::Chunk(Arc::new(chunk_from_proto(v1::ChunkRecord::decode(bytes)?)?)),
        Key::Result(_) => Piece::Result(Arc::new(result_from_proto(v1::ResultRecord::decode(bytes)?)?)),
    };
    if belongs(&piece, key) { Ok(piece) } else { Err("it names something other than its key does".into()) }
}

fn meta_to_proto(meta: &Meta) -> v1::MetaRecord {
    v1::MetaRecord {
        version: VERSION,
        token_ceiling: meta.token_ceiling,
        job_floor: meta.job_floor,
        agent_floor: meta.agent_floor,
        written_by: WRITTEN_BY.to_owned(),
        restored_below: meta.restored_below,
    }
}

fn meta_from_proto(meta: &v1::MetaRecord) -> Meta {
    Meta {
        token_ceiling: meta.token_ceiling,
        job_floor: meta.job_floor,
        agent_floor: meta.agent_floor,
        restored_below: meta.restored_below,
    }
}

/// A queue as the wire and the store carry it.
pub fn queue_to_proto(queue: &Queue) -> v1::QueueRecord {
    v1::QueueRecord {
        version: VERSION,
        name: queue.name.clone(),
        max_running: queue.max_running,
        max_waiting: queue.max_waiting,
        paused: queue.paused,
    }
}

/// A queue as it is meant.
pub fn queue_from_proto(queue: v1::QueueRecord) -> Queue {
    Queue { name: queue.name, max_running: queue.max_running, max_waiting: queue.max_waiting, paused: queue.paused }
}

fn agent_to_proto(agent: &AgentRecord) -> v1::AgentRecord {
    v1::AgentRecord {
        version: VERSION,
        id: agent.id.0,
        uid: agent.uid.to_string(),
        offer: Some(link::offer_to_proto(&agent.offer)),
        lost: agent.lost,
        first_seen_us: agent.first_seen.0,
        changed_us: agent.changed.0,
        stopped: agent.stopped,
        cordon: agent.cordon.as_deref().map(facts::cordon_to_proto),
        limits: (!agent.limits.is_none()).then(|| facts::limits_to_proto(agent.limits)),
    }
}

fn agent_from_proto(agent: v1::AgentRecord) -> Result<AgentRecord, Error> {
    Ok(AgentRecord {
        id: AgentId(agent.id),
        uid: agent.uid.into(),
        offer: link::offer_from_proto(required(agent.offer, "offer")?),
        lost: agent.lost,
        stopped: agent.stopped,
        first_seen: Timestamp(agent.first_seen_us),
        changed: Timestamp(agent.changed_us),
        cordon: agent.cordon.map(facts::cordon_from_proto).map(Arc::new),
        limits: agent.limits.map(facts::limits_from_proto).unwrap_or_default(),
    })
}

fn job_to_proto(job: &Job) -> v1::JobRecord {
    v1::JobRecord {
        version: version_of_job(&job.spec),
        id: job.id.0,
        spec: Some(spec::job_to_proto(&job.spec)),
        submitted_us: job.submitted.0,
        key: job.key.to_string(),
        submitted_by: job.by.to_string(),
        trace_parent: job.trace_parent.to_string(),
    }
}

fn job_from_proto(job: v1::JobRecord) -> Result<Job, Error> {
    let spec = spec::job_from_proto(required(job.spec, "spec")?).map_err(|error| error.inside("spec"))?;
    Ok(Job {
        id: JobId(job.id),
        spec: Arc::new(spec),
        submitted: Timestamp(job.submitted_us),
        key: job.key.into(),
        by: job.submitted_by.into(),
        trace_parent: job.trace_parent.into(),
    })
}

fn cancel_to_proto(cancel: &Cancel) -> v1::CancelRecord {
    v1::CancelRecord {
        version: VERSION,
        at_us: cancel.at.0,
        by: cancel.by.to_string(),
        reason: cancel.reason.to_string(),
        teardown_too: cancel.teardown_too,
        skipped: cancel.skipped.clone(),
    }
}

fn cancel_from_proto(cancel: v1::CancelRecord) -> Cancel {
    Cancel {
        at: Timestamp(cancel.at_us),
        by: cancel.by.into(),
        reason: cancel.reason.into(),
        teardown_too: cancel.teardown_too,
        skipped: cancel.skipped,
    }
}

fn chunk_to_proto(chunk: &Chunk) -> v1::ChunkRecord {
    let runs = chunk.tasks.chunk_by(|a, b| a == b).map(|run| v1::Run {
        count: u32::try_from(run.len()).unwrap_or(u32::MAX),
        task: run.first().map(work::task_to_proto),
    });
    v1::ChunkRecord { version: version_of_tasks(&chunk.tasks), runs: runs.collect() }
}

fn chunk_from_proto(chunk: v1::ChunkRecord) -> Result<Chunk, Error> {
    let total = chunk.runs.iter().fold(0, |total: u32, run| total.saturating_add(run.count));
    if total > CHUNK_TASKS {
        return Err(Error::field("runs", format!("{total} tasks stand in one chunk; at most {CHUNK_TASKS}")));
    }
    let mut tasks: Vec<Task> = Vec::with_capacity(narrow(total, "runs")?);
    for (n, run) in chunk.runs.into_iter().enumerate() {
        let place = |error: Error| error.inside(format_args!("runs[{n}]"));
        let task = required(run.task, "task").and_then(work::task_from_proto).map_err(place)?;
        for _ in 1..run.count {
            tasks.push(task.clone());
        }
        if run.count > 0 {
            tasks.push(task);
        }
    }
    Ok(Chunk { tasks })
}

fn result_to_proto(result: &TaskResult) -> v1::ResultRecord {
    let (json, stored_bytes) = match result {
        TaskResult::Inline(json) => (json.to_vec(), 0),
        TaskResult::Stored(bytes) => (Vec::new(), *bytes),
    };
    v1::ResultRecord { version: VERSION, json, stored_bytes }
}

fn result_from_proto(result: v1::ResultRecord) -> Result<TaskResult, Error> {
    link::result_of(result.json, result.stored_bytes)
}
