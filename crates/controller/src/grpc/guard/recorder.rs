//! Refused calls on their way into the audit log: not more of them than a store can bear, the rest counted.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::{
    access::{Caller, Reach, Who},
    audit::Note,
    event::Event,
    time::Mono,
};

use crate::engine::Handle;

/// Refusals that are recorded one by one at once, and how soon there is room for another. They must not push what was
/// done out of the log.
const BURST: u32 = 64;
const EVERY: Duration = Duration::from_secs(10);
/// How often those that were only counted are told, when no other comes to tell of them.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Records refusals. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    handle: Handle,
    clock: Clock,
    budget: Arc<Mutex<Budget>>,
}

#[derive(Debug)]
struct Budget {
    left: u32,
    /// When the last one was added.
    grown: Mono,
    uncounted: u64,
}

impl Budget {
    /// Whether there is room for a record; else it is counted. With the record goes the count of those before it.
    fn take(&mut self, now: Mono) -> Option<u64> {
        let periods = u32::try_from(now.since(self.grown).as_micros() / EVERY.as_micros()).unwrap_or(u32::MAX);
        if periods > 0 {
            self.left = self.left.saturating_add(periods).min(BURST);
            self.grown = self.grown.after(EVERY.saturating_mul(periods));
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.uncounted))
            }
            None => {
                self.uncounted = self.uncounted.saturating_add(1);
                None
            }
        }
    }
}

impl Recorder {
    pub(super) fn new(handle: Handle, clock: Clock) -> Self {
        let budget = Budget { left: BURST, grown: clock.now().mono, uncounted: 0 };
        Self { handle, clock, budget: Arc::new(Mutex::new(budget)) }
    }

    /// Records that `caller` was refused, or counts it.
    pub(super) async fn refused(&self, caller: &Arc<Caller>, action: &str, object: &str, why: &str) {
        let room = self.lock().take(self.clock.now().mono);
        if let Some(uncounted) = room {
            self.tell(Note { uncounted, ..Note::refused(caller, action, object, why) }).await;
        }
    }

    /// Counts a refusal of which enough is known.
    pub(super) fn count(&self) {
        let mut budget = self.lock();
        budget.uncounted = budget.uncounted.saturating_add(1);
    }

    /// Tells of what was only counted, now and then. To be spawned.
    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let uncounted = std::mem::take(&mut self.lock().uncounted);
            if uncounted > 0 {
                let caller = Arc::new(Caller { who: Who::Muster, peer: "".into(), reach: Reach::All });
                let why = "refused calls that were counted and not recorded one by one";
                self.tell(Note { uncounted, ..Note::refused(&caller, "refused", "", why) }).await;
            }
        }
    }

    async fn tell(&self, note: Note) {
        // An engine that stops takes no more; its successor is told of what comes then.
        let _ = self.handle.tell(Event::Note(note)).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_the_count_goes_with_the_next_record() {
        let mut budget = Budget { left: BURST, grown: Mono(0), uncounted: 0 };
        let recorded = (0..10_000).filter(|_| budget.take(Mono(1)).is_some()).count();
        assert_eq!(recorded, BURST as usize);
        assert_eq!(budget.uncounted, 10_000 - u64::from(BURST));
        let later = Mono(1).after(EVERY);
        assert_eq!(budget.take(later), Some(10_000 - u64::from(BURST)));
        assert_eq!((budget.take(later), budget.uncounted), (None, 1));
    }

    #[test]
    fn a_quiet_time_gives_the_burst_back_and_not_more() {
        let mut budget = Budget { left: 0, grown: Mono(0), uncounted: 0 };
        let later = Mono(0).after(EVERY * 1000);
        assert_eq!((0..1000).filter(|_| budget.take(later).is_some()).count(), BURST as usize);
    }
}
