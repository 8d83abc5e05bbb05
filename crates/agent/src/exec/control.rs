//! How an attempt is told to end.

use std::sync::{Mutex, PoisonError};

use muster_core::time::Mono;
use tokio::sync::Notify;

use super::KillReason;

/// Somebody's wish that an attempt end.
#[derive(Default)]
pub(super) struct Control {
    wish: Mutex<Option<Wish>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The first one counts.
    pub(super) reason: KillReason,
    /// When it must be dead; the earliest counts.
    pub(super) by: Mono,
}

impl Control {
    pub(super) fn kill(&self, reason: KillReason, by: Mono) {
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        *wish = Some(wish.map_or(Wish { reason, by }, |old| Wish { reason: old.reason, by: old.by.min(by) }));
        drop(wish);
        self.changed.notify_one();
    }

    pub(super) fn wish(&self) -> Option<Wish> {
        *self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a wish. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
