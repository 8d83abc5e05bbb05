//! The doors as their users see them: real servers and clients over loopback, a real engine, a store in memory.

mod access;
mod agents;
mod audit;
mod exec;
mod fleet;
mod logs;
mod people;
mod rig;
