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

#[cfg(test)]
mod tests {
    use muster_core::{event::What, id::Token, state::End, time::Timestamp};

    use super::*;
    use crate::{
        exec::{ExecEvent, ProcessIdentity, Swept},
        supervisor::{
            Input, Memory, Remembered,
            tests::{Agent, TERM, TTL, ended, kill, over, process, reported, welcome},
        },
    };

    fn remembered(token: u64) -> Remembered {
        let order = process(token);
        let (task, request) = (order.task, order.spec.request.clone());
        Remembered { token: Token(token), task, request, identity: None, reported: false }
    }

    fn alive(token: u64) -> Alive {
        let identity = ProcessIdentity { boot: "b".into(), pid: 1, start: token, group: 1 };
        Alive { order: process(token), process: Some((Timestamp(7), identity)) }
    }

    /// Room for two; the journal knows the leases of these tokens.
    fn knowing(tokens: &[u64]) -> Agent {
        let leases = tokens.iter().map(|token| remembered(*token)).collect();
        Agent::offering(2, Memory { term: TERM, highest: Token(9), leases, ..Memory::default() })
    }

    fn adopted(tokens: &[u64], renewed: Option<(Mono, Duration)>) -> Input {
        Input::Adopted { alive: tokens.iter().map(|token| alive(*token)).collect(), renewed }
    }

    #[test]
    fn what_goes_on_is_named_holds_its_room_and_is_reported_as_it_ended() {
        let mut agent = knowing(&[1, 2]);
        agent.take(adopted(&[1, 2], Some((Mono(1_000_000), TTL))));
        assert_eq!(agent.supervisor.taken().cpu_milli, 2000);
        assert_eq!(agent.supervisor.leftovers(), [], "nothing is left to sweep");
        let hello = agent.take(Input::Connected);
        assert!(matches!(&hello[..], [Action::Hello { holding, .. }] if *holding == [Token(1), Token(2)]), "{hello:?}");
        agent.take(welcome(&[]));
        agent.expect(ended(1, End::Exit(3)), reported(1, 1, over(End::Exit(3))));
        assert_eq!(agent.supervisor.taken().cpu_milli, 1000);
    }

    #[test]
    fn without_a_controller_it_ends_when_the_lease_of_the_earlier_life_does() {
        let mut agent = knowing(&[1]);
        let from = Mono(agent.mono);
        agent.wait(TTL / 2);
        agent.take(adopted(&[1], Some((from, TTL))));
        agent.wait(TTL / 2 - Duration::from_micros(1));
        let actions = agent.take(Input::Tick);
        assert!(!actions.iter().any(|action| matches!(action, Action::Kill { .. })), "{actions:?}");
        assert_eq!(agent.supervisor.wakeup(), Some(from.after(TTL)), "it wakes by itself");
        agent.wait(Duration::from_micros(1));
        let actions = agent.take(Input::Tick);
        assert!(actions.contains(&kill(1, KillReason::LeaseExpired, 1)), "A1: {actions:?}");
    }

    #[test]
    fn what_the_journal_does_not_know_is_ended_in_silence() {
        let mut agent = knowing(&[]);
        let actions = agent.take(adopted(&[1], None));
        assert!(actions.contains(&kill(1, KillReason::Dropped, 1)), "{actions:?}");
        agent.expect(ended(1, End::Lost), vec![Action::Journal(Entry::Released { token: Token(1) })]);
        assert_eq!(agent.supervisor.taken().cpu_milli, 0);
    }

    #[test]
    fn what_was_never_begun_goes_back_and_a_restart_of_the_machine_is_told() {
        let mut agent = knowing(&[1, 2]);
        let swept = vec![(Token(1), Swept::NeverBegun), (Token(2), Swept::Rebooted)];
        let actions = agent.take(Input::Swept(swept));
        let what = |action: &Action| match action {
            Action::Journal(Entry::Report(report)) => Some(report.what.clone()),
            _ => None,
        };
        let whats: Vec<What> = actions.iter().filter_map(what).collect();
        let [What::Returned { .. }, What::Ended { end: End::Lost, why: Some(why), .. }] = &whats[..] else {
            panic!("{whats:?}")
        };
        assert_eq!(&**why, "the machine was restarted");
    }

    #[test]
    fn an_end_that_was_told_before_the_last_life_ended_is_told_once() {
        // Its report is in the journal, so the lease is not; the keeper had not heard that.
        let mut agent = knowing(&[]);
        agent.take(Input::Adopted { alive: vec![Alive { process: None, ..alive(4) }], renewed: None });
        let actions = agent.take(ended(4, End::Succeeded));
        assert_eq!(actions, vec![Action::Journal(Entry::Released { token: Token(4) })]);
    }

    #[test]
    fn an_offer_whose_beginning_nobody_told_of_takes_room_once_and_is_reported() {
        let mut agent = Agent::offering(2, Memory { term: TERM, ..Memory::default() });
        agent.take(Input::Connected);
        agent.take(welcome(&[]));
        agent.take(crate::supervisor::tests::give(&[process(1), process(2), process(3)]));
        // Its keeper died: 3 was only on offer, and may have been begun.
        let end = ExecEvent::Ended {
            token: Token(3),
            end: End::Lost,
            why: None,
            started: Timestamp(0),
            ended: Timestamp(1),
            result: None,
            usage: None,
            next: None,
        };
        let actions = agent.take(Input::Exec(end));
        let told = |action: &Action| matches!(action, Action::Send(report) if report.token == Token(3));
        assert!(actions.iter().any(told), "{actions:?}");
        assert_eq!(agent.supervisor.taken().cpu_milli, 2000, "1 and 2");
    }
}
