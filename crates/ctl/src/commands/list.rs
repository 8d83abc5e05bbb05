//! `ctl list`: jobs, filtered and page by page.

use std::{fmt, str::FromStr};

use chrono::{DateTime, NaiveDate, NaiveTime};
use muster_common::proto::v1;
use muster_core::time::{Timestamp, micros};

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::{
        job::{Job, Jobs},
        some,
    },
    output::{Format, style::Look},
};

/// What a filter may ask for: the states of jobs, and two words for several of them.
pub(crate) const STATES: [&str; 9] =
    ["waiting", "queued", "running", "succeeded", "failed", "cancelled", "skipped", "pending", "completed"];

/// The largest page that is asked for.
const PAGE: u32 = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only jobs in this state; several may be given
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = STATES)]
    state: Vec<String>,
    /// Only jobs with this label: key=value, or key; all must hold
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// Only jobs of this name
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Only jobs of this queue
    #[arg(long, default_value = "", hide_default_value = true)]
    queue: String,
    /// Submitted at or after this: 2h (ago), 2026-11-21, or RFC 3339
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,
    /// Submitted before this
    #[arg(long, value_name = "WHEN")]
    until: Option<When>,
    /// How many jobs at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Where the page before this one ended
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    page_token: String,
    /// Every page
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// An instant as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    At(u64),
    Ago(u64),
}

impl FromStr for When {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self::Ago(micros(ago)));
        }
        let us = match (DateTime::parse_from_rfc3339(text), NaiveDate::from_str(text)) {
            (Ok(at), _) => at.timestamp_micros(),
            (_, Ok(day)) => day.and_time(NaiveTime::MIN).and_utc().timestamp_micros(),
            _ => return Err(Unreadable),
        };
        u64::try_from(us).map(Self::At).map_err(|_| Unreadable)
    }
}

/// Not an instant.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write a duration (2h, 30m, 7days), a day (2026-11-21, UTC) or RFC 3339 (2026-11-21T08:00:00Z)")
    }
}

impl std::error::Error for Unreadable {}

impl When {
    pub(crate) fn us(self, now: Timestamp) -> u64 {
        match self {
            Self::At(us) => us,
            // 0 stands for no limit.
            Self::Ago(us) => now.0.saturating_sub(us).max(1),
        }
    }
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    let now = ctl.output.clock().wall();
    let mut request = v1::ListJobsRequest {
        after_us: args.since.map_or(0, |when| when.us(now)),
        before_us: args.until.map_or(0, |when| when.us(now)),
        states: args.state,
        labels: args.label,
        name: args.name,
        queue: args.queue,
        page_size: 0,
        page_token: args.page_token,
    };
    let limit = if args.all { usize::MAX } else { usize::try_from(args.limit).unwrap_or(usize::MAX) };
    let mut jobs = Jobs { jobs: Vec::new(), next_page_token: None };
    while jobs.jobs.len() < limit {
        request.page_size = u32::try_from(limit - jobs.jobs.len()).unwrap_or(PAGE).min(PAGE);
        let reply = client.rpc.list_jobs(request.clone()).await?.into_inner();
        jobs.jobs.extend(reply.jobs.into_iter().map(Job::from));
        jobs.next_page_token = some(&reply.next_page_token);
        match &jobs.next_page_token {
            Some(token) => request.page_token.clone_from(token),
            None => break,
        }
    }
    ctl.output.items(&jobs, &jobs.jobs)?;
    if let (Some(token), Format::Table | Format::Jsonl) = (&jobs.next_page_token, ctl.output.format) {
        ctl.output.note(Look::Dim, &format!("there are more: --page-token {token}, or --all"));
    }
    Ok(Exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_duration_ago_a_day_or_an_instant() {
        let now = Timestamp(1_790_000_000_000_000);
        let us = |text: &str| text.parse::<When>().map(|when| when.us(now)).ok();
        assert_eq!(us("2h"), Some(now.0 - 7_200_000_000));
        assert_eq!(us("2026-09-21"), Some(1_789_948_800_000_000));
        assert_eq!(us("2026-09-21T00:00:00+00:00"), Some(1_789_948_800_000_000));
        assert_eq!(us("1000years"), Some(1));
        assert_eq!(us("1969-01-01"), None);
        assert_eq!(us("soon"), None);
    }
}
