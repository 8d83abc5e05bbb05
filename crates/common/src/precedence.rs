//! Daemons before tasks: whoever keeps leases or renews them gets a processor at once, however many tasks want one.
//!
//! Where daemons stand in cgroups, these say so. Where they stand in the root of the tree, Linux shares
//! processors between sessions (autogroups, `sched(7)`), and a session that mostly sleeps may wait for a second behind
//! hundreds of tasks.

#[cfg(target_os = "linux")]
use nix::unistd::{getpid, getsid};
#[cfg(target_os = "linux")]
use tracing::debug;

/// What the kernel tells and takes of a session's share.
#[cfg(target_os = "linux")]
const FILE: &str = "/proc/self/autogroup";
/// About ten times the weight of another session.
#[cfg(target_os = "linux")]
const NICE: &str = "-10";

/// Takes precedence for the session of this process, if it leads one and nobody gave that a share of its own. A terminal's
/// session is its user's, and stays as it is.
#[cfg(target_os = "linux")]
pub fn take() {
    let Ok(text) = std::fs::read_to_string(FILE) else { return };
    if getsid(None) != Ok(getpid()) || !text.trim_end().ends_with(" nice 0") {
        return;
    }
    if let Err(error) = std::fs::write(FILE, NICE) {
        debug!(%error, "this daemon gets no larger share of the processors than tasks on this machine");
    }
}

/// Elsewhere nothing is done.
#[cfg(not(target_os = "linux"))]
pub fn take() {}
