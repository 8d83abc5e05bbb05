//! The order of things: one task that owns all state, takes events, commits what they changed, and only then acts.
//!
//! There is no second writer and no second path (C1, C2, C3).

mod handle;

use muster_core::event::Refusal;

pub use self::handle::Handle;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// It was looked at and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody knows what became of it; ask again, with the same key if it has one.
    #[error("unavailable: {0}")]
    Unavailable(String),
}
