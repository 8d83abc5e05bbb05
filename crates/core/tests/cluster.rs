//! The life of jobs through the one door of `core`, event by event. Every step is followed by all
//! invariants.

mod kit;

#[path = "cluster/access.rs"]
mod access;
#[path = "cluster/agents.rs"]
mod agents;
#[path = "cluster/deps.rs"]
mod deps;
#[path = "cluster/ends.rs"]
mod ends;
#[path = "cluster/fleet.rs"]
mod fleet;
#[path = "cluster/fleet_life.rs"]
mod fleet_life;
#[path = "cluster/identity.rs"]
mod identity;
#[path = "cluster/memory.rs"]
mod memory;
#[path = "cluster/people.rs"]
mod people;
#[path = "cluster/place.rs"]
mod place;
#[path = "cluster/restart.rs"]
mod restart;
