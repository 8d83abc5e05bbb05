//! How an attempt is told to end.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use muster_core::time::Mono;
use tokio::sync::Notify;

use super::KillReason;

/// Somebody's wish that an attempt end.
#[derive(Default)]
pub(super) struct Control {
    wish: Mutex<Option<Wish>>,
    changed: Notify,
    is_struck: AtomicBool,
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

    /// Everybody in it is dead, or was sent SIGKILL: nobody could do more.
    pub(super) fn struck(&self) {
        self.is_struck.store(true, Ordering::Relaxed);
    }

    #[cfg(unix)]
    pub(super) fn is_struck(&self) -> bool {
        self.is_struck.load(Ordering::Relaxed)
    }

    /// Waits for a wish. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
