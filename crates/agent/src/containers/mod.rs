//! Runs attempts in containers, by the engine of the machine: what it is told, and what is removed behind it.
//!
//! The engine's own process is the attempt's process. The container is in the attempt's cgroups (Podman), or below them
//! (Docker), so that limits, accounts and the proven end are those of every attempt; nothing here starts or ends one.

mod arguments;
mod docker;
mod engine;
mod folders;
#[cfg(unix)]
mod mounts;
mod podman;
mod removal;
mod settings;
mod visitor;

#[cfg(test)]
pub(crate) use self::docker::State;
pub(crate) use self::{
    arguments::{Plan, Seen},
    docker::Told,
    engine::Kind,
    folders::Folders,
    removal::Removal,
    visitor::Visitor,
};
pub use self::{
    engine::{Engine, Error},
    settings::{Allowed, Choice, Pull, Settings},
};

/// Threads of the engine's own beside those of the task: they count against `pids`, and are not the task's.
pub(crate) const OWN_PIDS: u64 = 48;
