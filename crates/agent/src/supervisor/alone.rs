//! Attempts that may go on while nobody hears of a controller, and when they must end all the same (A1).

use std::time::Duration;

use muster_core::time::Mono;

use super::{Action, Supervisor, leases::Phase, offers::After};
use crate::exec::KillReason;

impl Supervisor {
    /// Ends what may not go on when the last renewal is so long ago.
    pub(super) fn end_expired(&mut self, away: Duration, actions: &mut Vec<Action>) {
        let reason = KillReason::LeaseExpired;
        let tokens: Vec<_> = self.held.keys().copied().collect();
        for token in tokens {
            let Some(held) = self.held.get(&token) else { continue };
            match held.phase {
                Phase::Waiting => self.give_back(token, reason.text(), actions),
                Phase::Withdrawn(After::Drop | After::Cancel) => {}
                // Begun before we could take it back, it ends.
                Phase::Offered | Phase::Withdrawn(After::GiveBack(_) | After::End(..)) => {
                    self.withdraw(token, After::End(reason, Some(self.config.lost_grace)), actions);
                }
                Phase::Running | Phase::Ending(_) if held.spec().goes_on_for(Duration::ZERO) <= away => {
                    let grace = held.spec().grace.min(self.config.lost_grace);
                    self.kill(token, reason, grace, actions);
                }
                Phase::Running | Phase::Ending(_) => {}
            }
        }
    }

    /// The same for what went on when the leases ran out, each at its own time.
    pub(super) fn end_what_is_kept(&mut self, now: Mono, actions: &mut Vec<Action>) {
        if let Some(from) = self.away
            && self.kept_until().is_some_and(|until| until <= now)
        {
            self.end_expired(now.since(from), actions);
        }
    }

    /// When the first of those that go on without a renewal must end; none: there is none.
    pub(super) fn kept_until(&self) -> Option<Mono> {
        let from = self.away?;
        let runs = self.held.values().filter(|held| held.runs());
        runs.map(|held| from.after(held.spec().goes_on_for(Duration::ZERO))).min()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_core::spec::{Command, TaskSpec};

    use super::*;
    use crate::{
        exec::Order,
        supervisor::{
            Input,
            tests::{Agent, TTL, ended, kill, order, welcome},
        },
    };

    /// It may go on alone for so many times the life of a lease.
    fn keeping(token: u64, ttls: u32) -> Arc<Order> {
        let order = order(token, Command::Argv(vec!["true".to_owned()]), 1);
        let spec = TaskSpec { max_disconnect: Some(TTL * ttls), ..(*order.spec).clone() };
        Arc::new(Order { spec: Arc::new(spec), ..(*order).clone() })
    }

    fn plain(token: u64) -> Arc<Order> {
        order(token, Command::Argv(vec!["true".to_owned()]), 1)
    }

    fn is_killed(actions: &[Action], token: u64) -> bool {
        actions.contains(&kill(token, KillReason::LeaseExpired, 1))
    }

    #[test]
    fn one_that_may_go_on_outlives_its_lease_and_ends_at_its_own_time_from_the_last_renewal() {
        let mut agent = Agent::running(&[plain(1), keeping(2, 3)]);
        agent.take(Input::Disconnected);
        agent.wait(TTL);
        let actions = agent.take(Input::Tick);
        assert!(is_killed(&actions, 1) && !is_killed(&actions, 2), "{actions:?}");
        agent.wait(TTL * 2 - Duration::from_micros(1));
        let actions = agent.take(Input::Tick);
        assert!(!is_killed(&actions, 2), "{actions:?}");
        agent.wait(Duration::from_micros(1));
        let actions = agent.take(Input::Tick);
        assert!(is_killed(&actions, 2), "{actions:?}");
    }

    #[test]
    fn an_agent_that_sleeps_wakes_when_one_must_end() {
        let mut agent = Agent::running(&[keeping(2, 3)]);
        agent.take(Input::Disconnected);
        agent.wait(TTL);
        agent.take(Input::Tick);
        let wakes = agent.supervisor.wakeup().expect("something must end");
        agent.wait(TTL * 2);
        assert_eq!(wakes, Mono(agent.mono));
    }

    #[test]
    fn one_that_went_on_is_named_again_and_its_report_counts_in_the_next_session() {
        let mut agent = Agent::running(&[keeping(2, 3)]);
        agent.take(Input::Disconnected);
        agent.wait(TTL * 2);
        agent.take(Input::Tick);
        let actions = agent.take(Input::Connected);
        assert!(matches!(&actions[..], [Action::Hello { holding, .. }] if holding.len() == 1), "{actions:?}");
        agent.take(welcome(&[]));
        agent.wait(TTL * 2 / 3);
        let actions = agent.take(ended(2, muster_core::state::End::Succeeded));
        assert!(actions.iter().any(|action| matches!(action, Action::Send(_))), "{actions:?}");
    }

    #[test]
    fn a_time_shorter_than_the_lease_shortens_nothing() {
        let order = order(1, Command::Argv(vec!["true".to_owned()]), 1);
        let spec = TaskSpec { max_disconnect: Some(TTL / 4), ..(*order.spec).clone() };
        let mut agent = Agent::running(&[Arc::new(Order { spec: Arc::new(spec), ..(*order).clone() })]);
        agent.take(Input::Disconnected);
        agent.wait(TTL / 2);
        let actions = agent.take(Input::Tick);
        assert!(!is_killed(&actions, 1), "{actions:?}");
        agent.wait(TTL / 2);
        assert!(is_killed(&agent.take(Input::Tick), 1));
    }
}
