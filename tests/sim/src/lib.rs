//! Seeded simulation: the real core behind the real gate, the real agent supervisor, and a world that
//! crashes, delays, repeats and forgets. A seed decides everything; the same seed is the same run.

pub mod agent;
mod clocks;
pub mod controller;
mod faults;
mod machine;
mod network;
mod people;
pub mod rng;
mod takeover;
pub mod witness;
pub mod workload;
mod world;

pub use world::{Outcome, World, run};
