//! Whether the agent's loop turns and how it goes, for whoever watches over it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_common::service::Look;
use tokio::sync::watch;

/// What the loop shows of itself at each turn. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    shown: Arc<Shown>,
    every: Option<Duration>,
}

#[derive(Debug, Default)]
struct Shown {
    turns: AtomicU64,
    attached: AtomicBool,
    holding: AtomicUsize,
    /// What runs has so long to end, once it is told to; none: nobody has asked for that.
    grace: watch::Sender<Option<Duration>>,
}

impl Pulse {
    /// Of a loop that turns at least so often, though nothing happens; none: only when something does.
    pub fn new(every: Option<Duration>) -> Self {
        Self { shown: Arc::default(), every }
    }

    /// How long the loop may wait for something to happen: half as long as whoever looks, so that each look finds a turn.
    pub(super) fn every(&self) -> Duration {
        self.every.map_or(Duration::MAX, |every| every / 2)
    }

    /// The loop has turned.
    pub(super) fn turn(&self, attached: bool, holding: usize) {
        self.shown.attached.store(attached, Ordering::Relaxed);
        self.shown.holding.store(holding, Ordering::Relaxed);
        self.shown.turns.fetch_add(1, Ordering::Release);
    }

    /// It was asked to end what runs, which has so long for that at most.
    pub(super) fn ends(&self, grace: Duration) {
        self.shown.grace.send_replace(Some(grace));
    }

    /// How long what runs has to end once it is told to, as soon as the loop has heard that it must. Cancel safe.
    pub async fn grace(&self) -> Duration {
        let mut grace = self.shown.grace.subscribe();
        match grace.wait_for(Option::is_some).await.map(|grace| *grace) {
            Ok(Some(grace)) => grace,
            // We have the other end ourselves.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// How it is; `seen` holds how often it had turned when somebody last looked.
    pub fn look(&self, seen: &mut u64) -> Look {
        let turns = self.shown.turns.load(Ordering::Acquire);
        let turned = std::mem::replace(seen, turns) != turns;
        let holding = self.shown.holding.load(Ordering::Relaxed);
        let attached = if self.shown.attached.load(Ordering::Relaxed) { "attached" } else { "looks for a controller" };
        let stands = if turned { "" } else { "; its loop does not turn" };
        let plural = if holding == 1 { "" } else { "s" };
        Look { turns: turned, status: format!("{attached}, {holding} attempt{plural} here{stands}") }
    }
}
