//! Owns the processes. The door: orders in, events out.

mod order;

pub use order::{ExecEvent, KillReason, Leftover, Order, ProcessIdentity, Swept};
