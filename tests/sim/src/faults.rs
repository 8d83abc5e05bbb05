//! What goes wrong, by the seed.

use muster_core::{event::Event, time::Timestamp};

use crate::{
    network::Message,
    world::{Coming, World},
};

impl World {
    pub(crate) fn fault(&mut self) {
        if self.is_healed() {
            return;
        }
        self.faults += 1;
        let agent = usize::try_from(self.rng.within(0, self.agents.len() as u64 - 1)).unwrap_or(0);
        match self.rng.within(0, 6) {
            6 => self.takeover(),
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
                let until = self.now.mono.0 + self.rng.within(100_000, 1_800_000);
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
        if let Some(machine) = self.agents.get_mut(agent) {
            machine.cut_until = machine.cut_until.max(until);
        }
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
