//! What a person wishes of agents: cordons, drains, limits, and machines that change while they run.

use std::{sync::Arc, time::Duration};

use muster_core::{
    access::{Caller, Reach, Who},
    event::{Answer, Effect, Event, Refusal, Target},
    fleet::{Limits, Selection, Tending, Wish},
    id::SessionId,
    record::{Key, Offer, Piece},
    spec::{LabelRule, OnLost, RetryPolicy, TaskSpec},
    state::{End, State, Stopping, Task},
    time::Timestamp,
};

use crate::kit::{Host, Kit, MS, array, cpus, job, task};

const MINUTE: Duration = Duration::from_secs(60);
/// Before an agent that is silent is given up.
const SOON: Duration = Duration::from_secs(10);

pub(super) fn tending(names: &[&str], wish: Wish) -> Event {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let agents = Selection { names, labels: Vec::new() };
    Event::Tend(Tending { agents, wish, by: "ops".into(), reason: "new kernel".into() })
}

pub(super) fn drain(within: Duration) -> Wish {
    Wish::Drain { within: Some(within) }
}

fn text(kit: &Kit, job: muster_core::id::JobId, index: u32) -> String {
    let found = kit.cluster.explain(kit.now, Target::Tasks { job, first: index, count: 1 }).expect("it exists").answers;
    found[0].reasons.iter().map(|reason| format!("{} ({})", reason.text, reason.unblock)).collect::<Vec<_>>().join("; ")
}

fn stored(kit: &Kit, job: muster_core::id::JobId, index: usize) -> Task {
    match &kit.store[&Key::Chunk(job, 0)] {
        Piece::Chunk(chunk) => chunk.tasks[index].clone(),
        other => panic!("{other:?}"),
    }
}

/// Leases that an agent was told to end for a drain.
fn recalled(kit: &mut Kit) -> usize {
    let is_recall = |effect: &Effect| matches!(effect, Effect::Stop { why: Stopping::Drain, .. });
    std::mem::take(&mut kit.effects).iter().filter(|effect| is_recall(effect)).count()
}

#[test]
fn a_cordoned_agent_gets_nothing_new_and_what_runs_goes_on() {
    for wish in [Wish::Cordon, drain(MINUTE), Wish::Drain { within: None }] {
        let mut kit = Kit::new();
        let host = kit.host(2);
        let job = kit.submit(job([task("a"), task("b")]));
        let lease = kit.round().remove(0);
        kit.end(host, &lease, End::Succeeded);
        let more = kit.submit(crate::kit::job([array("x", 3)]));
        kit.event(tending(&["one"], wish));
        assert!(kit.round().is_empty(), "{wish:?}");
        assert_eq!((kit.state(job, 0), kit.state(job, 1)), (State::Succeeded, State::Running));
        assert_eq!(recalled(&mut kit), 0, "nothing is ended before its time");
        assert_eq!(kit.codes(more, 0), ["agent-cordoned"]);
        kit.event(tending(&["one"], Wish::Resume));
        assert!(!kit.round().is_empty(), "{wish:?}");
    }
}

#[test]
fn a_task_that_waits_only_for_a_cordoned_agent_is_told_who_did_that_and_why() {
    let mut kit = Kit::new();
    kit.host(1);
    let id = kit.submit(job([task("a")]));
    kit.event(tending(&["one"], Wish::Cordon));
    let wanted = "agent `one` takes no new work: cordoned by ops: new kernel (`ctl agent resume one`)";
    assert_eq!(text(&kit, id, 0), wanted);
    // One that could never run it is no reason for hope.
    let large = kit.submit(job([TaskSpec { request: cpus(9), ..task("a") }]));
    assert_eq!(kit.codes(large, 0), ["agent-too-small"]);
}

#[test]
fn a_cordon_outlives_connections_of_the_agent_and_lives_of_the_controller() {
    let mut kit = Kit::new();
    kit.host(1);
    let id = kit.submit(job([task("a")]));
    kit.event(tending(&["one"], Wish::Cordon));
    kit.attach("one", cpus(1), &[]);
    assert!(kit.round().is_empty(), "a new connection");
    kit.restart();
    kit.attach("one", cpus(1), &[]);
    assert!(kit.round().is_empty(), "a new controller");
    kit.pass(10 * MINUTE);
    kit.attach("one", cpus(2), &[]);
    assert!(kit.round().is_empty(), "it was lost, came back and is another machine");
    assert_eq!(kit.codes(id, 0), ["agent-cordoned"]);
}

#[test]
fn a_drain_ends_what_still_runs_at_its_time_and_that_costs_the_task_nothing() {
    let retry = RetryPolicy { max: 0, ..RetryPolicy::default() };
    let mut kit = Kit::new();
    let host = kit.host(1);
    let id = kit.submit(job([TaskSpec { retry, ..task("a") }]));
    for round in 1..20 {
        let lease = kit.round().remove(0);
        assert_eq!(lease.attempt, round);
        kit.event(tending(&["one"], drain(SOON)));
        kit.pass(SOON / 2);
        kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
        kit.pass(SOON / 2 - MS);
        assert_eq!(recalled(&mut kit), 0);
        kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
        kit.pass(MS);
        assert_eq!(recalled(&mut kit), 1);
        assert_eq!((kit.state(id, 0), kit.codes(id, 0)), (State::Running, vec!["on-agent", "draining"]));
        kit.end(host, &lease, End::Cancelled);
        let task = stored(&kit, id, 0);
        assert_eq!((task.state, task.stopping, task.retries, task.losses), (State::Queued, None, 0, 0));
        let last = task.attempt.expect("it was tried");
        assert_eq!(last.end, Some(End::Lost));
        assert_eq!(last.why.as_deref(), Some("its agent was drained by ops: new kernel"));
        assert!(kit.round().is_empty());
        kit.event(tending(&["one"], Wish::Resume));
    }
}

#[test]
fn what_ends_by_itself_while_it_is_being_ended_ended_so() {
    let table = [(End::Succeeded, State::Succeeded), (End::Exit(3), State::Failed), (End::KillFailed, State::Failed)];
    for (end, state) in table {
        let mut kit = Kit::new();
        let host = kit.host(1);
        let id = kit.submit(job([task("a")]));
        let lease = kit.round().remove(0);
        kit.event(tending(&["one"], drain(MS)));
        kit.pass(MS);
        kit.end(host, &lease, end);
        assert_eq!(kit.state(id, 0), state, "{end}");
    }
}

#[test]
fn a_task_that_must_not_run_twice_fails_where_a_drain_ends_it() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let id = kit.submit(job([TaskSpec { on_lost: OnLost::Fail, ..task("a") }]));
    let lease = kit.round().remove(0);
    kit.event(tending(&["one"], drain(MS)));
    kit.pass(MS);
    kit.end(host, &lease, End::Cancelled);
    assert_eq!(kit.state(id, 0), State::Failed);
}

#[test]
fn a_lease_that_never_began_is_undone_by_a_drain() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let id = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.event(tending(&["one"], drain(MS)));
    kit.pass(MS);
    let never = Timestamp(0);
    let what = muster_core::event::What::Ended {
        end: End::Cancelled,
        why: None,
        started: never,
        ended: kit.now.wall,
        usage: None,
        result: None,
    };
    kit.report(host, lease.token, lease.task, what).expect("it is taken");
    assert_eq!(kit.state(id, 0), State::Queued);
    assert_eq!(stored(&kit, id, 0).attempt, None, "its number is free");
}

#[test]
fn a_persons_cancel_is_one_whether_it_comes_before_a_drain_or_after() {
    for cancel_first in [true, false] {
        let mut kit = Kit::new();
        let host = kit.host(1);
        let id = kit.submit(job([task("a")]));
        let lease = kit.round().remove(0);
        if cancel_first {
            kit.cancel(Target::Tasks { job: id, first: 0, count: 1 });
        }
        kit.event(tending(&["one"], drain(MS)));
        kit.pass(MS);
        if !cancel_first {
            kit.cancel(Target::Tasks { job: id, first: 0, count: 1 });
        }
        kit.end(host, &lease, End::Cancelled);
        assert_eq!(kit.state(id, 0), State::Cancelled, "{cancel_first}");
    }
}

#[test]
fn a_drain_goes_on_where_it_was_over_a_restart_and_over_an_absence_of_the_agent() {
    let mut kit = Kit::new();
    kit.host(1);
    let id = kit.submit(job([task("a")]));
    let lease = kit.round().remove(0);
    kit.event(tending(&["one"], drain(MINUTE)));
    kit.pass(Duration::from_secs(10));
    kit.restart();
    let (host, _) = kit.attach("one", cpus(1), &[lease.token]);
    kit.pass(Duration::from_secs(10));
    kit.event(Event::Detach { agent: host.agent, session: host.session });
    // The clock was set back meanwhile: the drain takes no longer for that.
    kit.now.wall = Timestamp(kit.now.wall.0 - 500_000_000);
    kit.restart();
    let wakeup = kit.cluster.wakeup().mono.expect("something is due");
    assert!(wakeup <= kit.now.mono.after(MINUTE), "{wakeup:?}");
    kit.attach("one", cpus(1), &[lease.token]);
    for _ in 0..6 {
        kit.pass(SOON);
        let (host, _) = kit.attach("one", cpus(1), &[lease.token]);
        kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
    }
    // Told when its time came, and again to each new connection.
    assert!(recalled(&mut kit) > 0);
    kit.restart();
    let (host, _) = kit.attach("one", cpus(1), &[lease.token]);
    assert_eq!(recalled(&mut kit), 1);
    kit.end(host, &lease, End::Cancelled);
    assert_eq!(kit.state(id, 0), State::Queued);
}

#[test]
fn who_resumes_before_the_time_ends_nothing() {
    for wish in [Wish::Resume, Wish::Cordon, Wish::Drain { within: None }] {
        let mut kit = Kit::new();
        let host = kit.host(1);
        let id = kit.submit(job([task("a")]));
        kit.round();
        kit.event(tending(&["one"], drain(Duration::from_secs(5))));
        kit.event(tending(&["one"], wish));
        kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
        kit.pass(Duration::from_secs(10));
        assert_eq!((recalled(&mut kit), kit.state(id, 0)), (0, State::Running), "{wish:?}");
    }
}

#[test]
fn what_an_agent_that_stops_ends_does_not_count_as_lost() {
    let mut kit = Kit::new();
    let mut host = kit.host(1);
    let id = kit.submit(job([task("a")]));
    for _ in 0..20 {
        let lease = kit.round().remove(0);
        kit.event(Event::Drain { agent: host.agent, session: host.session });
        kit.end(host, &lease, End::Lost);
        assert_eq!((kit.state(id, 0), stored(&kit, id, 0).losses), (State::Queued, 0));
        host = kit.host(1);
    }
}

#[test]
fn agents_are_chosen_by_name_and_by_label_several_at_once_and_a_name_that_is_none_changes_nothing() {
    let mut kit = Kit::new();
    for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let (host, _) = kit.attach(name, cpus(1), &[]);
        let labels = [("zone".to_owned(), zone.to_owned())].into();
        let offer = Offer { name: name.to_owned(), labels, capacity: cpus(1), ..Offer::default() };
        kit.event(Event::Offer { agent: host.agent, session: host.session, offer });
    }
    let zone = |text: &str| text.parse::<LabelRule>().expect("a rule");
    let choose = |names: &[&str], labels: Vec<LabelRule>, wish| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Event::Tend(Tending { agents: Selection { names, labels }, wish, by: "ops".into(), reason: "".into() })
    };
    let told = |answer| match answer {
        Answer::Tended { changed, same } => (changed.join(" "), same.join(" ")),
        other => panic!("{other:?}"),
    };
    let owned = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(told(kit.event(choose(&["c"], vec![zone("zone=x")], Wish::Cordon))), owned("a b c", ""));
    assert_eq!(told(kit.event(choose(&["a", "a"], vec![], Wish::Resume))), owned("a", ""));
    assert_eq!(told(kit.event(choose(&["a", "b"], vec![], Wish::Resume))), owned("b", "a"));
    let before = kit.store.clone();
    for (names, labels) in [(vec!["b", "nobody"], vec![]), (vec![], vec![zone("zone=z")]), (vec![], vec![])] {
        let refused = kit.try_event(choose(&names, labels, Wish::Cordon)).unwrap_err();
        assert!(matches!(refused, Refusal::NotFound(_)), "{refused}");
    }
    assert_eq!(kit.store, before);
}

#[test]
fn of_two_records_with_one_name_the_machine_that_is_there_is_meant() {
    let mut kit = Kit::new();
    let offer = Offer { name: "twin".to_owned(), capacity: cpus(1), ..Offer::default() };
    for (uid, session) in [("old", 101), ("new", 102)] {
        let session = muster_core::id::SessionId(session);
        kit.event(Event::Attach { uid: uid.into(), offer: offer.clone(), session, holding: Vec::new() });
        if uid == "old" {
            kit.pass(MINUTE);
        }
    }
    kit.event(tending(&["twin"], Wish::Cordon));
    let cordoned = |uid: &str| {
        let agents = kit.cluster.agents();
        agents.iter().find(|status| *status.record.uid == *uid).expect("it is known").record.cordon.is_some()
    };
    assert_eq!((cordoned("old"), cordoned("new")), (false, true));
}

#[test]
fn a_wish_is_audited_with_its_reason_and_its_deadline() {
    let mut kit = Kit::new();
    kit.host(1);
    let who = Who::Token { id: "t".into(), name: "ops".into() };
    let ops = Arc::new(Caller { who, peer: "10.0.0.1:5".into(), reach: Reach::All });
    let limits = Limits { cpu_milli: Some(500), ..Limits::default() };
    for wish in [Wish::Cordon, drain(MINUTE), Wish::Resume, Wish::Limit(limits), Wish::Unlimit] {
        kit.event(tending(&["one"], wish).by(&ops));
    }
    let Piece::Audit(block) = &kit.store[&Key::Audit(0)] else { panic!() };
    let told: Vec<_> = block.records.iter().map(|r| (&*r.action, &*r.object, &*r.detail)).collect();
    let expected = [
        ("agent.cordon", "one", "new kernel"),
        ("agent.drain", "one", "deadline 60 s; new kernel"),
        ("agent.resume", "one", "new kernel"),
        ("agent.set", "one", "cpu_milli 500; new kernel"),
        ("agent.set", "one", "no limits; new kernel"),
    ];
    assert_eq!(told, expected);
}

#[test]
fn an_agent_that_gives_less_gets_nothing_until_what_runs_fits_and_grows_back_at_once() {
    let limit = |n: u64| Wish::Limit(Limits { cpu_milli: Some(n * 1000), ..Limits::default() });
    let mut kit = Kit::new();
    let host = kit.host(4);
    let id = kit.submit(job([array("x", 10)]));
    let leases = kit.round();
    assert_eq!(leases.len(), 4);
    kit.event(tending(&["one"], limit(2)));
    assert_eq!((kit.state(id, 0), kit.state(id, 3)), (State::Running, State::Running), "what runs goes on");
    let mut ended = leases.iter();
    for (free, given) in [(0, 0), (1, 0), (2, 0), (3, 1)] {
        if free > 0 {
            kit.end(host, ended.next().expect("one more"), End::Succeeded);
        }
        assert_eq!(kit.round().len(), given, "{free} ended");
    }
    assert!(text(&kit, id, 9).contains("agent `one` has 0 of cpus free"), "{}", text(&kit, id, 9));
    kit.restart();
    kit.attach("one", cpus(4), &[]);
    assert_eq!(kit.round().len(), 2, "a limit outlives the controller");
    kit.event(tending(&["one"], Wish::Unlimit));
    assert_eq!(kit.round().len(), 2, "all four");
    kit.event(tending(&["one"], limit(400)));
    assert!(kit.round().is_empty(), "no limit adds to what is there");
}

#[test]
fn a_machine_that_offers_something_else_is_taken_at_its_word_while_it_runs() {
    let mut kit = Kit::new();
    let host = kit.host(2);
    let id = kit.submit(job([array("x", 6)]));
    let leases = kit.round();
    let offer = |n: u64| Offer { name: "one".to_owned(), capacity: cpus(n), ..Offer::default() };
    let say = |offer| Event::Offer { agent: host.agent, session: host.session, offer };
    kit.event(say(offer(4)));
    assert_eq!(kit.round().len(), 2, "it grew");
    kit.event(say(offer(1)));
    assert_eq!(kit.states(id).iter().filter(|state| **state == State::Running).count(), 4);
    kit.end(host, &leases[0], End::Succeeded);
    assert!(kit.round().is_empty());
    assert!(text(&kit, id, 5).contains("agent `one` has 0 of cpus free"), "{}", text(&kit, id, 5));
    let other = kit.try_event(say(Offer { name: "two".to_owned(), ..offer(1) })).unwrap_err();
    assert!(matches!(other, Refusal::Conflict(_)), "{other}");
    let before = kit.store.clone();
    kit.event(say(offer(1)));
    assert_eq!(kit.store, before, "what is said again is not written again");
    kit.restart();
    let stale = Host { session: muster_core::id::SessionId(1), ..host };
    let refused = kit.try_event(Event::Offer { agent: stale.agent, session: stale.session, offer: offer(9) });
    assert!(matches!(refused, Err(Refusal::StaleSession { .. })), "{refused:?}");
}

#[test]
fn a_wish_that_was_granted_before_changes_nothing_and_keeps_its_time() {
    let mut kit = Kit::new();
    let host = kit.host(1);
    let told = |answer| match answer {
        Answer::Tended { changed, same } => (changed.len(), same.len()),
        other => panic!("{other:?}"),
    };
    let forever = Wish::Drain { within: None };
    let table = [
        (Wish::Cordon, (1, 0)),
        (Wish::Cordon, (0, 1)),
        (forever, (1, 0)),
        (forever, (0, 1)),
        (drain(MINUTE), (1, 0)),
        // Another minute from now on.
        (drain(MINUTE), (1, 0)),
        (forever, (1, 0)),
        (Wish::Cordon, (1, 0)),
    ];
    for (wish, wanted) in table {
        kit.pass(MS);
        kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
        let before = kit.store.clone();
        assert_eq!(told(kit.event(tending(&["one"], wish))), wanted, "{wish:?}");
        assert_eq!(kit.store == before, wanted == (0, 1), "{wish:?}");
    }
    kit.event(tending(&["one"], drain(MINUTE)));
    assert_eq!(told(kit.event(tending(&["one"], Wish::Unlimit))), (0, 1), "of the drain nothing is said");
    kit.event(tending(&["one"], Wish::Cordon));
    let mut other = |by: &str, reason: &str| {
        let agents = Selection { names: vec!["one".to_owned()], labels: Vec::new() };
        told(kit.event(Event::Tend(Tending { agents, wish: Wish::Cordon, by: by.into(), reason: reason.into() })))
    };
    assert_eq!(other("ops", "new disk"), (1, 0));
    assert_eq!(other("ops", "new disk"), (0, 1));
    assert_eq!(other("boss", "new disk"), (1, 0));
}

#[test]
fn a_name_that_two_agents_have_means_neither_of_them_while_both_are_there() {
    let mut kit = Kit::new();
    let one = kit.host(1);
    let labels = [("zone".to_owned(), "b".to_owned())].into();
    let offer = Offer { name: "one".to_owned(), host: "h2".to_owned(), labels, capacity: cpus(1), ..Offer::default() };
    let session = SessionId(99);
    let attach = Event::Attach { uid: "two".into(), offer, session, holding: Vec::new() };
    let Answer::Attached { agent, .. } = kit.event(attach) else { panic!("it is taken in") };
    let two = Host { agent, session };
    for wish in [Wish::Cordon, drain(MINUTE), Wish::Limit(Limits::default()), Wish::Resume] {
        let Err(Refusal::Conflict(text)) = kit.try_event(tending(&["one"], wish)) else {
            panic!("{wish:?} is refused")
        };
        for part in [&format!("agent {}", one.agent), &format!("agent {} on host `h2` (data folder two)", two.agent)] {
            assert!(text.contains(part), "{text}");
        }
    }
    let is_cordoned =
        |kit: &Kit| kit.cluster.agents().iter().map(|agent| agent.record.cordon.is_some()).collect::<Vec<_>>();
    assert_eq!(is_cordoned(&kit), [false, false], "nothing was half done");
    let labels = vec!["zone=b".parse::<LabelRule>().expect("a rule")];
    let agents = Selection { names: Vec::new(), labels };
    kit.event(Event::Tend(Tending { agents, wish: Wish::Cordon, by: "ops".into(), reason: "".into() }));
    assert_eq!(is_cordoned(&kit), [false, true], "a label tells them apart");
    // One that is away may be an earlier data folder of the same machine.
    kit.event(Event::Detach { agent: two.agent, session: two.session });
    kit.event(tending(&["one"], Wish::Cordon));
    assert_eq!(is_cordoned(&kit), [true, true]);
}
