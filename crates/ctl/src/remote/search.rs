//! Lines that were found in what many tasks wrote, shown as they come.

use muster_common::proto::v1;
use serde::Serialize;

use super::{Client, output::Frame};
use crate::{
    error::Error,
    exit::Exit,
    output::{self, Format, Output, style::Look, table, time},
};

/// One line that was found, for machines.
#[derive(Debug, Serialize)]
struct Match {
    job_name: String,
    #[serde(flatten)]
    line: Frame,
}

/// What was looked at.
#[derive(Debug, Default, Serialize)]
struct Totals {
    jobs: u64,
    bytes: u64,
    matches: u64,
    /// The limit was reached; there may be more.
    is_limited: bool,
    /// Bytes that were written and not kept.
    missing_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Found {
    matches: Vec<Match>,
    totals: Totals,
}

/// Shows what is found. Nothing found is no failure; what was looked at is told on standard error.
pub(crate) async fn run(
    mut client: Client,
    request: v1::SearchLogsRequest,
    output: Output,
    times: bool,
) -> Result<Exit, Error> {
    let mut found = Found { matches: Vec::new(), totals: Totals::default() };
    let mut stream = client.rpc.search_logs(request).await?.into_inner();
    while let Some(reply) = stream.message().await? {
        if let Some(totals) = reply.totals {
            found.totals = totals.into();
        }
        match output.format {
            Format::Table => {
                let text: Vec<u8> = reply.matches.iter().flat_map(|found| line(found, output, times)).collect();
                output::raw(&text)?;
            }
            Format::Jsonl => {
                for found in reply.matches {
                    output::raw(output::machine(Format::Jsonl, &Match::from(found))?.as_bytes())?;
                }
            }
            Format::Json | Format::Yaml => found.matches.extend(reply.matches.into_iter().map(Match::from)),
        }
    }
    if matches!(output.format, Format::Json | Format::Yaml) {
        output::raw(output::machine(output.format, &found)?.as_bytes())?;
    }
    output.note(Look::Dim, &found.totals.text());
    if found.totals.is_limited {
        output.note(Look::Warn, "there may be more: --limit N asks for more, --since or a filter for fewer jobs");
    }
    Ok(Exit::OK)
}

/// `17.scan[3] | text`; of a task that was tried again `17.scan[3]#2 | text`.
fn line(found: &v1::LogMatch, output: Output, times: bool) -> Vec<u8> {
    let frame = found.line.clone().unwrap_or_default();
    let mut text = Vec::new();
    if times {
        let at = time::instant(frame.at_us).unwrap_or_default();
        text.extend(output.style.paint(Look::Dim, &at).bytes().chain([b' ']));
    }
    let attempt = if found.attempt > 1 { format!("#{}", found.attempt) } else { String::new() };
    let name = table::plain(&format!("{}.{}{attempt}", found.job, found.task_name));
    text.extend(output.style.paint(Look::Busy, &name).bytes().chain(*b" | "));
    if output.is_terminal {
        text.extend(table::harmless(&String::from_utf8_lossy(&frame.data)).into_bytes());
    } else {
        text.extend_from_slice(&frame.data);
    }
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text
}

impl From<v1::LogMatch> for Match {
    fn from(found: v1::LogMatch) -> Self {
        let v1::LogMatch { job, job_name, task, task_name, attempt, line } = found;
        let reply = v1::LogsReply { job, task, task_name, attempt, frames: Vec::new() };
        Self { job_name, line: Frame::of(&reply, &line.unwrap_or_default()) }
    }
}

impl From<v1::SearchTotals> for Totals {
    fn from(totals: v1::SearchTotals) -> Self {
        let v1::SearchTotals { jobs, bytes, matches, is_limited, missing_bytes } = totals;
        Self { jobs, bytes, matches, is_limited, missing_bytes }
    }
}

impl Totals {
    fn text(&self) -> String {
        let lines = if self.matches == 1 { "1 line".to_owned() } else { format!("{} lines", self.matches) };
        let jobs = if self.jobs == 1 { "1 job".to_owned() } else { format!("{} jobs", self.jobs) };
        let missing = match self.missing_bytes {
            0 => String::new(),
            bytes => format!("; {bytes} bytes were written and not kept"),
        };
        format!("{lines} found in {} bytes of {jobs}{missing}", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::style::When;

    #[test]
    fn a_line_says_where_it_was_found() {
        let data = "it failed".to_owned().into();
        let line = v1::LogFrame { at_us: 1_790_000_000_000_000, data, ..v1::LogFrame::default() };
        let mut found = v1::LogMatch {
            job: 17,
            task_name: "scan[3]".to_owned(),
            attempt: 1,
            line: Some(line),
            ..Default::default()
        };
        let output = Output::new(Format::Table, When::Never);
        let text = |found: &v1::LogMatch, times| String::from_utf8(super::line(found, output, times)).unwrap();
        assert_eq!(text(&found, false), "17.scan[3] | it failed\n");
        let data = "it\u{1b}[2J failed\n".to_owned().into();
        let evil = v1::LogMatch { line: Some(v1::LogFrame { data, ..Default::default() }), ..found.clone() };
        let on = |is_terminal| {
            let mut output = output;
            output.is_terminal = is_terminal;
            super::line(&evil, output, false)
        };
        assert_eq!(String::from_utf8(on(true)).unwrap(), "17.scan[3] | it\\u{1b}[2J failed\n");
        assert_eq!(String::from_utf8(on(false)).unwrap(), "17.scan[3] | it\u{1b}[2J failed\n");
        found.attempt = 2;
        assert_eq!(text(&found, true), "2026-09-21T14:13:20.000000Z 17.scan[3]#2 | it failed\n");
    }

    #[test]
    fn what_was_looked_at_is_told_in_a_sentence() {
        let totals = Totals { jobs: 1, bytes: 10, matches: 2, ..Totals::default() };
        assert_eq!(totals.text(), "2 lines found in 10 bytes of 1 job");
        let totals = Totals { jobs: 3, bytes: 10, matches: 1, missing_bytes: 7, ..Totals::default() };
        assert_eq!(totals.text(), "1 line found in 10 bytes of 3 jobs; 7 bytes were written and not kept");
    }
}
