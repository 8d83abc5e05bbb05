//! K1: what was committed is taken up as it was.

use std::time::Duration;

use muster_core::{
    cluster::Cluster,
    event::{Event, Target, Which},
    id::JobId,
    record::Summary,
    spec::{On, RetryPolicy, TaskSpec},
    state::{End, State},
};

use crate::{
    deps::after,
    kit::{Kit, array, cpus, job, task},
};

#[test]
fn running_work_is_not_disturbed() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([array("a", 2)]));
    let lease = kit.round().remove(0);
    kit.restart();
    assert_eq!(kit.states(job), [State::Running, State::Queued]);
    assert!(kit.round().is_empty(), "its slot is taken");
    let (host, drop) = kit.attach("one", cpus(1), &[lease.token]);
    assert!(drop.is_empty());
    kit.end(host, &lease, End::Succeeded);
    assert_eq!(kit.run_all(host), [1]);
}

#[test]
fn an_agent_that_does_not_come_back_is_lost_in_time() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([task("a")]));
    kit.round();
    kit.restart();
    kit.pass(kit.config.lease_ttl + kit.config.lease_margin);
    assert_eq!(kit.state(job, 0), State::Queued);
}

#[test]
fn tokens_only_grow() {
    let mut kit = Kit::new();
    kit.host(1);
    kit.submit(job([array("a", 3)]));
    let first = kit.round().remove(0);
    kit.restart();
    let (host, _) = kit.attach("one", cpus(1), &[first.token]);
    kit.end(host, &first, End::Succeeded);
    assert!(kit.round().remove(0).token > first.token);
}

/// Everything about a job but the phases of groups of which every task is told by a chunk.
fn whole(kit: &Kit, job: JobId) -> (Vec<State>, Option<Summary>) {
    let summary = kit.cluster.summary(job).map(|summary| Summary { phases: Vec::new().into(), ..summary });
    (kit.states(job), summary)
}

#[test]
fn every_state_is_the_same_afterwards() {
    let mut kit = Kit::new();
    let mut host = kit.host(1);
    let retry = RetryPolicy { max: 1, ..RetryPolicy::default() };
    let on = |name: &str, source: &str, on| TaskSpec { after: vec![after(source, on)], ..task(name) };
    let spec = job([
        TaskSpec { retry, ..task("retrying") },
        task("failed"),
        task("succeeded"),
        on("skipped", "failed", On::Success),
        on("waiting", "retrying", On::Any),
        TaskSpec { start_at: Some(kit.now.wall.after(Duration::from_secs(999))), ..task("scheduled") },
        task("cancelled"),
        array("queued", 200),
    ]);
    let job = kit.submit(spec);
    for end in [End::Exit(1), End::Exit(1), End::Succeeded] {
        let lease = kit.round().remove(0);
        kit.end(host, &lease, end);
        host = kit.attach("one", cpus(1), &[]).0;
    }
    kit.cancel(Target::Tasks { job, first: 6, count: 1 });
    let before = whole(&kit, job);
    kit.restart();
    assert_eq!(whole(&kit, job), before);
    kit.cancel(Target::Job(job));
    let before = whole(&kit, job);
    kit.restart();
    assert_eq!(whole(&kit, job), before);
    kit.retry(job, Which::Failed);
    let before = whole(&kit, job);
    kit.restart();
    assert_eq!(whole(&kit, job), before);
}

#[test]
fn a_store_that_contradicts_itself_is_refused() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([task("a")]));
    kit.round();
    let mut pieces: Vec<_> = kit.store.clone().into_iter().collect();
    pieces.retain(|(key, _)| key.job() != Some(job) || !matches!(key, muster_core::record::Key::Job(_)));
    let error = Cluster::recover(kit.config.clone(), pieces, kit.now).expect_err("its job is missing");
    assert!(error.to_string().contains("which the store does not have"), "{error}");
    let pieces: Vec<_> =
        kit.store.clone().into_iter().filter(|(key, _)| !matches!(key, muster_core::record::Key::Agent(_))).collect();
    assert!(Cluster::recover(kit.config.clone(), pieces, kit.now).is_err(), "its agent is missing");
}

#[test]
fn the_first_commit_of_a_small_job_carries_spec_and_lease() {
    let mut kit = Kit::new();
    kit.host(1);
    kit.event(Event::Submit(Kit::submission(job([task("a")]))));
    let leases = kit.round();
    assert_eq!(leases.len(), 1);
}

#[test]
fn a_lease_from_before_a_restore_that_its_agent_forgot_is_lost_and_not_undone() {
    use muster_core::{
        record::{Key, Meta, Piece},
        spec::{OnLost, TaskSpec},
        state::State,
    };
    let mut kit = Kit::new();
    kit.host(2);
    let once = kit.submit(job([TaskSpec { on_lost: OnLost::Fail, ..task("a") }]));
    let again = kit.submit(job([task("b")]));
    assert_eq!(kit.round().len(), 2);
    let Some(Piece::Meta(meta)) = kit.store.get(&Key::Meta).cloned() else { panic!("counters are stored") };
    let restored = Meta { restored_below: meta.token_ceiling, ..meta };
    kit.store.insert(Key::Meta, Piece::Meta(restored));
    kit.restart();
    kit.attach("one", crate::kit::cpus(2), &[]);
    assert_eq!((kit.state(once, 0), kit.state(again, 0)), (State::Failed, State::Queued));
    let next = kit.round().remove(0);
    assert_eq!(next.attempt, 2, "the first one may have run");
    // What is given from now on is undone as ever.
    kit.attach("one", crate::kit::cpus(2), &[]);
    assert_eq!((kit.state(again, 0), kit.round().remove(0).attempt), (State::Queued, 2));
}
