//! Ends of attempts: what each becomes, and who is believed (T2, T3, T4).

use std::{sync::Arc, time::Duration};

use muster_core::{
    cluster::Config,
    event::{Effect, Refusal, What},
    id::Token,
    spec::{OnLost, RetryPolicy, TaskSpec},
    state::{End, State},
    time::Timestamp,
};

use crate::kit::{Kit, MS, job, task};

fn retrying(max: u32, exit_codes: &[i32]) -> TaskSpec {
    let retry = RetryPolicy { max, jitter_milli: 0, exit_codes: exit_codes.to_vec(), ..RetryPolicy::default() };
    TaskSpec { retry, ..task("a") }
}

#[test]
fn each_end_becomes_what_the_policy_says() {
    let lost_is_fatal = TaskSpec { on_lost: OnLost::Fail, ..task("a") };
    let table = [
        (task("a"), End::Succeeded, State::Succeeded),
        (task("a"), End::Exit(1), State::Failed),
        (task("a"), End::Signal(9), State::Failed),
        (task("a"), End::Timeout, State::Failed),
        (task("a"), End::Oom, State::Failed),
        (task("a"), End::ScratchFull, State::Failed),
        (task("a"), End::NotStarted, State::Failed),
        (task("a"), End::KillFailed, State::Failed),
        (task("a"), End::Cancelled, State::Cancelled),
        (task("a"), End::Lost, State::Queued),
        (lost_is_fatal, End::Lost, State::Failed),
        (retrying(1, &[]), End::Exit(1), State::Retrying),
        (retrying(1, &[]), End::Timeout, State::Retrying),
        (retrying(1, &[]), End::NotStarted, State::Retrying),
        (retrying(1, &[]), End::KillFailed, State::Failed),
        (retrying(1, &[7]), End::Exit(7), State::Retrying),
        (retrying(1, &[7]), End::Exit(8), State::Failed),
        (retrying(1, &[7]), End::Timeout, State::Failed),
    ];
    for (spec, end, expected) in table {
        let mut kit = Kit::new();
        let host = kit.host(1);
        let job = kit.submit(job([spec]));
        let lease = kit.round().remove(0);
        kit.end(host, &lease, end);
        assert_eq!(kit.state(job, 0), expected, "{end:?}");
    }
}

#[test]
fn retries_back_off_and_then_give_up() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([retrying(2, &[])]));
    for (attempt, wait) in [(1, 1), (2, 2)] {
        let lease = kit.round().remove(0);
        assert_eq!(lease.attempt, attempt);
        kit.end(host, &lease, End::Exit(1));
        assert_eq!(kit.codes(job, 0), ["retry-at"]);
        kit.pass(Duration::from_secs(wait) - MS);
        assert!(kit.round().is_empty(), "not before its back-off ends");
        kit.pass(MS);
    }
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::Exit(1));
    assert_eq!((kit.state(job, 0), kit.job_state(job)), (State::Failed, "failed"));
}

#[test]
fn losses_use_no_retries_but_have_a_limit_of_their_own() {
    let mut kit = Kit::with(Config { losses_max: 3, ..Config::default() });
    let host = kit.host(1);
    let job = kit.submit(job([retrying(0, &[])]));
    for expected in [State::Queued, State::Queued, State::Failed] {
        let lease = kit.round().remove(0);
        kit.end(host, &lease, End::Lost);
        assert_eq!(kit.state(job, 0), expected);
    }
}

#[test]
fn a_late_report_of_an_old_attempt_is_refused_and_kept_as_evidence() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let old = kit.round().remove(0);
    kit.end(host, &old, End::Lost);
    let new = kit.round().remove(0);
    assert!(new.token > old.token && new.attempt == old.attempt + 1);
    kit.effects.clear();
    kit.end(host, &old, End::Exit(9));
    assert_eq!(kit.state(job, 0), State::Running);
    assert!(matches!(kit.effects[..], [Effect::Acknowledge { .. }]), "the agent may forget it: {:?}", kit.effects);
    let chunk = format!("{:?}", kit.store);
    assert!(chunk.contains("reported later: exit code 9"), "{chunk}");
    kit.end(host, &new, End::Succeeded);
    kit.end(host, &new, End::Exit(1));
    assert_eq!(kit.state(job, 0), State::Succeeded);
}

/// Whatever an agent says of an attempt that was given up, it is kept with that attempt, once, and changes nothing else.
#[test]
fn every_late_end_is_kept_with_its_attempt_and_moves_nothing() {
    let why = Some("found dead");
    let table = [
        (End::Succeeded, None, "succeeded"),
        (End::Exit(3), why, "exit code 3 (found dead)"),
        (End::Signal(9), None, "signal 9"),
        (End::Timeout, None, "timeout"),
        (End::Oom, None, "out of memory"),
        (End::ScratchFull, None, "scratch full"),
        (End::Lost, why, "lost (found dead)"),
        (End::Cancelled, None, "cancelled"),
        (End::NotStarted, why, "not started (found dead)"),
        (End::KillFailed, None, "kill failed"),
    ];
    for on_lost in [OnLost::Retry, OnLost::Fail] {
        for (end, why, told) in table {
            let mut kit = Kit::new();
            kit.host(1);
            let job = kit.submit(job([TaskSpec { on_lost, ..task("a") }]));
            let lease = kit.round().remove(0);
            kit.pass(Duration::from_secs(60));
            let (host, _) = kit.attach("one", crate::kit::cpus(1), &[lease.token]);
            let before = kit.state(job, 0);
            for _ in 0..2 {
                let (started, ended, why) = (Timestamp(1), Timestamp(2), why.map(Arc::from));
                let what = What::Ended { end, why, started, ended, result: None, usage: None };
                kit.report(host, lease.token, lease.task, what).expect("it is acknowledged");
            }
            assert_eq!(kit.state(job, 0), before, "{end:?}");
            let kept = format!("{:?}", kit.store);
            let wanted = format!("its agent fell silent; reported later: {told}\"");
            assert_eq!(kept.matches(&wanted).count(), 1, "{end:?}: {kept}");
            assert!(kept.contains("end: Some(Lost)"), "{kept}");
        }
    }
}

#[test]
fn a_report_of_another_agents_lease_changes_nothing() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    let (thief, _) = kit.attach("thief", crate::kit::cpus(1), &[]);
    kit.end(thief, &lease, End::Exit(1));
    assert_eq!(kit.state(job, 0), State::Running);
}

#[test]
fn a_report_over_an_older_connection_is_refused_and_not_acknowledged() {
    let mut kit = Kit::new();
    let old = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    let (new, _) = kit.attach("one", crate::kit::cpus(1), &[lease.token]);
    assert!(kit.effects.iter().any(|effect| matches!(effect, Effect::Disconnect { .. })));
    kit.effects.clear();
    let what = What::Ended {
        end: End::Succeeded,
        why: None,
        started: Timestamp(1),
        ended: Timestamp(2),
        result: None,
        usage: None,
    };
    let refused = kit.report(old, lease.token, lease.task, what);
    assert!(matches!(refused, Err(Refusal::StaleSession { .. })));
    assert!(kit.effects.is_empty());
    kit.end(new, &lease, End::Succeeded);
    assert_eq!(kit.state(job, 0), State::Succeeded);
}

#[test]
fn a_start_is_noted_and_a_return_undoes_the_lease() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.report(host, lease.token, lease.task, What::Returned { why: "no room".into() }).expect("taken");
    assert_eq!(kit.state(job, 0), State::Queued);
    let again = kit.round().remove(0);
    assert_eq!(again.attempt, 1, "nothing was tried");
    assert!(again.token > lease.token);
    kit.report(host, again.token, again.task, What::Started { at: Timestamp(77) }).expect("taken");
    assert!(format!("{:?}", kit.store).contains("started: Timestamp(77)"));
}

#[test]
fn a_report_of_nothing_known_is_acknowledged_and_changes_nothing() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let before = kit.store.clone();
    let what = What::Started { at: Timestamp(1) };
    kit.report(host, Token(99), muster_core::id::TaskId::new(job, 0), what.clone()).expect("taken");
    kit.report(host, Token(99), muster_core::id::TaskId::new(muster_core::id::JobId(99), 7), what).expect("taken");
    assert_eq!(kit.store, before);
}
