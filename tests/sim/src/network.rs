//! Streams between agents and the controller: ordered, delayed, breakable; and both ends of them.

use std::{sync::Arc, time::Duration};

use muster_agent::{
    exec::{ExecEvent, KillReason, Order, ProcessIdentity, Swept},
    supervisor::{Action, Input, Welcome},
};
use muster_core::{
    event::{Answer, Effect, Event, Lease},
    id::{SessionId, Term, Token},
    record::Offer,
    state::End,
    time::{Mono, Timestamp},
};

use crate::{
    agent::{Process, about, kill_takes},
    controller::{Caller, Held},
    world::{Coming, World},
};

const LEASE_TTL: Duration = Duration::from_secs(15);
/// A guard has killed what a dead agent left within this.
const GUARD_US: u64 = 300_000;

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
        let term = self.term;
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
        if self.controller.is_some() {
            let agents = self.controller.as_ref().map(|controller| controller.cluster.agents()).unwrap_or_default();
            if let Some(status) = agents.iter().find(|status| status.session == Some(session)) {
                let agent = status.record.id;
                self.event(Event::Detach { agent, session }, Caller::Nobody);
            }
        }
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
        // A daemon first sees to it that nothing of its last life is left.
        if machine.daemon.is_some() || !machine.processes.is_empty() {
            if machine.daemon.is_none() {
                self.after(GUARD_US, Coming::AgentStarts { agent });
            }
            return;
        }
        machine.start();
        let life = machine.life;
        let left = machine.daemon.as_ref().map(|daemon| daemon.leftovers()).unwrap_or_default();
        self.note(|| format!("agent {agent} starts and remembers {} leases", left.len()));
        self.input(agent, Input::Swept(left.iter().map(|left| (left.token, Swept::Dead)).collect()));
        let wait = self.rng.within(0, 100_000);
        self.after(wait, Coming::Connect { agent, life });
        self.after(50_000, Coming::AgentTick { agent, life });
    }

    pub(crate) fn connect(&mut self, agent: usize, life: u64) {
        let Some(machine) = self.agents.get(agent) else { return };
        if machine.life != life || machine.session.is_some() {
            return;
        }
        let Some(controller) = &mut self.controller else {
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
        let now = self.now;
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

    // --- processes

    fn process_starts(&mut self, agent: usize, order: Arc<Order>) {
        let (task, token) = (order.task, order.token);
        let now = self.now.wall;
        self.witness.process_starts(task, token, agent, &self.store);
        let Some(machine) = self.agents.get_mut(agent) else { return };
        machine.processes.insert(token, Process { order, started: now, killed: None });
        let lasts =
            if self.rng.chance(15) { self.rng.within(1_000_000, 20_000_000) } else { self.rng.within(500, 400_000) };
        self.after(lasts, Coming::ProcessEnds { agent, token });
        let identity = ProcessIdentity { boot: Arc::from("boot"), pid: 1, start: token.0, group: 1 };
        self.input(agent, Input::Exec(ExecEvent::Started { token, at: now, identity }));
    }

    fn kill(&mut self, agent: usize, token: Token, reason: KillReason, takes: u64) {
        let Some(process) = self.agents.get_mut(agent).and_then(|agent| agent.processes.get_mut(&token)) else {
            return;
        };
        process.killed.get_or_insert(reason);
        self.after(takes, Coming::ProcessEnds { agent, token });
    }

    pub(crate) fn process_ends(&mut self, agent: usize, token: Token) {
        let roll = self.rng.within(0, 99);
        let now = self.now.wall;
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let Some(process) = machine.processes.remove(&token) else { return };
        self.witness.process_is_dead(process.order.task, token);
        let end = match (process.killed, roll) {
            (Some(reason), _) => reason.end(),
            (None, 0..75) => End::Succeeded,
            (None, 75..90) => End::Exit(1),
            (None, 90..95) => End::Signal(9),
            (None, _) => End::NotStarted,
        };
        let task = process.order.task;
        self.note(|| format!("agent {agent}: the process of {task} with {token} is dead: {end}"));
        let why = process.killed.map(|reason| Arc::from(reason.text()));
        let event = ExecEvent::Ended { token, end, why, started: process.started, ended: now, result: None };
        if machine_is_awake(self, agent) {
            self.input(agent, Input::Exec(event));
        } else if let Some(machine) = self.agents.get_mut(agent) {
            // The daemon is stopped: it will read the end when it goes on.
            machine.processes.insert(token, process);
            let at = machine.paused_until + 1;
            self.at(at, Coming::ProcessEnds { agent, token });
        }
    }

    pub(crate) fn agent_dies(&mut self, agent: usize) {
        self.stream_breaks(agent);
        let Some(machine) = self.agents.get_mut(agent) else { return };
        machine.crash();
        self.note(|| format!("agent {agent} dies"));
        let wait = self.rng.within(1_000, GUARD_US);
        self.after(wait, Coming::Guard { agent });
        let wait = self.rng.within(10_000, 30_000_000);
        self.after(wait, Coming::AgentStarts { agent });
    }

    /// The guard kills what its agent left.
    pub(crate) fn guard(&mut self, agent: usize) {
        let Some(machine) = self.agents.get_mut(agent) else { return };
        if machine.daemon.is_some() {
            return;
        }
        for (token, process) in std::mem::take(&mut machine.processes) {
            self.witness.process_is_lost(process.order.task, token);
        }
    }

    // --- faults

    pub(crate) fn fault(&mut self) {
        if self.is_healed() {
            return;
        }
        self.faults += 1;
        let agent = usize::try_from(self.rng.within(0, self.agents.len() as u64 - 1)).unwrap_or(0);
        match self.rng.within(0, 5) {
            0 => {
                self.note(|| "the controller dies".to_owned());
                self.controller_dies(8_000_000);
            }
            1 => self.agent_dies(agent),
            2 => self.stream_breaks(agent),
            3 => {
                // A partition: nothing goes through for a while, and neither side knows.
                let wait = self.rng.within(1_000_000, 40_000_000);
                self.hold_stream(agent, wait);
            }
            4 => {
                let until = self.now.mono.0 + self.rng.within(100_000, 2_000_000);
                self.note(|| format!("agent {agent} is stopped for a while"));
                if let Some(machine) = self.agents.get_mut(agent) {
                    machine.paused_until = until;
                }
            }
            _ => {
                let by = self.rng.within(0, 3_600_000_000);
                let back = self.rng.chance(50);
                self.note(|| format!("the wall clock jumps by {by} us, back: {back}"));
                let wall = self.now.wall.0;
                self.now.wall = Timestamp(if back { wall - by } else { wall + by });
            }
        }
    }

    /// Delays everything in flight on a stream, both ways, and all that follows it.
    fn hold_stream(&mut self, agent: usize, wait: u64) {
        let Some(session) = self.agents.get(agent).and_then(|machine| machine.session) else { return };
        self.note(|| format!("agent {agent}: nothing passes its stream for {wait} us"));
        let until = self.now.mono.0 + wait;
        let held: Vec<(u64, u64)> = self
            .queue
            .iter()
            .filter(|((at, _), coming)| {
                *at < until
                    && matches!(coming, Coming::Down { agent: a, session: s, .. } | Coming::Up { agent: a, session: s, .. }
                        if *a == agent && *s == session)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in held {
            if let Some(coming) = self.queue.remove(&key) {
                self.at(until, coming);
            }
        }
        // What follows queues up behind these two.
        let term = self.term;
        let life = self.agents.get(agent).map_or(0, |machine| machine.life);
        self.at(until, Coming::Up { term, agent, session, message: Event::Round });
        self.at(until, Coming::Down { agent, life, session, message: Message::Acknowledge(0) });
    }
}

fn machine_is_awake(world: &World, agent: usize) -> bool {
    world.agents.get(agent).is_none_or(|machine| machine.paused_until <= world.now.mono.0)
}

/// A lease as it arrives.
fn order(lease: &Lease) -> Option<Arc<Order>> {
    let spec = Arc::clone(lease.job.spec.tasks.get(lease.group as usize)?);
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
