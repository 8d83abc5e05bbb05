//! How many tasks stand in each state.

use muster_common::proto::v1;
use serde::Serialize;

use crate::output::{Page, style};

/// Counts by state; the fields are the states' words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    scheduled: u64,
    waiting: u64,
    queued: u64,
    pub(crate) running: u64,
    retrying: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) skipped: u64,
    pub(crate) total: u64,
    pub(crate) finished: u64,
}

impl From<Option<v1::Tally>> for Tally {
    fn from(tally: Option<v1::Tally>) -> Self {
        let t = tally.unwrap_or_default();
        let finished = t.succeeded + t.failed + t.cancelled + t.skipped;
        Self {
            scheduled: t.scheduled,
            waiting: t.waiting,
            queued: t.queued,
            running: t.running,
            retrying: t.retrying,
            succeeded: t.succeeded,
            failed: t.failed,
            cancelled: t.cancelled,
            skipped: t.skipped,
            total: finished + t.scheduled + t.waiting + t.queued + t.running + t.retrying,
            finished,
        }
    }
}

impl Tally {
    fn parts(&self) -> [(&'static str, u64); 9] {
        [
            ("succeeded", self.succeeded),
            ("failed", self.failed),
            ("cancelled", self.cancelled),
            ("skipped", self.skipped),
            ("running", self.running),
            ("retrying", self.retrying),
            ("queued", self.queued),
            ("waiting", self.waiting),
            ("scheduled", self.scheduled),
        ]
    }

    /// `3 succeeded, 1 running`: every count that is not zero.
    pub(crate) fn text(&self) -> String {
        let parts = self.parts().into_iter().filter(|(_, n)| *n > 0);
        parts.map(|(word, n)| format!("{n} {word}")).collect::<Vec<_>>().join(", ")
    }

    /// The same in colours.
    pub(crate) fn painted(&self, page: &Page) -> String {
        let parts = self.parts().into_iter().filter(|(_, n)| *n > 0);
        parts.map(|(word, n)| page.paint(style::of_state(word), &format!("{n} {word}"))).collect::<Vec<_>>().join(", ")
    }

    /// `4/10`.
    pub(crate) fn share(&self) -> String {
        format!("{}/{}", self.finished, self.total)
    }
}
