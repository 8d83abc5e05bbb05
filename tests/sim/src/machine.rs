//! Machines: processes that start, are killed and end, and agents that die and leave them.

use std::sync::Arc;

use muster_agent::{
    exec::{ExecEvent, KillReason, Order, ProcessIdentity},
    supervisor::{Input, Supervisor},
};
use muster_core::{id::Token, state::End};

use crate::{
    agent::Process,
    workload::SATED,
    world::{Coming, World},
};

/// A guard has killed what a dead agent left within this.
pub(crate) const GUARD_US: u64 = 300_000;

impl World {
    pub(crate) fn process_starts(&mut self, agent: usize, order: Arc<Order>) {
        let token = order.token;
        self.process_begins(agent, order);
        self.tell_start(agent, token);
    }

    fn tell_start(&mut self, agent: usize, token: Token) {
        let at = self.time_of(agent).wall;
        let identity = ProcessIdentity { boot: Arc::from("boot"), pid: 1, start: token.0, group: 1 };
        self.input(agent, Input::Exec(ExecEvent::Started { token, at, identity }));
    }

    /// Before the daemon hears of it.
    fn process_begins(&mut self, agent: usize, order: Arc<Order>) {
        let (task, token) = (order.task, order.token);
        let now = self.time_of(agent).wall;
        self.witness.process_starts(task, token, agent, &self.store);
        let Some(machine) = self.agents.get_mut(agent) else { return };
        machine.processes.insert(token, Process { order, started: now, killed: None });
        let lasts =
            if self.rng.chance(15) { self.rng.within(1_000_000, 45_000_000) } else { self.rng.within(500, 400_000) };
        self.after(lasts, Coming::ProcessEnds { agent, token });
    }

    pub(crate) fn kill(&mut self, agent: usize, token: Token, reason: KillReason, takes: u64) {
        let Some(process) = self.agents.get_mut(agent).and_then(|agent| agent.processes.get_mut(&token)) else {
            return;
        };
        process.killed.get_or_insert(reason);
        self.after(takes, Coming::ProcessEnds { agent, token });
    }

    pub(crate) fn process_ends(&mut self, agent: usize, token: Token) {
        let roll = self.rng.within(0, 99);
        let now = self.time_of(agent).wall;
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let Some(process) = machine.processes.remove(&token) else { return };
        self.witness.process_is_dead(process.order.task, token);
        let end = match (process.killed, roll) {
            (Some(reason), _) => reason.end(),
            (None, 0..80) if (1..SATED).contains(&process.order.spec.request.memory) => End::Oom,
            (None, 0..75) => End::Succeeded,
            (None, 75..90) => End::Exit(1),
            (None, 90..95) => End::Signal(9),
            (None, _) => End::NotStarted,
        };
        let task = process.order.task;
        self.note(|| format!("agent {agent}: the process of {task} with {token} is dead: {end}"));
        let why = process.killed.map(|reason| Arc::from(reason.text()));
        let started = process.started;
        if self.agents.get(agent).is_some_and(|machine| machine.daemon.is_none() && machine.kept.is_some()) {
            self.witness.process_ended(token, end);
            let event =
                ExecEvent::Ended { token, end, why, started, ended: now, result: None, usage: None, next: None };
            self.keep_end(agent, process.order, event);
        } else if machine_is_awake(self, agent) {
            self.witness.process_ended(token, end);
            let next = if process.killed.is_none() { self.relay(agent, &process.order) } else { None };
            let event = ExecEvent::Ended { token, end, why, started, ended: now, result: None, usage: None, next };
            self.input(agent, Input::Exec(event.clone()));
            // The daemon may have died over it, before or after it wrote it down.
            self.keep_end(agent, process.order, event);
            next.into_iter().for_each(|next| self.tell_start(agent, next));
        } else if let Some(machine) = self.agents.get_mut(agent) {
            // The daemon is stopped: it will read the end when it goes on.
            machine.processes.insert(token, process);
            let at = machine.paused_until + 1;
            self.at(at, Coming::ProcessEnds { agent, token });
        }
    }

    /// A keeper without a daemon keeps what it saw.
    fn keep_end(&mut self, agent: usize, order: Arc<Order>, event: ExecEvent) {
        let Some(machine) = self.agents.get_mut(agent) else { return };
        if machine.daemon.is_none() && machine.kept.is_some() {
            machine.ends.push((order, event));
        }
    }

    /// Tells a daemon that was just started what ended without it. One that dies over it hears it again.
    pub(crate) fn tell_kept_ends(&mut self, agent: usize) {
        loop {
            let Some(machine) = self.agents.get_mut(agent) else { return };
            let Some((order, event)) = machine.ends.pop() else { return };
            let life = machine.life;
            self.input(agent, Input::Exec(event.clone()));
            if self.agents.get(agent).is_none_or(|machine| machine.life != life) {
                return self.keep_end(agent, order, event);
            }
        }
    }

    /// The keeper looks whether somebody should have ended something.
    pub(crate) fn fence(&mut self, agent: usize, life: u64) {
        let now = self.time_of(agent).mono;
        let Some(machine) = self.agents.get(agent).filter(|machine| machine.life == life) else { return };
        for token in machine.late(now) {
            self.note(|| format!("agent {agent}: its keeper ends {token}"));
            let takes = self.rng.within(0, 50_000);
            self.kill(agent, token, KillReason::LeaseExpired, takes);
        }
        self.after(50_000, Coming::Fence { agent, life });
    }

    /// Mostly the end of a short attempt is seen by the thread that can begin the next one by itself.
    fn relay(&mut self, agent: usize, ended: &Order) -> Option<Token> {
        let sees_it = self.rng.chance(70);
        let now = self.time_of(agent).mono;
        let next = self
            .agents
            .get_mut(agent)
            .filter(|machine| sees_it && machine.daemon.is_some())?
            .next_in_place(ended, now)?;
        let (task, token) = (next.task, next.token);
        self.note(|| format!("agent {agent}: {task} with {token} begins in the place of {}", ended.task));
        self.process_begins(agent, next);
        Some(token)
    }

    pub(crate) fn agent_dies(&mut self, agent: usize) {
        self.stream_breaks(agent);
        let keeper_lives = self.rng.chance(60);
        let Some(machine) = self.agents.get_mut(agent) else { return };
        let hold = machine.daemon.as_ref().map(Supervisor::hold);
        // Dead already: its keeper, if it has one, knows what it knew.
        let kept = hold.or(machine.kept).filter(|_| keeper_lives);
        if kept.is_none() {
            machine.ends.clear();
        }
        machine.crash();
        machine.kept = kept;
        let life = machine.life;
        self.note(|| format!("agent {agent} dies, its keeper lives: {keeper_lives}"));
        if keeper_lives {
            self.after(50_000, Coming::Fence { agent, life });
        } else {
            let wait = self.rng.within(1_000, GUARD_US);
            self.after(wait, Coming::Guard { agent });
        }
        let wait = self.rng.within(10_000, 30_000_000);
        self.after(wait, Coming::AgentStarts { agent });
    }

    /// The guard kills what its agent left.
    pub(crate) fn guard(&mut self, agent: usize) {
        let Some(machine) = self.agents.get_mut(agent) else { return };
        if machine.daemon.is_some() || machine.kept.is_some() {
            return;
        }
        machine.ends.clear();
        for (token, process) in std::mem::take(&mut machine.processes) {
            self.witness.process_is_lost(process.order.task, token);
        }
    }
}

fn machine_is_awake(world: &World, agent: usize) -> bool {
    world.agents.get(agent).is_none_or(|machine| machine.paused_until <= world.now.mono.0)
}
