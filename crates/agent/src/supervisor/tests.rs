//! Tables: what each input does in each phase, with every action asserted.

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::{Report, What},
    id::{AgentId, JobId, SessionId, TaskId, Term, Token},
    resources::Request,
    spec::{Command, TaskSpec},
    state::End,
    time::{Mono, Now, Timestamp, micros},
};

use super::{Action, Config, Entry, Input, Memory, Remembered, Supervisor, Unusable, Welcome};
use crate::exec::{ExecEvent, KillReason, Order, ProcessIdentity, Swept};

pub(super) const TTL: Duration = Duration::from_secs(15);
pub(super) const TERM: Term = Term(5);

/// An agent of two processors, its time, and what it asked for last.
pub(super) struct Agent {
    pub(super) supervisor: Supervisor,
    pub(super) mono: u64,
}

pub(super) fn capacity(cpus: u64) -> Request {
    Request { cpu_milli: cpus * 1000, memory: 1 << 30, ..Request::default() }
}

pub(super) fn order(token: u64, command: Command, cpus: u64) -> Arc<Order> {
    let spec = TaskSpec {
        name: "t".to_owned(),
        command,
        request: Request { cpu_milli: cpus * 1000, ..Request::default() },
        grace: Duration::from_secs(10),
        ..TaskSpec::default()
    };
    Arc::new(Order::plain(token, task(token), 1, spec))
}

pub(super) fn task(token: u64) -> TaskId {
    TaskId::new(JobId(1), u32::try_from(token).expect("small"))
}

pub(super) fn process(token: u64) -> Arc<Order> {
    order(token, Command::Argv(vec!["true".to_owned()]), 1)
}

pub(super) fn identity(pid: u64) -> ProcessIdentity {
    ProcessIdentity { boot: "boot".into(), pid: u32::try_from(pid).expect("small"), start: 7, group: 9 }
}

pub(super) fn welcome(drop: &[u64]) -> Input {
    Input::Welcome(Welcome {
        agent: AgentId(3),
        session: SessionId(8),
        term: TERM,
        lease_ttl: TTL,
        heartbeat: Duration::from_secs(3),
        drop: drop.iter().copied().map(Token).collect(),
    })
}

pub(super) fn started(token: u64) -> Input {
    Input::Exec(ExecEvent::Started { token: Token(token), at: Timestamp(11), identity: identity(token) })
}

pub(super) fn ended(token: u64, end: End) -> Input {
    ended_with(token, end, None)
}

/// With the offered order that was begun in its place.
pub(super) fn ended_with(token: u64, end: End, next: Option<Token>) -> Input {
    Input::Exec(ExecEvent::Ended {
        token: Token(token),
        end,
        why: None,
        started: Timestamp(11),
        ended: Timestamp(12),
        result: None,
        usage: None,
        next,
    })
}

pub(super) fn give(orders: &[Arc<Order>]) -> Input {
    Input::Leases { term: TERM, orders: orders.to_vec(), unusable: Vec::new() }
}

pub(super) fn over(end: End) -> What {
    What::Ended { end, why: None, started: Timestamp(11), ended: Timestamp(12), result: None, usage: None }
}

/// Journaled, then sent.
pub(super) fn reported(seq: u64, token: u64, what: What) -> Vec<Action> {
    let report = Report { seq, token: Token(token), task: task(token), what };
    vec![Action::Journal(Entry::Report(report.clone())), Action::Send(report)]
}

pub(super) fn kill(token: u64, reason: KillReason, secs: u64) -> Action {
    Action::Kill { token: Token(token), reason, grace: Duration::from_secs(secs) }
}

impl Agent {
    pub(super) fn remembering(memory: Memory) -> Self {
        // What is offered has tables of its own.
        Self::offering(0, memory)
    }

    pub(super) fn offering(offers: usize, memory: Memory) -> Self {
        let config = Config { offers, ..Config::new(capacity(2)) };
        Self { supervisor: Supervisor::new(config, memory), mono: 1_000_000 }
    }

    /// Connected and taken in; both at one instant.
    pub(super) fn attached() -> Self {
        let mut agent = Self::remembering(Memory { term: TERM, ..Memory::default() });
        agent.expect(Input::Connected, vec![Action::Hello { holding: vec![], term: TERM }]);
        agent.expect(welcome(&[]), vec![Action::Attached { agent: AgentId(3), session: SessionId(8) }]);
        agent
    }

    /// Attached and running these orders.
    pub(super) fn running(orders: &[Arc<Order>]) -> Self {
        let mut agent = Self::attached();
        agent.take(give(orders));
        for order in orders {
            agent.take(started(order.token.0));
        }
        agent
    }

    pub(super) fn take(&mut self, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        let now = Now { wall: Timestamp(77), mono: Mono(self.mono) };
        self.supervisor.handle(now, input, &mut actions);
        actions
    }

    #[track_caller]
    pub(super) fn expect(&mut self, input: Input, expected: Vec<Action>) {
        let shown = format!("{input:?}");
        assert_eq!(self.take(input), expected, "after {shown} with {:#?}", self.supervisor);
    }

    pub(super) fn wait(&mut self, duration: Duration) {
        self.mono += micros(duration);
    }
}

#[test]
fn a_lease_is_journaled_before_it_starts_and_reported_when_it_is_over() {
    let mut agent = Agent::attached();
    let one = process(1);
    agent
        .expect(give(std::slice::from_ref(&one)), vec![Action::Journal(Entry::Lease(one.clone())), Action::Start(one)]);
    let identity = identity(1);
    agent.expect(started(1), vec![Action::Journal(Entry::Started { token: Token(1), identity })]);
    agent.expect(ended(1, End::Exit(3)), reported(1, 1, over(End::Exit(3))));
    agent.expect(Input::ReportsAcked { up_to: 1 }, vec![Action::Journal(Entry::Acked { up_to: 1 })]);
    assert!(agent.supervisor.taken().is_empty());
    assert_eq!(agent.supervisor.memory(), Memory { term: TERM, highest: Token(1), next_seq: 2, ..Memory::default() });
}

#[test]
fn an_empty_task_is_acknowledged_at_once_without_a_process() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    let what = What::Ended {
        end: End::Succeeded,
        why: None,
        started: Timestamp(77),
        ended: Timestamp(77),
        result: None,
        usage: None,
    };
    agent.expect(give(&[order(3, Command::Empty, 1)]), reported(1, 3, what));
}

#[test]
fn leases_start_in_order_and_none_overtakes_one_that_does_not_fit() {
    let mut agent = Agent::running(&[process(1)]);
    let large = order(2, Command::Argv(vec!["x".to_owned()]), 2);
    let small = process(3);
    let journaled = [&large, &small].map(|order| Action::Journal(Entry::Lease(order.clone())));
    agent.expect(give(&[large.clone(), small.clone()]), journaled.to_vec());
    let mut expected = reported(1, 1, over(End::Succeeded));
    expected.push(Action::Start(large));
    agent.expect(ended(1, End::Succeeded), expected);
    let mut expected = reported(2, 2, over(End::Succeeded));
    expected.push(Action::Start(small));
    agent.expect(ended(2, End::Succeeded), expected);
}

#[test]
fn a_repeated_lease_never_starts_twice() {
    let mut agent = Agent::running(&[process(1)]);
    agent.expect(give(&[process(1)]), vec![]);
    agent.take(ended(1, End::Succeeded));
    agent.expect(give(&[process(1)]), vec![]);
    agent.take(Input::ReportsAcked { up_to: 1 });
    // Its report is forgotten: we cannot know whether it ran, so nobody may be left waiting for it.
    let why = "lease 1 came after lease 1, so it may be a repetition".into();
    agent.expect(give(&[process(1)]), reported(2, 1, What::Returned { why }));
}

#[test]
fn a_lease_that_can_never_fit_or_cannot_be_read_is_answered() {
    let mut agent = Agent::attached();
    let why = "the agent is too small: cpus 3000 of 2000".into();
    agent.expect(give(&[order(1, Command::Argv(vec!["x".to_owned()]), 3)]), reported(1, 1, What::Returned { why }));
    let unusable = vec![Unusable { token: Token(2), task: task(2), why: "no spec 7".into() }];
    let what = What::Ended {
        end: End::NotStarted,
        why: Some("no spec 7".into()),
        started: Timestamp(0),
        ended: Timestamp(77),
        result: None,
        usage: None,
    };
    agent.expect(Input::Leases { term: TERM, orders: vec![], unusable }, reported(2, 2, what));
}

#[test]
fn a_lease_that_finds_no_room_is_given_back_after_the_hold_time() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    assert_eq!(agent.supervisor.wakeup(), Some(Mono(1_250_000)), "first of all the starts are announced");
    agent.wait(Duration::from_millis(999));
    let announced = agent.take(Input::Tick);
    assert_eq!(announced.len(), 4, "{announced:?}");
    assert_eq!(agent.supervisor.wakeup(), Some(Mono(2_000_000)));
    agent.wait(Duration::from_millis(1));
    let why = "the agent had no room for it in time".into();
    agent.expect(Input::Tick, reported(3, 3, What::Returned { why }));
    agent.take(ended(1, End::Succeeded));
    assert_eq!(agent.supervisor.holding(), 1, "it does not start any more");
}

#[test]
fn only_attempts_that_last_have_their_start_reported() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(ended(1, End::Succeeded));
    agent.wait(Duration::from_millis(250));
    agent.expect(Input::Tick, reported(2, 2, What::Started { at: Timestamp(11) }));
    agent.expect(Input::Tick, vec![]);
}

#[test]
fn a_stop_ends_what_runs_and_what_waits_and_ignores_the_rest() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    let stop = |token| Input::Stop { term: TERM, token: Token(token) };
    agent.expect(stop(1), vec![kill(1, KillReason::Cancelled, 10)]);
    agent.expect(stop(1), vec![]);
    agent.expect(stop(99), vec![]);
    let what = What::Ended {
        end: End::Cancelled,
        why: Some("cancelled before it started".into()),
        started: Timestamp(0),
        ended: Timestamp(77),
        result: None,
        usage: None,
    };
    agent.expect(stop(3), reported(1, 3, what));
    assert_eq!(agent.supervisor.taken().cpu_milli, 2000, "A3: asked to end is not dead");
    agent.expect(ended(1, End::Cancelled), reported(2, 1, over(End::Cancelled)));
    assert_eq!(agent.supervisor.taken().cpu_milli, 1000);
}

#[test]
fn heartbeats_go_on_time_and_their_answer_renews_from_the_sent_time() {
    let mut agent = Agent::running(&[process(1)]);
    agent.wait(Duration::from_secs(3));
    agent.take(Input::Tick);
    let sent = Mono(agent.mono);
    agent.wait(Duration::from_secs(5));
    agent.take(Input::HeartbeatAcked { term: TERM, stamp: sent });
    // An answer to what was never sent, or an old one, proves nothing.
    agent.take(Input::HeartbeatAcked { term: TERM, stamp: Mono(agent.mono) });
    agent.take(Input::HeartbeatAcked { term: TERM, stamp: Mono(5) });
    agent.take(Input::Disconnected);
    assert_eq!(agent.supervisor.wakeup(), Some(sent.after(TTL)), "A1: the deadline");
    agent.mono = sent.after(TTL).0 - 1;
    agent.expect(Input::Tick, vec![]);
    agent.wait(Duration::from_micros(1));
    agent.expect(Input::Tick, vec![kill(1, KillReason::LeaseExpired, 1)]);
    agent.expect(Input::Tick, vec![]);
}

#[test]
fn an_answer_renews_from_its_own_heartbeat_not_from_a_later_one() {
    let mut agent = Agent::running(&[process(1)]);
    let sent = [3, 3].map(|secs| {
        agent.wait(Duration::from_secs(secs));
        agent.take(Input::Tick);
        Mono(agent.mono)
    });
    agent.take(Input::HeartbeatAcked { term: TERM, stamp: sent[0] });
    agent.take(Input::Disconnected);
    assert_eq!(agent.supervisor.wakeup(), Some(sent[0].after(TTL)));
}

#[test]
fn an_acknowledgement_covers_what_it_names_and_no_number_that_was_never_given() {
    let mut agent = Agent::attached();
    agent.take(give(&[order(1, Command::Empty, 1), order(2, Command::Empty, 1), order(3, Command::Empty, 1)]));
    agent.expect(Input::ReportsAcked { up_to: 2 }, vec![Action::Journal(Entry::Acked { up_to: 2 })]);
    for up_to in [2, 0, 4, u64::MAX] {
        agent.expect(Input::ReportsAcked { up_to }, vec![]);
    }
    let kept: Vec<_> = agent.supervisor.memory().reports.iter().map(|report| report.seq).collect();
    assert_eq!(kept, [3]);
}

#[test]
fn past_the_deadline_nothing_starts_whatever_is_read_first() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    agent.wait(TTL);
    let actions = agent.take(ended(1, End::Succeeded));
    assert!(!actions.iter().any(|action| matches!(action, Action::Start(_))), "{actions:?}");
    assert!(actions.contains(&kill(2, KillReason::LeaseExpired, 1)), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Disconnect { .. })), "{actions:?}");
}

#[test]
fn an_expired_attempt_that_was_being_cancelled_gets_less_grace() {
    let mut agent = Agent::running(&[process(1)]);
    agent.take(Input::Stop { term: TERM, token: Token(1) });
    agent.take(Input::Disconnected);
    agent.wait(Duration::from_secs(1));
    agent.take(Input::Tick);
    agent.wait(TTL);
    agent.expect(Input::Tick, vec![kill(1, KillReason::LeaseExpired, 1)]);
}

#[test]
fn a_controller_that_answers_no_heartbeat_is_left_before_the_leases_are_lost() {
    let mut agent = Agent::running(&[process(1)]);
    agent.take(Input::Tick);
    agent.wait(Duration::from_secs(10));
    let actions = agent.take(Input::Tick);
    let why = "the controller answers no heartbeat".to_owned();
    assert!(actions.contains(&Action::Disconnect { why }), "{actions:?}");
    agent.take(Input::Connected);
    let report = Report { seq: 1, token: Token(1), task: task(1), what: What::Started { at: Timestamp(11) } };
    let attached = Action::Attached { agent: AgentId(3), session: SessionId(8) };
    agent.expect(welcome(&[]), vec![attached, Action::Send(report)]);
}

#[test]
fn what_ends_without_a_connection_is_reported_in_order_at_the_next_one() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(Input::Disconnected);
    let kept = reported(1, 1, over(End::Succeeded));
    agent.expect(ended(1, End::Succeeded), vec![kept[0].clone()]);
    agent.expect(Input::Connected, vec![Action::Hello { holding: vec![Token(1), Token(2)], term: TERM }]);
    let later = reported(2, 2, over(End::Signal(9)));
    agent.expect(ended(2, End::Signal(9)), vec![later[0].clone()]);
    let attached = Action::Attached { agent: AgentId(3), session: SessionId(8) };
    agent.expect(welcome(&[]), vec![attached, kept[1].clone(), later[1].clone()]);
}

#[test]
fn a_lease_that_the_controller_dropped_ends_in_silence() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    agent.take(Input::Disconnected);
    agent.take(Input::Connected);
    let actions = agent.take(welcome(&[1, 3]));
    assert_eq!(actions[1..], [kill(1, KillReason::Dropped, 1), Action::Journal(Entry::Released { token: Token(3) })]);
    agent.expect(ended(1, End::Lost), vec![Action::Journal(Entry::Released { token: Token(1) })]);
    assert_eq!(agent.supervisor.taken().cpu_milli, 1000);
}

#[test]
fn a_lower_term_is_left_and_a_higher_one_is_remembered() {
    let lower = Term(4);
    let cases = [
        Input::Leases { term: lower, orders: vec![process(9)], unusable: vec![] },
        Input::Stop { term: lower, token: Token(1) },
        Input::HeartbeatAcked { term: lower, stamp: Mono(1_000_000) },
    ];
    let why = "the controller speaks for term 4, but term 5 leads".to_owned();
    for input in cases {
        let mut agent = Agent::running(&[process(1)]);
        agent.expect(input, vec![Action::Disconnect { why: why.clone() }]);
        assert!(!agent.supervisor.is_attached());
    }
    let mut agent = Agent::running(&[process(1)]);
    agent.expect(
        Input::Stop { term: Term(6), token: Token(1) },
        vec![Action::Journal(Entry::Term(Term(6))), kill(1, KillReason::Cancelled, 10)],
    );
    agent.take(Input::Disconnected);
    agent.expect(Input::Connected, vec![Action::Hello { holding: vec![Token(1)], term: Term(6) }]);
    let why = "the controller speaks for term 5, but term 6 leads".to_owned();
    agent.expect(welcome(&[1]), vec![Action::Disconnect { why }]);
}

#[test]
fn nothing_of_a_controller_counts_without_its_welcome() {
    for connect in [false, true] {
        let inputs = [
            give(&[process(9)]),
            Input::Stop { term: Term(9), token: Token(1) },
            Input::HeartbeatAcked { term: Term(9), stamp: Mono(1_000_001) },
        ];
        for input in inputs {
            let mut agent = Agent::running(&[process(1)]);
            agent.take(Input::Disconnected);
            if connect {
                agent.take(Input::Connected);
            }
            agent.expect(input, vec![]);
        }
    }
    let mut agent = Agent::attached();
    agent.expect(welcome(&[]), vec![]);
    agent.take(Input::Disconnected);
    agent.expect(welcome(&[]), vec![]);
}

#[test]
fn what_cannot_be_killed_keeps_its_slot_until_it_is_gone() {
    let mut agent = Agent::running(&[process(1), process(2)]);
    agent.take(give(&[process(3)]));
    agent.expect(ended(1, End::KillFailed), reported(1, 1, over(End::KillFailed)));
    assert_eq!(agent.supervisor.taken().cpu_milli, 2000, "A3");
    let memory = agent.supervisor.memory();
    assert!(memory.leases.iter().any(|lease| lease.token == Token(1) && lease.reported), "{memory:?}");
    let mut expected = vec![Action::Journal(Entry::Released { token: Token(1) })];
    expected.extend(reported(2, 1, over(End::Lost)));
    expected.push(Action::Start(process(3)));
    agent.expect(ended(1, End::Lost), expected);
}

#[test]
fn after_a_restart_what_was_live_is_reported_lost_once_it_is_swept() {
    let remembered = |token, reported| Remembered {
        token: Token(token),
        task: task(token),
        request: capacity(1),
        identity: Some(identity(token)),
        reported,
    };
    let earlier = Report { seq: 6, token: Token(2), task: task(2), what: over(End::Succeeded) };
    let memory = Memory {
        term: TERM,
        highest: Token(5),
        next_seq: 7,
        leases: vec![remembered(3, false), remembered(4, true), remembered(5, false)],
        reports: vec![earlier.clone()],
    };
    let mut agent = Agent::remembering(memory.clone());
    assert_eq!(agent.supervisor.memory(), memory);
    assert_eq!(agent.supervisor.leftovers().len(), 3);
    let end = |seq, token, end, why: &str| Report {
        seq,
        token: Token(token),
        task: task(token),
        what: What::Ended {
            end,
            why: Some(why.into()),
            started: Timestamp(0),
            ended: Timestamp(77),
            result: None,
            usage: None,
        },
    };
    let lost = end(7, 3, End::Lost, "the agent restarted");
    let stuck = end(8, 5, End::KillFailed, "the agent restarted and could not end what was left of it");
    agent.expect(
        Input::Swept(vec![(Token(3), Swept::Dead), (Token(4), Swept::Dead), (Token(5), Swept::Survives)]),
        vec![
            Action::Journal(Entry::Report(lost.clone())),
            Action::Journal(Entry::Released { token: Token(4) }),
            Action::Journal(Entry::Report(stuck.clone())),
        ],
    );
    assert_eq!(agent.supervisor.taken().cpu_milli, 1000, "A3: the survivor keeps its slot");
    let holding = vec![Token(2), Token(3), Token(5)];
    agent.expect(Input::Connected, vec![Action::Hello { holding, term: TERM }]);
    let attached = Action::Attached { agent: AgentId(3), session: SessionId(8) };
    agent.expect(welcome(&[]), vec![attached, Action::Send(earlier), Action::Send(lost), Action::Send(stuck)]);
}
