//! When the engine wakes up by itself.

use std::{pin::Pin, time::Duration};

use muster_core::{
    cluster::Wakeup,
    time::{Mono, Now},
};
use tokio::time::{Instant, Sleep};

/// The wall clock may jump while we sleep, so that we look at it again this often if it matters.
const WALL_LOOK: Duration = Duration::from_secs(5);

/// No timer is exact below this, and a timer that is always due must not starve everything else.
const SHORTEST: Duration = Duration::from_millis(1);

/// Far enough away to be never; a `Sleep` has no such word.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// One timer that is set again and again.
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    set_for: Option<Wakeup>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(NEVER)), set_for: None }
    }

    /// Sets it, if it is not set for that already.
    pub(super) fn set(&mut self, wakeup: Wakeup, now: Now) {
        if self.set_for != Some(wakeup) {
            self.set_for = Some(wakeup);
            self.sleep.as_mut().reset(Instant::now() + delay(wakeup, now));
        }
    }

    /// Waits for it. Cancel safe.
    pub(super) async fn rings(&mut self) {
        self.sleep.as_mut().await;
        self.set_for = None;
    }
}

fn delay(wakeup: Wakeup, now: Now) -> Duration {
    let wall = wakeup.wall.map(|at| at.since(now.wall).min(WALL_LOOK));
    let mono = wakeup.mono.map(|at: Mono| at.since(now.mono));
    let first = wall.into_iter().chain(mono).min().unwrap_or(NEVER);
    first.clamp(SHORTEST, NEVER)
}

#[cfg(test)]
mod tests {
    use muster_core::time::Timestamp;

    use super::*;

    const NOW: Now = Now { wall: Timestamp(50_000_000), mono: Mono(1_000_000) };

    #[test]
    fn the_earlier_clock_rings_first_and_a_far_wall_time_is_looked_at_again() {
        let wall = |at| Some(Timestamp(at));
        let mono = |at| Some(Mono(at));
        for (wakeup, expected) in [
            (Wakeup { wall: None, mono: None }, NEVER),
            (Wakeup { wall: wall(50_200_000), mono: None }, Duration::from_millis(200)),
            (Wakeup { wall: wall(50_200_000), mono: mono(1_100_000) }, Duration::from_millis(100)),
            (Wakeup { wall: wall(90_000_000), mono: mono(30_000_000) }, WALL_LOOK),
            (Wakeup { wall: wall(1), mono: None }, SHORTEST),
            (Wakeup { wall: None, mono: mono(1_000_000) }, SHORTEST),
        ] {
            assert_eq!(delay(wakeup, NOW), expected, "{wakeup:?}");
        }
    }
}
