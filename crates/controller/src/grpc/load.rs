//! How machines are, as they say with a heartbeat now and then: shown, never stored, gone with the connection.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_common::proto::v1;
use muster_core::id::{AgentId, SessionId};

/// What every connected agent said last. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    known: Arc<Mutex<BTreeMap<AgentId, (SessionId, v1::Load)>>>,
}

impl Loads {
    pub(super) fn set(&self, agent: AgentId, session: SessionId, load: v1::Load) {
        self.lock().insert(agent, (session, load));
    }

    /// A connection ended. What a newer one said stays.
    pub(super) fn forget(&self, agent: AgentId, session: SessionId) {
        let mut known = self.lock();
        if known.get(&agent).is_some_and(|(of, _)| *of == session) {
            known.remove(&agent);
        }
    }

    /// None: it said nothing, or is not connected.
    pub(super) fn of(&self, agent: AgentId) -> Option<v1::Load> {
        self.lock().get(&agent).map(|(_, load)| *load)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentId, (SessionId, v1::Load)>> {
        // Every change under this lock is one map operation; there is no half-made state to fear.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_old_connection_takes_nothing_from_the_new_one() {
        let loads = Loads::default();
        let (agent, old, new) = (AgentId(1), SessionId(1), SessionId(2));
        loads.set(agent, old, v1::Load { load_milli: 1, ..v1::Load::default() });
        loads.set(agent, new, v1::Load { load_milli: 2, ..v1::Load::default() });
        loads.forget(agent, old);
        assert_eq!(loads.of(agent).map(|load| load.load_milli), Some(2));
        loads.forget(agent, new);
        assert_eq!(loads.of(agent), None);
    }
}
