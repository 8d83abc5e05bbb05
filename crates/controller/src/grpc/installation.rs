//! The installation as a whole: who leads, who stands by, and how the store is.

use muster_common::proto::{OLDEST_PROTOCOL, PROTOCOL, v1};

use crate::grpc::Parts;

/// What is told of it.
pub(super) fn status(parts: &Parts, started_us: u64) -> v1::StatusReply {
    let members = parts.members.borrow().clone();
    v1::StatusReply { info: Some(info(parts, started_us)), members, store: Some((parts.gauge)()) }
}

/// What is told of the controller that leads.
pub(super) fn info(parts: &Parts, started_us: u64) -> v1::InfoReply {
    v1::InfoReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        term: parts.handle.term().0,
        started_us,
        now_us: parts.clock.wall().0,
        store: parts.store.clone(),
        protocol: PROTOCOL,
        oldest_protocol: OLDEST_PROTOCOL,
    }
}
