//! The right to act for a store, which passes by itself unless it is renewed (C2, L1).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::time::Mono;
use tokio_util::sync::CancellationToken;

/// Held by one leadership; clones share it. Lost once, it is lost for good.
#[derive(Clone, Debug)]
pub struct Authority {
    clock: Clock,
    /// On the monotonic clock, in microseconds.
    until: Arc<AtomicU64>,
    lost: CancellationToken,
}

impl Authority {
    /// Holds until `until`.
    pub fn new(clock: Clock, until: Mono) -> Self {
        Self { clock, until: Arc::new(AtomicU64::new(until.0)), lost: CancellationToken::new() }
    }

    /// For a store that nobody else can open.
    pub fn unlimited(clock: Clock) -> Self {
        Self::new(clock, Mono(u64::MAX))
    }

    /// Whether it holds now. A process that was stopped and goes on learns here that its time has passed.
    pub fn holds(&self) -> bool {
        !self.lost.is_cancelled() && self.clock.mono().0 < self.until.load(Ordering::Relaxed)
    }

    /// Holds until `until` as well; what is lost stays lost.
    pub fn extend(&self, until: Mono) {
        if self.holds() {
            self.until.fetch_max(until.0, Ordering::Relaxed);
        }
    }

    /// When it passes.
    pub fn until(&self) -> Mono {
        Mono(self.until.load(Ordering::Relaxed))
    }

    /// For how long it holds if nobody renews it.
    pub fn left(&self) -> Duration {
        self.until().since(self.clock.mono())
    }

    /// Gives it up.
    pub fn lose(&self) {
        self.lost.cancel();
    }

    /// Waits until it was given up. Cancel safe.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_by_itself_and_is_never_found_again() {
        let clock = Clock::system();
        let far = clock.mono().after(Duration::from_secs(3600));
        let held = Authority::new(clock, far);
        assert!(held.holds() && held.clone().holds());
        held.clone().lose();
        held.extend(far.after(Duration::from_secs(3600)));
        assert!(!held.holds());

        let passed = Authority::new(clock, Mono(0));
        assert!(!passed.holds());
        passed.extend(far);
        assert!(!passed.holds(), "nobody knows what happened in between");
        assert!(Authority::unlimited(clock).holds());
    }
}
