//! Who may do what: roles, tokens, callers. Secrets never come here, only their digests.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{mutant, time::Timestamp};

/// SHA-256 of something.
pub type Digest = [u8; 32];

/// What somebody may do. Each of the first three may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees.
    Viewer,
    /// Submits, cancels, tries again.
    Operator,
    /// Changes the installation: queues, tokens, and what is beside work.
    Admin,
    /// Is a machine that runs tasks, and nothing else.
    Agent,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Admin, Self::Agent];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Agent => "agent",
        }
    }

    /// Whether it may do what `needed` may.
    pub fn allows(self, needed: Self) -> bool {
        let rank = |role| match role {
            Self::Viewer => Some(0),
            Self::Operator => Some(1),
            Self::Admin => Some(2),
            // People do not speak for machines, nor machines for people.
            Self::Agent => None,
        };
        match (rank(self), rank(needed)) {
            (Some(own), Some(needed)) => own >= needed,
            (None, None) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is no role; known are viewer, operator, admin, agent"))
    }
}

/// When callers must say who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Never: a system of one person in one process.
    Never,
    /// From the moment at which the first token exists.
    #[default]
    WithTokens,
    /// From the start.
    Always,
}

/// The work that somebody sees and touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All of it.
    #[default]
    All,
    /// That of these queues. Other work does not exist, as far as they are told.
    Queues(Arc<[Arc<str>]>),
}

impl Reach {
    /// From a list; an empty one is no limit.
    pub fn of(queues: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut queues: Vec<Arc<str>> = queues.into_iter().collect();
        queues.sort();
        queues.dedup();
        if queues.is_empty() { Self::All } else { Self::Queues(queues.into()) }
    }

    /// Whether work of this queue is within it.
    pub fn covers(&self, queue: &str) -> bool {
        match self {
            Self::All => true,
            Self::Queues(queues) => mutant::is_on("reach-ignored") || queues.iter().any(|known| **known == *queue),
        }
    }

    /// The queues; none: no limit.
    pub fn queues(&self) -> &[Arc<str>] {
        match self {
            Self::All => &[],
            Self::Queues(queues) => queues,
        }
    }
}

/// Who asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Nobody said who they are, and nobody had to.
    Anonymous,
    /// The holder of a token.
    Token {
        /// Which.
        id: Arc<str>,
        /// What it is called.
        name: Arc<str>,
    },
    /// A machine, by its certificate.
    Agent(Arc<str>),
    /// Another controller, by its certificate.
    Controller(Arc<str>),
    /// The controller itself.
    Muster,
}

impl Who {
    /// The name, for people.
    pub fn name(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Token { name, .. } | Self::Agent(name) | Self::Controller(name) => name,
            Self::Muster => "muster",
        }
    }
}

/// Who asks, from where, and what they see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub who: Who,
    /// The address that the call came from; empty: not known.
    pub peer: Arc<str>,
    /// Which work there is for them.
    pub reach: Reach,
}

impl Caller {
    /// Somebody who said nothing of themselves where nobody has to.
    pub fn anonymous(peer: impl Into<Arc<str>>) -> Self {
        Self { who: Who::Anonymous, peer: peer.into(), reach: Reach::All }
    }
}

/// A token as it is kept: all of it but the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The part of it that may be shown.
    pub id: Arc<str>,
    /// What a person calls it.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// On which work.
    pub reach: Reach,
    /// Of the secret.
    pub digest: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it.
    pub created_by: Arc<str>,
    /// From when on it is worth nothing; never: it does not expire.
    pub expires: Timestamp,
    /// When it was revoked; never: it was not.
    pub revoked: Timestamp,
}

impl Token {
    /// Whether it is good at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked.is_never() && (self.expires.is_never() || now < self.expires)
    }
}

/// A token that is to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// See [`Token`].
    pub id: Arc<str>,
    /// See [`Token`].
    pub name: Arc<str>,
    /// See [`Token`].
    pub role: Role,
    /// See [`Token`].
    pub reach: Reach,
    /// See [`Token`].
    pub digest: Digest,
    /// Who makes it.
    pub by: Arc<str>,
    /// See [`Token`].
    pub expires: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_do_what_lower_ones_may_and_machines_are_apart() {
        use Role::{Admin, Agent, Operator, Viewer};
        let table = [
            (Viewer, [true, false, false, false]),
            (Operator, [true, true, false, false]),
            (Admin, [true, true, true, false]),
            (Agent, [false, false, false, true]),
        ];
        for (role, expected) in table {
            assert_eq!(Role::ALL.map(|needed| role.allows(needed)), expected, "{role}");
        }
    }

    #[test]
    fn a_role_is_read_by_its_name_only() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        for odd in ["", "Admin", "root"] {
            assert!(odd.parse::<Role>().is_err_and(|error| error.contains("known are viewer")), "{odd}");
        }
    }

    #[test]
    fn a_reach_covers_its_queues_and_no_other() {
        let reach = Reach::of(["b".into(), "a".into(), "b".into()]);
        assert_eq!(reach.queues().len(), 2);
        assert_eq!(["a", "b", "c", ""].map(|queue| reach.covers(queue)), [true, true, false, false]);
        assert!(Reach::of([]).covers("c"));
    }

    #[test]
    fn a_token_lives_until_it_expires_or_is_revoked() {
        let token = |expires, revoked| Token {
            id: "i".into(),
            name: "n".into(),
            role: Role::Viewer,
            reach: Reach::All,
            digest: [0; 32],
            created: Timestamp(1),
            created_by: "".into(),
            expires: Timestamp(expires),
            revoked: Timestamp(revoked),
        };
        let cases = [(0, 0, true), (11, 0, true), (10, 0, false), (9, 0, false), (0, 5, false), (11, 20, false)];
        for (expires, revoked, live) in cases {
            assert_eq!(token(expires, revoked).is_live(Timestamp(10)), live, "{expires} {revoked}");
        }
    }
}
