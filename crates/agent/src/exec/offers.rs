//! Orders that may begin in the place of an attempt that ended, on the thread that saw it end.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_core::{id::Token, resources::Request, time::Mono};

use super::{Order, control::Control, room::Live};

/// Offered and not begun, oldest first. One lock decides who has an order: who begins it, claims it or withdraws it.
#[derive(Default)]
pub(super) struct Offers(Mutex<VecDeque<Offer>>);

struct Offer {
    order: Arc<Order>,
    until: Mono,
}

impl Offers {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Offer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, order: Arc<Order>, until: Mono) {
        self.lock().push_back(Offer { order, until });
    }

    /// Takes one out, if it was not begun.
    pub(super) fn take(&self, token: Token) -> Option<Arc<Order>> {
        let mut offers = self.lock();
        let at = offers.iter().position(|offer| offer.order.token == token)?;
        offers.remove(at).map(|offer| offer.order)
    }

    /// Takes all out that were not begun.
    pub(super) fn take_all(&self) -> Vec<Token> {
        self.lock().drain(..).map(|offer| offer.order.token).collect()
    }

    /// The oldest, if it may begin `now` in the place of `request`; it is live from here on.
    pub(super) fn begin(&self, request: &Request, now: Mono, live: &Live) -> Option<(Arc<Order>, Arc<Control>)> {
        let mut offers = self.lock();
        let offer = offers.front()?;
        if offer.until <= now || offer.order.spec.request != *request {
            return None;
        }
        let control = live.add(offer.order.token)?;
        offers.pop_front().map(|offer| (offer.order, control))
    }
}
