//! The only place that asks what time it is. Everybody else is told.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use muster_core::time::{Mono, Now, Timestamp, micros};

/// Both clocks of this process. The monotonic one counts from when this was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// The clocks of this machine.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn system() -> Self {
        Self { origin: Instant::now() }
    }

    /// Both clocks now.
    pub fn now(&self) -> Now {
        Now { wall: self.wall(), mono: self.mono() }
    }

    /// The wall clock now. A machine whose clock stands before 1970 is at 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn wall(&self) -> Timestamp {
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros))
    }

    /// The monotonic clock now.
    pub fn mono(&self) -> Mono {
        Mono(micros(self.origin.elapsed()))
    }
}
