//! Tasks and their attempts.

use muster_common::proto::v1;
use serde::Serialize;

use super::{agent::Agent, some, usage::Usage};
use crate::exit::Exit;
use crate::output::{
    Human, Page, style,
    table::{Cell, Column, Table, plain},
    time,
};

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Task {
    pub(crate) job: u64,
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) state: &'static str,
    /// Why it was skipped or cancelled.
    why: Option<String>,
    /// Its agent was told to stop it and has not said that it did.
    stopping: bool,
    retries: u32,
    losses: u32,
    /// Attempts that needed more memory and were followed by one with more.
    ooms: u32,
    retry_at: Option<String>,
    /// Where its newest attempt runs or ran.
    agent: Option<String>,
    /// Its agent is not connected: how it is, for a task that runs there.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_away: Option<String>,
    pub(crate) has_result: bool,
    /// Oldest first.
    pub(crate) attempts: Vec<Attempt>,
}

/// One try at a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Attempt {
    number: u32,
    agent_id: u64,
    leased_at: Option<String>,
    started_at: Option<String>,
    ended_at: Option<String>,
    duration_seconds: Option<f64>,
    pub(crate) end: Option<End>,
    /// What it took; none: nobody counted.
    pub(crate) usage: Option<Usage>,
    #[serde(skip)]
    us: [u64; 2],
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct End {
    pub(crate) kind: &'static str,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: Option<String>,
}

fn state(state: i32) -> &'static str {
    match v1::TaskState::try_from(state) {
        Ok(v1::TaskState::Scheduled) => "scheduled",
        Ok(v1::TaskState::Waiting) => "waiting",
        Ok(v1::TaskState::Queued) => "queued",
        Ok(v1::TaskState::Running) => "running",
        Ok(v1::TaskState::Retrying) => "retrying",
        Ok(v1::TaskState::Succeeded) => "succeeded",
        Ok(v1::TaskState::Failed) => "failed",
        Ok(v1::TaskState::Cancelled) => "cancelled",
        Ok(v1::TaskState::Skipped) => "skipped",
        Ok(v1::TaskState::Unknown) | Err(_) => "unknown",
    }
}

/// The word of a task's state.
pub(crate) fn state_word(word: i32) -> &'static str {
    state(word)
}

impl From<v1::End> for End {
    fn from(end: v1::End) -> Self {
        use v1::EndKind as Kind;
        let (kind, exit_code, signal) = match end.kind() {
            Kind::Succeeded => ("succeeded", Some(0), None),
            Kind::Exit => ("exit", Some(end.code), None),
            Kind::Signal => ("signal", None, Some(end.code)),
            Kind::Timeout => ("timeout", None, None),
            Kind::Oom => ("oom", None, None),
            Kind::ScratchFull => ("scratch_full", None, None),
            Kind::Lost => ("lost", None, None),
            Kind::Cancelled => ("cancelled", None, None),
            Kind::NotStarted => ("not_started", None, None),
            Kind::KillFailed => ("kill_failed", None, None),
            Kind::Unknown => ("unknown", None, None),
        };
        Self { kind, exit_code, signal, reason: some(&end.reason) }
    }
}

impl End {
    /// `exit code 3`, `not started: no such file`.
    pub(crate) fn text(&self) -> String {
        let kind = match (self.kind, self.exit_code, self.signal) {
            ("exit", Some(code), _) => format!("exit code {code}"),
            ("signal", _, Some(number)) => format!("signal {number}"),
            ("timeout", ..) => "stopped at its time limit".to_owned(),
            ("oom", ..) => "out of memory".to_owned(),
            ("scratch_full", ..) => "scratch folder full".to_owned(),
            ("lost", ..) => "agent lost".to_owned(),
            ("not_started", ..) => "not started".to_owned(),
            ("kill_failed", ..) => "could not be killed".to_owned(),
            (kind, ..) => kind.to_owned(),
        };
        match &self.reason {
            Some(reason) if *reason != kind => format!("{kind}: {reason}"),
            _ => kind,
        }
    }

    /// What `ctl run` of a single task ends with.
    pub(crate) fn exit(&self) -> Exit {
        match (self.kind, self.exit_code, self.signal) {
            (_, Some(code), _) => Exit::of_process(code),
            (_, _, Some(number)) => Exit::of_signal(number),
            ("timeout", ..) => Exit::TASK_TIMED_OUT,
            ("oom", ..) => Exit::OUT_OF_MEMORY,
            ("cancelled", ..) => Exit::CANCELLED,
            ("not_started", ..) => Exit::NOT_STARTED,
            _ => Exit::FAILED,
        }
    }
}

impl From<v1::Attempt> for Attempt {
    fn from(attempt: v1::Attempt) -> Self {
        let us = [attempt.started_us, attempt.ended_us];
        Self {
            number: attempt.number,
            agent_id: attempt.agent,
            leased_at: time::instant(attempt.leased_us),
            started_at: time::instant(us[0]),
            ended_at: time::instant(us[1]),
            duration_seconds: (us[0] > 0 && us[1] > 0).then(|| time::seconds(us[1].saturating_sub(us[0]))),
            end: attempt.end.map(End::from),
            usage: attempt.usage.map(Usage::from),
            us,
        }
    }
}

impl Attempt {
    /// For how long it ran, if it did and is over.
    pub(crate) fn ran_us(&self) -> Option<u64> {
        let [started, ended] = self.us;
        (started > 0 && ended > started).then(|| ended - started)
    }
}

impl From<v1::TaskView> for Task {
    fn from(view: v1::TaskView) -> Self {
        let task = view.task.unwrap_or_default();
        Self {
            job: view.job,
            index: view.index,
            name: view.name,
            state: state(task.state),
            why: some(&task.why),
            stopping: task.stopping == v1::Stopping::Cancel as i32 || task.drained,
            retries: task.retries,
            losses: task.losses,
            ooms: task.ooms,
            retry_at: time::instant(task.retry_at_us),
            agent: some(&view.agent_name),
            agent_away: None,
            has_result: view.has_result,
            attempts: task.past.into_iter().chain(task.attempt).map(Attempt::from).collect(),
        }
    }
}

impl Task {
    /// How people name it: `17.scan[3]`.
    pub(crate) fn address(&self) -> String {
        format!("{}.{}", self.job, self.name)
    }

    /// As `ctl top` shows one that runs.
    pub(crate) fn on_screen(&self, job: &str, now: muster_core::time::Timestamp) -> muster_top::Task {
        let us = self.attempts.last().map_or([0, 0], |attempt| attempt.us);
        muster_top::Task {
            name: self.address(),
            job: job.to_owned(),
            agent: self.agent.clone().unwrap_or_default(),
            runs: time::span(us[0], us[1], now).map_or_else(|| "-".to_owned(), time::short),
        }
    }

    /// Notes of a task that runs that its agent is not connected.
    pub(crate) fn look_at(&mut self, agents: &[Agent]) {
        let is_its = |agent: &&Agent| self.agent.as_deref() == Some(&agent.name);
        let away = |agent: &Agent| agent.away().or_else(|| Some(format!("agent {} is {}", agent.name, agent.state)));
        self.agent_away = agents.iter().find(is_its).filter(|agent| agent.state != "connected").and_then(away);
    }

    /// How its newest attempt ended.
    pub(crate) fn end(&self) -> Option<&End> {
        self.attempts.last()?.end.as_ref()
    }

    /// The last thing there is to say of it.
    pub(crate) fn note(&self) -> String {
        match (&self.why, self.end()) {
            (Some(why), _) => why.clone(),
            (None, Some(end)) if end.kind != "succeeded" => end.text(),
            _ if self.stopping => "stopping".to_owned(),
            _ => self.agent_away.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn elapsed(&self, page: &Page) -> String {
        self.ran_for(page).unwrap_or_else(|| "-".to_owned())
    }

    /// None: its last attempt never began.
    fn ran_for(&self, page: &Page) -> Option<String> {
        let us = self.attempts.last().map_or([0, 0], |attempt| attempt.us);
        time::span(us[0], us[1], page.now).map(time::short)
    }

    /// `17.scan[3] failed: exit code 3 (1.2s, attempt 2)`.
    pub(crate) fn line(&self, page: &Page) -> String {
        let state = page.paint(style::of_state(self.state), self.state);
        let note = Some(self.note()).filter(|note| !note.is_empty()).map(|note| format!(": {note}"));
        let attempt = Some(self.attempts.len()).filter(|n| *n > 1).map(|n| format!("attempt {n}"));
        let about: Vec<String> = self.ran_for(page).into_iter().chain(attempt).collect();
        let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join(", ")) };
        format!("{} {state}{}{about}", plain(&self.address()), plain(&note.unwrap_or_default()))
    }
}

/// Tasks as one answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tasks {
    pub(crate) tasks: Vec<Task>,
    pub(crate) next_page_token: Option<String>,
}

impl Human for Tasks {
    fn human(&self, page: &Page) -> String {
        match self.tasks.as_slice() {
            [] => "no tasks\n".to_owned(),
            tasks => table(tasks, page),
        }
    }
}

/// The tasks for people.
pub(crate) fn table(tasks: &[Task], page: &Page) -> String {
    use Column::{Key, Number, Text};
    let columns =
        [Key("TASK"), Number("INDEX"), Key("STATE"), Number("TRIES"), Number("TIME"), Text("AGENT"), Text("NOTE")];
    let mut table = Table::new(columns);
    for task in tasks {
        table.row([
            Cell::from(task.address()),
            task.index.to_string().into(),
            Cell::state(task.state),
            task.attempts.len().to_string().into(),
            task.elapsed(page).into(),
            task.agent.as_deref().unwrap_or("-").into(),
            task.note().into(),
        ]);
    }
    page.table(&table)
}

impl Human for Task {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number, Text};
        let mut out = format!("{}\n", self.line(page));
        if let Some(at) = &self.retry_at {
            out.push_str(&format!("  next try at {at}\n"));
        }
        if self.has_result {
            out.push_str(&format!("  has a result: ctl result {}\n", self.address()));
        }
        if self.attempts.is_empty() {
            return out;
        }
        let mut table = Table::new([
            Number("TRY"),
            Number("AGENT"),
            Key("STARTED"),
            Number("TIME"),
            Number("MEMORY"),
            Number("CPU"),
            Text("END"),
        ]);
        for attempt in &self.attempts {
            let elapsed = time::span(attempt.us[0], attempt.us[1], page.now);
            let [memory, cpu] = Usage::cells(attempt.usage.as_ref());
            let end = attempt.end.as_ref().map_or_else(|| "running".to_owned(), End::text);
            let note = attempt.usage.as_ref().and_then(Usage::note).map(|note| format!(" ({note})"));
            table.row([
                Cell::from(attempt.number.to_string()),
                attempt.agent_id.to_string().into(),
                attempt.started_at.as_deref().unwrap_or("-").into(),
                elapsed.map_or_else(|| "-".to_owned(), time::short).into(),
                memory.into(),
                cpu.into(),
                (end + &note.unwrap_or_default()).into(),
            ]);
        }
        out.push('\n');
        out.push_str(&page.table(&table));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_single_task_decides_the_exit_code() {
        use v1::EndKind as Kind;
        let table = [
            (Kind::Succeeded, 0, 0, "succeeded"),
            (Kind::Exit, 3, 3, "exit code 3"),
            (Kind::Signal, 9, 137, "signal 9"),
            (Kind::Timeout, 0, 124, "stopped at its time limit"),
            (Kind::Oom, 0, 137, "out of memory"),
            (Kind::ScratchFull, 0, 1, "scratch folder full"),
            (Kind::Lost, 0, 1, "agent lost"),
            (Kind::Cancelled, 0, 6, "cancelled"),
            (Kind::NotStarted, 0, 126, "not started"),
            (Kind::KillFailed, 0, 1, "could not be killed"),
            (Kind::Unknown, 0, 1, "unknown"),
        ];
        for (kind, code, exit, text) in table {
            let end = End::from(v1::End { kind: kind as i32, code, reason: String::new() });
            assert_eq!(end.exit(), Exit(exit), "{kind:?}");
            assert_eq!(end.text(), text, "{kind:?}");
        }
    }
}
