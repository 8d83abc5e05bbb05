//! The only place that asks what time it is. Everybody else is told.

use std::time::{SystemTime, UNIX_EPOCH};

use muster_core::time::{Mono, Now, Timestamp, micros};
use tokio::time::Instant;

/// Both clocks of this process. The monotonic one counts from when this was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    // The runtime's, which a simulation drives; everywhere else it is the machine's.
    origin: Instant,
    /// What the wall clock of a simulation said at `origin`; none: there is a real one.
    began: Option<Timestamp>,
}

impl Clock {
    /// The clocks of this machine.
    pub fn system() -> Self {
        Self { origin: Instant::now(), began: None }
    }

    /// The clocks of this machine, the monotonic one at `mono` now: processes that give what the machine's own says
    /// understand each other's times.
    pub fn system_at(mono: std::time::Duration) -> Self {
        let now = Instant::now();
        Self { origin: now.checked_sub(mono).unwrap_or(now), began: None }
    }

    /// The clocks of a simulated machine, on whose runtime this is called: it is `wall` there now.
    pub fn simulated(wall: Timestamp) -> Self {
        Self { origin: Instant::now(), began: Some(wall) }
    }

    /// Both clocks now.
    pub fn now(&self) -> Now {
        Now { wall: self.wall(), mono: self.mono() }
    }

    /// The wall clock now. A machine whose clock stands before 1970 is at 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn wall(&self) -> Timestamp {
        if let Some(began) = self.began {
            return began.after(self.origin.elapsed());
        }
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros))
    }

    /// The monotonic clock now.
    pub fn mono(&self) -> Mono {
        Mono(micros(self.origin.elapsed()))
    }
}
