//! What an operator may set about deciding.

use std::time::Duration;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// An agent that is silent for this long ends its attempts itself (A1).
    pub lease_ttl: Duration,
    /// How much longer the controller waits before it gives them to another.
    pub lease_margin: Duration,
    /// A task that was lost with its agent this often is not tried again: it may be what kills them.
    pub losses_max: u16,
    /// How long finished jobs are kept.
    pub retention: Duration,
    /// Where a task goes when several agents have room.
    pub placement: Placement,
    /// Audit records that are kept; whole blocks of them go, so that there may be some more.
    pub audit_keep: u64,
    /// How long audit records are kept.
    pub audit_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(15),
            lease_margin: Duration::from_secs(3),
            losses_max: 5,
            retention: Duration::from_secs(30 * 24 * 3600),
            placement: Placement::Pack,
            // A few hundred bytes each, in memory and in the store.
            audit_keep: 50_000,
            audit_age: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// Where a task goes when several agents have room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The fullest agent that has room, so that large tasks find an empty one.
    #[default]
    Pack,
    /// The emptiest, so that tasks disturb one another least.
    Spread,
}
