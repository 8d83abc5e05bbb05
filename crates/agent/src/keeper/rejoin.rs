//! Goes on with the next connection to a keeper, with a keeper that goes on with the first one's work, or with another one.

use std::{collections::BTreeSet, sync::Arc};

use muster_core::id::Token;
use tracing::{error, info, warn};

use super::{
    book::Again,
    draft::Draft,
    join::{Error, Had, join},
    message::{Gpus, Hold, Kill, Offer, Word},
    pump::{Pump, RETRY},
};
use crate::exec::ExecEvent;

/// Who answers when the line is there again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Same,
    /// Another one, which goes on with the same work.
    Heir,
    Other,
}

impl Pump {
    /// The keeper is gone, or the line to it: goes on with whoever is there, or with a new one. Whether there can be one.
    pub(super) async fn reconnect(&mut self) -> bool {
        if !self.retiring {
            warn!("the line to the keeper is broken");
        }
        // What we started is the safe, which starts another keeper; or it has ended as well.
        if let Some(child) = &mut self.joined.child
            && let Ok(Some(status)) = child.try_wait()
        {
            info!(%status, "the keeper's safe has ended");
            self.joined.child = None;
        }
        let queue = Arc::clone(&self.queue);
        let joined = loop {
            let (config, leftovers) = (self.joined.config.clone(), self.book.leftovers());
            let hold = || queue.newest(self.hold);
            let had = Had { leftovers: &leftovers, hold: &hold };
            let joined = tokio::select! {
                // Nobody who leaves starts another one.
                biased;
                () = queue.is_left() => {
                    warn!("the agent ends without a keeper: the next one looks for what runs");
                    return false;
                }
                joined = join(config, had) => joined,
            };
            match joined {
                Ok(joined) => break joined,
                Err(Error::Limits(why)) => {
                    error!(why, "there can be no keeper; the agent ends");
                    return false;
                }
                Err(error) => error!(error = %crate::link::chain(&error), "there is no keeper; nothing can be run"),
            }
            tokio::time::sleep(RETRY).await;
        };
        let who = match joined.instance == self.joined.instance {
            true => Who::Same,
            false if !joined.cookie.is_empty() && joined.cookie == self.joined.cookie => Who::Heir,
            false => Who::Other,
        };
        let child = self.joined.child.take();
        self.joined = joined;
        self.joined.child = self.joined.child.take().or(child);
        self.retiring = false;
        self.go_on(who).await;
        true
    }

    async fn go_on(&mut self, who: Who) {
        let (alive, swept, now) = (&self.joined.alive, &self.joined.swept, self.clock.wall());
        let known: BTreeSet<Token> = alive.iter().map(|alive| alive.order.token).collect();
        let again = match who {
            Who::Same => self.book.same_keeper(&known),
            Who::Heir => {
                self.links.spools.writer_died(&known.union(&self.joined.writing).copied().collect());
                self.book.heir(alive, swept, now)
            }
            Who::Other => {
                self.links.spools.writer_died(&BTreeSet::new());
                self.book.other_keeper(swept, now)
            }
        };
        let Again { start, offer, kill, events } = again;
        let mut draft = Draft::default();
        // As in the hello: what waits may be behind much else.
        draft.say(Word::Hold(Hold::new(self.queue.newest(self.hold))));
        draft.say(Word::Gpus(Gpus { all: self.gpus.clone() }));
        for order in start {
            self.put_if_enough(&mut draft);
            self.say_start(order, &mut draft);
        }
        for (order, until) in offer {
            self.put_if_enough(&mut draft);
            let place = draft.orders.add(&order);
            draft.say(Word::Offer(Offer { order: place, until_us: until.0 }));
        }
        for (token, reason, by) in kill {
            self.put_if_enough(&mut draft);
            draft.say(Word::Kill(Kill::new(token, reason, by.since(self.clock.mono()))));
        }
        if who != Who::Same {
            let lost = events.iter().filter(|event| matches!(event, ExecEvent::Ended { .. }));
            self.unsettled = lost.map(ExecEvent::token).collect();
            info!(lost = self.unsettled.len(), goes_on = who == Who::Heir, "another keeper is there");
        }
        self.say_settled(&mut draft);
        self.joined.line.put(&draft.finish());
        self.end_unreadable();
        for event in events {
            self.tell(event).await;
        }
        let words = std::mem::take(&mut self.joined.words);
        self.hear(words).await;
    }
}
