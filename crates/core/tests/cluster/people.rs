//! What people ask: repeated submissions, cancels, retries, retention (T2, K1).

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::{Answer, Effect, Event, Submission, Target, Which},
    spec::{On, Role, TaskSpec},
    state::{End, State},
};

use crate::{
    deps::after,
    kit::{Kit, array, job, task},
};

#[test]
fn a_repeated_key_returns_the_first_job() {
    let mut kit = Kit::new();
    let keyed = |spec| Submission { key: Arc::from("k"), ..Kit::submission(spec) };
    let first = kit.event(Event::Submit(keyed(job([task("a")]))));
    kit.restart();
    let Answer::Submitted { job: again, duplicate: true, warnings } = kit.event(Event::Submit(keyed(job([task("b")]))))
    else {
        panic!("a repeated key is a duplicate");
    };
    assert!(matches!(first, Answer::Submitted { job, duplicate: false, .. } if job == again));
    assert_eq!(warnings.len(), 1, "it says that the file differs");
}

#[test]
fn a_cancelled_job_ends_when_its_processes_are_dead() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([array("a", 3)]));
    let lease = kit.round().remove(0);
    assert!(matches!(kit.cancel(Target::Job(job)), Answer::Cancelled { tasks: 3, already_final: 0 }));
    assert!(kit.effects.iter().any(|effect| matches!(effect, Effect::Stop { token, .. } if *token == lease.token)));
    assert_eq!(kit.states(job), [State::Running, State::Cancelled, State::Cancelled]);
    assert_eq!(kit.codes(job, 0), ["on-agent", "stopping"]);
    kit.end(host, &lease, End::Cancelled);
    assert_eq!(kit.job_state(job), "cancelled");
}

#[test]
fn a_task_that_ends_before_the_stop_arrives_counts_as_it_ended() {
    for (end, expected) in
        [(End::Succeeded, State::Succeeded), (End::Exit(1), State::Cancelled), (End::Lost, State::Cancelled)]
    {
        let mut kit = Kit::new();
        let host = kit.host(1);
        let job = kit.submit(job([task("a")]));
        let lease = kit.round().remove(0);
        kit.cancel(Target::Job(job));
        kit.end(host, &lease, end);
        assert_eq!(kit.state(job, 0), expected, "{end:?}");
    }
}

#[test]
fn teardown_runs_after_a_cancel_unless_it_is_cancelled_too() {
    for (too, expected) in [(false, State::Queued), (true, State::Cancelled)] {
        let mut kit = Kit::new();
        let teardown = TaskSpec { role: Role::Teardown, ..task("clean") };
        let job = kit.submit(job([task("a"), teardown]));
        kit.event(Event::Cancel { target: Target::Job(job), by: "me".into(), reason: "".into(), teardown_too: too });
        assert_eq!(kit.states(job), [State::Cancelled, expected]);
    }
}

#[test]
fn a_stop_is_said_again_to_an_agent_that_comes_back() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.cancel(Target::Job(job));
    kit.effects.clear();
    kit.attach("one", crate::kit::cpus(1), &[lease.token]);
    assert!(kit.effects.iter().any(|effect| matches!(effect, Effect::Stop { token, .. } if *token == lease.token)));
}

#[test]
fn tasks_are_cancelled_one_by_one_too() {
    let mut kit = Kit::new();
    let host = kit.host(4);
    let job = kit.submit(job([array("a", 4)]));
    kit.cancel(Target::Tasks { job, first: 1, count: 2 });
    assert_eq!(kit.states(job), [State::Queued, State::Cancelled, State::Cancelled, State::Queued]);
    assert_eq!(kit.run_all(host), [0, 3]);
    assert_eq!(kit.job_state(job), "cancelled");
    assert!(matches!(kit.cancel(Target::Job(job)), Answer::Cancelled { tasks: 0, already_final: 4 }));
}

#[test]
fn a_retry_of_what_failed_brings_back_what_was_skipped() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let then = TaskSpec { after: vec![after("a", On::Success)], ..task("b") };
    let job = kit.submit(job([task("a"), then, task("c")]));
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::Exit(1));
    kit.run_all(host);
    assert_eq!(kit.states(job), [State::Failed, State::Skipped, State::Succeeded]);
    assert!(matches!(kit.retry(job, Which::Failed), Answer::Retried { tasks: 2 }));
    assert_eq!(kit.states(job), [State::Queued, State::Waiting, State::Succeeded]);
    let again = kit.round().remove(0);
    assert_eq!(again.attempt, 2);
    kit.end(host, &again, End::Succeeded);
    kit.run_all(host);
    assert_eq!(kit.job_state(job), "succeeded");
    assert!(kit.try_event(Event::Retry { target: Target::Job(job), which: Which::Failed }).is_err());
}

#[test]
fn a_cancelled_million_comes_back_with_a_retry() {
    let mut kit = Kit::new();
    let (_, answer) = kit.cluster.handle(kit.now, Event::Submit(Kit::submission(job([array("a", 1_000_000)]))));
    let Ok(Answer::Submitted { job, .. }) = answer else { panic!("accepted") };
    let target = Target::Job(job);
    let cancel = Event::Cancel { target, by: "me".into(), reason: "".into(), teardown_too: false };
    let (step, _) = kit.cluster.handle(kit.now, cancel);
    assert!(step.changes.len() < 10, "a cancel of untouched tasks is one record: {}", step.changes.len());
    assert_eq!(kit.job_state(job), "cancelled");
    let (_, answer) = kit.cluster.handle(kit.now, Event::Retry { target, which: Which::All });
    assert_eq!(answer, Ok(Answer::Retried { tasks: 1_000_000 }));
}

#[test]
fn a_retry_of_all_runs_everything_again_in_order() {
    let mut kit = Kit::new();
    let host = kit.host(4);
    let then = TaskSpec { after: vec![after("a", On::Success)], ..task("b") };
    let job = kit.submit(job([array("a", 3), then]));
    assert_eq!(kit.run_all(host), [0, 1, 2, 3]);
    kit.retry(job, Which::All);
    assert_eq!(kit.run_all(host), [0, 1, 2, 3]);
    assert_eq!(kit.job_state(job), "succeeded");
}

#[test]
fn a_retried_parent_does_not_disturb_what_runs() {
    let mut kit = Kit::new();
    let host = kit.host(4);
    let then = TaskSpec { after: vec![after("a", On::Any)], ..task("b") };
    let job = kit.submit(job([task("a"), then]));
    let a = kit.round().remove(0);
    kit.end(host, &a, End::Exit(1));
    let b = kit.round().remove(0);
    kit.retry(job, Which::Failed);
    assert_eq!(kit.states(job), [State::Queued, State::Running]);
    kit.end(host, &b, End::Succeeded);
    kit.run_all(host);
    assert_eq!(kit.job_state(job), "succeeded");
}

#[test]
fn what_waits_for_two_is_told_when_the_second_is_done_again() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let both = TaskSpec { after: vec![after("a", On::Success), after("b", On::Success)], ..task("c") };
    let job = kit.submit(job([task("a"), task("b"), both]));
    for end in [End::Succeeded, End::Exit(1)] {
        let lease = kit.round().remove(0);
        kit.end(host, &lease, end);
    }
    assert_eq!(kit.states(job), [State::Succeeded, State::Failed, State::Skipped]);
    kit.retry(job, Which::Failed);
    assert_eq!(kit.run_all(host), [1, 2]);
}

#[test]
fn a_retry_of_what_is_still_being_ended_is_refused() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([array("a", 2)]));
    let lease = kit.round().remove(0);
    kit.cancel(Target::Job(job));
    let refused = kit.try_event(Event::Retry { target: Target::Job(job), which: Which::Failed });
    assert!(format!("{refused:?}").contains("still being ended"), "{refused:?}");
    kit.end(host, &lease, End::Cancelled);
    assert!(matches!(kit.retry(job, Which::Failed), Answer::Retried { tasks: 2 }));
}

#[test]
fn a_dependency_that_is_done_again_is_waited_for_again() {
    let mut kit = Kit::new();
    let host = kit.host(2);
    let both = TaskSpec { after: vec![after("a", On::Any), after("b", On::Any)], ..task("c") };
    let job = kit.submit(job([task("a"), task("b"), both]));
    let leases = kit.round();
    kit.end(host, &leases[0], End::Succeeded);
    kit.retry(job, Which::All);
    kit.end(host, &leases[1], End::Succeeded);
    assert_eq!(kit.states(job), [State::Queued, State::Succeeded, State::Waiting]);
    kit.run_all(host);
    assert_eq!(kit.job_state(job), "succeeded");
}

#[test]
fn finished_jobs_go_when_their_time_is_over_and_numbers_are_not_used_again() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let first = kit.submit(job([task("a")]));
    kit.run_all(host);
    kit.pass(kit.config.retention + Duration::from_secs(1));
    assert!(kit.cluster.summary(first).is_none());
    assert!(kit.effects.contains(&Effect::Forget(first)));
    assert!(!kit.store.keys().any(|key| key.job() == Some(first)), "{:?}", kit.store);
    kit.restart();
    let second = kit.submit(job([task("a")]));
    assert!(second > first);
}
