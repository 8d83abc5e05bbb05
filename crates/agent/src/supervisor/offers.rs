//! Leases that exec may begin by itself: in the place of an attempt that ended, before we hear of it.
//!
//! Between the end of a short task and the start of the next one lie two wake-ups, to us and back; on a machine that
//! is busy they cost as much as a fifth of the task. So the first leases that wait are offered to exec. It may begin the
//! oldest of them where an attempt of the same request ended, until its lease ends (A1), and tells both in one
//! event. We may start an offered lease where room came free otherwise, or take it back; exec decides under one lock which of us was first.

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::What,
    id::Token,
    mutant,
    state::End,
    time::{Now, Timestamp},
};

use super::{Action, Entry, NEVER, Supervisor, leases::Phase, text};
use crate::exec::{ExecEvent, KillReason};

/// What happens to an offered lease when exec gave it back; begun meanwhile, it is ended in the same sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It found no room in time. Begun meanwhile, it found room.
    GiveBack(&'static str),
    /// A person ended it.
    Cancel,
    /// It is no longer ours.
    Drop,
    /// Everything is ended, with at most this grace.
    End(KillReason, Option<Duration>),
}

impl Supervisor {
    /// Offers the first leases that wait.
    pub(super) fn offer(&mut self, actions: &mut Vec<Action>) {
        self.offered = 0;
        let Some((from, ttl)) = self.renewed else { return };
        if self.stopping.is_some() {
            return;
        }
        for token in self.queue.iter().take(self.config.offers) {
            let Some(held) = self.held.get_mut(token) else { continue };
            match held.phase {
                // Its inputs are not there yet; and those behind it may not pass it.
                Phase::Waiting if held.order.has_inputs => return,
                Phase::Waiting => {
                    held.phase = Phase::Offered;
                    actions.push(Action::Offer { order: Arc::clone(&held.order), until: from.after(ttl) });
                }
                Phase::Offered => {}
                Phase::Withdrawn(_) | Phase::Running | Phase::Ending(_) => continue,
            }
            self.offered += 1;
        }
    }

    /// Takes an offer back; what is to become of the lease is decided when exec answers.
    pub(super) fn withdraw(&mut self, token: Token, after: After, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get_mut(&token) else { return };
        if held.phase == Phase::Offered {
            actions.push(Action::Withdraw { token });
        }
        held.phase = Phase::Withdrawn(after);
    }

    /// Exec gave it back: it was not begun and never will be.
    pub(super) fn withdrawn(&mut self, now: Now, token: Token, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get(&token) else { return };
        let Phase::Withdrawn(after) = held.phase.clone() else { return };
        match after {
            After::Drop => self.drop_unstarted(token, actions),
            After::Cancel => self.cancel_unstarted(token, now.wall, actions),
            After::GiveBack(why) => self.give_back(token, why, actions),
            After::End(reason, _) => self.give_back(token, reason.text(), actions),
        }
    }

    /// Exec began `token` where an attempt of the same request ended: the room goes from one to the other.
    pub(super) fn begun_in_place(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get_mut(&token) else { return };
        let before = std::mem::replace(&mut held.phase, Phase::Running);
        match before {
            // Claimed before we knew: its room is taken, and exec ignored the claim.
            Phase::Running | Phase::Ending(_) => {
                held.phase = before;
                return;
            }
            Phase::Waiting | Phase::Offered | Phase::Withdrawn(_) if mutant::is_on("room-not-passed") => {}
            Phase::Waiting | Phase::Offered | Phase::Withdrawn(_) => self.room.take(&held.order.spec.request),
        }
        let Phase::Withdrawn(after) = before else { return };
        let grace = held.order.spec.grace;
        match after {
            After::GiveBack(_) => {}
            After::Cancel => self.kill(token, KillReason::Cancelled, grace, actions),
            After::Drop => self.kill(token, KillReason::Dropped, grace.min(self.config.lost_grace), actions),
            After::End(reason, limit) => {
                self.kill(token, reason, limit.map_or(grace, |limit| grace.min(limit)), actions);
            }
        }
    }

    /// An event of an offered lease: exec began it, and whoever would have said so is gone (its keeper died).
    pub(super) fn begun_unheard(&mut self, event: &ExecEvent, actions: &mut Vec<Action>) {
        let token = match event {
            ExecEvent::Started { token, .. } | ExecEvent::Ended { token, .. } => *token,
            ExecEvent::Withdrawn { .. } => return,
        };
        if self.held.get(&token).is_some_and(|held| matches!(held.phase, Phase::Offered | Phase::Withdrawn(_))) {
            self.begun_in_place(token, actions);
        }
    }

    /// A lease of which nothing is said any more.
    pub(super) fn drop_unstarted(&mut self, token: Token, actions: &mut Vec<Action>) {
        self.held.remove(&token);
        actions.push(Action::Journal(Entry::Released { token }));
    }

    /// A person ended it before it started.
    pub(super) fn cancel_unstarted(&mut self, token: Token, wall: Timestamp, actions: &mut Vec<Action>) {
        let Some(held) = self.held.remove(&token) else { return };
        let why = text("cancelled before it started");
        let what = What::Ended { end: End::Cancelled, why, started: NEVER, ended: wall, result: None, usage: None };
        self.report(token, held.order.task, what, actions);
    }
}

#[cfg(test)]
mod tests {
    use muster_core::time::Mono;

    use super::{
        super::{
            Input, Memory,
            tests::{Agent, TERM, TTL, ended, ended_with, give, kill, over, process, reported, welcome},
        },
        *,
    };
    use crate::exec::Order;

    /// It runs 1 and 2, and 3 and 4 are offered.
    fn offering() -> Agent {
        let mut agent = Agent::offering(2, Memory { term: TERM, ..Memory::default() });
        agent.take(Input::Connected);
        agent.take(welcome(&[]));
        agent.take(give(&[process(1), process(2), process(3), process(4), process(5)]));
        agent
    }

    fn offer(order: Arc<Order>) -> Action {
        Action::Offer { order, until: Mono(1_000_000).after(TTL) }
    }

    fn withdrawn(token: u64) -> Input {
        Input::Exec(ExecEvent::Withdrawn { token: Token(token) })
    }

    fn withdraw(token: u64) -> Action {
        Action::Withdraw { token: Token(token) }
    }

    fn cancelled() -> What {
        let why = text("cancelled before it started");
        What::Ended { end: End::Cancelled, why, started: NEVER, ended: Timestamp(77), result: None, usage: None }
    }

    #[test]
    fn the_first_leases_that_wait_are_offered_once_until_the_lease_ends() {
        let mut agent = Agent::offering(2, Memory { term: TERM, ..Memory::default() });
        agent.take(Input::Connected);
        agent.take(welcome(&[]));
        let orders: Vec<_> = (1..=5).map(process).collect();
        let journaled = orders.iter().map(|order| Action::Journal(Entry::Lease(order.clone())));
        let started = orders[..2].iter().map(|order| Action::Start(order.clone()));
        let offered = orders[2..4].iter().map(|order| offer(order.clone()));
        agent.expect(give(&orders), journaled.chain(started).chain(offered).collect());
        agent.expect(Input::Tick, vec![]);
    }

    #[test]
    fn nothing_behind_a_lease_with_inputs_is_offered() {
        let mut agent = Agent::offering(2, Memory { term: TERM, ..Memory::default() });
        agent.take(Input::Connected);
        agent.take(welcome(&[]));
        let with_inputs = Arc::new(Order { has_inputs: true, ..Order::clone(&process(3)) });
        let actions = agent.take(give(&[process(1), process(2), with_inputs, process(4)]));
        assert!(!actions.iter().any(|action| matches!(action, Action::Offer { .. })), "{actions:?}");
    }

    #[test]
    fn what_was_begun_in_place_has_the_room_of_what_ended() {
        let mut agent = offering();
        let mut expected = reported(1, 1, over(End::Succeeded));
        expected.push(offer(process(5)));
        agent.expect(ended_with(1, End::Succeeded, Some(Token(3))), expected);
        assert_eq!(agent.supervisor.taken().cpu_milli, 2000);
        // It is an attempt like any other.
        let stop = Input::Stop { term: TERM, token: Token(3) };
        agent.expect(stop, vec![kill(3, KillReason::Cancelled, 10)]);
        let mut expected = reported(2, 3, over(End::Cancelled));
        expected.push(Action::Claim { token: Token(4) });
        agent.expect(ended(3, End::Cancelled), expected);
    }

    #[test]
    fn a_claim_that_came_too_late_counts_its_room_once() {
        let mut agent = offering();
        // 2 ends, and we claim 3 in its place; exec had begun it where 1 ended.
        let mut expected = reported(1, 2, over(End::Succeeded));
        expected.extend([Action::Claim { token: Token(3) }, offer(process(5))]);
        agent.expect(ended(2, End::Succeeded), expected);
        let mut expected = reported(2, 1, over(End::Succeeded));
        expected.push(Action::Claim { token: Token(4) });
        agent.expect(ended_with(1, End::Succeeded, Some(Token(3))), expected);
        assert_eq!(agent.supervisor.taken().cpu_milli, 2000, "3 and 4 run");
    }

    #[test]
    fn a_person_ends_an_offered_lease_whoever_was_first() {
        let stop = Input::Stop { term: TERM, token: Token(3) };
        let mut agent = offering();
        agent.expect(stop.clone(), vec![withdraw(3), offer(process(5))]);
        agent.expect(stop.clone(), vec![]);
        agent.expect(withdrawn(3), reported(1, 3, cancelled()));
        agent.expect(withdrawn(3), vec![]);

        let mut agent = offering();
        agent.take(stop);
        let mut expected = reported(1, 1, over(End::Succeeded));
        expected.push(kill(3, KillReason::Cancelled, 10));
        agent.expect(ended_with(1, End::Succeeded, Some(Token(3))), expected);
    }

    #[test]
    fn a_dropped_lease_is_not_reported_whoever_was_first() {
        let mut agent = offering();
        agent.take(Input::Disconnected);
        agent.take(Input::Connected);
        assert!(agent.take(welcome(&[3])).contains(&withdraw(3)));
        agent.expect(withdrawn(3), vec![Action::Journal(Entry::Released { token: Token(3) })]);

        let mut agent = offering();
        agent.take(Input::Disconnected);
        agent.take(Input::Connected);
        agent.take(welcome(&[3]));
        let actions = agent.take(ended_with(1, End::Succeeded, Some(Token(3))));
        assert!(actions.contains(&kill(3, KillReason::Dropped, 1)), "{actions:?}");
        let actions = agent.take(ended(3, End::Lost));
        assert!(actions.contains(&Action::Journal(Entry::Released { token: Token(3) })), "{actions:?}");
    }

    #[test]
    fn past_the_deadline_an_offer_is_taken_back_and_what_was_begun_is_killed() {
        let mut agent = offering();
        agent.wait(TTL);
        let actions = agent.take(ended_with(1, End::Succeeded, Some(Token(3))));
        assert!(actions.contains(&withdraw(3)) && actions.contains(&withdraw(4)), "{actions:?}");
        assert!(actions.contains(&kill(3, KillReason::LeaseExpired, 1)), "{actions:?}");
        let why = KillReason::LeaseExpired.text().into();
        let actions = agent.take(withdrawn(4));
        let given_back = |action: &Action| {
            matches!(action, Action::Journal(Entry::Report(report)) if report.token == Token(4)
                && report.what == What::Returned { why: Arc::clone(&why) })
        };
        assert!(actions.iter().any(given_back), "{actions:?}");
    }

    #[test]
    fn an_offer_that_found_no_room_goes_back_unless_it_found_some_meanwhile() {
        let mut agent = offering();
        agent.wait(Duration::from_secs(1));
        let actions = agent.take(Input::Tick);
        assert_eq!(actions.iter().filter(|action| matches!(action, Action::Withdraw { .. })).count(), 2, "{actions:?}");
        let why = "the agent had no room for it in time".into();
        agent.expect(withdrawn(4), reported(2, 4, What::Returned { why }));
        agent.expect(ended_with(1, End::Succeeded, Some(Token(3))), reported(3, 1, over(End::Succeeded)));
        agent.expect(ended(3, End::Succeeded), reported(4, 3, over(End::Succeeded)));
    }

    #[test]
    fn a_stopping_agent_waits_for_the_answer() {
        let mut agent = offering();
        let actions = agent.take(Input::Shutdown);
        assert!(actions.contains(&withdraw(3)) && actions.contains(&withdraw(4)), "{actions:?}");
        agent.take(ended(1, End::Lost));
        agent.take(ended(2, End::Lost));
        agent.take(withdrawn(3));
        assert_eq!(agent.supervisor.holding(), 1);
        agent.take(withdrawn(4));
        assert_eq!(agent.supervisor.holding(), 0);
    }
}
