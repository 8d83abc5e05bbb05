//! How long to wait before the next try: full jitter, so that a thousand agents that lost one
//! controller do not come back together.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// The most that the first wait can be.
const FIRST: Duration = Duration::from_millis(500);
/// The most that any wait can be: a controller that came back is found soon.
const CAP: Duration = Duration::from_secs(5);

/// Where waits come from.
#[derive(Debug)]
pub(super) struct Jitter(StdRng);

impl Jitter {
    /// Like no other.
    pub(super) fn new() -> Self {
        Self::seeded(rand::random())
    }

    /// The same waits for the same seed.
    pub(super) fn seeded(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A wait after `failures` tries in a row, evenly spread from zero to its limit.
    pub(super) fn delay(&mut self, failures: u32) -> Duration {
        limit(failures).mul_f64(self.0.random_range(0.0..=1.0))
    }
}

fn limit(failures: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(CAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let limits = [0, 1, 2, 3, 4, 40, u32::MAX].map(|failures| limit(failures).as_millis());
        assert_eq!(limits, [500, 1000, 2000, 4000, 5000, 5000, 5000]);
    }

    /// Ten thousand agents that lost one controller at one moment, in its first five seconds back.
    #[test]
    fn ten_thousand_agents_come_back_spread_over_time_and_none_waits_longer_than_the_cap() {
        const AGENTS: usize = 10_000;
        const SLICE_MS: usize = 50;
        // Whoever failed often waits up to the cap: the case in which all of them wait for one that is away for long.
        let mut slices = vec![0_usize; 5_000 / SLICE_MS];
        for _ in 0..AGENTS {
            let wait = Jitter::new().delay(10);
            assert!(wait <= CAP, "{wait:?}");
            let slice = usize::try_from(wait.as_millis()).unwrap() / SLICE_MS;
            let last = slices.len() - 1;
            slices[slice.min(last)] += 1;
        }
        let (fewest, most) = (slices.iter().min().unwrap(), slices.iter().max().unwrap());
        // 100 each on average; ten standard deviations off would be a pattern, not chance.
        assert!(*fewest > 0 && *most < 200, "between {fewest} and {most} agents in {SLICE_MS} ms");
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut jitter = Jitter::new();
        let waits: Vec<_> = (0..1000).map(|_| jitter.delay(0)).collect();
        assert!(waits.iter().all(|wait| *wait <= FIRST));
        assert!(waits.iter().any(|wait| *wait < FIRST / 4) && waits.iter().any(|wait| *wait > FIRST * 3 / 4));
    }
}
