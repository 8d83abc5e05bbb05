//! How much output is kept in a second: a bucket that time fills and output empties.

use muster_core::time::Timestamp;

/// So many seconds' worth may come at once: what a program says when it starts or fails.
const BURST_S: u64 = 4;
const US_PER_S: u128 = 1_000_000;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    per_second: u64,
    /// Millionths of a byte: what comes in within a microsecond is not lost.
    level: u128,
    filled_at: Option<Timestamp>,
}

impl Rate {
    /// A full one. Bytes.
    pub(super) fn new(per_second: u64) -> Self {
        let mut rate = Self { per_second, level: 0, filled_at: None };
        rate.level = rate.full();
        rate
    }

    pub(super) fn per_second(&self) -> u64 {
        self.per_second
    }

    /// The most bytes at one time.
    pub(super) fn burst(&self) -> u64 {
        self.per_second.saturating_mul(BURST_S)
    }

    fn full(&self) -> u128 {
        u128::from(self.burst()) * US_PER_S
    }

    /// Bytes that may be kept now. A clock that was set back fills nothing, and goes on from there.
    pub(super) fn room(&mut self, now: Timestamp) -> u64 {
        let passed_us = now.0.saturating_sub(self.filled_at.map_or(now.0, |at| at.0));
        self.filled_at = Some(now);
        self.level = (self.level + u128::from(self.per_second) * u128::from(passed_us)).min(self.full());
        u64::try_from(self.level / US_PER_S).unwrap_or(u64::MAX)
    }

    /// So many were kept.
    pub(super) fn take(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub(u128::from(bytes) * US_PER_S);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_with_time_to_four_seconds_worth_and_no_more() {
        let s = 1_000_000;
        // When, how much there is, how much is taken.
        let table: &[(u64, u64, u64)] = &[
            (10 * s, 400, 400),
            (10 * s, 0, 0),
            (10 * s + s / 2, 50, 20),
            (10 * s + s / 2, 30, 30),
            (11 * s, 50, 0),
            (90 * s, 400, 100),
            // Set back by a minute: nothing comes in, then as before.
            (30 * s, 300, 300),
            (31 * s, 100, 100),
            (u64::MAX, 400, 0),
        ];
        let mut rate = Rate::new(100);
        for (at, there, taken) in table {
            assert_eq!(rate.room(Timestamp(*at)), *there, "at {at}");
            rate.take(*taken);
        }
    }

    #[test]
    fn looking_often_loses_nothing() {
        let mut rate = Rate::new(3);
        assert_eq!(rate.room(Timestamp(5)), 12);
        rate.take(12);
        let last = (1..=1_000_000).map(|us| rate.room(Timestamp(5 + us))).last();
        assert_eq!(last, Some(3));
    }
}
