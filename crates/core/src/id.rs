//! The names of things: small typed numbers that never change meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A job's number: given at submission, counts from 1, never used twice.
    JobId(u64)
}
number! {
    /// An agent's number: given at its first attachment, counts from 1, never used twice.
    AgentId(u64)
}
number! {
    /// One connection of an agent; messages of an older session are ignored.
    SessionId(u64)
}
number! {
    /// The fencing token of a lease. Only grows, across restarts too.
    Token(u64)
}
number! {
    /// One leadership: the etcd create-revision of the leader key, or a count of openings of an
    /// embedded store.
    Term(u64)
}

/// One task: the job and the task's place in it, counted from 0 over all groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The job.
    pub job: JobId,
    /// The place in the job.
    pub index: u32,
}

impl TaskId {
    /// The task at `index` of `job`.
    pub fn new(job: JobId, index: u32) -> Self {
        Self { job, index }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.index)
    }
}

/// One group of a job: one entry of its spec's `tasks`, whose place this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    /// The job.
    pub job: JobId,
    /// The place in `JobSpec::tasks`.
    pub index: u32,
}
