//! Attempts that needed more memory than they had: the next one gets more, or there is none.

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::{Answer, Event, Target, Which},
    record::{Key, Piece},
    resources::Request,
    spec::{OomRetries, RetryPolicy, TaskSpec},
    state::{End, State},
};

use crate::kit::{Kit, MS, array, job, task};

const MIB: u64 = 1 << 20;

/// Asks for 100 MiB.
fn hungry(max: u32, cap: Option<u64>) -> TaskSpec {
    let oom_retries = Some(OomRetries { max, factor_milli: 2000, cap: cap.map(|mib| mib * MIB) });
    TaskSpec { request: Request { cpu_milli: 1000, memory: 100 * MIB, ..Request::default() }, oom_retries, ..task("a") }
}

fn machine(mib: u64) -> Request {
    Request { cpu_milli: 4000, memory: mib * MIB, ..Request::default() }
}

#[test]
fn each_attempt_after_one_that_needed_more_asks_for_more_up_to_a_cap() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(1000), &[]);
    let job = kit.submit(job([hungry(3, Some(300))]));
    for memory in [None, Some(200 * MIB), Some(300 * MIB)] {
        let lease = kit.round().remove(0);
        assert_eq!(lease.memory, memory);
        kit.end(host, &lease, End::Oom);
    }
    assert_eq!(kit.state(job, 0), State::Failed, "300 was not enough, and more is not allowed");
    assert!(kit.round().is_empty());
}

#[test]
fn they_are_counted_apart_from_other_retries_and_keep_what_they_reached() {
    let retry = RetryPolicy { max: 1, jitter_milli: 0, ..RetryPolicy::default() };
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(1000), &[]);
    let job = kit.submit(job([TaskSpec { retry, ..hungry(1, None) }]));
    let step = |kit: &mut Kit, memory, end| {
        let lease = kit.round().remove(0);
        assert_eq!(lease.memory, memory);
        kit.end(host, &lease, end);
    };
    step(&mut kit, None, End::Oom);
    step(&mut kit, Some(200 * MIB), End::Lost);
    step(&mut kit, Some(200 * MIB), End::Exit(1));
    assert_eq!(kit.state(job, 0), State::Retrying);
    kit.pass(Duration::from_secs(1) + MS);
    step(&mut kit, Some(200 * MIB), End::Oom);
    assert_eq!(kit.state(job, 0), State::Failed, "both counters are used up");
    kit.retry(job, Which::Failed);
    step(&mut kit, None, End::Succeeded);
}

/// A1 of memory: what an attempt was given is what it takes from its agent, whoever counts.
#[test]
fn an_attempt_with_more_memory_needs_an_agent_that_has_it() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(250), &[]);
    let job = kit.submit(job([TaskSpec { array: array("a", 2).array, ..hungry(2, None) }]));
    let leases = kit.round();
    assert_eq!(leases.len(), 2, "there is room for two small ones");
    kit.end(host, &leases[0], End::Oom);
    assert!(kit.round().is_empty(), "200 do not fit beside 100");
    assert_eq!(kit.codes(job, 0), ["more-memory", "agent-busy"]);
    kit.end(host, &leases[1], End::Succeeded);
    let lease = kit.round().remove(0);
    assert_eq!((lease.task.index, lease.memory), (0, Some(200 * MIB)));
    kit.end(host, &lease, End::Oom);
    assert!(kit.round().is_empty());
    assert_eq!(kit.codes(job, 0), ["more-memory", "agent-too-small"]);
    kit.attach("two", machine(400), &[]);
    assert_eq!(kit.round().remove(0).memory, Some(400 * MIB));
}

#[test]
fn a_restart_knows_what_was_asked_for() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(250), &[]);
    let job = kit.submit(job([TaskSpec { array: array("a", 3).array, ..hungry(1, None) }]));
    let leases = kit.round();
    kit.end(host, &leases[0], End::Oom);
    kit.restart();
    let (host, _) = kit.attach("one", machine(250), &[leases[1].token]);
    assert_eq!(kit.round().len(), 1, "the third one fits");
    kit.end(host, &leases[1], End::Succeeded);
    kit.restart();
    assert_eq!(kit.state(job, 0), State::Queued);
    kit.attach("one", machine(250), &[]);
    // The third one, whose lease never arrived, and the first with more memory: not both at once.
    let leases = kit.round();
    assert_eq!(leases.iter().map(|lease| (lease.task.index, lease.memory)).collect::<Vec<_>>(), [(0, Some(200 * MIB))]);
    kit.restart();
    let (host, _) = kit.attach("one", machine(250), &[leases[0].token]);
    assert!(kit.round().is_empty(), "what is taken up again counts as what it was given");
    kit.end(host, &leases[0], End::Succeeded);
    assert_eq!(kit.run_all(host), [2]);
    assert_eq!(kit.job_state(job), "succeeded");
}

#[test]
fn a_cancelled_task_climbs_no_further() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(1000), &[]);
    let job = kit.submit(job([TaskSpec { array: array("a", 2).array, ..hungry(5, None) }]));
    let leases = kit.round();
    kit.end(host, &leases[0], End::Oom);
    kit.cancel(Target::Job(job));
    assert_eq!(kit.states(job), [State::Cancelled, State::Running]);
    kit.end(host, &leases[1], End::Oom);
    assert_eq!(kit.states(job), [State::Cancelled, State::Cancelled]);
    assert!(kit.round().is_empty());
}

/// One task alone: its group still stands in line, and it must not.
#[test]
fn a_task_that_was_cancelled_by_itself_climbs_no_further() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(1000), &[]);
    let job = kit.submit(job([TaskSpec { array: array("a", 2).array, ..hungry(5, None) }]));
    let leases = kit.round();
    kit.cancel(Target::Tasks { job, first: 0, count: 1 });
    kit.end(host, &leases[0], End::Oom);
    assert_eq!(kit.states(job), [State::Cancelled, State::Running]);
    assert!(kit.round().is_empty());
}

#[test]
fn neighbours_that_ask_for_the_same_memory_are_explained_together() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(250), &[]);
    let job = kit.submit(job([TaskSpec { array: array("a", 1000).array, ..hungry(3, None) }]));
    for lease in kit.round() {
        kit.end(host, &lease, End::Oom);
    }
    let told = kit.cluster.explain(kit.now, Target::Job(job)).expect("it exists").answers;
    let told: Vec<_> = told.iter().map(|one| (one.task.index, one.count, one.reasons[0].code)).collect();
    assert_eq!(told, [(0, 2, "more-memory"), (2, 998, "next-round")]);
}

#[test]
fn who_may_climb_past_every_agent_is_warned_and_told_what_to_do() {
    let mut kit = Kit::new();
    let (host, _) = kit.attach("one", machine(300), &[]);
    let mut warnings = |spec: TaskSpec| match kit.event(Event::Submit(Kit::submission(job([spec])))) {
        Answer::Submitted { warnings, .. } => warnings,
        other => panic!("{other:?}"),
    };
    assert_eq!(warnings(hungry(3, Some(300))), Vec::<String>::new());
    assert_eq!(warnings(hungry(1, None)), Vec::<String>::new(), "200 are there");
    let said = warnings(hungry(2, None));
    let [warning] = said.as_slice() else { panic!("{said:?}") };
    for part in ["`a`", "400 MiB", "`cap`"] {
        assert!(warning.contains(part), "{warning} should say {part}");
    }
    kit.run_all(host);
    let job = kit.submit(job([hungry(2, None)]));
    for _ in 0..2 {
        let lease = kit.round().remove(0);
        kit.end(host, &lease, End::Oom);
    }
    assert_eq!(kit.codes(job, 0), ["more-memory", "agent-too-small"]);
    let told = kit.cluster.explain(kit.now, Target::Job(job)).expect("it exists").answers;
    assert!(told[0].reasons[0].unblock.contains("`cap`"), "{told:?}");
}

/// K1: a rule that came later does not hold for what was accepted.
#[test]
fn a_job_that_an_older_build_accepted_with_next_to_no_memory_is_taken_up() {
    let mut kit = Kit::new();
    let id = kit.submit(job([hungry(1, None)]));
    let Some(Piece::Job(stored)) = kit.store.get_mut(&Key::Job(id)) else { panic!("it is stored") };
    let spec = Arc::make_mut(&mut Arc::make_mut(stored).spec);
    let group = Arc::make_mut(&mut spec.tasks[0]);
    (group.request.memory, group.oom_retries) = (512, None);
    kit.restart();
    let (host, _) = kit.attach("one", machine(250), &[]);
    assert_eq!(kit.run_all(host), [0]);
}
