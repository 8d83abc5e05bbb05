//! Jobs: the line of a list, the list, and the whole of one.

use std::collections::BTreeMap;

use muster_common::proto::v1;
use serde::Serialize;

use super::{group::Group, some, tally::Tally, task::Task};
use crate::output::{
    Human, Page,
    style::Look,
    table::{Cell, Column, Table, plain},
    time,
};

/// One job, without its tasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) state: &'static str,
    queue: String,
    labels: BTreeMap<String, String>,
    pub(crate) tasks: Tally,
    submitted_at: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    /// From start to finish; none while it runs.
    duration_seconds: Option<f64>,
    submitted_by: Option<String>,
    pub(crate) cancel_reason: Option<String>,
    #[serde(skip)]
    us: [u64; 3],
}

/// The word of a job's state.
pub(crate) fn state(state: i32) -> &'static str {
    match v1::JobState::try_from(state) {
        Ok(v1::JobState::Waiting) => "waiting",
        Ok(v1::JobState::Queued) => "queued",
        Ok(v1::JobState::Running) => "running",
        Ok(v1::JobState::Succeeded) => "succeeded",
        Ok(v1::JobState::Failed) => "failed",
        Ok(v1::JobState::Cancelled) => "cancelled",
        Ok(v1::JobState::Skipped) => "skipped",
        Ok(v1::JobState::Unknown) | Err(_) => "unknown",
    }
}

impl From<v1::JobSummary> for Job {
    fn from(job: v1::JobSummary) -> Self {
        let us = [job.submitted_us, job.started_us, job.finished_us];
        Self {
            id: job.id,
            state: state(job.state),
            name: job.name,
            queue: job.queue,
            labels: job.labels.into_iter().collect(),
            tasks: job.tally.into(),
            submitted_at: time::instant(us[0]),
            started_at: time::instant(us[1]),
            finished_at: time::instant(us[2]),
            duration_seconds: (us[1] > 0 && us[2] > 0).then(|| time::seconds(us[2].saturating_sub(us[1]))),
            submitted_by: some(&job.submitted_by),
            cancel_reason: some(&job.cancel_reason),
            us,
        }
    }
}

impl Job {
    /// Whether every task is final.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.state, "succeeded" | "failed" | "cancelled" | "skipped")
    }

    /// How long it runs or ran.
    pub(crate) fn elapsed(&self, page: &Page) -> String {
        time::span(self.us[1], self.us[2], page.now).map_or_else(|| "-".to_owned(), time::short)
    }

    fn labels(&self) -> String {
        self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }

    /// `job 17 census succeeded: 12 succeeded (3.2s)`.
    pub(crate) fn line(&self, page: &Page) -> String {
        let state = page.paint(crate::output::style::of_state(self.state), self.state);
        let reason = self.cancel_reason.as_ref().map(|why| format!(" ({})", plain(why))).unwrap_or_default();
        let (id, name, tally, time) = (self.id, plain(&self.name), self.tasks.painted(page), self.elapsed(page));
        format!("job {id} {name} {state}{reason}: {tally} in {time}")
    }
}

/// One page of jobs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Jobs {
    pub(crate) jobs: Vec<Job>,
    /// For `--page-token`; none at the end.
    pub(crate) next_page_token: Option<String>,
}

impl Human for Jobs {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number, Text};
        if self.jobs.is_empty() {
            return "no jobs\n".to_owned();
        }
        let labelled = self.jobs.iter().any(|job| !job.labels.is_empty());
        let mut columns = vec![
            Number("JOB"),
            Text("NAME"),
            Key("STATE"),
            Number("DONE"),
            Number("FAILED"),
            Number("AGE"),
            Number("TIME"),
        ];
        columns.push(Text("QUEUE"));
        if labelled {
            columns.push(Text("LABELS"));
        }
        let mut table = Table::new(columns);
        for job in &self.jobs {
            let failed = job.tasks.failed;
            let mut row: Vec<Cell> = vec![
                job.id.to_string().into(),
                job.name.as_str().into(),
                Cell::state(job.state),
                job.tasks.share().into(),
                Cell::looking(failed.to_string(), if failed > 0 { Look::Bad } else { Look::Dim }),
                time::age(job.us[0], page.now).into(),
                job.elapsed(page).into(),
                job.queue.as_str().into(),
            ];
            if labelled {
                row.push(job.labels().into());
            }
            table.row(row);
        }
        page.table(&table)
    }
}

/// The whole of one job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Detail {
    pub(crate) job: Job,
    pub(crate) metadata: BTreeMap<String, String>,
    /// One per entry of the spec's `tasks`.
    pub(crate) groups: Vec<Group>,
    /// With `--tasks`; also in the table of a small job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tasks: Option<Vec<Task>>,
}

impl Human for Detail {
    fn human(&self, page: &Page) -> String {
        let job = &self.job;
        let mut out = format!("{}\n", job.line(page));
        let mut field = |name: &str, value: String| {
            if !value.is_empty() {
                let name = page.paint(Look::Dim, &format!("{name:<10}"));
                out.push_str(&format!("  {name} {}\n", plain(&value)));
            }
        };
        field("queue", job.queue.clone());
        field("labels", job.labels());
        field("submitted", at(job.us[0], page, job.submitted_by.as_deref()));
        field("started", at(job.us[1], page, None));
        field("finished", at(job.us[2], page, None));
        for (key, value) in &self.metadata {
            field("metadata", format!("{key}={value}"));
        }
        out.push('\n');
        out.push_str(&super::group::table(&self.groups, page));
        if let Some(tasks) = self.tasks.as_ref().filter(|tasks| !tasks.is_empty()) {
            out.push('\n');
            out.push_str(&super::task::table(tasks, page));
        }
        out
    }
}

fn at(us: u64, page: &Page, by: Option<&str>) -> String {
    let Some(instant) = time::instant(us) else { return String::new() };
    let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
    match time::age(us, page.now).as_str() {
        "now" => format!("{instant} (just now){by}"),
        age => format!("{instant} ({age} ago){by}"),
    }
}
