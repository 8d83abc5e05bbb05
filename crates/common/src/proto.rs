//! The protocol `muster.v1`, as `cargo xtask proto` generates it, and its descriptors for the reflection service.

use std::fmt;

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

impl fmt::Debug for v1::CreateTokenReply {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenReply").field("view", &self.view).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::MakeJoinTokenReply {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MakeJoinTokenReply").field("expires_us", &self.expires_us).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::EnrolRequest {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The encoded descriptors of every file of the protocol.
pub const DESCRIPTORS: &[u8] = include_bytes!("proto/muster.v1.bin");

/// The newest version of the agent protocol that this build speaks.
///
/// 3: an agent says in a running session that its machine offers something else (`Offer`), and how it is (`Load`). 2: both sides say the oldest that they understand as well, and the newest that both know is spoken, so that either may
/// be upgraded first; an agent says that it stops (`Draining`) and names the task whose inputs it fetches; tasks may go on
/// through a partition. 1 has none of that.
pub const PROTOCOL: u32 = 3;

/// The oldest version that this build understands: the one before, so that one after another can be upgraded.
pub const OLDEST_PROTOCOL: u32 = PROTOCOL - 1;

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn messages_that_hold_a_secret_do_not_show_it() {
        let secret = || "hunter2".to_owned();
        let made = v1::CreateTokenReply { token: secret(), ..Default::default() };
        let join = v1::MakeJoinTokenReply { token: secret(), ..Default::default() };
        let enrol = v1::EnrolRequest { secret: secret(), ..Default::default() };
        let shown = format!("{made:?} {join:?} {enrol:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
