//! What work is and how it may change. Pure and deterministic: no clock, no randomness, no I/O.

pub mod cluster;
pub mod event;
pub mod gate;
pub mod id;
pub mod record;
pub mod requires;
pub mod resources;
pub mod spec;
pub mod state;
pub mod time;
pub mod validate;
