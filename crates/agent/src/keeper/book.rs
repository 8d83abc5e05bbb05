//! What an agent's process has given its keeper, so that it can go on with the next connection, or with another keeper.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_core::{
    id::Token,
    state::End,
    time::{Mono, Timestamp},
};

use crate::exec::{Alive, ExecEvent, KillReason, Leftover, Order, ProcessIdentity, Swept};

/// How far an order is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// It may be begun until then.
    Offered(Mono),
    /// The offer was taken back.
    Withdrawn,
    /// It was started, or is being started.
    Started,
}

/// One order that is not over.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) order: Arc<Order>,
    pub(super) phase: Phase,
    pub(super) process: Option<(Timestamp, ProcessIdentity)>,
    /// Somebody wants its end, for this reason and by then.
    pub(super) kill: Option<(KillReason, Mono)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    given: BTreeMap<Token, Given>,
    /// What could not be killed: its end was told, and that of what is left of it will be.
    survivors: BTreeMap<Token, Leftover>,
}

/// What is to be done with a keeper that does not know all that we gave.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Again {
    /// To be said once more.
    pub(super) start: Vec<Arc<Order>>,
    pub(super) offer: Vec<(Arc<Order>, Mono)>,
    pub(super) kill: Vec<(Token, KillReason, Mono)>,
    /// To be told to the supervisor.
    pub(super) events: Vec<ExecEvent>,
}

impl Book {
    pub(super) fn adopt(&mut self, alive: &[Alive]) {
        for Alive { order, process } in alive {
            let given = Given { order: Arc::clone(order), phase: Phase::Started, process: process.clone(), kill: None };
            self.given.insert(order.token, given);
        }
    }

    pub(super) fn start(&mut self, order: Arc<Order>) {
        self.given.insert(order.token, Given { order, phase: Phase::Started, process: None, kill: None });
    }

    pub(super) fn offer(&mut self, order: Arc<Order>, until: Mono) {
        self.given.insert(order.token, Given { order, phase: Phase::Offered(until), process: None, kill: None });
    }

    pub(super) fn claim(&mut self, token: Token) {
        if let Some(given) = self.given.get_mut(&token) {
            given.phase = Phase::Started;
        }
    }

    pub(super) fn withdraw(&mut self, token: Token) {
        if let Some(given) = self.given.get_mut(&token)
            && matches!(given.phase, Phase::Offered(_))
        {
            given.phase = Phase::Withdrawn;
        }
    }

    /// The first reason and the earliest time count, as with the keeper.
    pub(super) fn kill(&mut self, token: Token, reason: KillReason, by: Mono) {
        if let Some(given) = self.given.get_mut(&token) {
            given.kill = Some(given.kill.map_or((reason, by), |(first, at)| (first, at.min(by))));
        }
    }

    /// Wishes that may not have reached whoever is there now.
    fn kills(&self) -> Vec<(Token, KillReason, Mono)> {
        let wish = |(token, given): (&Token, &Given)| given.kill.map(|(reason, by)| (*token, reason, by));
        self.given.iter().filter_map(wish).collect()
    }

    /// What the keeper says.
    pub(super) fn event(&mut self, event: &ExecEvent) {
        match event {
            ExecEvent::Started { token, at, identity } => {
                if let Some(given) = self.given.get_mut(token) {
                    given.phase = Phase::Started;
                    given.process = Some((*at, identity.clone()));
                }
            }
            ExecEvent::Ended { token, end, next, .. } => {
                self.survivors.remove(token);
                if let Some(given) = self.given.remove(token).filter(|_| *end == End::KillFailed) {
                    self.survivors.insert(*token, given.leftover());
                }
                next.iter().for_each(|next| self.claim(*next));
            }
            ExecEvent::Withdrawn { token } => {
                self.given.remove(token);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty() && self.survivors.is_empty()
    }

    /// What must not be forgotten about what is not over.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        self.given.values().map(Given::leftover).chain(self.survivors.values().cloned()).collect()
    }

    /// The same keeper is there again: what it does not know did not reach it.
    pub(super) fn same_keeper(&mut self, known: &BTreeSet<Token>) -> Again {
        let mut again = Again::default();
        for given in self.given.values().filter(|given| !known.contains(&given.order.token)) {
            let order = Arc::clone(&given.order);
            match given.phase {
                Phase::Started => again.start.push(order),
                Phase::Offered(until) => again.offer.push((order, until)),
                Phase::Withdrawn => again.events.push(ExecEvent::Withdrawn { token: order.token }),
            }
        }
        again.events.iter().for_each(|event| drop(self.given.remove(&event.token())));
        again.kill = self.kills();
        again
    }

    /// Another keeper goes on with the first one's work. What it has goes on, also what we had only heard nothing of; the
    /// rest is lost, begun or not: nobody can tell, and nothing may run twice.
    pub(super) fn heir(&mut self, alive: &[Alive], swept: &BTreeMap<Token, Swept>, now: Timestamp) -> Again {
        let known: BTreeMap<Token, &Alive> = alive.iter().map(|alive| (alive.order.token, alive)).collect();
        let (live, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.given).into_iter().partition(|(token, _)| known.contains_key(token));
        self.given = gone;
        let mut again = self.other_keeper(swept, now);
        self.given = live;
        for (token, given) in &self.given {
            let process = known.get(token).and_then(|alive| alive.process.clone());
            if let (None, Some((at, identity))) = (&given.process, process) {
                again.events.push(ExecEvent::Started { token: *token, at, identity });
            }
        }
        again.kill = self.kills();
        again
    }

    /// Another keeper is there: what the first one had is lost, `swept` says whether it is dead. What was only on offer
    /// may have been begun, and nobody can tell.
    pub(super) fn other_keeper(&mut self, swept: &BTreeMap<Token, Swept>, now: Timestamp) -> Again {
        let mut again = Again::default();
        for (token, given) in std::mem::take(&mut self.given) {
            let (end, why) = match swept.get(&token) {
                Some(Swept::Survives) => {
                    self.survivors.insert(token, given.leftover());
                    (End::KillFailed, "the keeper that ran it died, and what was left of it could not be ended")
                }
                _ => (End::Lost, "the keeper that ran it died; what was left of it was killed"),
            };
            let started = given.process.map_or(Timestamp(0), |(at, _)| at);
            let why = Some(why.into());
            let (ended, result, usage, next) = (now, None, None, None);
            again.events.push(ExecEvent::Ended { token, end, why, started, ended, result, usage, next });
        }
        let is_over = |token: &Token, _: &mut Leftover| swept.get(token).is_some_and(|found| *found != Swept::Survives);
        for (token, _) in self.survivors.extract_if(.., is_over) {
            let (end, started, ended) = (End::Lost, Timestamp(0), now);
            let (why, result, usage, next) = (Some("what survived it is dead now".into()), None, None, None);
            again.events.push(ExecEvent::Ended { token, end, why, started, ended, result, usage, next });
        }
        again
    }
}

impl Given {
    fn leftover(&self) -> Leftover {
        let identity = self.process.as_ref().map(|(_, identity)| identity.clone());
        Leftover { token: self.order.token, task: self.order.task, identity }
    }
}

#[cfg(test)]
mod tests {
    use muster_core::{
        id::{JobId, TaskId},
        spec::TaskSpec,
    };

    use super::*;

    fn order(token: u64) -> Arc<Order> {
        Arc::new(Order::plain(token, TaskId::new(JobId(1), 0), 1, TaskSpec::default()))
    }

    /// 1 runs, 2 was claimed, 3 and 4 are on offer, 5 was taken back, 6 is over, 7 was begun in its place.
    fn book() -> Book {
        let mut book = Book::default();
        book.start(order(1));
        for token in 2..=5 {
            book.offer(order(token), Mono(50));
        }
        book.claim(Token(2));
        book.withdraw(Token(5));
        book.start(order(6));
        book.offer(order(7), Mono(50));
        book.event(&end(6, Some(Token(7))));
        book
    }

    fn end(token: u64, next: Option<Token>) -> ExecEvent {
        let (started, ended) = (Timestamp(0), Timestamp(9));
        let (token, end, why, result, usage) = (Token(token), End::Succeeded, None, None, None);
        ExecEvent::Ended { token, end, why, started, ended, result, usage, next }
    }

    fn tokens(orders: &[Arc<Order>]) -> Vec<u64> {
        orders.iter().map(|order| order.token.0).collect()
    }

    #[test]
    fn the_same_keeper_hears_again_what_did_not_reach_it() {
        let mut known = BTreeSet::from([Token(1), Token(3)]);
        let mut book = book();
        let again = book.same_keeper(&known);
        assert_eq!(tokens(&again.start), [2, 7]);
        assert_eq!(again.offer.iter().map(|(order, until)| (order.token.0, until.0)).collect::<Vec<_>>(), [(4, 50)]);
        assert_eq!(again.events, [ExecEvent::Withdrawn { token: Token(5) }]);
        known.extend([Token(2), Token(4), Token(7)]);
        assert_eq!(book.same_keeper(&known), Again::default(), "what it knows it needs not hear");
    }

    fn alive(token: u64) -> Alive {
        let identity = ProcessIdentity { boot: "b".into(), pid: 1, start: token, group: 1 };
        Alive { order: order(token), process: Some((Timestamp(7), identity)) }
    }

    #[test]
    fn an_heir_goes_on_with_what_it_has_and_nothing_else_is_begun_again() {
        let mut book = book();
        book.event(&ExecEvent::Started {
            token: Token(1),
            at: Timestamp(7),
            identity: alive(1).process.expect("one").1,
        });
        book.kill(Token(2), KillReason::Cancelled, Mono(90));
        book.kill(Token(2), KillReason::Shutdown, Mono(80));
        // 1 was known to run; that 2 does, and that 3 was begun, nobody had said; 7 is over and not remembered.
        let over = Alive { process: None, ..alive(7) };
        let again = book.heir(&[alive(1), alive(2), alive(3), over], &BTreeMap::new(), Timestamp(9));
        assert_eq!((again.start.len(), again.offer.len()), (0, 0), "nothing may run twice");
        let of = |event: &ExecEvent| match event {
            ExecEvent::Ended { token, end, .. } => (token.0, Some(*end)),
            ExecEvent::Started { token, .. } => (token.0, None),
            other => panic!("{other:?}"),
        };
        let events: Vec<_> = again.events.iter().map(of).collect();
        assert_eq!(events, [(4, Some(End::Lost)), (5, Some(End::Lost)), (2, None), (3, None)]);
        assert_eq!(again.kill, [(Token(2), KillReason::Cancelled, Mono(80))], "it may not have been heard");
        let left: Vec<_> = book.leftovers().iter().map(|left| left.token.0).collect();
        assert_eq!(left, [1, 2, 3, 7]);
    }

    #[test]
    fn a_wish_that_one_be_ended_is_said_again_over_a_new_line() {
        let mut book = book();
        book.kill(Token(1), KillReason::Cancelled, Mono(5));
        book.kill(Token(99), KillReason::Cancelled, Mono(5));
        let known = BTreeSet::from([Token(1), Token(2), Token(3), Token(4), Token(7)]);
        assert_eq!(book.same_keeper(&known).kill, [(Token(1), KillReason::Cancelled, Mono(5))]);
    }

    #[test]
    fn with_another_keeper_all_is_lost_that_could_have_been_begun_and_what_survives_is_told() {
        let mut book = book();
        let again = book.other_keeper(&BTreeMap::from([(Token(1), Swept::Survives)]), Timestamp(9));
        let of = |event: &ExecEvent| match event {
            ExecEvent::Ended { token, end, .. } => (token.0, *end),
            other => panic!("{other:?}"),
        };
        let ends: Vec<_> = again.events.iter().map(of).collect();
        let lost = |token| (token, End::Lost);
        assert_eq!(ends, [(1, End::KillFailed), lost(2), lost(3), lost(4), lost(5), lost(7)]);
        assert_eq!((again.start.len(), again.offer.len(), book.is_empty()), (0, 0, false), "what survives is there");
    }

    #[test]
    fn what_could_not_be_killed_is_there_until_it_is_dead_whichever_keeper_says_so() {
        let failed = |token| match end(token, None) {
            ExecEvent::Ended { token, why, started, ended, result, usage, next, .. } => {
                ExecEvent::Ended { token, end: End::KillFailed, why, started, ended, result, usage, next }
            }
            other => panic!("{other:?}"),
        };
        let mut book = Book::default();
        book.adopt(&[alive(1), alive(2)]);
        book.event(&failed(1));
        book.event(&failed(2));
        let identity = |token: u64| alive(token).process.map(|(_, identity)| identity);
        let left: Vec<_> = book.leftovers().into_iter().map(|left| (left.token.0, left.identity)).collect();
        assert_eq!(left, [(1, identity(1)), (2, identity(2))], "another keeper must know whom to look for");
        book.event(&end(2, None));
        assert!(!book.is_empty());
        let again = book.other_keeper(&BTreeMap::from([(Token(1), Swept::Survives)]), Timestamp(9));
        assert!(again.events.is_empty() && !book.is_empty());
        let again = book.other_keeper(&BTreeMap::from([(Token(1), Swept::Dead)]), Timestamp(9));
        let [ExecEvent::Ended { token: Token(1), end: End::Lost, .. }] = &again.events[..] else { panic!("{again:?}") };
        assert!(book.is_empty());
    }
}
