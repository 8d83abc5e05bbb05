//! When a failed attempt is followed by another: capped exponential back-off with jitter that is a
//! function of the attempt, not of chance.

use std::time::Duration;

use crate::{id::TaskId, spec::RetryPolicy, time::micros};

/// How long to wait before retry number `retry` (from 1) of `task`.
pub(crate) fn delay(policy: &RetryPolicy, task: TaskId, retry: u32) -> Duration {
    let cap = u128::from(micros(policy.cap));
    let mut wait = u128::from(micros(policy.delay));
    for _ in 1..retry {
        if wait >= cap || policy.factor_milli == 1000 {
            break;
        }
        wait = wait * u128::from(policy.factor_milli) / 1000;
    }
    let wait = u64::try_from(wait.min(cap)).unwrap_or(u64::MAX);
    let spread = u128::from(wait) * u128::from(policy.jitter_milli.min(1000)) / 1000;
    let spread = u64::try_from(spread).unwrap_or(u64::MAX);
    // Uniform in wait - spread ..= wait + spread.
    let roll = mix(task.job.0 ^ mix(u64::from(task.index) ^ mix(u64::from(retry))));
    let jitter = if spread == 0 { 0 } else { roll % spread.saturating_mul(2).saturating_add(1) };
    Duration::from_micros((wait - spread).saturating_add(jitter))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit moves every output bit.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::JobId;

    fn policy(jitter_milli: u32) -> RetryPolicy {
        RetryPolicy {
            max: 10,
            delay: Duration::from_secs(1),
            factor_milli: 2000,
            cap: Duration::from_secs(10),
            jitter_milli,
            exit_codes: Vec::new(),
        }
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let task = TaskId::new(JobId(1), 0);
        let waits: Vec<u64> = (1..=6).map(|retry| delay(&policy(0), task, retry).as_secs()).collect();
        assert_eq!(waits, vec![1, 2, 4, 8, 10, 10]);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_share(job in any::<u64>(), index in any::<u32>(), retry in 1_u32..40, jitter in 0_u32..=1000) {
            let task = TaskId::new(JobId(job), index);
            let plain = delay(&policy(0), task, retry).as_micros();
            let wait = delay(&policy(jitter), task, retry).as_micros();
            let spread = plain * u128::from(jitter) / 1000;
            prop_assert!(wait >= plain - spread && wait <= plain + spread);
        }
    }
}
