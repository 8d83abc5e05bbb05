//! Backups, and what became of them.

use std::path::Path;

use muster_common::proto::v1;
use muster_controller::backup;
use serde::Serialize;

use super::{resources::plural, time_of};
use crate::output::{Human, Page, time};

/// A backup that is whole.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Backup {
    file: String,
    bytes: u64,
    installation: String,
    taken_at: Option<String>,
    term: u64,
    records: u64,
    jobs: u64,
    agents: u64,
    /// Whether logs and large results are inside.
    with_logs: bool,
    objects: u64,
    written_by: String,
    #[serde(skip)]
    taken_us: u64,
}

impl Backup {
    pub(crate) fn of(file: &Path, bytes: u64, contents: &backup::Contents) -> Self {
        let header = &contents.header;
        Self {
            file: file.display().to_string(),
            bytes,
            installation: header.installation.clone(),
            taken_at: time_of(header.taken_us),
            term: header.term,
            records: header.records,
            jobs: contents.jobs,
            agents: contents.agents,
            with_logs: header.with_objects,
            objects: contents.objects,
            written_by: header.written_by.clone(),
            taken_us: header.taken_us,
        }
    }
}

impl Human for Backup {
    fn human(&self, page: &Page) -> String {
        let logs = if self.with_logs {
            format!("with logs and large results ({} objects)", self.objects)
        } else {
            "without logs and results over 64 KiB (--with-logs takes them too)".to_owned()
        };
        format!(
            "{}: whole; {} job{}, {} agent{}, {} records, {} bytes\n  of {}, term {}, taken {} ago by {}\n  {logs}\n",
            self.file,
            self.jobs,
            plural(self.jobs != 1),
            self.agents,
            plural(self.agents != 1),
            self.records,
            self.bytes,
            self.installation,
            self.term,
            time::age(self.taken_us, page.now),
            self.written_by,
        )
    }
}

/// An installation that was made of a backup.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Restored {
    place: String,
    records: u64,
    jobs: u64,
    objects: u64,
    taken_at: Option<String>,
    /// New jobs have at least this number.
    next_job: u64,
    /// Where an older store was put.
    aside: Option<String>,
}

impl Restored {
    pub(crate) fn of(place: String, restored: &backup::Restored) -> Self {
        let contents = &restored.contents;
        Self {
            place,
            records: contents.header.records,
            jobs: contents.jobs,
            objects: contents.objects,
            taken_at: time_of(contents.header.taken_us),
            next_job: restored.next_job,
            aside: restored.aside.as_ref().map(|path| path.display().to_string()),
        }
    }
}

impl Human for Restored {
    fn human(&self, _page: &Page) -> String {
        let aside = self.aside.as_ref().map(|path| format!("  what was there is kept in {path}\n")).unwrap_or_default();
        format!(
            "restored into {}: {} job{}, {} records, {} objects\n{aside}  new jobs begin at {}; what happened after {} is \
             not known to it\n  stop the old installation, if it still runs, before you start this one\n",
            self.place,
            self.jobs,
            plural(self.jobs != 1),
            self.records,
            self.objects,
            self.next_job,
            self.taken_at.as_deref().unwrap_or("the backup"),
        )
    }
}

/// An installation that moved.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Promoted {
    store: String,
    from: String,
    records: u64,
    term: u64,
    /// For how long calls were held.
    held_seconds: f64,
    #[serde(skip)]
    held_us: u64,
}

impl From<v1::PromoteReply> for Promoted {
    fn from(reply: v1::PromoteReply) -> Self {
        Self {
            store: reply.store,
            from: reply.from,
            records: reply.records,
            term: reply.term,
            held_seconds: time::seconds(reply.held_us),
            held_us: reply.held_us,
        }
    }
}

impl Human for Promoted {
    fn human(&self, _page: &Page) -> String {
        format!(
            "moved to {}: {} records, term {}, calls waited {}\n  {} is not used any more\n  before the next start, write \
             into the controller's file: store = \"{}\" (or start it with --store)\n",
            self.store,
            self.records,
            self.term,
            time::short(self.held_us),
            self.from,
            self.store,
        )
    }
}
