//! What goes wrong, by the seed.

use muster_core::{event::Event, time::Timestamp};

use crate::{
    network::Message,
    world::{Coming, World},
};

/// Which ways of a stream a partition closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    Both,
    /// From the agent: the controller hears nothing, and the agent all.
    Up,
    /// To the agent: the controller hears all, and the agent nothing.
    Down,
}

impl Ways {
    fn up(self) -> bool {
        self != Self::Down
    }

    fn down(self) -> bool {
        self != Self::Up
    }
}

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
                // A partition: nothing goes through for a while, one way or both, and neither side knows.
                let wait = self.rng.within(1_000_000, 40_000_000);
                let ways = [Ways::Both, Ways::Up, Ways::Down];
                let way = usize::try_from(self.rng.within(0, 2)).unwrap_or(0);
                self.hold_stream(agent, wait, ways[way]);
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

    /// Delays everything in flight on a stream, these ways, and all that follows it. No connection is made either way.
    fn hold_stream(&mut self, agent: usize, wait: u64, ways: Ways) {
        let Some(session) = self.agents.get(agent).and_then(|machine| machine.session) else { return };
        self.note(|| format!("agent {agent}: nothing passes its stream for {wait} us, {ways:?}"));
        let until = self.now.mono.0 + wait;
        if let Some(machine) = self.agents.get_mut(agent) {
            machine.cut_until = machine.cut_until.max(until);
        }
        let held: Vec<(u64, u64)> = self
            .queue
            .iter()
            .filter(|((at, _), coming)| {
                *at < until
                    && match coming {
                        Coming::Down { agent: a, session: s, .. } => ways.down() && *a == agent && *s == session,
                        Coming::Up { agent: a, session: s, .. } => ways.up() && *a == agent && *s == session,
                        _ => false,
                    }
            })
            .map(|(key, _)| *key)
            .collect();
        for key in held {
            if let Some(coming) = self.queue.remove(&key) {
                self.at(until, coming);
            }
        }
        // What follows queues up behind these.
        let term = self.term;
        let life = self.agents.get(agent).map_or(0, |machine| machine.life);
        if ways.up() {
            self.at(until, Coming::Up { term, agent, session, message: Event::Round });
        }
        if ways.down() {
            self.at(until, Coming::Down { agent, life, session, message: Message::Acknowledge(0) });
        }
    }
}
