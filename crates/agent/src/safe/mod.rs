//! The process that outlives a keeper's sudden death, with all that the next one needs to go on: open files, records, and
//! how those ended whose parent the keeper was.
//!
//! It is started in the keeper's place, starts the keeper, and is its guard ([`crate::exec::guard`] says what for). What is
//! put into it is opaque to it. It has no runtime and no threads, and does nothing but keep, so that it has no reason to die.

mod client;
mod life;
mod message;
mod post;
mod store;

use std::{fs::File, os::fd::OwnedFd, sync::Arc, time::Duration};

pub(crate) use self::client::take_over;
pub use self::{client::Safe, life::main};

/// The key of what belongs to no attempt.
pub(crate) const COMMON: u64 = 0;
/// What a safe does within this, or not at all.
const LIMIT: Duration = Duration::from_secs(10);

/// What a keeper finds when it begins.
pub(crate) struct Heritage {
    pub(crate) safe: Safe,
    /// Marks all processes of this keeper and of those before it.
    pub(crate) cookie: Arc<str>,
    /// How many keepers this safe had before.
    pub(crate) generation: u32,
    pub(crate) entries: Vec<Entry>,
    /// The folder's lock, which holds for as long as one of us has it open.
    pub(crate) lock: Option<File>,
}

/// What was put into the safe under one key.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: u64,
    /// What does not change.
    pub(crate) record: Vec<u8>,
    /// What was noted last; empty: nothing was.
    pub(crate) note: Vec<u8>,
    /// In the order in which they were put; none: it was closed.
    pub(crate) files: Vec<Option<OwnedFd>>,
}
