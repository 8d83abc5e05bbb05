//! Agents come, fall silent, come back and go (A1, A3, S3).

use std::time::Duration;

use muster_core::{
    event::{Effect, Event, Refusal},
    spec::{OnLost, TaskSpec},
    state::{End, State},
};

use crate::kit::{Kit, MS, array, cpus, job, task};

#[test]
fn a_silent_agent_keeps_its_work_until_its_time_is_over() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    kit.round();
    kit.event(Event::Detach { agent: host.agent, session: host.session });
    let limit = kit.config.lease_ttl + kit.config.lease_margin;
    kit.pass(limit - MS);
    assert_eq!(kit.state(job, 0), State::Running);
    kit.pass(MS);
    assert_eq!(kit.state(job, 0), State::Queued);
    assert!(kit.round().is_empty(), "nobody is there");
}

#[test]
fn a_heartbeat_renews_and_is_answered_with_its_stamp() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    kit.round();
    for _ in 0..10 {
        kit.pass(Duration::from_secs(10));
        kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 42 });
        let ack = kit.effects.pop().expect("an answer");
        assert!(matches!(ack, Effect::HeartbeatAck { stamp: 42, .. }) && !ack.waits_for_commit());
    }
    assert_eq!(kit.state(job, 0), State::Running);
}

#[test]
fn an_agent_that_comes_back_in_time_keeps_what_it_holds() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.event(Event::Detach { agent: host.agent, session: host.session });
    let (host, drop) = kit.attach("one", cpus(1), &[lease.token]);
    assert!(drop.is_empty());
    kit.end(host, &lease, End::Succeeded);
    assert_eq!(kit.state(job, 0), State::Succeeded);
}

#[test]
fn one_that_is_away_with_work_that_goes_on_is_waited_for_and_one_that_said_goodbye_is_not_lost() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let max_disconnect = Some(Duration::from_secs(600));
    kit.submit(job([TaskSpec { max_disconnect, ..task("a") }]));
    let lease = kit.round().remove(0);
    let status = |kit: &Kit| kit.cluster.agents().remove(0);
    assert_eq!(status(&kit).kept_until, None, "it is here");
    let until = kit.now.mono.after(Duration::from_secs(600) + kit.config.lease_margin);
    kit.event(Event::Detach { agent: host.agent, session: host.session });
    assert_eq!(status(&kit).kept_until, Some(until));
    kit.pass(Duration::from_secs(60));
    assert_eq!((status(&kit).kept_until, status(&kit).record.lost), (Some(until), false));
    let (host, _) = kit.attach("one", cpus(1), &[lease.token]);
    assert_eq!(status(&kit).kept_until, None, "it is back");
    kit.end(host, &lease, End::Succeeded);
    kit.event(Event::Leave { agent: host.agent, session: host.session });
    let record = status(&kit).record;
    assert!(record.lost && record.stopped && status(&kit).kept_until.is_none(), "{record:?}");
    kit.attach("one", cpus(1), &[]);
    let record = status(&kit).record;
    assert!(!record.lost && !record.stopped, "{record:?}");
}

/// A line that carries what an agent says and nothing of what it is told: its hellos must not keep its leases for ever.
#[test]
fn an_agent_that_never_hears_its_welcome_is_given_up_and_gets_nothing_before_it_answers() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
    let mut refused = 0;
    for _ in 0..10 {
        kit.pass(Duration::from_secs(10));
        match kit.try_attach("one", cpus(1), &[lease.token]) {
            Ok(_) => {}
            Err(Refusal::Unheard { agent }) => {
                assert_eq!(agent, host.agent);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0, "each hello renewed its leases");
    assert_eq!(kit.state(job, 0), State::Queued, "it is given up");
    assert!(kit.round().is_empty(), "what is leased to it does not arrive");
    kit.pass(Duration::from_secs(30));
    let (host, _) = kit.attach("one", cpus(1), &[]);
    kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 2 });
    assert_eq!(kit.round().len(), 1, "it hears again");
}

#[test]
fn an_agent_whose_lines_break_before_it_could_answer_keeps_what_it_holds() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
    for _ in 0..30 {
        kit.pass(Duration::from_secs(2));
        kit.attach("one", cpus(1), &[lease.token]);
    }
    assert_eq!(kit.state(job, 0), State::Running);
}

#[test]
fn a_lease_that_never_arrived_is_given_out_again_at_once() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lost = kit.round().remove(0);
    kit.attach("one", cpus(1), &[]);
    assert_eq!(kit.state(job, 0), State::Queued);
    let again = kit.round().remove(0);
    assert!(again.token > lost.token && again.attempt == 1);
}

#[test]
fn an_agent_that_comes_back_too_late_drops_what_was_given_away() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.pass(Duration::from_secs(60));
    let (_, drop) = kit.attach("one", cpus(1), &[lease.token]);
    assert_eq!(drop, [lease.token]);
    assert_eq!(kit.state(job, 0), State::Queued);
}

#[test]
fn what_survives_a_kill_keeps_its_slot() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([array("a", 2)]));
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::KillFailed);
    assert_eq!(kit.state(job, 0), State::Failed);
    assert!(kit.round().is_empty());
    assert_eq!(kit.codes(job, 1), ["agent-busy"]);
    kit.attach("one", cpus(1), &[]);
    assert_eq!(kit.round().len(), 1, "the agent no longer names it");
}

#[test]
fn what_survived_a_kill_gives_its_slot_back_when_it_is_reported_dead() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([array("a", 2)]));
    let lease = kit.round().remove(0);
    kit.end(host, &lease, End::KillFailed);
    kit.end(host, &lease, End::KillFailed);
    assert!(kit.round().is_empty(), "said twice, it still lives");
    kit.end(host, &lease, End::Lost);
    assert_eq!(kit.state(job, 0), State::Failed, "T2: a final task never changes");
    assert_eq!(kit.round().len(), 1);
}

#[test]
fn an_agent_that_stops_gets_nothing_back_that_it_gave_back() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.event(Event::Drain { agent: host.agent, session: host.session });
    kit.end(host, &lease, End::Lost);
    assert!(kit.round().is_empty());
    assert_eq!(kit.codes(job, 0), ["agent-draining"]);
    kit.attach("one", cpus(1), &[]);
    assert_eq!(kit.round().len(), 1, "it is back");
}

#[test]
fn an_agent_that_leaves_gives_back_what_never_began() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let job = kit.submit(job([task("a")]));
    kit.round();
    kit.event(Event::Leave { agent: host.agent, session: host.session });
    assert_eq!(kit.state(job, 0), State::Queued);
    assert_eq!(kit.codes(job, 0), ["next-round"]);
}

#[test]
fn an_agent_keeps_its_number_over_connections_and_restarts() {
    let mut kit = Kit::new();
    let first = kit.host(1);
    let (other, _) = kit.attach("two", cpus(1), &[]);
    kit.restart();
    let (again, _) = kit.attach("one", cpus(1), &[]);
    assert_eq!(again.agent, first.agent);
    assert_ne!(other.agent, first.agent);
}

/// A task that may go on for two minutes without a controller.
fn keeping(name: &str) -> TaskSpec {
    TaskSpec { max_disconnect: Some(Duration::from_secs(120)), ..task(name) }
}

#[test]
fn what_may_go_on_alone_is_kept_for_its_own_time_and_the_rest_for_that_of_its_lease() {
    let mut kit = Kit::new();
    let host = kit.host(2);
    let short = kit.submit(job([task("a")]));
    let long = kit.submit(job([keeping("b")]));
    let leases = kit.round();
    assert_eq!(leases.len(), 2);
    kit.event(Event::Detach { agent: host.agent, session: host.session });
    kit.pass(kit.config.lease_ttl + kit.config.lease_margin);
    assert_eq!((kit.state(short, 0), kit.state(long, 0)), (State::Queued, State::Running));
    assert_eq!(kit.codes(long, 0), ["on-agent", "agent-away"]);
    // Nobody is there who could take the other; the agent itself is not lost as long as it may hold something.
    assert!(kit.round().is_empty());
    kit.pass(Duration::from_secs(120) - kit.config.lease_ttl - MS);
    assert_eq!(kit.state(long, 0), State::Running);
    kit.pass(MS);
    assert_eq!(kit.state(long, 0), State::Queued);
}

#[test]
fn what_went_on_alone_ends_as_its_agent_says_when_that_is_back() {
    for on_lost in [OnLost::Retry, OnLost::Fail] {
        let mut kit = Kit::new();
        kit.host(1);
        let job = kit.submit(job([TaskSpec { on_lost, ..keeping("a") }]));
        let lease = kit.round().remove(0);
        kit.pass(Duration::from_secs(100));
        assert_eq!(kit.state(job, 0), State::Running);
        let (host, drop) = kit.attach("one", cpus(1), &[lease.token]);
        assert!(drop.is_empty());
        kit.end(host, &lease, End::Succeeded);
        assert_eq!(kit.state(job, 0), State::Succeeded);
    }
}

#[test]
fn what_went_on_alone_for_too_long_is_lost_as_its_task_says() {
    for (on_lost, then) in [(OnLost::Retry, State::Queued), (OnLost::Fail, State::Failed)] {
        let mut kit = Kit::new();
        kit.host(1);
        let job = kit.submit(job([TaskSpec { on_lost, ..keeping("a") }]));
        let lease = kit.round().remove(0);
        kit.pass(Duration::from_secs(200));
        assert_eq!(kit.state(job, 0), then);
        let (_, drop) = kit.attach("one", cpus(1), &[lease.token]);
        assert_eq!(drop, [lease.token]);
    }
}

#[test]
fn a_controller_that_takes_over_waits_as_long_as_if_it_had_just_heard_of_the_agent() {
    let mut kit = Kit::new();
    kit.host(1);
    let job = kit.submit(job([keeping("a")]));
    kit.round();
    kit.pass(Duration::from_secs(60));
    kit.restart();
    kit.pass(Duration::from_secs(120) + kit.config.lease_margin - MS);
    assert_eq!(kit.state(job, 0), State::Running);
    kit.pass(MS);
    assert_eq!(kit.state(job, 0), State::Queued);
}
