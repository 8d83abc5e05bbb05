//! What a command changed, and what this program is: the short answers.

use muster_common::proto::{OLDEST_PROTOCOL, PROTOCOL, v1};
use serde::Serialize;

use super::{job::Job, resources::plural, task::Task, time_of};
use crate::output::{Human, Page};

/// A submission.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Submitted {
    pub(crate) job: u64,
    /// The key was used before: this is that first job.
    pub(crate) duplicate: bool,
    pub(crate) warnings: Vec<String>,
    /// With `--wait`: how it ended.
    pub(crate) ended: Option<Job>,
}

impl Human for Submitted {
    /// The number alone: `JOB=$(ctl submit job.toml)`.
    fn human(&self, _page: &Page) -> String {
        format!("{}\n", self.job)
    }
}

/// A cancellation that was accepted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cancelled {
    pub(crate) job: u64,
    pub(crate) tasks: u32,
    pub(crate) already_final: u32,
}

impl Human for Cancelled {
    fn human(&self, _page: &Page) -> String {
        let many = plural(self.tasks != 1);
        let done = match self.already_final {
            0 => String::new(),
            n => format!(", {n} had ended already"),
        };
        format!("job {}: {} task{many} cancelled{done}\n", self.job, self.tasks)
    }
}

/// A retry that was accepted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Retried {
    pub(crate) job: u64,
    pub(crate) tasks: u32,
}

impl Human for Retried {
    fn human(&self, _page: &Page) -> String {
        format!("job {}: {} task{} will run again\n", self.job, self.tasks, plural(self.tasks != 1))
    }
}

/// What `wait` ended with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Waited {
    pub(crate) jobs: Vec<Job>,
    /// `--timeout` passed first; jobs that go on are listed as they stand.
    pub(crate) timed_out: bool,
}

impl Human for Waited {
    fn human(&self, page: &Page) -> String {
        self.jobs.iter().map(|job| format!("{}\n", job.line(page))).collect()
    }
}

/// What `run` ended with, for machines.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ran {
    pub(crate) job: Job,
    /// The tasks of a job of at most 1,000; the failed ones of a larger one.
    pub(crate) tasks: Vec<Task>,
    pub(crate) result: Option<serde_json::Value>,
    pub(crate) exit_code: u8,
}

impl Human for Ran {
    fn human(&self, page: &Page) -> String {
        format!("{}\n", self.job.line(page))
    }
}

/// What a job file holds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Validated {
    pub(crate) file: String,
    pub(crate) valid: bool,
    pub(crate) name: Option<String>,
    pub(crate) tasks: u64,
    pub(crate) findings: Vec<Finding>,
}

/// One thing that is wrong or doubtful in a job file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: &'static str,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) path: String,
    pub(crate) message: String,
}

impl Human for Validated {
    fn human(&self, _page: &Page) -> String {
        if !self.valid {
            return String::new();
        }
        let name = self.name.as_deref().unwrap_or("-");
        format!("{}: job {name}, {} task{}: valid\n", self.file, self.tasks, plural(self.tasks != 1))
    }
}

/// This program and the controller it would speak to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
    pub(crate) protocol: u32,
    pub(crate) controller: Option<Controller>,
}

/// A controller that answered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Controller {
    url: String,
    version: String,
    /// The newest that it speaks; none: a release that did not say.
    protocol: Option<u32>,
    term: u64,
    store: String,
    started_at: Option<String>,
}

/// What is wrong between this ctl and a controller of other releases; none: they understand one another.
pub(crate) fn mismatch(info: &v1::InfoReply) -> Option<String> {
    let v1::InfoReply { version, protocol: newest, oldest_protocol: oldest, .. } = info;
    let own = env!("CARGO_PKG_VERSION");
    if *newest == 0 {
        Some(format!("controller {version} is older than this ctl {own} and does not say what it speaks; upgrade it"))
    } else if *oldest > PROTOCOL {
        Some(format!(
            "this ctl {own} is too old: it speaks protocol {PROTOCOL}, and controller {version} {oldest} to {newest}; \
             upgrade ctl"
        ))
    } else if *newest < OLDEST_PROTOCOL {
        Some(format!(
            "controller {version} is too old: it speaks protocol {newest}, and this ctl {own} {OLDEST_PROTOCOL} to \
             {PROTOCOL}; upgrade the controller"
        ))
    } else {
        None
    }
}

impl Controller {
    /// What the controller at `url` says of itself.
    pub(crate) fn of(url: String, info: v1::InfoReply) -> Self {
        let started_at = time_of(info.started_us);
        let protocol = (info.protocol > 0).then_some(info.protocol);
        Self { url, version: info.version, protocol, term: info.term, store: info.store, started_at }
    }
}

impl Human for Version {
    fn human(&self, _page: &Page) -> String {
        let mut out = format!("ctl {} (protocol {})\n", self.version, self.protocol);
        if let Some(c) = &self.controller {
            let protocol = c.protocol.map_or_else(|| "unknown".to_owned(), |protocol| protocol.to_string());
            let Controller { version, url, term, store, .. } = c;
            out.push_str(&format!(
                "controller {version} (protocol {protocol}) at {url} (term {term}, {store} store)\n"
            ));
        }
        out
    }
}
