//! All that a store holds as it lies there: the same bytes in every kind of store, to be carried from one to another.

use std::cmp::Ordering;

use muster_common::wire::{self, record};
use muster_core::{
    id::Term,
    record::{Key, Piece},
};

/// All records of a store at one commit, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The highest term that anybody can have seen by then.
    pub term: Term,
    /// Key and value, in order of keys, no key twice.
    pub all: Vec<(String, Vec<u8>)>,
}

/// What makes one store like another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// This key has this value.
    Put(&'a str, &'a [u8]),
    /// There is no such key.
    Delete(&'a str),
}

impl Records {
    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.all.iter().map(|(_, value)| value.len() as u64).sum()
    }

    /// What they mean.
    ///
    /// # Errors
    /// One is damaged, or a newer Muster wrote it.
    pub fn pieces(&self) -> Result<Vec<(Key, Piece)>, wire::Error> {
        let piece = |(name, value): &(String, Vec<u8>)| {
            let key = record::parse_key(name.as_bytes())?;
            let piece = record::decode(&key, value)?;
            Ok((key, piece))
        };
        self.all.iter().map(piece).collect()
    }

    /// What must be done to a store that holds these so that it holds `after`.
    pub fn changes<'a>(&'a self, after: &'a Self) -> Vec<Change<'a>> {
        let (mut old, mut new) = (self.all.iter().peekable(), after.all.iter().peekable());
        let mut changes = Vec::new();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((before, _)), Some((after, _))) => before.cmp(after),
            };
            let before = if order == Ordering::Greater { None } else { old.next() };
            let after = if order == Ordering::Less { None } else { new.next() };
            match (before, after) {
                (Some((_, before)), Some((_, value))) if before == value => {}
                (_, Some((key, value))) => changes.push(Change::Put(key, value)),
                (Some((key, _)), None) => changes.push(Change::Delete(key)),
                (None, None) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn records(all: &BTreeMap<String, Vec<u8>>) -> Records {
        Records { term: Term(1), all: all.iter().map(|(key, value)| (key.clone(), value.clone())).collect() }
    }

    proptest! {
        #[test]
        fn what_the_changes_make_of_one_is_the_other(
            before in proptest::collection::btree_map("[a-d]{1,2}", proptest::collection::vec(0_u8..3, 0..2), 0..12),
            after in proptest::collection::btree_map("[a-d]{1,2}", proptest::collection::vec(0_u8..3, 0..2), 0..12),
        ) {
            let (old, new) = (records(&before), records(&after));
            let mut made = before.clone();
            for change in old.changes(&new) {
                match change {
                    Change::Put(key, value) => prop_assert_ne!(made.insert(key.to_owned(), value.to_vec()), Some(value.to_vec())),
                    Change::Delete(key) => prop_assert!(made.remove(key).is_some()),
                }
            }
            prop_assert_eq!(made, after);
        }
    }
}
