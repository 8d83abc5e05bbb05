//! Streams between agents and the controller: ordered, delayed, breakable; and both ends of them.

use std::{sync::Arc, time::Duration};

use muster_agent::{
    exec::{ExecEvent, Leftover, Order, Swept},
    supervisor::{Action, Input, Welcome},
};
use muster_core::{
    event::{Answer, Effect, Event, Lease},
    id::{SessionId, Term, Token},
    record::Offer,
    time::Mono,
};

use crate::{
    agent::{about, kill_takes},
    controller::{Caller, Held},
    machine::GUARD_US,
    world::{Coming, World},
};

const LEASE_TTL: Duration = Duration::from_secs(15);

/// What a controller says to an agent.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Welcome(Welcome),
    Lease(Term, Box<Lease>),
    Stop(Term, Token),
    Acknowledge(u64),
    HeartbeatAck(Term, u64),
    Disconnect,
}

impl World {
    /// What no longer waits for anything is done.
    pub(crate) fn release(&mut self, held: Held) {
        match held {
            Held::Reply(call, answer) => self.answered(call, &answer),
            Held::Welcome(agent, session, answer) => {
                let Answer::Attached { agent: id, drop } = answer else { return };
                let term = self.term;
                let heartbeat = LEASE_TTL / 5;
                let welcome = Welcome { agent: id, session, term, lease_ttl: LEASE_TTL, heartbeat, drop };
                self.send_down(agent, session, Message::Welcome(welcome));
            }
            Held::Effect(effect) => self.effect(effect),
        }
    }

    fn effect(&mut self, effect: Effect) {
        let term = self.term;
        match &effect {
            Effect::Stop { token, .. } => self.witness.stop_leaves(*token, &self.store),
            Effect::Acknowledge { session, seq, .. } => {
                let agent = self.controller.as_ref().and_then(|controller| controller.sessions.get(session));
                let agent = agent.and_then(|agent| self.agents.get(*agent));
                let report = agent.and_then(|agent| agent.journal.reports.iter().find(|report| report.seq == *seq));
                report.into_iter().for_each(|report| self.witness.acknowledged(report, &self.store));
            }
            _ => {}
        }
        let (session, message) = match effect {
            Effect::Lease { session, lease, .. } => (session, Message::Lease(term, Box::new(lease))),
            Effect::Stop { session, token, .. } => (session, Message::Stop(term, token)),
            Effect::Acknowledge { session, seq, .. } => (session, Message::Acknowledge(seq)),
            Effect::HeartbeatAck { session, stamp, .. } => (session, Message::HeartbeatAck(term, stamp)),
            Effect::Disconnect { session, .. } => (session, Message::Disconnect),
            Effect::Forget(_) => return,
        };
        let agent = self.controller.as_ref().and_then(|controller| controller.sessions.get(&session)).copied();
        if let Some(agent) = agent {
            self.send_down(agent, session, message);
        }
    }

    fn answered(&mut self, call: u64, answer: &Answer) {
        let Answer::Submitted { job, .. } = answer else { return };
        if !self.is_healed() && self.rng.chance(5) {
            self.note(|| format!("the answer to call {call} is lost"));
            return;
        }
        let place = usize::try_from(call).unwrap_or(usize::MAX);
        let key = format!("key-{call}");
        self.witness.accepted(*job, &key, &self.store);
        if let Some((_, known)) = self.jobs.get_mut(place) {
            *known = Some(*job);
        }
        let job = *job;
        self.note(|| format!("client {call} is told of job {job}"));
    }

    /// Streams keep their order: nothing overtakes what was sent before.
    fn delay(&mut self) -> u64 {
        if self.rng.chance(2) { self.rng.within(0, 400_000) } else { self.rng.within(50, 3_000) }
    }

    fn send_down(&mut self, agent: usize, session: SessionId, message: Message) {
        let delay = self.delay();
        let Some(machine) = self.agents.get(agent) else { return };
        let life = machine.life;
        let at = self.last_on_stream(agent, session, true).max(self.now.mono.0 + delay);
        self.at(at, Coming::Down { agent, life, session, message });
    }

    fn send_up(&mut self, agent: usize, session: SessionId, message: Event) {
        let delay = self.delay();
        let at = self.last_on_stream(agent, session, false).max(self.now.mono.0 + delay);
        let term = self.term_of(session);
        if Self::is_report(&message) && self.rng.chance(3) {
            let message = message.clone();
            self.at(at, Coming::Up { term, agent, session, message });
        }
        self.at(at, Coming::Up { term, agent, session, message });
    }

    /// When the newest message of this direction of a stream arrives.
    fn last_on_stream(&self, agent: usize, session: SessionId, down: bool) -> u64 {
        let same = |coming: &Coming| match coming {
            Coming::Down { agent: a, session: s, .. } => down && *a == agent && *s == session,
            Coming::Up { agent: a, session: s, .. } => !down && *a == agent && *s == session,
            _ => false,
        };
        self.queue.iter().rev().find(|(_, coming)| same(coming)).map_or(0, |((at, _), _)| *at)
    }

    /// Everything in flight on an agent's stream is lost, both ways.
    pub(crate) fn stream_breaks(&mut self, agent: usize) {
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let Some(session) = machine.session.take() else { return };
        let life = machine.life;
        self.queue.retain(|_, coming| match coming {
            Coming::Down { agent: a, session: s, .. } | Coming::Up { agent: a, session: s, .. } => {
                *a != agent || *s != session
            }
            _ => true,
        });
        self.note(|| format!("agent {agent}: its stream {session} breaks"));
        self.input(agent, Input::Disconnected);
        let wait = self.rng.within(1_000, 2_000_000);
        self.after(wait, Coming::Connect { agent, life });
        if self.agents.get(agent).is_some_and(|machine| machine.cut_until > self.now.mono.0) {
            // Nobody hears of it: to the controller the stream is as silent as before.
            return;
        }
        self.as_whoever(self.term_of(session), |world| {
            let agents = world.controller.as_ref().map(|controller| controller.cluster.agents()).unwrap_or_default();
            if let Some(status) = agents.iter().find(|status| status.session == Some(session)) {
                let agent = status.record.id;
                world.event(Event::Detach { agent, session }, Caller::Nobody);
            }
        });
    }

    pub(crate) fn up(&mut self, term: Term, agent: usize, session: SessionId, message: Event) {
        if term != self.term || self.controller.is_none() {
            return;
        }
        let caller =
            if matches!(message, Event::Attach { .. }) { Caller::Agent(agent, session) } else { Caller::Nobody };
        self.note(|| format!("agent {agent} says {message:?}"));
        self.event(message, caller);
    }

    pub(crate) fn down(&mut self, agent: usize, life: u64, session: SessionId, message: Message) {
        let Some(machine) = self.agents.get(agent) else { return };
        if machine.life != life || machine.session != Some(session) {
            return;
        }
        if machine.paused_until > self.now.mono.0 {
            let at = machine.paused_until;
            self.at(at, Coming::Down { agent, life, session, message });
            return;
        }
        let input = match message {
            Message::Welcome(welcome) => Input::Welcome(welcome),
            Message::Lease(term, lease) => {
                Input::Leases { term, orders: order(&lease).into_iter().collect(), unusable: Vec::new() }
            }
            Message::Stop(term, token) => Input::Stop { term, token },
            Message::Acknowledge(up_to) => Input::ReportsAcked { up_to },
            Message::HeartbeatAck(term, stamp) => Input::HeartbeatAcked { term, stamp: Mono(stamp) },
            Message::Disconnect => return self.stream_breaks(agent),
        };
        self.input(agent, input);
    }

    pub(crate) fn agent_starts(&mut self, agent: usize) {
        let Some(machine) = self.agents.get_mut(agent) else { return };
        // Without a keeper, a daemon first sees to it that nothing of its last life is left.
        if machine.daemon.is_some() || (machine.kept.is_none() && !machine.processes.is_empty()) {
            if machine.daemon.is_none() {
                self.after(GUARD_US, Coming::AgentStarts { agent });
            }
            return;
        }
        machine.start();
        let life = machine.life;
        let left = machine.daemon.as_ref().map(|daemon| daemon.leftovers()).unwrap_or_default();
        self.note(|| format!("agent {agent} starts and remembers {} leases", left.len()));
        self.adopt(agent, life, &left);
        if self.agents.get(agent).is_none_or(|machine| machine.life != life) {
            return;
        }
        let wait = self.rng.within(0, 100_000);
        self.after(wait, Coming::Connect { agent, life });
        self.after(50_000, Coming::AgentTick { agent, life });
    }

    /// Goes on with what a keeper has, and gives up the rest.
    fn adopt(&mut self, agent: usize, life: u64, left: &[Leftover]) {
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let kept = machine.kept;
        let alive = if kept.is_some() { machine.alive() } else { Vec::new() };
        let gone = left.iter().filter(|left| !alive.iter().any(|alive| alive.order.token == left.token));
        // A keeper that lives knows that what it has not was never begun.
        let found = if kept.is_some() { Swept::NeverBegun } else { Swept::Dead };
        let swept: Vec<_> = gone.map(|left| (left.token, found)).collect();
        if let Some(renewed) = kept {
            self.input(agent, Input::Adopted { alive, renewed });
        }
        let lives = |world: &Self| world.agents.get(agent).is_some_and(|machine| machine.life == life);
        if lives(self) {
            self.input(agent, Input::Swept(swept));
        }
        if lives(self) {
            self.tell_kept_ends(agent);
        }
        if let Some(machine) = self.agents.get_mut(agent).filter(|machine| machine.life == life) {
            machine.kept = None;
        }
    }

    pub(crate) fn connect(&mut self, agent: usize, life: u64) {
        let Some(machine) = self.agents.get(agent) else { return };
        if machine.life != life || machine.session.is_some() {
            return;
        }
        if machine.cut_until > self.now.mono.0 {
            let at = machine.cut_until;
            self.at(at, Coming::Connect { agent, life });
            return;
        }
        // Whoever answers: one that was replaced does so until its authority has passed.
        let old_first = self.rng.chance(30);
        let first = if old_first { self.old.as_mut() } else { None };
        let Some(controller) = first.or(self.controller.as_mut()) else {
            self.after(500_000, Coming::Connect { agent, life });
            return;
        };
        let session = controller.open(agent);
        if let Some(machine) = self.agents.get_mut(agent) {
            machine.session = Some(session);
        }
        self.input(agent, Input::Connected);
    }

    pub(crate) fn agent_tick(&mut self, agent: usize, life: u64) {
        let Some(machine) = self.agents.get(agent) else { return };
        if machine.life != life {
            return;
        }
        if machine.paused_until <= self.now.mono.0 {
            self.input(agent, Input::Tick);
        }
        self.after(100_000, Coming::AgentTick { agent, life });
    }

    /// The daemon takes something in, and does what it decides, unless it dies in between.
    pub(crate) fn input(&mut self, agent: usize, input: Input) {
        let now = self.time_of(agent);
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let Some(daemon) = machine.daemon.as_mut() else { return };
        let mut actions = Vec::new();
        daemon.handle(now, input, &mut actions);
        let dies = !self.is_healed() && self.rng.chance(1) && self.rng.chance(10);
        let stop_after = if dies { self.rng.within(0, actions.len() as u64) } else { u64::MAX };
        for (action, n) in actions.into_iter().zip(0_u64..) {
            if n >= stop_after {
                break;
            }
            self.act(agent, action);
        }
        if dies {
            self.faults += 1;
            self.agent_dies(agent);
        }
    }

    fn act(&mut self, agent: usize, action: Action) {
        if let Some((token, task)) = about(&action) {
            let task = task.map_or_else(String::new, |task| format!(" of {task}"));
            let what = format!("{action:?}");
            let what = what.split(['(', ' ', '{']).next().unwrap_or_default().to_owned();
            self.note(|| format!("agent {agent}: {what} {token}{task}"));
        }
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let session = machine.session;
        match action {
            Action::Journal(entry) => machine.remember(&entry),
            Action::Start(order) => self.process_starts(agent, order),
            Action::Offer { order, until } => machine.offers.push_back((order, until)),
            Action::Claim { token } => {
                if let Some(order) = machine.take_offer(token) {
                    self.process_starts(agent, order);
                }
            }
            Action::Withdraw { token } => {
                if machine.take_offer(token).is_some() {
                    self.input(agent, Input::Exec(ExecEvent::Withdrawn { token }));
                }
            }
            // Nobody visits here.
            Action::Visit { .. } => {}
            Action::Kill { token, reason, grace } => {
                let roll = self.rng.roll();
                self.kill(agent, token, reason, kill_takes(grace, roll));
            }
            Action::Hello { holding, .. } => {
                let Some(session) = session else { return };
                let offer = Offer {
                    name: machine.uid.to_string(),
                    os: "linux".to_owned(),
                    capacity: machine.capacity.clone(),
                    ..Offer::default()
                };
                let uid = Arc::clone(&machine.uid);
                self.send_up(agent, session, Event::Attach { uid, offer, session, holding });
            }
            Action::Heartbeat { stamp } => {
                self.send(agent, |id, session| Event::Heartbeat { agent: id, session, stamp: stamp.0 })
            }
            Action::Send(report) => self.send(agent, |id, session| Event::Report { agent: id, session, report }),
            Action::Draining => self.send(agent, |id, session| Event::Drain { agent: id, session }),
            Action::Goodbye => self.send(agent, |id, session| Event::Leave { agent: id, session }),
            Action::Disconnect { .. } => self.stream_breaks(agent),
            Action::Attached { .. } | Action::Stopped => {}
        }
    }

    /// Sends over an attached stream; the agent's number is the one its welcome told.
    fn send(&mut self, agent: usize, event: impl FnOnce(muster_core::id::AgentId, SessionId) -> Event) {
        let Some(machine) = self.agents.get(agent) else { return };
        let Some(session) = machine.session else { return };
        let known = self.store.values().find_map(|piece| match piece {
            muster_core::record::Piece::Agent(record) if record.uid == machine.uid => Some(record.id),
            _ => None,
        });
        if let Some(id) = known {
            self.send_up(agent, session, event(id, session));
        }
    }
}

/// A lease as it arrives.
fn order(lease: &Lease) -> Option<Arc<Order>> {
    let mut spec = Arc::clone(lease.job.spec.tasks.get(lease.group as usize)?);
    if let Some(memory) = lease.memory {
        Arc::make_mut(&mut spec).request.memory = memory;
    }
    Some(Arc::new(Order {
        token: lease.token,
        task: lease.task,
        attempt: lease.attempt,
        element: spec.element(lease.offset).map(|(index, item)| (index, item.map(Arc::from))),
        spec,
        group: lease.group,
        job_name: Arc::from(lease.job.spec.name.as_str()),
        queue: Arc::from(lease.job.spec.queue.as_str()),
        trace_parent: Arc::clone(&lease.job.trace_parent),
        has_inputs: lease.has_inputs,
    }))
}
