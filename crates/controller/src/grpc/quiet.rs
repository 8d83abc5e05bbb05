//! A log that an enemy cannot fill: what happens again and again is told once a minute, with how often it happened.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(60);

/// What was told when. Kinds are words of this program, so that there are few.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    told: Mutex<BTreeMap<&'static str, (Instant, u64)>>,
}

impl Quiet {
    /// Nothing was told yet.
    pub(super) const fn new() -> Self {
        Self { told: Mutex::new(BTreeMap::new()) }
    }

    /// Calls `tell` unless this kind was told within the last minute.
    pub(super) fn tell(&self, kind: &'static str, tell: impl FnOnce()) {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let more = match told.get_mut(kind) {
            Some((at, more)) if now.duration_since(*at) < EVERY => {
                *more = more.saturating_add(1);
                return;
            }
            Some((at, more)) => {
                *at = now;
                std::mem::take(more)
            }
            None => {
                told.insert(kind, (now, 0));
                0
            }
        };
        drop(told);
        tell();
        if more > 0 {
            tracing::warn!(kind, more, "so many more of this kind came in the meantime");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_is_told_once_a_minute() {
        let (quiet, mut told) = (Quiet::default(), Vec::new());
        for kind in ["a", "b", "a", "a", "b"] {
            quiet.tell(kind, || told.push(kind));
        }
        assert_eq!(told, ["a", "b"]);
        tokio::time::advance(EVERY).await;
        quiet.tell("a", || told.push("a"));
        assert_eq!(told, ["a", "b", "a"]);
    }
}
