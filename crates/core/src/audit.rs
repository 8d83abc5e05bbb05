//! What was done and what was refused, by whom: records of which each holds the hash of the one before it.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::{
    access::{Caller, Digest, Who},
    time::Timestamp,
};

/// Records that share one piece. A change rewrites the newest piece, so that few are cheap alone and some are cheap together.
pub const BLOCK: u64 = 16;
/// Texts of people are kept up to this many characters.
const TEXT_MAX: usize = 256;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Grows by one.
    pub n: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: Who,
    /// From where.
    pub peer: Arc<str>,
    /// What they asked for: `submit`, `token.create`, ...
    pub action: Arc<str>,
    /// Of what: a job's number, a queue's name, a token's id.
    pub object: Arc<str>,
    /// Whether they got it.
    pub outcome: Outcome,
    /// More words: why it was asked for, or why it was refused.
    pub detail: Arc<str>,
    /// So many refused calls before this one were counted and not recorded, because there were too many.
    pub uncounted: u64,
    /// Of the record before it; zeros: it is the first.
    pub before: Digest,
}

/// Neighbours, under one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// In order.
    pub records: Vec<Record>,
}

/// Something to be recorded.
#[derive(Clone, Debug)]
pub struct Note {
    /// Who.
    pub caller: Arc<Caller>,
    /// See [`Record`].
    pub action: Arc<str>,
    /// See [`Record`].
    pub object: Arc<str>,
    /// See [`Record`].
    pub outcome: Outcome,
    /// See [`Record`].
    pub detail: Arc<str>,
    /// See [`Record`].
    pub uncounted: u64,
}

impl Note {
    /// Something that was done.
    pub fn done(caller: &Arc<Caller>, action: &str, object: &str, detail: &str) -> Self {
        Self {
            caller: Arc::clone(caller),
            action: action.into(),
            object: shorten(object),
            outcome: Outcome::Done,
            detail: shorten(detail),
            uncounted: 0,
        }
    }

    /// Something that was refused.
    pub fn refused(caller: &Arc<Caller>, action: &str, object: &str, why: &str) -> Self {
        Self { outcome: Outcome::Refused, ..Self::done(caller, action, object, why) }
    }
}

/// A text that nobody can fill the store with.
fn shorten(text: &str) -> Arc<str> {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()).into(),
        None => text.into(),
    }
}

impl Record {
    /// The hash that the next record holds. Each text is preceded by its length, so that no two records share one.
    pub fn digest(&self) -> Digest {
        let (kind, id) = match &self.who {
            Who::Anonymous => (0, ""),
            Who::Token { id, .. } => (1, &**id),
            Who::Agent(_) => (2, ""),
            Who::Controller(_) => (3, ""),
            Who::Muster => (4, ""),
        };
        let outcome = match self.outcome {
            Outcome::Done => 0,
            Outcome::Refused => 1,
        };
        let mut hash = Sha256::new();
        hash.update(b"muster audit 1\n");
        hash.update(self.before);
        for number in [self.n, self.at.0, kind, outcome, self.uncounted] {
            hash.update(number.to_be_bytes());
        }
        for text in [id, self.who.name(), &self.peer, &self.action, &self.object, &self.detail] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize().into()
    }
}

/// Where the records do not hold together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Some are not there.
    Missing {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// Numbers that do not grow by one.
    Misnumbered {
        /// The older one.
        older: u64,
        /// The one after it.
        newer: u64,
    },
    /// A record is not the one whose hash the next one holds.
    Changed {
        /// Which.
        n: u64,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { first, last } if first == last => write!(f, "record {first} is missing"),
            Self::Missing { first, last } => write!(f, "records {first} to {last} are missing"),
            Self::Misnumbered { older, newer } => write!(f, "record {newer} stands right after record {older}"),
            Self::Changed { n } => {
                write!(f, "record {n} was changed: record {} holds another hash of it", n.saturating_add(1))
            }
        }
    }
}

/// Whether `newer` is the record that was made right after `older`, and `older` is as it was then.
///
/// # Errors
/// It is not.
pub fn follows(older: &Record, newer: &Record) -> Result<(), Broken> {
    match newer.n.checked_sub(older.n) {
        Some(1) if newer.before == older.digest() => Ok(()),
        Some(1) => Err(Broken::Changed { n: older.n }),
        None | Some(0) => Err(Broken::Misnumbered { older: older.n, newer: newer.n }),
        Some(_) => Err(Broken::Missing { first: older.n.saturating_add(1), last: newer.n.saturating_sub(1) }),
    }
}

/// Whether all records hold together, oldest first.
///
/// # Errors
/// The first place where they do not.
pub fn verify<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<(), Broken> {
    let mut older: Option<&Record> = None;
    for newer in records {
        if let Some(older) = older {
            follows(older, newer)?;
        }
        older = Some(newer);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: u64) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for n in 1..=count {
            let before = records.last().map_or([0; 32], Record::digest);
            let who = Who::Token { id: "a1".into(), name: "ops".into() };
            let (peer, action, object) = ("10.0.0.1:5".into(), "cancel".into(), n.to_string().into());
            let (outcome, detail) = (Outcome::Done, "why".into());
            let at = Timestamp(n);
            records.push(Record { n, at, who, peer, action, object, outcome, detail, uncounted: 0, before });
        }
        records
    }

    #[test]
    fn a_chain_that_nobody_touched_holds() {
        assert_eq!(verify(&chain(40)), Ok(()));
        assert_eq!(verify(&[]), Ok(()));
        // Its oldest part may be pruned away.
        assert_eq!(verify(&chain(40)[16..]), Ok(()));
    }

    #[test]
    fn every_field_that_is_changed_is_told() {
        type Change = (&'static str, fn(&mut Record));
        let changes: [Change; 9] = [
            ("time", |record| record.at.0 += 1),
            ("who", |record| record.who = Who::Token { id: "a1".into(), name: "eve".into() }),
            ("id", |record| record.who = Who::Token { id: "a2".into(), name: "ops".into() }),
            ("kind", |record| record.who = Who::Agent("ops".into())),
            ("peer", |record| record.peer = "10.0.0.2:5".into()),
            ("action", |record| record.action = "retry".into()),
            ("object", |record| record.object = "".into()),
            ("outcome", |record| record.outcome = Outcome::Refused),
            // The end of one text is not the beginning of the next.
            ("shift", |record| (record.action, record.object) = ("cance".into(), format!("l{}", record.n).into())),
        ];
        for (what, change) in changes {
            let mut records = chain(9);
            change(&mut records[4]);
            assert_eq!(verify(&records), Err(Broken::Changed { n: 5 }), "{what}");
        }
    }

    #[test]
    fn records_that_are_gone_or_out_of_order_are_told() {
        let mut records = chain(9);
        records.drain(3..6);
        assert_eq!(verify(&records), Err(Broken::Missing { first: 4, last: 6 }));
        let mut records = chain(9);
        records.swap(3, 4);
        assert_eq!(verify(&records), Err(Broken::Missing { first: 4, last: 4 }));
        let mut records = chain(3);
        records[2] = records[1].clone();
        assert_eq!(verify(&records), Err(Broken::Misnumbered { older: 2, newer: 2 }));
    }

    #[test]
    fn a_long_text_of_a_person_is_cut() {
        let caller = Arc::new(Caller::anonymous(""));
        let note = Note::done(&caller, "cancel", "17", &"ä".repeat(100_000));
        assert_eq!(note.detail.chars().count(), TEXT_MAX + 1);
    }
}
