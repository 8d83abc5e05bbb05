//! Who runs where, and when (S1, S2, S3).

use std::{collections::BTreeMap, time::Duration};

use muster_core::{
    cluster::{Config, Placement},
    container::{self, Container},
    event::{Effect, Event, Target},
    id::SessionId,
    record::{Offer, Queue},
    spec::{Priority, TaskSpec},
    state::{End, State},
    time::Timestamp,
};

use crate::kit::{Kit, array, cpus, job, task};

fn per_agent(kit: &mut Kit) -> BTreeMap<u64, usize> {
    kit.event(Event::Round);
    let mut count = BTreeMap::new();
    for effect in std::mem::take(&mut kit.effects) {
        if let Effect::Lease { agent, .. } = effect {
            *count.entry(agent.0).or_default() += 1;
        }
    }
    count
}

#[test]
fn packing_fills_one_agent_before_the_next() {
    let mut kit = Kit::new();
    for name in ["a", "b", "c"] {
        kit.attach(name, cpus(4), &[]);
    }
    kit.submit(job([array("x", 6)]));
    assert_eq!(per_agent(&mut kit).into_values().collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn spreading_takes_turns() {
    let mut kit = Kit::with(Config { placement: Placement::Spread, ..Config::default() });
    for name in ["a", "b", "c"] {
        kit.attach(name, cpus(4), &[]);
    }
    kit.submit(job([array("x", 6)]));
    assert_eq!(per_agent(&mut kit).into_values().collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn capacity_is_never_exceeded_and_the_reason_is_told() {
    let mut kit = Kit::new();
    kit.host(2);
    let job = kit.submit(job([array("x", 5)]));
    assert_eq!(kit.round().len(), 2);
    assert!(kit.round().is_empty());
    assert_eq!(kit.codes(job, 2), ["agent-busy"]);
    assert_eq!(kit.codes(job, 4), ["agent-busy", "behind"]);
}

#[test]
fn a_task_with_an_image_waits_for_an_agent_that_can_run_containers() {
    let mut kit = Kit::new();
    kit.host(2);
    let contained = Some(Container { image: "alpine".to_owned(), volumes: Vec::new() });
    let job = kit.submit(job([TaskSpec { container: contained, ..task("x") }]));
    assert!(kit.round().is_empty());
    let explained =
        kit.cluster.explain(kit.now, Target::Tasks { job, first: 0, count: 1 }).expect("the task exists").answers;
    let [reason] = explained[0].reasons.as_slice() else { panic!("{explained:?}") };
    assert!(reason.text.contains("cannot run containers"), "{reason:?}");

    let labels = [(container::LABEL.to_owned(), "podman".to_owned())].into();
    let offer =
        Offer { name: "able".to_owned(), os: "linux".to_owned(), capacity: cpus(1), labels, ..Offer::default() };
    let session = SessionId(1000);
    kit.event(Event::Attach { uid: "able".into(), offer, session, holding: Vec::new() });
    assert_eq!(kit.round().len(), 1);
}

#[test]
fn higher_priority_runs_first_whoever_came_first() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let low = kit.submit(job([TaskSpec { priority: Priority::LOW, ..task("a") }]));
    let normal = kit.submit(job([task("a")]));
    let high = kit.submit(job([TaskSpec { priority: Priority::HIGH, ..task("a") }]));
    let mut order = Vec::new();
    while order.len() < 3 {
        for lease in kit.round() {
            order.push(lease.task.job);
            kit.end(host, &lease, End::Succeeded);
        }
    }
    assert_eq!(order, [high, normal, low]);
}

#[test]
fn a_large_task_at_the_front_does_not_hold_up_other_shapes() {
    let mut kit = Kit::new();
    kit.host(2);
    let big = kit.submit(job([TaskSpec { request: cpus(8), ..task("big") }]));
    let small = kit.submit(job([task("small")]));
    kit.round();
    assert_eq!((kit.state(big, 0), kit.state(small, 0)), (State::Queued, State::Running));
    assert_eq!(kit.codes(big, 0), ["agent-too-small"]);
}

#[test]
fn short_tasks_are_sent_ahead_once_it_is_known_that_they_are_short() {
    let mut kit = Kit::new();
    let host = kit.host(2);
    kit.submit(job([array("x", 1000)]));
    let first = kit.round();
    assert_eq!(first.len(), 2);
    kit.end(host, &first[0], End::Succeeded);
    let ahead = kit.round().len();
    assert!((20..=200).contains(&ahead), "{ahead} tasks of 1 ms for two slots");
    let status = kit.cluster.agents().remove(0);
    assert_eq!(status.running, 2);
}

#[test]
fn queue_limits_hold_and_are_told() {
    let mut kit = Kit::new();
    kit.host(8);
    let limits = Queue { name: "default".to_owned(), max_running: Some(3), max_waiting: Some(10), paused: false };
    kit.event(Event::SetQueue(limits.clone()));
    let first = kit.submit(job([array("x", 8)]));
    assert_eq!(kit.round().len(), 3);
    assert!(kit.codes(first, 7).contains(&"queue-full"));
    let refused = kit.try_event(Event::Submit(Kit::submission(job([array("x", 3)]))));
    assert!(format!("{refused:?}").contains("QueueFull"), "{refused:?}");
    kit.event(Event::SetQueue(Queue { paused: true, max_running: None, ..limits.clone() }));
    assert!(kit.round().is_empty());
    assert!(kit.codes(first, 7).contains(&"queue-paused"));
    kit.event(Event::SetQueue(Queue { max_running: None, ..limits }));
    assert_eq!(kit.round().len(), 5);
}

#[test]
fn a_start_time_is_waited_for() {
    let mut kit = Kit::new();
    kit.host(1);
    let at = Timestamp(kit.now.wall.0 + 60_000_000);
    let job = kit.submit(job([TaskSpec { start_at: Some(at), ..task("later") }]));
    assert_eq!((kit.state(job, 0), kit.codes(job, 0)), (State::Scheduled, vec!["start-at"]));
    assert!(kit.round().is_empty());
    assert_eq!(kit.cluster.wakeup().wall, Some(at));
    kit.pass(Duration::from_secs(60));
    kit.attach("one", cpus(1), &[]);
    assert_eq!(kit.round().len(), 1);
}

#[test]
fn work_that_nobody_can_run_is_accepted_with_a_warning() {
    let mut kit = Kit::new();
    kit.host(1);
    let gpu = TaskSpec { request: muster_core::resources::Request { gpus: 1, ..cpus(1) }, ..task("train") };
    let answer = kit.event(Event::Submit(Kit::submission(job([gpu]))));
    assert!(format!("{answer:?}").contains("can ever run `train`"), "{answer:?}");
}

#[test]
fn the_same_state_time_and_event_decide_the_same() {
    let run = || {
        let mut kit = Kit::new();
        for name in ["a", "b", "c"] {
            kit.attach(name, cpus(3), &[]);
        }
        kit.submit(job([array("x", 7), TaskSpec { request: cpus(2), ..task("y") }]));
        kit.event(Event::Round);
        format!("{:?} {:?}", kit.effects, kit.store)
    };
    assert_eq!(run(), run());
}

/// The one writer makes the answer, and everybody else waits for that long.
#[test]
fn an_answer_is_bounded_and_says_of_how_many_tasks_it_does_not_tell() {
    let mut kit = Kit::new();
    for n in 0..100 {
        kit.attach(&format!("agent-{n}"), cpus(1), &[]);
    }
    let large = |n: u32| TaskSpec { request: cpus(9), ..array(&format!("x{n}"), 2) };
    let job = kit.submit(job((0..200).map(large)));
    let told = kit.cluster.explain(kit.now, Target::Job(job)).expect("it exists");
    let reasons: usize = told.answers.iter().map(|one| one.reasons.len()).sum();
    assert!((5_000..=10_100).contains(&reasons), "{reasons}");
    let tasks: u32 = told.answers.iter().map(|one| one.count).sum();
    assert_eq!(tasks + told.untold, 400);
    // Whoever asks about those gets an answer.
    let last = kit.cluster.explain(kit.now, Target::Tasks { job, first: 398, count: 2 }).expect("they exist");
    assert_eq!((last.answers.len(), last.answers[0].reasons.len() >= 100, last.untold), (1, true, 0));
}
