//! What became of work, on the wire: states, attempts, tallies.

use std::sync::Arc;

use muster_core::{
    id::{AgentId, Token},
    state::{Attempt, End, JobState, State, Stopping, Tally, Task},
    time::Timestamp,
    usage::{Amount, Unenforced, Usage},
};

use super::{Error, narrow, required, some_text, text, unknown_value};
use crate::proto::v1;

/// A task as the wire carries it.
pub fn task_to_proto(task: &Task) -> v1::Task {
    v1::Task {
        state: state_to_proto(task.state).into(),
        attempt: task.attempt.as_ref().map(attempt_to_proto),
        past: task.past.iter().map(attempt_to_proto).collect(),
        retries: task.retries.into(),
        losses: task.losses.into(),
        ooms: task.ooms.into(),
        retry_at_us: task.retry_at.0,
        why: text(task.why.as_deref()),
        stopping: if task.stopping == Some(Stopping::Cancel) { v1::Stopping::Cancel } else { v1::Stopping::No }.into(),
        drained: task.stopping == Some(Stopping::Drain),
    }
}

/// A task as it is meant.
///
/// # Errors
/// A field says what cannot be.
pub fn task_from_proto(task: v1::Task) -> Result<Task, Error> {
    let attempt = task.attempt.map(attempt_from_proto).transpose().map_err(|error| error.inside("attempt"))?;
    let past = task.past.into_iter().enumerate();
    let past = past.map(|(n, past)| attempt_from_proto(past).map_err(|e| e.inside(format_args!("past[{n}]"))));
    Ok(Task {
        state: state_from_proto(task.state)?,
        stopping: stopping_from_proto(task.stopping, task.drained)?,
        retries: narrow(task.retries, "retries")?,
        losses: narrow(task.losses, "losses")?,
        ooms: narrow(task.ooms, "ooms")?,
        retry_at: Timestamp(task.retry_at_us),
        attempt,
        past: past.collect::<Result<_, Error>>()?,
        why: some_text(&task.why),
    })
}

/// An attempt as the wire carries it.
pub fn attempt_to_proto(attempt: &Attempt) -> v1::Attempt {
    v1::Attempt {
        number: attempt.number,
        token: attempt.token.0,
        agent: attempt.agent.0,
        leased_us: attempt.leased.0,
        started_us: attempt.started.0,
        ended_us: attempt.ended.0,
        end: attempt.end.map(|end| end_to_proto(end, attempt.why.as_deref())),
        usage: attempt.usage.as_ref().map(usage_to_proto),
    }
}

/// An attempt as it is meant.
///
/// # Errors
/// A field says what cannot be.
pub fn attempt_from_proto(attempt: v1::Attempt) -> Result<Attempt, Error> {
    let end = attempt.end.map(end_from_proto).transpose()?;
    let (end, why) = end.map_or((None, None), |(end, why)| (Some(end), why));
    Ok(Attempt {
        number: attempt.number,
        token: Token(attempt.token),
        agent: AgentId(attempt.agent),
        leased: Timestamp(attempt.leased_us),
        started: Timestamp(attempt.started_us),
        ended: Timestamp(attempt.ended_us),
        end,
        why,
        usage: attempt.usage.map(usage_from_proto),
    })
}

/// What an attempt took, as the wire carries it.
pub fn usage_to_proto(usage: &Usage) -> v1::Usage {
    v1::Usage {
        memory_peak_bytes: usage.memory_peak.get(),
        cpu_user_us: usage.cpu_user_us.get(),
        cpu_system_us: usage.cpu_system_us.get(),
        read_bytes: usage.read_bytes.get(),
        written_bytes: usage.written_bytes.get(),
        unenforced: usage.unenforced.0.into(),
        has_output: usage.has_output,
    }
}

/// What an attempt took. Limits that this build does not know are left out.
pub fn usage_from_proto(usage: v1::Usage) -> Usage {
    Usage {
        memory_peak: Amount::new(usage.memory_peak_bytes),
        cpu_user_us: Amount::new(usage.cpu_user_us),
        cpu_system_us: Amount::new(usage.cpu_system_us),
        read_bytes: Amount::new(usage.read_bytes),
        written_bytes: Amount::new(usage.written_bytes),
        unenforced: Unenforced((usage.unenforced & 0xff) as u8),
        has_output: usage.has_output,
    }
}

/// How an attempt ended, and what a person should know about it, as the wire carries them.
pub fn end_to_proto(end: End, why: Option<&str>) -> v1::End {
    let (kind, code) = match end {
        End::Succeeded => (v1::EndKind::Succeeded, 0),
        End::Exit(code) => (v1::EndKind::Exit, code),
        End::Signal(number) => (v1::EndKind::Signal, number),
        End::Timeout => (v1::EndKind::Timeout, 0),
        End::Oom => (v1::EndKind::Oom, 0),
        End::Lost => (v1::EndKind::Lost, 0),
        End::Cancelled => (v1::EndKind::Cancelled, 0),
        End::NotStarted => (v1::EndKind::NotStarted, 0),
        End::KillFailed => (v1::EndKind::KillFailed, 0),
        End::ScratchFull => (v1::EndKind::ScratchFull, 0),
    };
    v1::End { kind: kind.into(), code, reason: text(why) }
}

/// How an attempt ended, and what a person should know about it.
///
/// # Errors
/// The kind is not known.
pub fn end_from_proto(end: v1::End) -> Result<(End, Option<Arc<str>>), Error> {
    let kind = match v1::EndKind::try_from(end.kind) {
        Ok(v1::EndKind::Succeeded) => End::Succeeded,
        Ok(v1::EndKind::Exit) => End::Exit(end.code),
        Ok(v1::EndKind::Signal) => End::Signal(end.code),
        Ok(v1::EndKind::Timeout) => End::Timeout,
        Ok(v1::EndKind::Oom) => End::Oom,
        Ok(v1::EndKind::Lost) => End::Lost,
        Ok(v1::EndKind::Cancelled) => End::Cancelled,
        Ok(v1::EndKind::NotStarted) => End::NotStarted,
        Ok(v1::EndKind::KillFailed) => End::KillFailed,
        Ok(v1::EndKind::ScratchFull) => End::ScratchFull,
        Ok(v1::EndKind::Unknown) | Err(_) => return Err(unknown_value("end.kind", end.kind, "1 to 10")),
    };
    Ok((kind, some_text(&end.reason)))
}

/// A task's state as the wire carries it.
pub fn state_to_proto(state: State) -> v1::TaskState {
    match state {
        State::Scheduled => v1::TaskState::Scheduled,
        State::Waiting => v1::TaskState::Waiting,
        State::Queued => v1::TaskState::Queued,
        State::Running => v1::TaskState::Running,
        State::Retrying => v1::TaskState::Retrying,
        State::Succeeded => v1::TaskState::Succeeded,
        State::Failed => v1::TaskState::Failed,
        State::Cancelled => v1::TaskState::Cancelled,
        State::Skipped => v1::TaskState::Skipped,
    }
}

/// A task's state.
///
/// # Errors
/// It is not known.
pub fn state_from_proto(state: i32) -> Result<State, Error> {
    match v1::TaskState::try_from(state) {
        Ok(v1::TaskState::Scheduled) => Ok(State::Scheduled),
        Ok(v1::TaskState::Waiting) => Ok(State::Waiting),
        Ok(v1::TaskState::Queued) => Ok(State::Queued),
        Ok(v1::TaskState::Running) => Ok(State::Running),
        Ok(v1::TaskState::Retrying) => Ok(State::Retrying),
        Ok(v1::TaskState::Succeeded) => Ok(State::Succeeded),
        Ok(v1::TaskState::Failed) => Ok(State::Failed),
        Ok(v1::TaskState::Cancelled) => Ok(State::Cancelled),
        Ok(v1::TaskState::Skipped) => Ok(State::Skipped),
        Ok(v1::TaskState::Unknown) | Err(_) => Err(unknown_value("state", state, "1 to 9")),
    }
}

/// A job's state as the wire carries it.
pub fn job_state_to_proto(state: JobState) -> v1::JobState {
    match state {
        JobState::Waiting => v1::JobState::Waiting,
        JobState::Queued => v1::JobState::Queued,
        JobState::Running => v1::JobState::Running,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
        JobState::Skipped => v1::JobState::Skipped,
    }
}

/// A job's state.
///
/// # Errors
/// It is not known.
pub fn job_state_from_proto(state: i32) -> Result<JobState, Error> {
    match v1::JobState::try_from(state) {
        Ok(v1::JobState::Waiting) => Ok(JobState::Waiting),
        Ok(v1::JobState::Queued) => Ok(JobState::Queued),
        Ok(v1::JobState::Running) => Ok(JobState::Running),
        Ok(v1::JobState::Succeeded) => Ok(JobState::Succeeded),
        Ok(v1::JobState::Failed) => Ok(JobState::Failed),
        Ok(v1::JobState::Cancelled) => Ok(JobState::Cancelled),
        Ok(v1::JobState::Skipped) => Ok(JobState::Skipped),
        Ok(v1::JobState::Unknown) | Err(_) => Err(unknown_value("state", state, "1 to 7")),
    }
}

/// A tally as the wire carries it.
pub fn tally_to_proto(tally: &Tally) -> v1::Tally {
    let n = |state| u64::from(tally.get(state));
    v1::Tally {
        scheduled: n(State::Scheduled),
        waiting: n(State::Waiting),
        queued: n(State::Queued),
        running: n(State::Running),
        retrying: n(State::Retrying),
        succeeded: n(State::Succeeded),
        failed: n(State::Failed),
        cancelled: n(State::Cancelled),
        skipped: n(State::Skipped),
    }
}

/// A tally.
///
/// # Errors
/// A count is more than a job can hold.
pub fn tally_from_proto(tally: v1::Tally) -> Result<Tally, Error> {
    let counts = [
        (State::Scheduled, tally.scheduled),
        (State::Waiting, tally.waiting),
        (State::Queued, tally.queued),
        (State::Running, tally.running),
        (State::Retrying, tally.retrying),
        (State::Succeeded, tally.succeeded),
        (State::Failed, tally.failed),
        (State::Cancelled, tally.cancelled),
        (State::Skipped, tally.skipped),
    ];
    let mut all = Tally::default();
    for (state, n) in counts {
        all.add(state, narrow(n, state.as_str())?);
    }
    Ok(all)
}

fn stopping_from_proto(stopping: i32, drained: bool) -> Result<Option<Stopping>, Error> {
    match v1::Stopping::try_from(stopping) {
        Ok(v1::Stopping::No) => Ok(drained.then_some(Stopping::Drain)),
        Ok(v1::Stopping::Cancel) => Ok(Some(Stopping::Cancel)),
        Err(_) => Err(unknown_value("stopping", stopping, "0 and 1")),
    }
}

/// The end of an attempt that must be there.
pub(super) fn required_end(end: Option<v1::End>) -> Result<(End, Option<Arc<str>>), Error> {
    end_from_proto(required(end, "end")?)
}
