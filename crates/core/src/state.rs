//! States of tasks and ends of attempts: the table of what may follow what, and nothing else.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    id::{AgentId, Token},
    time::Timestamp,
    usage::Usage,
};

/// Where a task stands. The last four are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum State {
    /// Its start time is ahead.
    Scheduled,
    /// Dependencies or conditions are open.
    Waiting,
    /// It could run as soon as an agent has room.
    Queued,
    /// An agent holds its lease.
    Running,
    /// An attempt failed; the next one waits for its back-off.
    Retrying,
    /// Its last attempt succeeded.
    Succeeded,
    /// Its last attempt failed and no retry is left.
    Failed,
    /// A person ended it.
    Cancelled,
    /// It can never run: a dependency ended otherwise than it asks for.
    Skipped,
}

impl State {
    /// All states, in the order of a tally.
    pub const ALL: [Self; 9] = [
        Self::Scheduled,
        Self::Waiting,
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Skipped,
    ];

    /// Whether nothing follows but a person's retry (T2).
    pub fn is_final(self) -> bool {
        match self {
            Self::Scheduled | Self::Waiting | Self::Queued | Self::Running | Self::Retrying => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Skipped => true,
        }
    }

    /// The table of what may follow what without a person (T2). A person's retry takes final tasks
    /// back to `Waiting`; nothing else leaves a final state.
    pub fn may_become(self, next: Self) -> bool {
        use State::{Cancelled, Failed, Queued, Retrying, Running, Scheduled, Skipped, Succeeded, Waiting};
        match self {
            Waiting => matches!(next, Scheduled | Queued | Cancelled | Skipped),
            Scheduled => matches!(next, Waiting | Queued | Cancelled | Skipped),
            Queued => matches!(next, Waiting | Running | Cancelled),
            Running => matches!(next, Queued | Retrying | Succeeded | Failed | Cancelled),
            Retrying => matches!(next, Waiting | Queued | Cancelled),
            Succeeded | Failed | Cancelled | Skipped => false,
        }
    }

    /// The word that people and machines use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Exit code 0, and a result that could be kept if there was one.
    Succeeded,
    /// Another exit code.
    Exit(i32),
    /// Killed by a signal that was not ours.
    Signal(i32),
    /// Killed by us at its time limit.
    Timeout,
    /// Killed for its memory limit.
    Oom,
    /// Killed by us since more lay in its scratch folder than may.
    ScratchFull,
    /// Its agent did not come back, or came back without it.
    Lost,
    /// Killed by us because a person asked.
    Cancelled,
    /// No process could be started.
    NotStarted,
    /// We tried to kill it and something survives; its slot is not free (A3).
    KillFailed,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeded"),
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::Timeout => f.write_str("timeout"),
            Self::Oom => f.write_str("out of memory"),
            Self::ScratchFull => f.write_str("scratch full"),
            Self::Lost => f.write_str("lost"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::NotStarted => f.write_str("not started"),
            Self::KillFailed => f.write_str("kill failed"),
        }
    }
}

/// One try at a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// The fencing token of its lease.
    pub token: Token,
    /// Who ran it.
    pub agent: AgentId,
    /// When the lease was given.
    pub leased: Timestamp,
    /// When its process started, by the agent's clock; never: not yet reported, or none did.
    pub started: Timestamp,
    /// When it ended, by the agent's clock; never: it has not.
    pub ended: Timestamp,
    /// How it ended; none: it has not.
    pub end: Option<End>,
    /// What a person should know about the end.
    pub why: Option<Arc<str>>,
    /// What it took; none: nobody counted.
    pub usage: Option<Usage>,
}

/// Why a task's process is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopping {
    /// A person cancelled the task.
    Cancel,
    /// Its agent is to be empty: the task is queued again, at no cost.
    Drain,
}

/// What became of a task so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Where it stands.
    pub state: State,
    /// Its process is being ended, and what for.
    pub stopping: Option<Stopping>,
    /// Failures that were followed by a retry since submission or the last retry by a person.
    pub retries: u16,
    /// Attempts lost with their agents since then.
    pub losses: u16,
    /// Attempts since then that needed more memory and were followed by one with more.
    pub ooms: u8,
    /// `Retrying` only: not before this.
    pub retry_at: Timestamp,
    /// The newest attempt, live or over.
    pub attempt: Option<Attempt>,
    /// Attempts before that, oldest first.
    pub past: Vec<Attempt>,
    /// `Skipped` and `Cancelled`: why, for people.
    pub why: Option<Arc<str>>,
}

impl Task {
    /// A task that has done nothing yet.
    pub fn new(state: State) -> Self {
        Self {
            state,
            stopping: None,
            retries: 0,
            losses: 0,
            ooms: 0,
            retry_at: Timestamp(0),
            attempt: None,
            past: Vec::new(),
            why: None,
        }
    }

    /// The attempt that runs now, if one does.
    pub fn live(&self) -> Option<&Attempt> {
        self.attempt.as_ref().filter(|attempt| attempt.end.is_none())
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u32 {
        self.attempt.as_ref().map_or(0, |attempt| attempt.number)
    }
}

/// Tasks a chunk holds; the unit of commit and of publication.
pub const CHUNK_TASKS: u32 = 64;

/// Up to [`CHUNK_TASKS`] neighbours of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// In order of their index.
    pub tasks: Vec<Task>,
}

/// How many tasks stand in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u32; 9]);

impl Tally {
    /// `n` tasks of one state.
    pub fn of(state: State, n: u32) -> Self {
        let mut tally = Self::default();
        tally.add(state, n);
        tally
    }

    /// How many are in `state`.
    pub fn get(&self, state: State) -> u32 {
        self.0[state as usize]
    }

    /// `n` more in `state`.
    pub fn add(&mut self, state: State, n: u32) {
        let there = &mut self.0[state as usize];
        *there = there.saturating_add(n);
    }

    /// `n` tasks went from one state to another.
    pub fn shift(&mut self, from: State, to: State, n: u32) {
        let there = &mut self.0[from as usize];
        *there = there.saturating_sub(n);
        self.add(to, n);
    }

    /// Adds every count of `other`.
    pub fn merge(&mut self, other: &Self) {
        for state in State::ALL {
            self.add(state, other.get(state));
        }
    }

    /// All tasks.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    /// Tasks in final states.
    pub fn finished(&self) -> u32 {
        State::ALL.into_iter().filter(|state| state.is_final()).map(|state| self.get(state)).sum()
    }

    /// Whether every task is final.
    pub fn is_finished(&self) -> bool {
        self.finished() == self.total()
    }
}

/// Where a job stands, from its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Nothing of it can run yet.
    Waiting,
    /// Something of it could run; nothing does or did.
    Queued,
    /// Something of it runs or ran, and something is open.
    Running,
    /// Finished; every task succeeded or was skipped as its dependencies say, and not all were skipped.
    Succeeded,
    /// Finished; at least one task failed.
    Failed,
    /// Finished; a person ended at least one task and none failed.
    Cancelled,
    /// Finished, and nothing of it was done: every task was skipped as its dependencies say.
    Skipped,
}

impl JobState {
    /// Whether every task is final.
    pub fn is_final(self) -> bool {
        match self {
            Self::Waiting | Self::Queued | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Skipped => true,
        }
    }

    /// The word that people and machines use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }

    /// What the counts of its tasks say of a job.
    pub fn of(tally: &Tally) -> Self {
        let n = |state| tally.get(state) > 0;
        if tally.is_finished() {
            if n(State::Failed) {
                Self::Failed
            } else if n(State::Cancelled) {
                Self::Cancelled
            } else if n(State::Skipped) && !n(State::Succeeded) {
                Self::Skipped
            } else {
                Self::Succeeded
            }
        } else if n(State::Running) || n(State::Retrying) || n(State::Succeeded) || n(State::Failed) {
            Self::Running
        } else if n(State::Queued) {
            Self::Queued
        } else {
            Self::Waiting
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
