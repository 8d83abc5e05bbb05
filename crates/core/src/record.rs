//! The pieces of state: what is committed, stored, loaded and published, each by its key.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    access, audit,
    fleet::{Cordon, Limits},
    id::{AgentId, JobId, TaskId},
    identity,
    resources::Request,
    spec::JobSpec,
    state::{Chunk, JobState, State, Tally},
    time::Timestamp,
};

/// The name of one piece. The order is the order in which a store is best read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Counters that must never go back.
    Meta,
    /// Who machines are.
    Identity(identity::Name),
    /// A named lane.
    Queue(Arc<str>),
    /// What somebody proves who they are with.
    Token(Arc<str>),
    /// The audit records `n * BLOCK ..`.
    Audit(u64),
    /// A machine.
    Agent(AgentId),
    /// A job's header and spec; written once.
    Job(JobId),
    /// A person's wish that the job end.
    Cancel(JobId),
    /// The tasks `n * 64 ..` of a job; absent while none of them has left its first state.
    Chunk(JobId, u32),
    /// What a task left for its dependants.
    Result(TaskId),
}

impl Key {
    /// The job that this is a piece of.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Meta | Self::Identity(_) | Self::Queue(_) | Self::Token(_) | Self::Audit(_) | Self::Agent(_) => None,
            Self::Job(job) | Self::Cancel(job) | Self::Chunk(job, _) => Some(*job),
            Self::Result(task) => Some(task.job),
        }
    }
}

/// One piece as it is now; immutable and shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// See [`Key::Meta`].
    Meta(Meta),
    /// See [`Key::Identity`].
    Identity(identity::Piece),
    /// See [`Key::Queue`].
    Queue(Arc<Queue>),
    /// See [`Key::Token`].
    Token(Arc<access::Token>),
    /// See [`Key::Audit`].
    Audit(Arc<audit::Block>),
    /// See [`Key::Agent`].
    Agent(Arc<AgentRecord>),
    /// See [`Key::Job`].
    Job(Arc<Job>),
    /// See [`Key::Cancel`].
    Cancel(Arc<Cancel>),
    /// See [`Key::Chunk`].
    Chunk(Arc<Chunk>),
    /// See [`Key::Result`].
    Result(Arc<TaskResult>),
}

/// Counters that must never go back, whatever else was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Every token ever given is lower.
    pub token_ceiling: u64,
    /// Every deleted job's number is at most this.
    pub job_floor: u64,
    /// Every deleted agent's number is at most this.
    pub agent_floor: u64,
    /// Leases with lower tokens are from before a restore: what became of them since is not known.
    pub restored_below: u64,
}

/// A job as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What was asked for.
    pub spec: Arc<JobSpec>,
    /// When it was accepted.
    pub submitted: Timestamp,
    /// The client's key; empty: none.
    pub key: Arc<str>,
    /// Who asked.
    pub by: Arc<str>,
    /// The W3C trace context of the submission; empty: none.
    pub trace_parent: Arc<str>,
}

/// A person's wish that a job end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: Arc<str>,
    /// Why; may be empty.
    pub reason: Arc<str>,
    /// Whether teardown tasks end too.
    pub teardown_too: bool,
    /// Groups that had been skipped before; every other group without a chunk was cancelled.
    pub skipped: Vec<u32>,
}

/// What a task left for its dependants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskResult {
    /// A JSON text of at most [`RESULT_INLINE_MAX`] bytes.
    Inline(Arc<[u8]>),
    /// So many bytes of JSON in the object store.
    Stored(u64),
}

/// Results up to this many bytes live in the store; larger ones in the object store, because etcd
/// takes 1.5 MiB in one request.
pub const RESULT_INLINE_MAX: usize = 64 * 1024;

/// What an agent says of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Unique among agents that are there.
    pub name: String,
    /// `linux`, `windows`, ...
    pub os: String,
    /// `x86_64`, `aarch64`, ...
    pub arch: String,
    /// For `requires`.
    pub labels: BTreeMap<String, String>,
    /// All that tasks may take together.
    pub capacity: Request,
    /// The agent's own version.
    pub version: String,
    /// The machine's name.
    pub host: String,
    /// Why it takes no new work for now, by its own judgement; empty: it does.
    pub unfit: String,
    /// What else is known of the machine; nothing is decided by it.
    pub facts: Box<Facts>,
}

/// What people want to know of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its kernel's release; empty: not known.
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`; empty: not known.
    pub distribution: String,
    /// Logical processors; 0: not known.
    pub processors: u32,
    /// The processors of each NUMA node, as the kernel writes them: `0-7,16-23`.
    pub numa: Vec<String>,
    /// Bytes of memory; 0: not known.
    pub memory: u64,
    /// Bytes of the disk that holds the agent's folder; 0: not known.
    pub disk: u64,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
    /// What attempts are held to there; empty: not known.
    pub enforced: Vec<Enforced>,
}

/// Whether attempts are held to one kind of limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// `memory`, `cpu`, `pids`, `io`; and `kill`: that nothing of an attempt outlives it.
    pub what: String,
    /// By what; empty: they are not.
    pub by: String,
    /// Why not; empty: they are.
    pub why_not: String,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As `CUDA_VISIBLE_DEVICES` counts.
    pub index: u32,
    /// Its model.
    pub name: String,
    /// Its own for ever.
    pub uuid: String,
    /// Bytes of its memory; 0: not known.
    pub memory: u64,
}

/// An agent that was here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its number.
    pub id: AgentId,
    /// Stable for its data folder, unique.
    pub uid: Arc<str>,
    /// What it last said of itself.
    pub offer: Offer,
    /// Whether it was given up: it holds no lease.
    pub lost: bool,
    /// Whether it said goodbye before that.
    pub stopped: bool,
    /// When it first came.
    pub first_seen: Timestamp,
    /// When this record last changed.
    pub changed: Timestamp,
    /// A person wishes that it takes no new work.
    pub cordon: Option<Arc<Cordon>>,
    /// What a person lets tasks take of it at most.
    pub limits: Limits,
}

/// A named lane and its limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Leases at one time; none: no limit.
    pub max_running: Option<u64>,
    /// Unfinished tasks that submission may bring it to; none: no limit.
    pub max_waiting: Option<u64>,
    /// Nothing new starts.
    pub paused: bool,
}

/// A job's counts, published beside its header whenever they change; derived, never stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// From the tally.
    pub state: JobState,
    /// How many tasks stand where.
    pub tally: Tally,
    /// Of each group, where its tasks stand that no chunk tells of.
    pub phases: Arc<[State]>,
    /// The first lease; never: none yet.
    pub started: Timestamp,
    /// The last end; never: not finished.
    pub finished: Timestamp,
}
