//! Clocks of different machines: each began anywhere, runs a little fast or slow, and shows a time of day of its own.

use muster_core::time::{Mono, Now, Timestamp};

use crate::rng::Rng;

/// How much faster or slower than true time a clock runs: ten times what clocks are ever slewed by.
const DRIFT_PPM: u64 = 5_000;
/// How long before the world a machine may have been started.
const UPTIME_US: u64 = 10_000_000_000;

/// The clock of one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began_us: u64,
    /// Millionths of true time that it shows in one true second.
    rate_ppm: u64,
    /// How far its time of day is ahead, or behind.
    ahead_us: u64,
    is_behind: bool,
}

impl Clock {
    /// One whose time of day is wrong by at most `off_us`.
    pub(crate) fn any(rng: &mut Rng, off_us: u64) -> Self {
        Self {
            began_us: rng.within(0, UPTIME_US),
            rate_ppm: rng.within(1_000_000 - DRIFT_PPM, 1_000_000 + DRIFT_PPM),
            ahead_us: rng.within(0, off_us),
            is_behind: rng.chance(50),
        }
    }

    /// What it shows when it is `now` in truth.
    pub(crate) fn read(&self, now: Now) -> Now {
        let passed = u128::from(now.mono.0) * u128::from(self.rate_ppm) / 1_000_000;
        let mono = self.began_us.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        let wall = if self.is_behind { now.wall.0.saturating_sub(self.ahead_us) } else { now.wall.0 + self.ahead_us };
        Now { wall: Timestamp(wall), mono: Mono(mono) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_and_keeps_its_rate() {
        let clock = Clock { began_us: 7, rate_ppm: 995_000, ahead_us: 1, is_behind: true };
        let at = |mono| clock.read(Now { wall: Timestamp(100), mono: Mono(mono) });
        assert_eq!(at(0), Now { wall: Timestamp(99), mono: Mono(7) });
        assert_eq!(at(1_000_000).mono, Mono(995_007));
        assert!((0..1000).map(|n| at(n).mono).is_sorted());
    }
}
