//! How often one address may show what proves nothing, before it is told so shortly and no longer recorded.
//!
//! A token that is good always passes: 256 random bits are not guessed, and whoever shares an address with somebody who
//! tries must not be locked out by them.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use muster_core::time::Mono;

/// Failed attempts of one address in one period.
const FAILURES_MAX: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);
/// Addresses that are counted one by one; more are counted as one.
const ADDRESSES_MAX: usize = 4096;
/// A full list is looked through at most this often: a flood of addresses must not cost a look at all of them each.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What to do about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Say why it failed.
    Tell,
    /// The first one too many: a person should know.
    Report,
    /// One more of too many.
    Hush,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Mono,
    failures: u32,
}

/// Counts by address, in bounded memory.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    windows: BTreeMap<Option<IpAddr>, Window>,
    swept: Mono,
}

impl Limiter {
    /// Counts an attempt of `address` that failed.
    pub(super) fn failed(&mut self, now: Mono, address: Option<IpAddr>) -> Verdict {
        let is_full = self.windows.len() >= ADDRESSES_MAX;
        if is_full && now.since(self.swept) >= SWEEP_EVERY {
            self.swept = now;
            self.windows.retain(|_, window| now.since(window.began) < PERIOD);
        }
        // Too many addresses are one: nobody gets more attempts by having more of them.
        let full = self.windows.len() >= ADDRESSES_MAX && !self.windows.contains_key(&address);
        let key = if full { None } else { address };
        let window = self.windows.entry(key).or_insert(Window { began: now, failures: 0 });
        if now.since(window.began) >= PERIOD {
            *window = Window { began: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        match window.failures {
            ..=FAILURES_MAX => Verdict::Tell,
            n if n == FAILURES_MAX + 1 => Verdict::Report,
            _ => Verdict::Hush,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: u32) -> Option<IpAddr> {
        Some(IpAddr::V4(Ipv4Addr::from(n)))
    }

    #[test]
    fn too_many_failures_are_reported_once_a_period_and_forgotten_after_it() {
        let mut limiter = Limiter::default();
        let mut at = Mono(5);
        for _ in 0..3 {
            let verdicts: Vec<_> = (0..30).map(|_| limiter.failed(at, address(1))).collect();
            assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Tell).count(), FAILURES_MAX as usize);
            assert_eq!(verdicts[FAILURES_MAX as usize], Verdict::Report);
            assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Report).count(), 1);
            at = at.after(PERIOD);
        }
    }

    #[test]
    fn one_address_is_not_counted_for_another() {
        let mut limiter = Limiter::default();
        for _ in 0..100 {
            limiter.failed(Mono(0), address(1));
        }
        assert_eq!(limiter.failed(Mono(0), address(2)), Verdict::Tell);
    }

    #[test]
    fn many_addresses_take_no_more_memory_than_few_and_get_no_more_attempts() {
        let mut limiter = Limiter::default();
        let verdicts: Vec<_> = (0..100_000).map(|n| limiter.failed(Mono(0), address(n))).collect();
        assert!(limiter.windows.len() <= ADDRESSES_MAX + 1, "{}", limiter.windows.len());
        assert_eq!(verdicts.last(), Some(&Verdict::Hush));
        // When they are gone, their room is free again.
        assert_eq!(limiter.failed(Mono(0).after(PERIOD), address(200_000)), Verdict::Tell);
        assert!(limiter.windows.len() < 10, "{}", limiter.windows.len());
    }
}
