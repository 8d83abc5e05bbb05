//! One scheduling round: shapes by the head of their line, agents by the placement policy, until
//! nothing more fits. The work grows with shapes, agents and leases given, never with tasks.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::Cluster;
use crate::{
    agent::{Agent, Room},
    config::Placement,
    id::{AgentId, JobId, TaskId},
    ready::{ShapeId, ShapeKey, Span},
    spec::Priority,
    time::Now,
};

/// A place at the front: the largest goes first.
type Turn = (Priority, Reverse<(JobId, u32)>, ShapeId);

fn turn(shape: ShapeId, head: Span) -> Turn {
    (head.priority, Reverse((head.job, head.first)), shape)
}

impl Cluster {
    pub(super) fn round(&mut self, now: Now) {
        let mut turns: BinaryHeap<Turn> =
            self.ready.busy().filter_map(|id| self.ready.head(id).map(|head| turn(id, head))).collect();
        let mut candidates: BTreeMap<ShapeId, Vec<AgentId>> = BTreeMap::new();
        while let Some((_, _, shape)) = turns.pop() {
            let (Some(key), Some(head)) = (self.ready.key(shape), self.ready.head(shape)) else { continue };
            let mean_us = self.ready.mean_us(shape);
            let agents = candidates.entry(shape).or_insert_with(|| self.candidates(&key, mean_us));
            let placed = self.place_span(now, &key, head, mean_us, agents);
            if placed > 0 {
                self.ready.remove(shape, Span { count: placed, ..head });
            }
            // A shape whose head found no room is done for this round: who stands behind it asks
            // for the same.
            if placed == head.count
                && let Some(head) = self.ready.head(shape)
            {
                turns.push(turn(shape, head));
            }
        }
    }

    /// Agents that could take at least one more task of the shape, best last.
    fn candidates(&self, key: &ShapeKey, mean_us: u64) -> Vec<AgentId> {
        let able = |agent: &&Agent| {
            agent.session.is_some()
                && agent.room(&key.request, mean_us).is_some()
                && key.requires.matches(&agent.record.offer)
        };
        let mut found: Vec<&Agent> = self.agents.values().filter(able).collect();
        // Stable, so that equal agents stay in order of their numbers (S1).
        match self.config.placement {
            Placement::Pack => found.sort_by_key(|agent| Reverse(agent.free().cpu_milli)),
            Placement::Spread => found.sort_by_key(|agent| (agent.free().cpu_milli, Reverse(agent.holdings.len()))),
        }
        found.iter().map(|agent| agent.record.id).collect()
    }

    /// Gives out the front of a span; says how many tasks found a place.
    fn place_span(&mut self, now: Now, key: &ShapeKey, span: Span, mean_us: u64, agents: &mut Vec<AgentId>) -> u32 {
        let allowed = self.queues.get(&key.queue).map_or(u64::MAX, |lane| lane.room());
        let wanted = u32::try_from(allowed).unwrap_or(u32::MAX).min(span.count);
        let mut placed = 0;
        // Tasks that can start come before tasks that are sent ahead, on whichever agent.
        for ahead in [Room::Now, Room::Ahead] {
            let mut place = agents.len();
            while placed < wanted && place > 0 {
                let id = agents[place - 1];
                let room = self.agents.get(&id).and_then(|agent| agent.room(&key.request, mean_us));
                if room != Some(ahead) {
                    place -= 1;
                    if room.is_none() {
                        agents.remove(place);
                    }
                    continue;
                }
                self.lease(now, TaskId::new(span.job, span.first + placed), id, ahead);
                placed += 1;
                if self.config.placement == Placement::Spread {
                    // The next one starts from the agent that is now emptiest.
                    place = if place == 1 { agents.len() } else { place - 1 };
                }
            }
        }
        placed
    }
}
