//! States, attempts and tallies survive the wire.

use muster_core::state::{JobState, State, Tally};
use proptest::prelude::*;

use super::{super::work::*, attempts, ends, tasks, why};
use crate::proto::v1;

#[test]
fn every_state_survives_and_no_other_is_known() {
    let known: Vec<_> = (-2..20).filter_map(|n| state_from_proto(n).ok()).collect();
    assert_eq!(known, State::ALL);
    for state in State::ALL {
        assert_eq!(state_from_proto(state_to_proto(state).into()).unwrap(), state);
    }
    let known: Vec<_> = (-2..20).filter_map(|n| job_state_from_proto(n).ok()).collect();
    assert_eq!(known.len(), 7);
    for state in known {
        assert_eq!(job_state_from_proto(job_state_to_proto(state).into()).unwrap(), state);
    }
    assert_eq!(job_state_to_proto(JobState::Waiting), v1::JobState::Waiting);
}

#[test]
fn what_a_build_does_not_know_is_refused_with_its_place() {
    let task = || v1::Task { state: 1, ..v1::Task::default() };
    let bad = v1::Attempt { end: Some(v1::End::default()), ..v1::Attempt::default() };
    let table = [
        (v1::Task::default(), "state: 0 is not known"),
        (v1::Task { stopping: 2, ..task() }, "stopping: 2 is not known"),
        (v1::Task { retries: 65_536, ..task() }, "retries: 65536 is out of range"),
        (v1::Task { losses: u32::MAX, ..task() }, "losses: 4294967295 is out of range"),
        (v1::Task { attempt: Some(bad.clone()), ..task() }, "attempt.end.kind: 0 is not known"),
        (v1::Task { past: vec![v1::Attempt::default(), bad], ..task() }, "past[1].end.kind: 0 is not known"),
    ];
    for (task, expected) in table {
        let error = task_from_proto(task).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let tally = v1::Tally { failed: 1 << 32, ..v1::Tally::default() };
    assert_eq!(tally_from_proto(tally).unwrap_err().to_string(), "failed: 4294967296 is out of range");
}

proptest! {
    #[test]
    fn a_task_survives_the_wire(task in tasks()) {
        prop_assert_eq!(task_from_proto(task_to_proto(&task)).unwrap(), task);
    }

    #[test]
    fn an_attempt_survives_the_wire(attempt in attempts()) {
        prop_assert_eq!(attempt_from_proto(attempt_to_proto(&attempt)).unwrap(), attempt);
    }

    #[test]
    fn an_end_survives_the_wire(end in ends(), why in why()) {
        prop_assert_eq!(end_from_proto(end_to_proto(end, why.as_deref())).unwrap(), (end, why));
    }

    #[test]
    fn a_tally_survives_the_wire(counts in prop::array::uniform9(any::<u32>())) {
        let mut tally = Tally::default();
        for (state, n) in State::ALL.into_iter().zip(counts) {
            tally.add(state, n);
        }
        prop_assert_eq!(tally_from_proto(tally_to_proto(&tally)).unwrap(), tally);
    }
}
