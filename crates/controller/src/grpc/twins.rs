//! Two agents that are there under one name: a person is told once, for whoever means one of them by name means both.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use muster_core::id::AgentId;

use crate::{dispatch::Sessions, view::Snapshot};

/// Pairs that were told of. Clones share them; there are at most as many as agents that were attached under names of others.
#[derive(Clone, Debug, Default)]
pub struct Twins(Arc<Mutex<BTreeSet<(AgentId, AgentId)>>>);

impl Twins {
    /// Looks for another one that is called as `agent` is, which was just attached. How many pairs were told of now.
    pub(super) fn look(&self, agent: AgentId, snapshot: &Snapshot, sessions: &Sessions) -> usize {
        let Some(own) = snapshot.agents.get(&agent) else { return 0 };
        let is_twin = |id: AgentId| id != agent && sessions.is_there(id);
        let named = snapshot.agents.iter().filter(|(_, other)| other.offer.name == own.offer.name);
        let mut told = 0;
        for (id, other) in named.filter(|(id, _)| is_twin(**id)) {
            let pair = (agent.min(*id), agent.max(*id));
            if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pair) {
                told += 1;
                tracing::warn!(
                    name = own.offer.name,
                    %agent,
                    uid = %own.uid,
                    host = own.offer.host,
                    other = %id,
                    other_uid = %other.uid,
                    other_host = other.offer.host,
                    "two agents have one name; give one of them another (`name` in its file)"
                );
            }
        }
        told
    }
}
