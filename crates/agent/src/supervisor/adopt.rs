//! Attempts that outlived the agent that started them: they are held again as if nothing had been.

use std::{sync::Arc, time::Duration};

use muster_core::time::{Mono, Now};

use super::{
    Action, Entry, NEVER, Supervisor,
    leases::{Held, Phase},
};
use crate::exec::{Alive, KillReason};

impl Supervisor {
    /// Takes attempts up again. What the journal does not know was given up by somebody, or its record was lost: the
    /// controller would not let us keep it, so it is ended.
    pub(super) fn adopt(
        &mut self,
        now: Now,
        alive: Vec<Alive>,
        renewed: Option<(Mono, Duration)>,
        actions: &mut Vec<Action>,
    ) {
        // A1: while no controller has taken us in, what an earlier life was allowed is all that there is.
        self.renewed = renewed;
        for Alive { order, process } in alive {
            let token = order.token;
            let is_known = self.orphans.remove(&token).is_some_and(|lease| !lease.reported);
            let (started, identity) = process.map_or((NEVER, None), |(started, identity)| (started, Some(identity)));
            self.highest = self.highest.max(token);
            self.room.take(&order.spec.request);
            if let Some(identity) = identity.clone() {
                // Perhaps nobody wrote it down before.
                actions.push(Action::Journal(Entry::Started { token, identity }));
                self.unannounced.push_back((now.mono.after(self.config.announce_after), token));
            }
            let held = Held {
                order: Arc::clone(&order),
                arrived: now.mono,
                phase: Phase::Running,
                started,
                identity,
                dropped: !is_known,
                expired: false,
            };
            self.held.insert(token, held);
            if !is_known {
                self.kill(token, KillReason::Dropped, order.spec.grace.min(self.config.lost_grace), actions);
            }
        }
    }
}
