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

/// Refusals of one source that are recorded one by one at once. They must not push what was done out of the log.
const BURST: u32 = 64;
/// How often those that were only counted are told, when no other comes to tell of them.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Where refusals come from. Each has room of its own: nobody who is loud hides what another was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Whoever showed nothing that is good.
    Stranger,
    /// An agent or a controller, by its certificate: one that is sent away asks again and again.
    Machine,
    /// The holder of a token.
    Holder,
}

impl Source {
    const ALL: [Self; 3] = [Self::Stranger, Self::Machine, Self::Holder];

    pub(super) fn of(who: &Who) -> Self {
        match who {
            Who::Anonymous => Self::Stranger,
            Who::Agent(_) | Who::Controller(_) | Who::Muster => Self::Machine,
            Who::Token { .. } => Self::Holder,
        }
    }

    /// How soon there is room for another record.
    fn every(self) -> Duration {
        match self {
            // A day of it is less than a thirtieth of the log.
            Self::Stranger | Self::Machine => Duration::from_secs(60),
            Self::Holder => Duration::from_secs(10),
        }
    }
}

/// Records refusals. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    handle: Handle,
    clock: Clock,
    budgets: Arc<Mutex<Budgets>>,
}

#[derive(Debug)]
struct Budget {
    source: Source,
    left: u32,
    /// When the last one was added.
    grown: Mono,
    uncounted: u64,
}

impl Budget {
    fn new(source: Source, now: Mono) -> Self {
        Self { source, left: BURST, grown: now, uncounted: 0 }
    }

    /// Whether there is room for a record; else it is counted. With the record goes the count of those before it.
    fn take(&mut self, now: Mono) -> Option<u64> {
        let every = self.source.every();
        let periods = u32::try_from(now.since(self.grown).as_micros() / every.as_micros()).unwrap_or(u32::MAX);
        if periods > 0 {
            self.left = self.left.saturating_add(periods).min(BURST);
            self.grown = self.grown.after(every.saturating_mul(periods));
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

/// One of each source.
#[derive(Debug)]
struct Budgets([Budget; 3]);

impl Budgets {
    fn new(now: Mono) -> Self {
        Self(Source::ALL.map(|source| Budget::new(source, now)))
    }

    fn of(&mut self, source: Source) -> &mut Budget {
        let [stranger, machine, holder] = &mut self.0;
        match source {
            Source::Stranger => stranger,
            Source::Machine => machine,
            Source::Holder => holder,
        }
    }
}

impl Recorder {
    pub(super) fn new(handle: Handle, clock: Clock) -> Self {
        let now = clock.now().mono;
        Self { handle, clock, budgets: Arc::new(Mutex::new(Budgets::new(now))) }
    }

    /// Records that `caller` was refused an action on an object, or counts it.
    pub(super) async fn refused(&self, source: Source, caller: &Arc<Caller>, what: (&str, &str), why: &str) {
        let (now, (action, object)) = (self.clock.now().mono, what);
        let room = self.with(source, |budget| budget.take(now));
        if let Some(uncounted) = room {
            self.tell(Note { uncounted, ..Note::refused(caller, action, object, why) }).await;
        }
    }

    /// Counts a refusal of which enough is known.
    pub(super) fn count(&self, source: Source) {
        self.with(source, |budget| budget.uncounted = budget.uncounted.saturating_add(1));
    }

    /// Tells of what was only counted, now and then. To be spawned.
    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let mut uncounted: u64 = 0;
            for source in Source::ALL {
                let more = self.with(source, |budget| std::mem::take(&mut budget.uncounted));
                uncounted = uncounted.saturating_add(more);
            }
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

    fn with<T>(&self, source: Source, work: impl FnOnce(&mut Budget) -> T) -> T {
        work(self.budgets.lock().unwrap_or_else(PoisonError::into_inner).of(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_the_count_goes_with_the_next_record() {
        let mut budget = Budget::new(Source::Holder, Mono(0));
        let recorded = (0..10_000).filter(|_| budget.take(Mono(1)).is_some()).count();
        assert_eq!(recorded, BURST as usize);
        assert_eq!(budget.uncounted, 10_000 - u64::from(BURST));
        let later = Mono(1).after(Source::Holder.every());
        assert_eq!(budget.take(later), Some(10_000 - u64::from(BURST)));
        assert_eq!((budget.take(later), budget.uncounted), (None, 1));
    }

    #[test]
    fn whoever_is_loud_takes_no_room_from_others() {
        let mut budgets = Budgets::new(Mono(0));
        for loud in [Source::Stranger, Source::Machine] {
            assert_eq!((0..10_000).filter(|_| budgets.of(loud).take(Mono(1)).is_some()).count(), BURST as usize);
        }
        assert_eq!(budgets.of(Source::Holder).take(Mono(1)), Some(0), "what somebody known was refused is told");
    }

    #[test]
    fn a_quiet_time_gives_the_burst_back_and_not_more() {
        let mut budget = Budget { left: 0, ..Budget::new(Source::Stranger, Mono(0)) };
        let later = Mono(0).after(Source::Stranger.every() * 1000);
        assert_eq!((0..1000).filter(|_| budget.take(later).is_some()).count(), BURST as usize);
    }
}
