//! Specs survive the wire, and what cannot be is refused with its place.

use std::time::Duration;

use muster_core::spec::{JobSpec, TaskSpec};
use proptest::prelude::*;

use super::{super::spec::*, job_specs, requests, tasks_specs};
use crate::proto::v1;

fn refused(task: v1::TaskSpec) -> String {
    let fine = v1::TaskSpec::default();
    job_from_proto(v1::JobSpec { tasks: vec![fine, task], ..v1::JobSpec::default() }).unwrap_err().to_string()
}

#[test]
fn what_a_build_does_not_know_is_refused_with_its_place() {
    let task = v1::TaskSpec::default;
    let after = |on| v1::After { on, ..v1::After::default() };
    let retry = |delay_ms, cap_ms| Some(v1::Retry { delay_ms, cap_ms, ..v1::Retry::default() });
    let table = [
        (v1::TaskSpec { role: 9, ..task() }, "tasks[1].role: 9 is not known to this build"),
        (v1::TaskSpec { role: -1, ..task() }, "tasks[1].role: -1 is not known"),
        (v1::TaskSpec { on_lost: 2, ..task() }, "tasks[1].on_lost: 2 is not known"),
        (v1::TaskSpec { after: vec![after(0), after(7)], ..task() }, "tasks[1].after[1].on: 7 is not known"),
        (
            v1::TaskSpec { timeout_ms: Some(u64::MAX), ..task() },
            "tasks[1].timeout_ms: 18446744073709551615 is too long",
        ),
        (v1::TaskSpec { grace_ms: 3_153_600_000_001, ..task() }, "tasks[1].grace_ms: 3153600000001 is too long"),
        (v1::TaskSpec { retry: retry(u64::MAX, 0), ..task() }, "tasks[1].retry.delay_ms"),
        (v1::TaskSpec { retry: retry(0, u64::MAX), ..task() }, "tasks[1].retry.cap_ms"),
        (
            v1::TaskSpec { start_at_us: Some(u64::MAX), ..task() },
            "tasks[1].start_at_us: 18446744073709551615 is too late",
        ),
    ];
    for (task, expected) in table {
        let error = refused(task);
        assert!(error.starts_with(expected), "{error}");
    }
    let requires = v1::Requires { labels: vec!["gpu".to_owned(), "zone in a".to_owned()], ..v1::Requires::default() };
    let error = refused(v1::TaskSpec { requires: Some(requires), ..v1::TaskSpec::default() });
    assert!(error.starts_with("tasks[1].requires.labels[1]: `zone in a` is no label rule: values stand"), "{error}");
}

#[test]
fn a_message_that_says_nothing_is_a_task_of_defaults() {
    let task = task_from_proto(v1::TaskSpec::default()).unwrap();
    assert_eq!(task, TaskSpec { grace: Duration::ZERO, ..TaskSpec::default() });
    assert_eq!(job_from_proto(v1::JobSpec::default()).unwrap(), JobSpec::default());
}

#[test]
fn a_duration_below_a_millisecond_does_not_become_none() {
    let task = TaskSpec { timeout: Some(Duration::from_nanos(1)), grace: Duration::MAX, ..TaskSpec::default() };
    let back = task_from_proto(task_to_proto(&task)).unwrap();
    assert_eq!((back.timeout, back.grace), (Some(Duration::from_millis(1)), DURATION_MAX));
}

proptest! {
    #[test]
    fn a_job_survives_the_wire(spec in job_specs()) {
        prop_assert_eq!(job_from_proto(job_to_proto(&spec)).unwrap(), spec);
    }

    #[test]
    fn a_task_survives_the_wire(task in tasks_specs()) {
        prop_assert_eq!(task_from_proto(task_to_proto(&task)).unwrap(), task);
    }

    #[test]
    fn resources_survive_the_wire(request in requests()) {
        prop_assert_eq!(request_from_proto(request_to_proto(&request)), request);
    }
}
