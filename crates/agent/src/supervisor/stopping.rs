//! Tables: what a shutdown ends, reports and waits for.

use std::time::Duration;

use muster_core::{event::What, state::End};

use super::{
    Action, Entry, Input,
    tests::{Agent, TERM, capacity, ended, give, kill, over, process, reported},
};
use crate::exec::KillReason;

#[test]
fn a_shutdown_ends_everything_reports_it_and_says_goodbye() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    let mut expected = vec![Action::Draining, kill(1, KillReason::Shutdown, 10), kill(2, KillReason::Shutdown, 10)];
    expected.extend(reported(1, 3, What::Returned { why: "the agent was stopped".into() }));
    agent.expect(Input::Shutdown, expected);
    agent.expect(give(&[process(4)]), reported(2, 4, What::Returned { why: "the agent stops".into() }));
    let now = [kill(1, KillReason::Shutdown, 0), kill(2, KillReason::Shutdown, 0)];
    agent.expect(Input::Shutdown, now.to_vec());
    agent.expect(ended(1, End::Lost), reported(3, 1, over(End::Lost)));
    agent.expect(ended(2, End::Lost), reported(4, 2, over(End::Lost)));
    let acked = Action::Journal(Entry::Acked { up_to: 4 });
    agent.expect(Input::ReportsAcked { up_to: 4 }, vec![acked, Action::Goodbye, Action::Stopped]);
    agent.expect(Input::Tick, vec![]);
}

#[test]
fn a_shutdown_without_a_controller_ends_after_a_last_wait() {
    let mut agent = Agent::running(&[process(1)]);
    agent.take(Input::Disconnected);
    agent.take(Input::Shutdown);
    agent.take(ended(1, End::Lost));
    agent.expect(Input::Tick, vec![]);
    agent.mono = agent.supervisor.wakeup().expect("a limit").0;
    agent.expect(Input::Tick, vec![Action::Stopped]);
    assert_eq!(agent.supervisor.memory().reports.len(), 1, "A2: it goes with the next start");
}

/// An agent whose file lets what runs go on for a minute after a request to stop.
fn draining(orders: &[std::sync::Arc<crate::exec::Order>]) -> Agent {
    let mut agent = Agent::running(orders);
    agent.supervisor.config.drain = Duration::from_secs(60);
    agent
}

#[test]
fn a_drain_gives_back_what_waits_lets_the_rest_end_and_leaves_when_that_has() {
    let mut agent = draining(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    let mut expected = vec![Action::Draining];
    expected.extend(reported(1, 3, What::Returned { why: "the agent stops".into() }));
    agent.expect(Input::Shutdown, expected);
    agent.expect(give(&[process(4)]), reported(2, 4, What::Returned { why: "the agent stops".into() }));
    agent.expect(ended(1, End::Succeeded), reported(3, 1, over(End::Succeeded)));
    agent.expect(ended(2, End::Exit(3)), reported(4, 2, over(End::Exit(3))));
    let acked = Action::Journal(Entry::Acked { up_to: 4 });
    agent.expect(Input::ReportsAcked { up_to: 4 }, vec![acked, Action::Goodbye, Action::Stopped]);
}

#[test]
fn a_drain_ends_what_still_runs_when_its_time_is_over_or_at_once_when_it_is_asked_again() {
    let mut agent = draining(&[process(1)]);
    agent.expect(Input::Shutdown, vec![Action::Draining]);
    agent.expect(Input::Shutdown, vec![kill(1, KillReason::Shutdown, 0)]);
    let mut agent = draining(&[process(1)]);
    agent.take(Input::Disconnected);
    agent.take(Input::Shutdown);
    let begun = agent.mono;
    let mut killed = Vec::new();
    // Its lease ends before that: who is cut off ends what it has (A1), whatever its file says.
    while killed.is_empty() {
        agent.mono = agent.supervisor.wakeup().expect("something is due").0;
        killed = agent.take(Input::Tick);
        killed.retain(|action| matches!(action, Action::Kill { .. }));
    }
    assert!(agent.mono - begun <= 60_000_000, "{killed:?}");
}

#[test]
fn a_drain_lasts_as_long_as_the_file_says_while_leases_are_renewed() {
    let mut agent = draining(&[process(1)]);
    agent.expect(Input::Shutdown, vec![Action::Draining]);
    let begun = agent.mono;
    loop {
        agent.mono = agent.supervisor.wakeup().expect("something is due").0;
        let actions = agent.take(Input::Tick);
        for action in &actions {
            if let Action::Heartbeat { stamp } = action {
                agent.take(Input::HeartbeatAcked { term: TERM, stamp: *stamp });
            }
        }
        if actions.contains(&kill(1, KillReason::Shutdown, 10)) {
            break;
        }
    }
    assert_eq!(agent.mono - begun, 60_000_000);
}

#[test]
fn a_machine_that_gives_less_starts_nothing_until_that_fits_and_more_when_it_grows() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(Input::Capacity(capacity(1)));
    agent.take(give(&[process(3)]));
    let actions = agent.take(ended(1, End::Succeeded));
    assert!(!actions.iter().any(|action| matches!(action, Action::Start(_))), "one of one runs: {actions:?}");
    let actions = agent.take(Input::Capacity(capacity(2)));
    assert!(actions.iter().any(|action| matches!(action, Action::Start(_))), "{actions:?}");
}
