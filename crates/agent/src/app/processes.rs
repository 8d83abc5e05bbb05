//! What the loop needs of whoever runs attempts.

use std::{sync::Arc, time::Duration};

use muster_core::{id::Token, time::Mono};

use crate::exec::{Exec, KillReason, Order};

/// What runs attempts: [`Exec`], or a script in tests.
pub trait Processes: Send + 'static {
    /// See [`Exec::start`].
    fn start(&self, order: Arc<Order>);
    /// See [`Exec::kill`].
    fn kill(&self, token: Token, reason: KillReason, grace: Duration);
    /// See [`Exec::offer`].
    fn offer(&self, order: Arc<Order>, until: Mono);
    /// See [`Exec::claim`].
    fn claim(&self, token: Token);
    /// See [`Exec::withdraw`].
    fn withdraw(&self, token: Token);
    /// A1: when our leases were last renewed, and for how long that holds; none: nothing is held by one. Should this
    /// process be frozen or gone then, somebody else ends what runs.
    fn hold(&self, renewed: Option<(Mono, Duration)>);
    /// The ends of these are in the journal.
    fn forget(&self, _tokens: Vec<Token>) {}
    /// What became of an earlier life is in the journal. Said again, it changes nothing.
    fn settled(&self) {}
    /// All that was to be said now was said.
    fn flush(&self) {}
    /// Whether what runs goes on without us.
    fn outlive_us(&self) -> bool {
        false
    }
    /// Whether ends that are not urgent come many at a time, so that nobody need wait for more of them.
    fn gathers(&self) -> bool {
        false
    }
    /// See [`Exec::offer_gpus`].
    fn offer_gpus(&self, _all: &[u32]) {}
}

impl Processes for Exec {
    fn start(&self, order: Arc<Order>) {
        Exec::start(self, order);
    }

    fn kill(&self, token: Token, reason: KillReason, grace: Duration) {
        Exec::kill(self, token, reason, grace);
    }

    fn offer(&self, order: Arc<Order>, until: Mono) {
        Exec::offer(self, order, until);
    }

    fn claim(&self, token: Token) {
        Exec::claim(self, token);
    }

    fn withdraw(&self, token: Token) {
        Exec::withdraw(self, token);
    }

    fn hold(&self, renewed: Option<(Mono, Duration)>) {
        // What may go on past its lease is ended by the supervisor alone.
        let ends = renewed.filter(|(_, ttl)| !ttl.is_zero()).map(|(from, ttl)| from.after(ttl));
        Exec::hold_until(self, ends);
    }

    fn offer_gpus(&self, all: &[u32]) {
        Exec::offer_gpus(self, all, []);
    }
}
