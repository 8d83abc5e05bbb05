//! The machine's monotonic clock, which all processes share and no fault moves.

use nix::time::{ClockId, clock_gettime};

/// Microseconds since the machine started; 0 where there is no such clock.
pub(crate) fn us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok();
    let us = now.map(|now| now.tv_sec().saturating_mul(1_000_000).saturating_add(now.tv_nsec() / 1_000));
    us.and_then(|us| u64::try_from(us).ok()).unwrap_or(0)
}
