//! Who machines are: the authority that signs for them, the tokens with which they join, and those that joined.
//!
//! Knows no certificate: keys and secrets are bytes and hashes here.

use std::{fmt, sync::Arc};

use crate::time::Timestamp;

/// A secret or a key by its SHA-256, in hexadecimal.
pub type Hash = Arc<str>;

/// The name of one piece of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Who signs.
    Authority,
    /// A join token, by the hash of its secret.
    Join(Hash),
    /// An agent that was enrolled, by its name.
    Machine(Arc<str>),
}

/// One piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// See [`Name::Authority`].
    Authority(Arc<Authority>),
    /// See [`Name::Join`].
    Join(Arc<Join>),
    /// See [`Name::Machine`].
    Machine(Arc<Machine>),
}

/// Who signs every certificate of an installation.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate, DER.
    pub certificate: Arc<[u8]>,
    /// Its key, PKCS#8 DER.
    pub key: Arc<[u8]>,
    /// When it was made.
    pub made: Timestamp,
}

impl fmt::Debug for Authority {
    /// Never the key: what is printed ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("made", &self.made).finish_non_exhaustive()
    }
}

/// A token with which agents join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Of its secret.
    pub hash: Hash,
    /// The one agent that may use it; empty: any.
    pub agent: Arc<str>,
    /// It is refused from then on.
    pub expires: Timestamp,
    /// How many agents it may enrol.
    pub uses: u32,
    /// The keys that were enrolled with it.
    pub keys: Vec<Hash>,
    /// When it was made.
    pub made: Timestamp,
    /// By whom.
    pub by: Arc<str>,
}

/// An agent that was enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What it is called.
    pub name: Arc<str>,
    /// The number of its data folder.
    pub uid: Arc<str>,
    /// Grows with each enrolment; certificates of another generation are refused.
    pub generation: u64,
    /// The key that it enrolled with.
    pub key: Hash,
    /// Refused until it is enrolled again.
    pub revoked: bool,
    /// When it was enrolled last.
    pub enrolled: Timestamp,
    /// When this record last changed.
    pub changed: Timestamp,
}

/// What may be done.
#[derive(Clone, Debug)]
pub enum Change {
    /// An authority, for an installation that has none. The answer is the one that counts.
    Found(Authority),
    /// A new join token.
    Invite(Join),
    /// An agent joins.
    Enrol(Enrolment),
    /// An agent is refused from now on.
    Revoke {
        /// Its name.
        name: Arc<str>,
    },
}

/// An agent that joins.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Of the token's secret.
    pub hash: Hash,
    /// What it is called.
    pub name: Arc<str>,
    /// The number of its data folder.
    pub uid: Arc<str>,
    /// Its key.
    pub key: Hash,
}

/// What a caller is told, once it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `Found`: the authority of the installation, this one or an earlier one.
    Authority(Arc<Authority>),
    /// To `Invite`.
    Invited,
    /// To `Enrol`: what its certificate must say.
    Enrolled {
        /// See [`Machine::generation`].
        generation: u64,
    },
    /// To `Revoke`.
    Revoked {
        /// It was before.
        already: bool,
    },
}
