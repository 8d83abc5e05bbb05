//! What an agent says that was frozen past its leases: its guard ended its attempts, and nothing else knew why.

use std::time::Duration;

use muster_core::{
    event::What,
    spec::Command,
    state::End,
    time::{Mono, Now, Timestamp},
};

use super::{
    Action, Config, Entry, Input, Memory, Supervisor,
    tests::{TERM, TTL, capacity, ended, order, started, welcome},
};

const BEGAN: Mono = Mono(1_000_000);

fn take(supervisor: &mut Supervisor, mono: Mono, input: Input) -> Vec<Action> {
    let mut actions = Vec::new();
    supervisor.handle(Now { wall: Timestamp(77), mono }, input, &mut actions);
    actions
}

/// Taken in at [`BEGAN`], and running two attempts.
fn running() -> Supervisor {
    let mut supervisor = Supervisor::new(Config::new(capacity(2)), Memory { term: TERM, ..Memory::default() });
    let orders = [1, 2].map(|token| order(token, Command::Argv(vec!["true".to_owned()]), 1)).to_vec();
    for input in [
        Input::Connected,
        welcome(&[]),
        Input::Leases { term: TERM, orders, unusable: Vec::new() },
        started(1),
        started(2),
    ] {
        take(&mut supervisor, BEGAN, input);
    }
    supervisor
}

fn is_lost(action: &Action) -> bool {
    match action {
        Action::Journal(Entry::Report(report)) => matches!(report.what, What::Ended { end: End::Lost, .. }),
        _ => false,
    }
}

#[test]
fn what_the_guard_ended_while_we_were_frozen_is_lost_and_did_not_fail() {
    let mut agent = running();
    let ends = BEGAN.after(TTL);
    assert_eq!(agent.hold(), Some((BEGAN, TTL)));
    // The first thing that is read when we go on: exec saw a signal and nothing else.
    assert!(take(&mut agent, ends, ended(1, End::Signal(9))).iter().any(is_lost));
    assert_eq!(agent.hold(), Some((BEGAN, Duration::ZERO)), "nothing more is held by a lease, but what may go on");
    // What ended by itself is told as it was.
    assert!(!take(&mut agent, ends, ended(2, End::Signal(11))).iter().any(is_lost));
}

#[test]
fn what_is_killed_while_its_lease_holds_is_told_as_it_was() {
    assert!(!take(&mut running(), BEGAN, ended(1, End::Signal(9))).iter().any(is_lost));
}
