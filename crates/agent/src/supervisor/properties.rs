//! Properties that hold after every input, whatever comes in whatever order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use muster_core::{
    event::{Report, What},
    id::{Term, Token},
    resources::Request,
    spec::Command,
    state::End,
    time::{Mono, Now, Timestamp},
};
use proptest::prelude::*;

use super::{
    Action, Config, Entry, Input, Memory, Supervisor,
    tests::{TERM, TTL, capacity, ended, ended_with, order, started, welcome},
};
use crate::exec::{ExecEvent, Order};

#[derive(Clone, Debug)]
enum Step {
    Lease {
        cpus: u64,
        empty: bool,
    },
    Repeat(usize),
    Started(usize),
    Ended(usize, bool),
    /// It ends, and exec begins the oldest offer in its place, if it may.
    Relay(usize),
    /// Exec answers a withdrawal.
    Answer,
    Stop(usize),
    Ack(u64),
    HeartbeatAck,
    Connect,
    Welcome {
        drop: Option<usize>,
    },
    Disconnect,
    LowerTerm,
    Wait(u64),
    Shutdown,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..=3_u64, prop::bool::weighted(0.2)).prop_map(|(cpus, empty)| Step::Lease { cpus, empty }),
        1 => (0..8_usize).prop_map(Step::Repeat),
        6 => (0..4_usize).prop_map(Step::Started),
        8 => (0..4_usize, prop::bool::weighted(0.1)).prop_map(|(n, fails)| Step::Ended(n, fails)),
        8 => (0..4_usize).prop_map(Step::Relay),
        6 => Just(Step::Answer),
        2 => (0..8_usize).prop_map(Step::Stop),
        4 => (0..4_u64).prop_map(Step::Ack),
        4 => Just(Step::HeartbeatAck),
        4 => Just(Step::Connect),
        6 => prop::option::weighted(0.2, 0..8_usize).prop_map(|drop| Step::Welcome { drop }),
        1 => Just(Step::Disconnect),
        1 => Just(Step::LowerTerm),
        6 => (0..4_000_u64).prop_map(Step::Wait),
        1 => prop::bool::weighted(0.1).prop_map(|yes| if yes { Step::Shutdown } else { Step::Wait(100) }),
        1 => Just(Step::Restart),
    ]
}

/// The world around one agent: what was given to it, what runs, what it said.
struct World {
    supervisor: Supervisor,
    mono: u64,
    next_token: u64,
    given: Vec<Arc<Order>>,
    accepted: BTreeSet<Token>,
    running: BTreeMap<Token, Arc<Order>>,
    offers: VecDeque<(Arc<Order>, Mono)>,
    /// Withdrawn and not answered.
    answers: VecDeque<Token>,
    stuck: BTreeMap<Token, Arc<Order>>,
    started: BTreeSet<Token>,
    dropped: BTreeSet<Token>,
    last_words: BTreeMap<Token, u32>,
    /// Reported as `KillFailed`, and not as dead since.
    survived: BTreeSet<Token>,
    journaled: BTreeMap<u64, Report>,
    last_seq: u64,
    acked: u64,
    heartbeat: Option<Mono>,
    renewed: Option<Mono>,
    hello: Mono,
    stopped: bool,
}

impl World {
    fn new() -> Self {
        Self {
            supervisor: Supervisor::new(Config::new(capacity(2)), Memory::default()),
            mono: 1,
            next_token: 1,
            given: Vec::new(),
            accepted: BTreeSet::new(),
            running: BTreeMap::new(),
            offers: VecDeque::new(),
            answers: VecDeque::new(),
            stuck: BTreeMap::new(),
            started: BTreeSet::new(),
            dropped: BTreeSet::new(),
            last_words: BTreeMap::new(),
            survived: BTreeSet::new(),
            journaled: BTreeMap::new(),
            last_seq: 0,
            acked: 0,
            heartbeat: None,
            renewed: None,
            hello: Mono(0),
            stopped: false,
        }
    }

    fn take(&mut self, input: Input) {
        let mut actions = Vec::new();
        let now = Now { wall: Timestamp(1), mono: Mono(self.mono) };
        self.supervisor.handle(now, input, &mut actions);
        for action in actions {
            self.act(action);
        }
        let kept: Vec<_> = self.supervisor.memory().reports.into_iter().map(|report| report.seq).collect();
        assert_eq!(kept, (self.acked + 1..=self.last_seq).collect::<Vec<_>>(), "A2: kept until acknowledged");
        let mut used = Request::default();
        for order in self.running.values().chain(self.stuck.values()) {
            used.give(&order.spec.request);
        }
        assert!(used.fits(&capacity(2)), "capacity is exceeded: {used:?}");
        if !self.stopped {
            assert_eq!(self.supervisor.taken(), &used, "the account of what is taken is right");
        }
    }

    fn act(&mut self, action: Action) {
        assert!(!self.stopped, "nothing follows the end: {action:?}");
        match action {
            Action::Journal(Entry::Report(report)) => {
                self.last_seq += 1;
                assert_eq!(report.seq, self.last_seq, "numbers have no gaps");
                match report.what {
                    What::Started { .. } => {}
                    // What survived its end is dead at last.
                    What::Ended { .. } if self.survived.remove(&report.token) => {}
                    What::Ended { end: End::KillFailed, .. } => {
                        self.survived.insert(report.token);
                        *self.last_words.entry(report.token).or_default() += 1;
                    }
                    What::Ended { .. } | What::Returned { .. } => {
                        *self.last_words.entry(report.token).or_default() += 1;
                    }
                }
                self.journaled.insert(report.seq, report);
            }
            Action::Journal(Entry::Lease(order)) => {
                self.accepted.insert(order.token);
            }
            Action::Journal(_)
            | Action::Visit { .. }
            | Action::Disconnect { .. }
            | Action::Draining
            | Action::Goodbye => {}
            Action::Start(order) => self.start(order),
            Action::Offer { order, until } => {
                let renewed = self.renewed.expect("a lease holds");
                assert!(until <= renewed.after(TTL), "A1: nothing is begun past the deadline");
                assert!(!self.started.contains(&order.token), "{} starts once", order.token);
                self.offers.push_back((order, until));
            }
            Action::Claim { token } => match self.offers.iter().position(|(order, _)| order.token == token) {
                Some(at) => {
                    let (order, _) = self.offers.remove(at).expect("found");
                    self.start(order);
                }
                None => assert!(self.started.contains(&token), "a claim is of an offer"),
            },
            Action::Withdraw { token } => {
                if let Some(at) = self.offers.iter().position(|(order, _)| order.token == token) {
                    self.offers.remove(at);
                    self.answers.push_back(token);
                }
            }
            Action::Kill { token, .. } => assert!(self.running.contains_key(&token), "only what runs is killed"),
            Action::Hello { holding, .. } => {
                self.hello = Mono(self.mono);
                for token in self.running.keys() {
                    assert!(holding.contains(token), "what runs is held");
                }
                for report in self.supervisor.memory().reports {
                    assert!(holding.contains(&report.token), "what is not acknowledged is held");
                }
            }
            Action::Heartbeat { stamp } => self.heartbeat = Some(stamp),
            Action::Send(report) => assert_eq!(self.journaled.get(&report.seq), Some(&report), "journaled, then sent"),
            Action::Attached { .. } => self.renewed = Some(self.hello),
            Action::Stopped => {
                assert!(self.running.is_empty(), "nothing runs after the end");
                self.stopped = true;
            }
        }
    }

    fn start(&mut self, order: Arc<Order>) {
        assert!(self.accepted.contains(&order.token), "journaled before it starts");
        assert!(self.started.insert(order.token), "{} starts once", order.token);
        let renewed = self.renewed.expect("a lease holds");
        assert!(self.mono < renewed.after(TTL).0, "A1: nothing starts past the deadline");
        self.running.insert(order.token, order);
    }

    /// As exec does it, before anybody hears of it.
    fn relay(&mut self, n: usize) {
        let Some(token) = self.running.keys().nth(n).copied() else { return };
        let Some(before) = self.running.remove(&token) else { return };
        let fits = |(next, until): &(Arc<Order>, Mono)| until.0 > self.mono && next.spec.request == before.spec.request;
        let next = self.offers.front().is_some_and(fits).then(|| self.offers.pop_front()).flatten();
        let next = next.map(|(order, _)| {
            let token = order.token;
            assert!(self.started.insert(token), "{token} starts once");
            self.running.insert(token, order);
            token
        });
        self.take(ended_with(token.0, End::Succeeded, next));
    }

    fn answer(&mut self) {
        if let Some(token) = self.answers.pop_front() {
            self.take(Input::Exec(ExecEvent::Withdrawn { token }));
        }
    }

    fn step(&mut self, step: Step) {
        let nth = |n: usize, of: &BTreeMap<Token, Arc<Order>>| of.keys().nth(n).map(|token| token.0);
        match step {
            Step::Lease { cpus, empty } => {
                let command = if empty { Command::Empty } else { Command::Argv(vec!["x".to_owned()]) };
                let order = order(self.next_token, command, cpus);
                self.next_token += 1;
                self.given.push(order.clone());
                self.take(Input::Leases { term: TERM, orders: vec![order], unusable: vec![] });
            }
            Step::Repeat(n) => {
                if let Some(order) = self.given.iter().rev().nth(n).cloned() {
                    self.take(Input::Leases { term: TERM, orders: vec![order], unusable: vec![] });
                }
            }
            Step::Started(n) => {
                if let Some(token) = nth(n, &self.running) {
                    self.take(started(token));
                }
            }
            Step::Ended(n, fails) => self.end(n, fails),
            Step::Relay(n) => self.relay(n),
            Step::Answer => self.answer(),
            Step::Stop(n) => {
                if let Some(token) = self.given.iter().rev().nth(n).map(|order| order.token) {
                    self.take(Input::Stop { term: TERM, token });
                }
            }
            Step::Ack(behind) => {
                let up_to = self.last_seq.saturating_sub(behind);
                self.acked = self.acked.max(up_to);
                self.take(Input::ReportsAcked { up_to });
            }
            Step::HeartbeatAck => {
                if let Some(stamp) = self.heartbeat.filter(|_| self.supervisor.is_attached()) {
                    self.renewed = self.renewed.max(Some(stamp));
                    self.take(Input::HeartbeatAcked { term: TERM, stamp });
                }
            }
            Step::Connect => self.take(Input::Connected),
            Step::Welcome { drop } => {
                let token = drop.and_then(|n| self.given.iter().rev().nth(n)).map(|order| order.token);
                self.dropped.extend(token);
                self.take(welcome(&token.map(|token| vec![token.0]).unwrap_or_default()));
            }
            Step::Disconnect => self.take(Input::Disconnected),
            Step::LowerTerm => self.take(Input::Stop { term: Term(1), token: Token(1) }),
            Step::Wait(ms) => {
                self.mono += ms * 1000;
                self.take(Input::Tick);
            }
            Step::Shutdown => self.take(Input::Shutdown),
            Step::Restart => self.restart(),
        }
    }

    fn end(&mut self, n: usize, fails: bool) {
        let Some(token) = self.running.keys().nth(n).copied() else {
            // What was stuck dies at last.
            if let Some((token, _)) = self.stuck.pop_first() {
                self.take(ended(token.0, End::Lost));
            }
            return;
        };
        let Some(order) = self.running.remove(&token) else { return };
        if fails {
            self.stuck.insert(token, order);
        }
        self.take(ended(token.0, if fails { End::KillFailed } else { End::Succeeded }));
    }

    /// The agent's process dies and comes back with what the journal kept; the sweep kills everything.
    fn restart(&mut self) {
        if self.stopped {
            return;
        }
        let memory = self.supervisor.memory();
        self.supervisor = Supervisor::new(Config::new(capacity(2)), memory);
        (self.heartbeat, self.renewed) = (None, None);
        let leftovers = self.supervisor.leftovers();
        for token in self.running.keys().chain(self.stuck.keys()) {
            assert!(leftovers.iter().any(|leftover| leftover.token == *token), "what runs is swept");
        }
        self.running.clear();
        self.offers.clear();
        self.answers.clear();
        self.stuck.clear();
        let dead = leftovers.into_iter().map(|leftover| (leftover.token, crate::exec::Swept::Dead)).collect();
        self.take(Input::Swept(dead));
    }

    /// Lets everything come to its end and looks at the last words.
    fn settle(&mut self) {
        self.take(Input::Disconnected);
        self.take(Input::Shutdown);
        while !(self.running.is_empty() && self.answers.is_empty()) {
            self.answer();
            self.end(0, false);
        }
        assert!(self.offers.is_empty() || self.stopped, "a stopping agent leaves no offer");
        for token in &self.accepted {
            let words = self.last_words.get(token).copied().unwrap_or(0);
            let fine = if self.dropped.contains(token) { words <= 1 } else { words == 1 };
            // A repetition of a lease that is forgotten is given back as well: that is not its own end.
            let repeated = words > 1 && self.given.iter().any(|order| order.token == *token);
            assert!(fine || repeated, "lease {token} has {words} last words");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn capacity_holds_and_every_lease_has_its_last_word(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        world.take(Input::Connected);
        world.take(welcome(&[]));
        for step in steps {
            if !world.stopped {
                world.step(step);
            }
        }
        if !world.stopped {
            world.settle();
        }
    }
}
