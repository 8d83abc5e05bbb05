//! What work is and how it may change. Pure and deterministic: no clock, no randomness, no I/O.

pub mod access;
mod agent;
pub mod audit;
mod backoff;
pub mod cluster;
mod config;
pub mod container;
pub mod event;
pub mod fleet;
pub mod gate;
pub mod id;
pub mod identity;
pub mod mutant;
mod ready;
pub mod record;
pub mod requires;
pub mod resources;
pub mod run_as;
pub mod spec;
pub mod state;
pub mod time;
pub mod usage;
pub mod validate;
