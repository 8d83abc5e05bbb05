//! `ctl logs`: what tasks wrote, and where in it a pattern is.

use muster_common::proto::v1;

use super::{Ctl, list::When};
use crate::{
    error::Error,
    exit::Exit,
    output::{self, Format},
    remote::{
        Client,
        output::{Printer, Shape},
        search, selector, tasks,
    },
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job, or tasks of one; with --search none stands for all jobs
    #[arg(value_name = "WORK", required_unless_present = "search")]
    work: Option<String>,
    /// Go on with what is written until the work is over
    #[arg(short, long, conflicts_with = "search")]
    follow: bool,
    /// Only this stream
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr"])]
    stream: Option<String>,
    /// Only the last N lines of what is there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "search")]
    tail: Option<u64>,
    /// Of this attempt, counted from 1; otherwise of the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "search")]
    attempt: Option<u32>,
    /// Begin each line with the time it was written at
    #[arg(short, long)]
    timestamps: bool,
    /// Written at or after this: 2h (ago), 2026-11-21, or RFC 3339
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,
    /// Written before this
    #[arg(long, value_name = "WHEN")]
    until: Option<When>,
    /// Only lines with this regular expression
    #[arg(long, value_name = "PATTERN", conflicts_with = "search")]
    grep: Option<String>,
    /// Lines with this regular expression, in every attempt of all tasks of WORK or of all jobs, newest job first
    #[arg(long, value_name = "PATTERN")]
    search: Option<String>,
    /// Large and small letters are the same to the pattern
    #[arg(short, long)]
    ignore_case: bool,
    #[command(flatten)]
    jobs: Jobs,
}

/// Which jobs are looked through.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --search")]
struct Jobs {
    /// Only jobs in this state; several may be given
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = super::list::STATES, requires = "search", conflicts_with = "work")]
    state: Vec<String>,
    /// Only jobs with this label: key=value, or key; all must hold
    #[arg(long, value_name = "LABEL", requires = "search", conflicts_with = "work")]
    label: Vec<String>,
    /// Only jobs of this name; `*` stands for any text
    #[arg(long, value_name = "NAME", requires = "search", conflicts_with = "work")]
    name: Option<String>,
    /// Only jobs of this queue
    #[arg(long, value_name = "QUEUE", requires = "search", conflicts_with = "work")]
    queue: Option<String>,
    /// How many lines at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), requires = "search")]
    limit: u32,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    let now = ctl.output.clock().wall();
    let since_us = args.since.map_or(0, |when| when.us(now));
    let until_us = args.until.map_or(0, |when| when.us(now));
    if let Some(pattern) = args.search {
        let jobs = v1::ListJobsRequest {
            states: args.jobs.state,
            labels: args.jobs.label,
            name: args.jobs.name.unwrap_or_default(),
            queue: args.jobs.queue.unwrap_or_default(),
            ..v1::ListJobsRequest::default()
        };
        let request = v1::SearchLogsRequest {
            pattern,
            ignore_case: args.ignore_case,
            selector: args.work.as_deref().and_then(selector),
            jobs: Some(jobs),
            stream: args.stream.unwrap_or_default(),
            since_us,
            until_us,
            limit: args.jobs.limit,
        };
        return search::run(client, request, ctl.output, args.timestamps).await;
    }
    let work = args.work.unwrap_or_default();
    let whole = matches!(ctl.output.format, Format::Json | Format::Yaml);
    if whole && args.follow {
        return Err(Error::new(Exit::USAGE, "-f has no end that json and yaml could wait for").next("use -o jsonl"));
    }
    let request = v1::LogsRequest {
        selector: selector(&work),
        follow: args.follow,
        attempt: args.attempt.unwrap_or(0),
        stream: args.stream.unwrap_or_default(),
        tail_lines: args.tail.unwrap_or(0),
        since_us,
        until_us,
        pattern: args.grep.unwrap_or_default(),
        ignore_case: args.ignore_case,
    };
    let mut printer = match ctl.output.format {
        Format::Table => Printer::new(shape(&client, &work, args.timestamps).await?, ctl.output),
        Format::Jsonl => Printer::new(Shape::Machine, ctl.output),
        Format::Json | Format::Yaml => {
            let frames = Printer::collect(client, request).await?;
            output::raw(output::machine(ctl.output.format, &frames)?.as_bytes())?;
            return Ok(Exit::OK);
        }
    };
    printer.drain(client, request).await?;
    Ok(Exit::OK)
}

/// One task's bytes are shown as they are; of several, each line says whose it is.
async fn shape(client: &Client, work: &str, times: bool) -> Result<Shape, Error> {
    let names = tasks::page(client, work, &[], 2, "").await?.tasks.len() > 1;
    Ok(if names || times { Shape::Lines { names, times } } else { Shape::Raw })
}
