//! The connection as the supervisor sees it: who leads, whether we are attached, until when leases hold.

use std::time::Duration;

use muster_core::{
    id::{SessionId, Term},
    mutant,
    time::{Mono, Now},
};

use super::{Action, Entry, Supervisor, Welcome};

/// No heartbeat is sent more often, whatever a controller asks for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// There is none.
    Detached,
    /// Our hello was sent then.
    Greeting(Mono),
    /// We were taken in.
    Attached {
        /// As the controller calls it.
        session: SessionId,
        /// Between heartbeats.
        interval: Duration,
        /// When the next heartbeat goes.
        next: Mono,
        /// When the last one went; nothing later can have been answered.
        last: Mono,
    },
}

impl Link {
    pub(super) fn wakeup(self) -> Option<Mono> {
        match self {
            Self::Detached | Self::Greeting(_) => None,
            Self::Attached { next, .. } => Some(next),
        }
    }
}

impl Supervisor {
    pub(super) fn connected(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.link = Link::Greeting(now.mono);
        let mut holding = self.outbox.tokens();
        holding.extend(self.held.keys());
        holding.extend(self.orphans.keys());
        // A3: what survives keeps its slot at the controller too.
        holding.extend(self.stuck.keys());
        actions.push(Action::Hello { holding: holding.into_iter().collect(), term: self.term });
    }

    pub(super) fn welcome(&mut self, now: Now, welcome: Welcome, actions: &mut Vec<Action>) {
        let Link::Greeting(greeted) = self.link else { return };
        if !self.accepts(welcome.term, actions) {
            return;
        }
        // The controller renewed our leases after it read the hello, so at the earliest when that was sent.
        self.renewed = Some((greeted, welcome.lease_ttl));
        self.away = None;
        let interval = welcome.heartbeat.min(welcome.lease_ttl / 3).max(HEARTBEAT_MIN);
        let next = now.mono.after(interval);
        self.link = Link::Attached { session: welcome.session, interval, next, last: greeted };
        actions.push(Action::Attached { agent: welcome.agent, session: welcome.session });
        if self.stopping.is_some() {
            actions.push(Action::Draining);
        }
        for token in welcome.drop {
            self.drop_lease(token, actions);
        }
        actions.extend(self.outbox.iter().cloned().map(Action::Send));
    }

    /// Whether a message of this term may be acted on. An older leader may not know that it was
    /// replaced: we leave it and look for the newer one.
    pub(super) fn accepts(&mut self, term: Term, actions: &mut Vec<Action>) -> bool {
        if term < self.term {
            let why = format!("the controller speaks for term {term}, but term {} leads", self.term);
            self.cut(why, actions);
            return false;
        }
        if term > self.term {
            self.term = term;
            actions.push(Action::Journal(Entry::Term(term)));
        }
        true
    }

    pub(super) fn cut(&mut self, why: String, actions: &mut Vec<Action>) {
        if self.link != Link::Detached {
            self.link = Link::Detached;
            actions.push(Action::Disconnect { why });
        }
    }

    pub(super) fn heartbeat(&mut self, now: Mono, actions: &mut Vec<Action>) {
        if self.silence_ends().is_some_and(|end| end <= now) {
            self.cut("the controller answers no heartbeat".to_owned(), actions);
        }
        let Link::Attached { interval, next, last, .. } = &mut self.link else { return };
        if *next <= now {
            *next = now.after(*interval);
            *last = now;
            actions.push(Action::Heartbeat { stamp: now });
        }
    }

    /// A1: from the instant at which the heartbeat was SENT; how long the answer took proves nothing.
    pub(super) fn heartbeat_acked(&mut self, term: Term, stamp: Mono, actions: &mut Vec<Action>) {
        if !self.is_attached() || !self.accepts(term, actions) {
            return;
        }
        let Link::Attached { last, .. } = self.link else { return };
        if let Some((from, _)) = &mut self.renewed
            && stamp > *from
            && stamp <= last
        {
            *from = stamp;
        }
    }

    /// When an attached controller has been silent for so long that another one should be tried,
    /// while there is still time to save the leases.
    pub(super) fn silence_ends(&self) -> Option<Mono> {
        let (from, ttl) = self.renewed.filter(|_| self.is_attached())?;
        Some(from.after(ttl * 2 / 3))
    }

    /// A1: past the deadline nothing of ours may go on, for the controller may give it to another.
    pub(super) fn expire(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.end_what_is_kept(now.mono, actions);
        let Some((from, ttl)) = self.renewed else { return };
        if now.mono < from.after(ttl) || mutant::is_on("never-expires") {
            return;
        }
        self.renewed = None;
        self.cut("the leases were not renewed in time".to_owned(), actions);
        self.away = Some(from);
        self.end_expired(now.mono.since(from), actions);
    }
}
