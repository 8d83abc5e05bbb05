//! Tables: what a shutdown ends, reports and waits for.

use muster_core::{event::What, state::End};

use super::{
    Action, Entry, Input,
    tests::{Agent, ended, give, kill, over, process, reported},
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
