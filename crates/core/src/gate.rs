//! The gate between deciding and doing (C1): what follows from a change is held until the commit
//! that carries the change is confirmed. At most one commit is in flight; all that is decided
//! meanwhile goes out as the next one.

use std::collections::BTreeSet;

use crate::{mutant, record::Key};

/// Holds `H` (effects, replies) until their commit. Pure: the engine and the simulation use the
/// same one.
#[derive(Debug)]
pub struct Gate<H> {
    gathering: Batch<H>,
    in_flight: Option<Batch<H>>,
}

#[derive(Debug)]
struct Batch<H> {
    keys: BTreeSet<Key>,
    held: Vec<H>,
}

impl<H> Default for Batch<H> {
    fn default() -> Self {
        Self { keys: BTreeSet::new(), held: Vec::new() }
    }
}

impl<H> Default for Gate<H> {
    fn default() -> Self {
        Self { gathering: Batch::default(), in_flight: None }
    }
}

impl<H> Gate<H> {
    /// Takes the keys that changed. What is `hold` afterwards waits for them.
    pub fn changed(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.gathering.keys.extend(keys);
    }

    /// Holds `item` until all that changed before it is committed; gives it back at once if
    /// nothing is open.
    #[must_use = "an item that comes back must be acted on now"]
    pub fn hold(&mut self, item: H) -> Option<H> {
        if mutant::is_on("gate-open") {
            return Some(item);
        }
        let batch = if self.gathering.keys.is_empty() { self.in_flight.as_mut() } else { Some(&mut self.gathering) };
        match batch {
            Some(batch) => {
                batch.held.push(item);
                None
            }
            None => Some(item),
        }
    }

    /// Starts the next commit: the keys it must carry, as they are now. `None` while one is in
    /// flight or nothing changed.
    pub fn begin(&mut self) -> Option<BTreeSet<Key>> {
        if self.in_flight.is_some() || self.gathering.keys.is_empty() {
            return None;
        }
        let mut batch = std::mem::take(&mut self.gathering);
        let keys = std::mem::take(&mut batch.keys);
        self.in_flight = Some(batch);
        Some(keys)
    }

    /// The commit in flight is durable: what it held, in the order in which it came.
    pub fn confirmed(&mut self) -> Vec<H> {
        self.in_flight.take().map(|batch| batch.held).unwrap_or_default()
    }

    /// The commit was refused or its outcome is unknown: everything held, in flight or gathering,
    /// to be answered with an error and never acted on (C3).
    pub fn broken(&mut self) -> Vec<H> {
        let mut held = self.confirmed();
        held.append(&mut std::mem::take(&mut self.gathering).held);
        held
    }

    /// Whether a commit is in flight.
    pub fn is_committing(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether nothing waits for anything.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.gathering.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::JobId;

    fn key(n: u64) -> Key {
        Key::Job(JobId(n))
    }

    #[test]
    fn what_needs_no_commit_goes_at_once() {
        let mut gate = Gate::default();
        assert_eq!(gate.hold("ack"), Some("ack"));
        assert_eq!(gate.begin(), None);
    }

    #[test]
    fn an_effect_waits_for_the_commit_of_the_change_before_it() {
        let mut gate = Gate::default();
        gate.changed([key(1)]);
        assert_eq!(gate.hold("lease"), None);
        assert_eq!(gate.begin(), Some(BTreeSet::from([key(1)])));
        assert_eq!(gate.confirmed(), vec!["lease"]);
        assert!(gate.is_idle());
    }

    #[test]
    fn what_changed_during_a_commit_waits_for_the_next_one() {
        let mut gate = Gate::default();
        gate.changed([key(1)]);
        assert_eq!(gate.hold("first"), None);
        assert!(gate.begin().is_some());
        gate.changed([key(2)]);
        assert_eq!(gate.hold("second"), None);
        assert_eq!(gate.begin(), None, "one commit at a time");
        assert_eq!(gate.confirmed(), vec!["first"]);
        assert_eq!(gate.begin(), Some(BTreeSet::from([key(2)])));
        assert_eq!(gate.confirmed(), vec!["second"]);
    }

    #[test]
    fn an_answer_about_state_in_flight_waits_for_that_commit() {
        let mut gate = Gate::default();
        gate.changed([key(1)]);
        assert!(gate.begin().is_some());
        assert_eq!(gate.hold("duplicate of job 1"), None);
        assert_eq!(gate.confirmed(), vec!["duplicate of job 1"]);
    }

    #[test]
    fn a_broken_commit_gives_up_everything_that_was_held() {
        let mut gate = Gate::default();
        gate.changed([key(1)]);
        assert_eq!(gate.hold(1), None);
        assert!(gate.begin().is_some());
        gate.changed([key(2)]);
        assert_eq!(gate.hold(2), None);
        assert_eq!(gate.broken(), vec![1, 2]);
        assert!(gate.is_idle());
    }
}
