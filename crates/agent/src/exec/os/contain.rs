//! Linux: ends everybody in an attempt's cgroups, and looks until nobody is left.

use std::{collections::BTreeSet, time::Duration};

use muster_common::clock::Clock;
use nix::sys::signal::Signal;

use super::{
    Survivor,
    proc::Stat,
    unix::{Leader, signal_members},
};
use crate::cgroup::Slot;

/// Between two looks; a kill takes effect within about a millisecond.
const PAUSE: Duration = Duration::from_millis(2);
/// The same when the last ones changed nothing.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// SIGTERM to all in `slot` that left the group of `leader`, which has heard it: many programs that hear it twice end without
/// order. Stopped ones are woken to hear it.
pub(crate) fn terminate_strays(slot: &Slot, leader: &Leader) {
    let is_stray = |pid: &i32| !leader.leads(*pid);
    let strays = || slot.members().into_iter().filter(is_stray).collect();
    signal_members(&strays, Signal::SIGTERM);
    signal_members(&strays, Signal::SIGCONT);
}

/// SIGKILL to all whom `members` names. Says whether it was sent to anybody.
pub(crate) fn kill_members(members: &dyn Fn() -> BTreeSet<i32>) -> bool {
    signal_members(members, Signal::SIGKILL)
}

/// SIGKILL to all in `slot`, once: who is born meanwhile is found by who looks again.
pub(crate) fn strike_members(slot: &Slot) {
    if !slot.kill() {
        kill_members(&|| slot.members());
    }
}

/// Kills all in `slot` and answers when nobody is left, or with those that live after `limit` (A3).
pub(crate) async fn end_members(slot: &Slot, clock: Clock, limit: Duration) -> Vec<Survivor> {
    let deadline = clock.mono().after(limit);
    let mut is_killed = slot.kill();
    let (mut pause, mut before) = (PAUSE, BTreeSet::new());
    loop {
        if !is_killed {
            // Frozen they cannot fork faster than we kill; version 1 lets nobody die who is frozen.
            slot.freeze(true);
            kill_members(&|| slot.members());
            slot.freeze(false);
        }
        let members = slot.members();
        if members.is_empty() && slot.is_empty() {
            return Vec::new();
        }
        // Who is not in every one of its trees is not reached by one word.
        is_killed = false;
        if clock.mono() >= deadline {
            // A3: whom no list names lives all the same.
            let unnamed = members.is_empty().then(|| Survivor {
                pid: 0,
                name: format!("somebody in {}", slot.shown()),
                token: None,
            });
            return members.into_iter().map(survivor).chain(unnamed).collect();
        }
        pause = if members == before { (pause * 2).min(PAUSE_MAX) } else { PAUSE };
        before = members;
        tokio::time::sleep(pause).await;
    }
}

fn survivor(pid: i32) -> Survivor {
    let name = Stat::read(pid).map(|stat| stat.name).unwrap_or_default();
    Survivor { pid: pid.unsigned_abs(), name, token: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_not_be_killed_is_not_said_to_be() {
        // More processes no system has.
        assert!(!kill_members(&|| BTreeSet::from([(4 << 20) + 1])));
        assert!(!kill_members(&BTreeSet::new));
        #[expect(clippy::disallowed_methods, reason = "no attempt: somebody to be killed")]
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("it starts");
        let pid = i32::try_from(child.id()).expect("small");
        assert!(kill_members(&|| BTreeSet::from([pid])));
        assert!(!child.wait().expect("it is ours").success());
    }
}
