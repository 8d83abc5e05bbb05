//! Counts and times of finished tasks.

use muster_common::proto::v1;
use serde::Serialize;

use super::{
    tally::Tally,
    task::{self, Task},
};
use crate::output::{Human, Page, time};

/// Counts, times and the slowest tasks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Stats {
    jobs: u64,
    tasks: Tally,
    /// How many tasks the times are made of.
    measured: u64,
    mean_seconds: f64,
    p50_seconds: f64,
    p99_seconds: f64,
    total_seconds: f64,
    pub(crate) slowest: Vec<Task>,
    #[serde(skip)]
    us: [u64; 4],
}

impl From<v1::StatsReply> for Stats {
    fn from(reply: v1::StatsReply) -> Self {
        Self {
            jobs: reply.jobs,
            tasks: reply.tally.into(),
            measured: reply.measured,
            mean_seconds: time::seconds(reply.mean_us),
            p50_seconds: time::seconds(reply.p50_us),
            p99_seconds: time::seconds(reply.p99_us),
            total_seconds: time::seconds(reply.total_us),
            us: [reply.mean_us, reply.p50_us, reply.p99_us, reply.total_us],
            slowest: reply.slowest.into_iter().map(Task::from).collect(),
        }
    }
}

impl Human for Stats {
    fn human(&self, page: &Page) -> String {
        let [mean, p50, p99, total] = self.us.map(time::short);
        let mut out = format!("jobs   {}\n", self.jobs);
        let detail = match self.tasks.total {
            0 => String::new(),
            _ => format!(" ({})", self.tasks.painted(page)),
        };
        out.push_str(&format!("tasks  {}{detail}\n", self.tasks.total));
        if self.measured > 0 {
            out.push_str(&format!("times  mean {mean}, median {p50}, 99th percentile {p99}, sum {total}"));
            out.push_str(&format!(" (of {} finished)\n", self.measured));
        }
        if !self.slowest.is_empty() {
            out.push_str("\nslowest\n");
            out.push_str(&task::table(&self.slowest, page));
        }
        out
    }
}
