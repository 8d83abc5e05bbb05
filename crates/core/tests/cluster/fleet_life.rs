//! Property: whatever people wish of agents and however machines change, no work is lost and none is charged for it.

use std::time::Duration;

use muster_core::{
    event::{Effect, Event},
    fleet::{Limits, Wish},
    record::Offer,
    resources::Request,
    spec::{RetryPolicy, TaskSpec},
    state::{End, State, Stopping},
    time::Mono,
};
use proptest::prelude::*;

use crate::{
    fleet::{drain, tending},
    kit::{Host, Kit, array, cpus, job},
};

/// One step of a life.
#[derive(Clone, Copy, Debug)]
enum Move {
    Submit(u32),
    Round,
    End(usize, bool),
    Wish(usize, u8),
    Pass(u64),
    Offer(usize, u64),
    Restart,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        2 => (1..6_u32).prop_map(Move::Submit),
        4 => Just(Move::Round),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, good)| Move::End(which, good)),
        3 => (0..2_usize, 0..6_u8).prop_map(|(agent, wish)| Move::Wish(agent, wish)),
        2 => (1..8_000_u64).prop_map(Move::Pass),
        1 => (0..2_usize, 1..5_u64).prop_map(|(agent, n)| Move::Offer(agent, n)),
        1 => Just(Move::Restart),
    ]
}

const NAMES: [&str; 2] = ["one", "two"];

fn wish(which: u8) -> Wish {
    match which {
        0 => Wish::Cordon,
        1 => Wish::Drain { within: None },
        2 => drain(Duration::from_millis(1500)),
        3 => Wish::Limit(Limits { cpu_milli: Some(1000), ..Limits::default() }),
        4 => Wish::Unlimit,
        _ => Wish::Resume,
    }
}

/// What is held, by whom, and whether its end was asked for.
struct Life {
    kit: Kit,
    hosts: Vec<Host>,
    held: Vec<(usize, muster_core::event::Lease, bool)>,
    cordoned: [bool; 2],
    jobs: Vec<muster_core::id::JobId>,
}

impl Life {
    fn new() -> Self {
        let mut kit = Kit::new();
        let hosts = NAMES.iter().map(|name| kit.attach(name, cpus(3), &[]).0).collect();
        Self { kit, hosts, held: Vec::new(), cordoned: [false; 2], jobs: Vec::new() }
    }

    fn take_effects(&mut self) {
        for effect in std::mem::take(&mut self.kit.effects) {
            match effect {
                Effect::Lease { agent, lease, .. } => {
                    let place = self.hosts.iter().position(|host| host.agent == agent).expect("a known agent");
                    assert!(!self.cordoned[place], "{} is cordoned and is given {}", NAMES[place], lease.task);
                    self.held.push((place, lease, false));
                }
                Effect::Stop { token, why, .. } => {
                    assert_eq!(why, Stopping::Drain);
                    self.held.iter_mut().filter(|(_, lease, _)| lease.token == token).for_each(|held| held.2 = true);
                }
                _ => {}
            }
        }
    }

    fn reattach(&mut self, place: usize, capacity: Request) {
        let named: Vec<_> = self.held.iter().filter(|(at, ..)| *at == place).map(|(_, lease, _)| lease.token).collect();
        let (host, drop) = self.kit.attach(NAMES[place], capacity, &named);
        assert!(drop.is_empty(), "nothing is lost by a connection");
        self.hosts[place] = host;
    }

    fn step(&mut self, step: Move) {
        match step {
            Move::Submit(count) => {
                let spec =
                    job([TaskSpec { retry: RetryPolicy { max: 0, ..RetryPolicy::default() }, ..array("x", count) }]);
                self.jobs.push(self.kit.submit(spec));
            }
            Move::Round => _ = self.kit.event(Event::Round),
            Move::End(which, _) if self.held.is_empty() => _ = which,
            Move::End(which, good) => {
                let (place, lease, recalled) = self.held.remove(which % self.held.len());
                let end = if recalled && !good { End::Cancelled } else { End::Succeeded };
                self.kit.end(self.hosts[place], &lease, end);
            }
            Move::Wish(place, which) => {
                self.kit.event(tending(&[NAMES[place]], wish(which)));
                self.cordoned[place] = match which {
                    0..=2 => true,
                    3 | 4 => self.cordoned[place],
                    _ => false,
                };
            }
            Move::Pass(ms) => {
                for host in self.hosts.clone() {
                    self.kit.event(Event::Heartbeat { agent: host.agent, session: host.session, stamp: 1 });
                }
                self.kit.pass(Duration::from_millis(ms));
            }
            Move::Offer(place, n) => {
                let host = self.hosts[place];
                let offer = Offer { name: NAMES[place].to_owned(), capacity: cpus(n), ..Offer::default() };
                self.kit.event(Event::Offer { agent: host.agent, session: host.session, offer });
            }
            Move::Restart => {
                self.take_effects();
                self.kit.restart();
                (0..2).for_each(|place| self.reattach(place, cpus(3)));
            }
        }
        self.take_effects();
    }

    /// Everybody is there and takes work again: all of it succeeds, for nothing that was done counts against a task.
    fn finish(mut self) {
        for name in NAMES {
            self.kit.event(tending(&[name], Wish::Resume));
            self.kit.event(tending(&[name], Wish::Unlimit));
        }
        self.cordoned = [false; 2];
        for _ in 0..1000 {
            self.step(Move::Round);
            if self.held.is_empty() {
                break;
            }
            self.step(Move::End(0, true));
        }
        for job in self.jobs {
            assert!(self.kit.states(job).iter().all(|state| *state == State::Succeeded), "{:?}", self.kit.states(job));
        }
        assert!(self.kit.now.mono > Mono(0));
    }
}

proptest! {
    #[test]
    fn no_wish_gives_a_cordoned_agent_work_nor_loses_any_nor_costs_a_retry(moves in prop::collection::vec(moves(), 1..60)) {
        let mut life = Life::new();
        moves.into_iter().for_each(|step| life.step(step));
        life.finish();
    }
}
