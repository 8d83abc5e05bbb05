//! Which GPUs each attempt has. Two attempts never share one, and one comes back only when its slot does (A3).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_core::id::Token;

/// The GPUs of this machine by their indices.
#[derive(Debug, Default)]
pub struct Slots {
    all: BTreeSet<u32>,
    taken: BTreeMap<Token, Arc<[u32]>>,
}

impl Slots {
    /// These, all of them free.
    pub fn new(all: impl IntoIterator<Item = u32>) -> Self {
        Self { all: all.into_iter().collect(), taken: BTreeMap::new() }
    }

    /// The machine has these now. What is taken stays with whom it was given to.
    pub fn set(&mut self, all: impl IntoIterator<Item = u32>) {
        self.all = all.into_iter().collect();
    }

    /// Gives an attempt so many, the lowest that are free; none: there are not enough.
    pub fn take(&mut self, token: Token, count: u64) -> Option<Arc<[u32]>> {
        if let Some(given) = self.taken.get(&token) {
            return Some(Arc::clone(given));
        }
        let taken: BTreeSet<u32> = self.taken.values().flat_map(|given| given.iter().copied()).collect();
        let count = usize::try_from(count).ok()?;
        let given: Arc<[u32]> = self.all.difference(&taken).copied().take(count).collect();
        if given.len() < count {
            return None;
        }
        if count > 0 {
            self.taken.insert(token, Arc::clone(&given));
        }
        Some(given)
    }

    /// An attempt that goes on from an earlier instance has these.
    pub fn keep(&mut self, token: Token, given: Vec<u32>) {
        if !given.is_empty() {
            self.taken.insert(token, given.into());
        }
    }

    /// Which an attempt has.
    pub fn of(&self, token: Token) -> Vec<u32> {
        self.taken.get(&token).map(|given| given.to_vec()).unwrap_or_default()
    }

    /// The attempt is over and nothing of it is left.
    pub fn free(&mut self, token: Token) {
        self.taken.remove(&token);
    }

    /// Whether there are any to give.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// The GPUs that a process of ours was given, by its environment: how those of an earlier instance are known again.
pub fn of_process(pid: u32) -> Vec<u32> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let found = bytes.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"MUSTER_GPUS="));
    let text = String::from_utf8_lossy(found.unwrap_or_default());
    text.split(',').filter_map(|index| index.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_free_ones_are_given_and_come_back() {
        let mut slots = Slots::new([0, 1, 3]);
        let take = |slots: &mut Slots, token, n| slots.take(Token(token), n).map(|given| given.to_vec());
        assert_eq!(take(&mut slots, 1, 2), Some(vec![0, 1]));
        assert_eq!(take(&mut slots, 1, 2), Some(vec![0, 1]), "the same for the same");
        assert_eq!(take(&mut slots, 2, 2), None);
        assert_eq!(take(&mut slots, 3, 0), Some(vec![]));
        assert_eq!(take(&mut slots, 2, 1), Some(vec![3]));
        slots.free(Token(1));
        slots.keep(Token(9), vec![1]);
        assert_eq!(take(&mut slots, 4, 1), Some(vec![0]));
        assert_eq!(take(&mut slots, 5, 1), None);
        slots.set([7]);
        assert_eq!(take(&mut slots, 5, 1), Some(vec![7]));
    }

    proptest! {
        #[test]
        fn two_never_share_one(steps in prop::collection::vec((0..8_u64, 0..4_u64, any::<bool>()), 0..60)) {
            let mut slots = Slots::new(0..6);
            let mut held: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
            for (token, count, take) in steps {
                if take && !held.contains_key(&token) {
                    if let Some(given) = slots.take(Token(token), count) {
                        prop_assert_eq!(given.len() as u64, count);
                        held.insert(token, given.to_vec());
                    }
                } else {
                    slots.free(Token(token));
                    held.remove(&token);
                }
                let all: Vec<u32> = held.values().flatten().copied().collect();
                let distinct: BTreeSet<u32> = all.iter().copied().collect();
                prop_assert_eq!(all.len(), distinct.len());
            }
        }
    }
}
