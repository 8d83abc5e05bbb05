//! Waiting for a condition: with a limit, and with the last state seen in the error.

use std::{
    env, fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything may take that should take well under a second. A slow machine is no failure.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Whether processors are emulated here (`cargo xtask vm`), and all takes some ten times as long.
pub fn is_emulated() -> bool {
    env::var_os("MUSTER_TEST_EMULATED").is_some()
}

/// So much that it is enough on a processor, or ten times that where processors are emulated: for what somebody else than
/// a test waits for, without a condition.
pub fn slower(much: u64) -> u64 {
    if is_emulated() { much * 10 } else { much }
}

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(10);

/// What one look at a condition showed.
pub enum Look<T> {
    /// It holds.
    Done(T),
    /// It does not hold yet; this is what was seen.
    NotYet(String),
}

impl<T> Look<T> {
    /// Not yet, and why.
    pub fn not_yet(seen: impl fmt::Debug) -> Self {
        Self::NotYet(format!("{seen:?}"))
    }
}

impl Look<()> {
    /// Done when `condition`; otherwise `seen`.
    pub fn when(condition: bool, seen: impl fmt::Debug) -> Self {
        if condition { Self::Done(()) } else { Self::not_yet(seen) }
    }
}

/// Looks until it is done, at most for [`LIMIT`].
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    within(LIMIT, what, look)
}

/// Looks until it is done, at most for `limit`. An error of `look` ends the wait at once.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Look<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        match look()? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(seen) if began.elapsed() > limit => {
                bail!("waited {limit:?} for: {what}. Last seen: {seen}")
            }
            Look::NotYet(_) => thread::park_timeout(PAUSE),
        }
    }
}
