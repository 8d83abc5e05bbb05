//! What a person asks for: a job and its tasks, every default already applied.
//!
//! A spec is written once and never changes; what becomes of it is in `state`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    container,
    container::Container,
    id::JobId,
    resources::{IoLimits, Request},
    run_as::{RunAs, Scratch},
    time::Timestamp,
};

/// The queue of work that names none.
pub const DEFAULT_QUEUE: &str = "default";

/// One submission.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What people call it; need not be unique.
    pub name: String,
    /// For filters: `ctl list --label team=data`.
    pub labels: BTreeMap<String, String>,
    /// For people and their programs; Muster never looks inside.
    pub metadata: BTreeMap<String, String>,
    /// The named lane it runs in.
    pub queue: String,
    /// At least one; names are unique in the job.
    pub tasks: Vec<Arc<TaskSpec>>,
}

/// One entry of `tasks`: a group of one task, or of the many tasks of an array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Unique in the job.
    pub name: String,
    /// Where it stands in the job.
    pub role: Role,
    /// What is run.
    pub command: Command,
    /// Added to the clean environment that the agent makes.
    pub env: BTreeMap<String, String>,
    /// The working directory on the agent; none: the agent's scratch folder.
    pub cwd: Option<String>,
    /// What the process reads on stdin; none: stdin is closed (an empty file).
    pub stdin: Option<Vec<u8>>,
    /// What one task takes from its agent while it runs.
    pub request: Request,
    /// What an agent must be.
    pub requires: Requires,
    /// Higher runs first.
    pub priority: Priority,
    /// From start to the kill; none: no limit.
    pub timeout: Option<Duration>,
    /// What follows a failure.
    pub retry: RetryPolicy,
    /// Not before this.
    pub start_at: Option<Timestamp>,
    /// Not before these have ended as they should.
    pub after: Vec<After>,
    /// Many tasks of this one spec.
    pub array: Option<Array>,
    /// What follows the loss of its agent.
    pub on_lost: OnLost,
    /// Its attempt goes on for so long while its agent and the controller do not hear of one another; none: no longer
    /// than the lease holds.
    pub max_disconnect: Option<Duration>,
    /// For people and filters.
    pub tags: Vec<String>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes of output kept for one attempt; none: the agent's default.
    pub output_limit: Option<u64>,
    /// Bytes of output kept in each second, after a first burst; none: the agent's default.
    pub log_rate: Option<u64>,
    /// Variables of `env` whose values its output does not show.
    pub mask: Vec<String>,
    /// It gets no more processor time than `request` says, even where processors are idle.
    pub cpu_limit: bool,
    /// How many processes and threads it may have at one time; none: no limit.
    pub pids: Option<u64>,
    /// How fast it may use disks.
    pub io: IoLimits,
    /// As whom it runs.
    pub run_as: RunAs,
    /// Whether it gets a folder to itself.
    pub scratch: Scratch,
    /// Bytes that may lie in that folder; none: the agent's default.
    pub scratch_size: Option<u64>,
    /// More memory for the attempt that follows one that needed more; none: it fails as it would anyway.
    pub oom_retries: Option<OomRetries>,
    /// What it runs in; none: the machine itself.
    pub container: Option<Container>,
}

/// What a task runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Nothing: a join point that the agent acknowledges without a process.
    #[default]
    Empty,
    /// A program and its arguments, passed on as they are. At least one.
    Argv(Vec<String>),
    /// A text for the machine's shell (`/bin/sh -c`, `cmd /C`).
    Shell(String),
}

/// Where a group stands in its job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ordinary work.
    #[default]
    Work,
    /// Before all work; work starts only when it succeeded.
    Setup,
    /// After all work, whatever happened.
    Teardown,
}

/// What an agent must be to run a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Requires {
    /// `linux`, `windows`, ...; as the agent reports it.
    pub os: Option<String>,
    /// `x86_64`, `aarch64`, ...; as the agent reports it.
    pub arch: Option<String>,
    /// All must hold.
    pub labels: Vec<LabelRule>,
}

/// One condition on an agent's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LabelRule {
    /// `key`: the label is there.
    Has(String),
    /// `!key`: it is not.
    Lacks(String),
    /// `key=value`.
    Is(String, String),
    /// `key!=value`; true where the label is missing.
    IsNot(String, String),
    /// `key in (a, b)`.
    In(String, Vec<String>),
    /// `key notin (a, b)`; true where the label is missing.
    NotIn(String, Vec<String>),
}

/// Higher runs first. Between -1000 and 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(pub i32);

impl Priority {
    /// Runs when nothing else wants to.
    pub const LOW: Self = Self(-100);
    /// What work has that says nothing.
    pub const NORMAL: Self = Self(0);
    /// Before ordinary work.
    pub const HIGH: Self = Self(100);
    /// Before everything.
    pub const CRITICAL: Self = Self(1000);
    /// The highest and lowest that a spec may ask for.
    pub const RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;
}

/// What follows a failed attempt. Exponential back-off with a cap, and jitter so that a thousand
/// tasks that failed together do not come back together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts after the first; 0: none.
    pub max: u32,
    /// Before the first retry.
    pub delay: Duration,
    /// Each delay is the one before times this, in thousandths (2000 doubles, 1000 keeps).
    pub factor_milli: u32,
    /// No delay is longer.
    pub cap: Duration,
    /// The share of a delay, in thousandths, by which it may be shorter or longer.
    pub jitter_milli: u32,
    /// Which exit codes are retried; empty: every failure.
    pub exit_codes: Vec<i32>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max: 0,
            delay: Duration::from_secs(1),
            factor_milli: 2000,
            cap: Duration::from_secs(300),
            jitter_milli: 100,
            exit_codes: Vec::new(),
        }
    }
}

/// More memory for each attempt that follows one that ended for want of it. Counted apart from [`RetryPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomRetries {
    /// Attempts with more memory.
    pub max: u32,
    /// Each asks for what the one before did times this, in thousandths. More than 1000.
    pub factor_milli: u32,
    /// Bytes; none asks for more than this. None: no limit.
    pub cap: Option<u64>,
}

impl OomRetries {
    /// The most attempts with more memory: doubling, they are more than any machine has.
    pub const MAX: u32 = 32;

    /// What is asked for in the place of `memory` after so many attempts that needed more; none: there are no more tries.
    pub fn memory_after(&self, memory: u64, ooms: u32) -> Option<u64> {
        if ooms > self.max {
            return None;
        }
        let cap = self.cap.unwrap_or(u64::MAX);
        let step = |bytes: u64| {
            let more = u128::from(bytes) * u128::from(self.factor_milli) / 1000;
            u64::try_from(more).unwrap_or(u64::MAX).min(cap).max(bytes)
        };
        let before = (1..ooms).fold(memory, |bytes, _| step(bytes));
        let now = if ooms == 0 { memory } else { step(before) };
        // Asking for the same again would end the same way.
        (ooms == 0 || now > before).then_some(now)
    }
}

/// One dependency of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Another job; none: this one.
    pub job: Option<JobId>,
    /// Another job by a name that the door resolved into `job` before submission.
    pub job_name: Option<String>,
    /// A group there; none: the whole job (only with `job`).
    pub task: Option<String>,
    /// Which end counts.
    pub on: On,
}

/// Which end of a dependency lets the dependant start. Any other end skips it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// Every task of it succeeded.
    #[default]
    Success,
    /// At least one task of it failed or was cancelled.
    Failure,
    /// It ended.
    Any,
}

/// Many tasks of one spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Array {
    /// `first, first + step, ...`, `count` of them.
    Range {
        /// The first index.
        first: i64,
        /// How many; at least 1.
        count: u32,
        /// From one to the next; not 0.
        step: i64,
    },
    /// One task an item; the item reaches the task as text.
    Items(Arc<[String]>),
}

/// What follows the loss of the agent that ran an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// Another attempt, which uses none of `retry.max`.
    #[default]
    Retry,
    /// None: the task runs at most once.
    Fail,
}

impl Default for TaskSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            role: Role::Work,
            command: Command::Empty,
            env: BTreeMap::new(),
            cwd: None,
            stdin: None,
            request: Request::default(),
            requires: Requires::default(),
            priority: Priority::NORMAL,
            timeout: None,
            retry: RetryPolicy::default(),
            start_at: None,
            after: Vec::new(),
            array: None,
            on_lost: OnLost::Retry,
            max_disconnect: None,
            tags: Vec::new(),
            grace: Duration::from_secs(10),
            output_limit: None,
            log_rate: None,
            mask: Vec::new(),
            cpu_limit: false,
            pids: None,
            io: IoLimits::default(),
            run_as: RunAs::default(),
            scratch: Scratch::None,
            scratch_size: None,
            oom_retries: None,
            container: None,
        }
    }
}

impl TaskSpec {
    /// How long an attempt may go on without a renewal, where leases hold for `lease_ttl`: the agent ends it then (A1).
    pub fn goes_on_for(&self, lease_ttl: Duration) -> Duration {
        self.max_disconnect.unwrap_or_default().max(lease_ttl)
    }

    /// What an agent must be: what is asked for, and what running it takes.
    pub fn needs(&self) -> Requires {
        let mut requires = self.requires.clone();
        if self.container.is_some() {
            requires.labels.push(LabelRule::Has(container::LABEL.to_owned()));
        }
        requires
    }

    /// How many tasks this entry stands for.
    pub fn count(&self) -> u32 {
        match &self.array {
            None => 1,
            Some(Array::Range { count, .. }) => *count,
            Some(Array::Items(items)) => u32::try_from(items.len()).unwrap_or(u32::MAX),
        }
    }

    /// What the user counts task `offset` of this entry by, and its item: `None` without an array.
    pub fn element(&self, offset: u32) -> Option<(i64, Option<&str>)> {
        match self.array.as_ref()? {
            Array::Range { first, step, .. } => Some((first + step * i64::from(offset), None)),
            Array::Items(items) => {
                let item = items.get(usize::try_from(offset).ok()?)?;
                Some((i64::from(offset), Some(item)))
            }
        }
    }

    /// The task of this entry that the user counts as `index`; the reverse of `element`.
    pub fn offset_of(&self, index: i64) -> Option<u32> {
        let offset = match self.array.as_ref()? {
            Array::Range { first, step, .. } => {
                let distance = index.checked_sub(*first)?;
                (distance.checked_rem(*step)? == 0).then_some(distance / step)?
            }
            Array::Items(_) => index,
        };
        u32::try_from(offset).ok().filter(|offset| *offset < self.count())
    }
}

impl JobSpec {
    /// How many tasks the job has.
    pub fn task_count(&self) -> u64 {
        self.tasks.iter().map(|task| u64::from(task.count())).sum()
    }
}
