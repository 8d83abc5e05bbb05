//! The protocol `muster.v1`, as `cargo xtask proto` generates it, and its descriptors for the reflection service.

/// Messages, clients and servers of `muster.v1`.
#[allow(missing_docs, unreachable_pub, reason = "generated from the commented .proto files")]
#[allow(
    clippy::all,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated"
)]
pub mod v1 {
    include!("proto/muster.v1.rs");
}

/// The encoded descriptors of every file of the protocol.
pub const DESCRIPTORS: &[u8] = include_bytes!("proto/muster.v1.bin");

/// The version of the agent protocol that this build speaks; N-1 is accepted.
pub const PROTOCOL: u32 = 1;
