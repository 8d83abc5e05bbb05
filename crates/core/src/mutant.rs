//! Faults that a test build can switch on, one at a time, to see that the suite turns red.
//!
//! Only a build with `--cfg muster_mutants` holds them, and no release build can have that. Each is a safety rule that
//! is not kept; where it is asked for names the rule.

#[cfg(all(muster_mutants, not(debug_assertions)))]
compile_error!("a release build must not hold faults: build without --cfg muster_mutants");

/// Every fault with what it breaks. `cargo xtask mutants` runs them all.
pub const ALL: [(&str, &str); 22] = [
    ("gate-open", "C1: answers and orders leave before their commit"),
    ("lease-early", "C1: a lease leaves before it is committed"),
    ("stop-early", "C1: an order to stop leaves before it is committed"),
    ("ack-early", "C1, A2: a report is acknowledged before it is committed"),
    ("token-unchecked", "T4: a report of an old attempt is believed"),
    ("key-ignored", "K1: a repeated submission makes a second job"),
    ("lost-at-once", "A1: a silent agent's work is given away without the wait"),
    ("kept-too-short", "A1: a task that may go on through a partition is given away as if it might not"),
    ("never-expires", "A1: an agent that is cut off goes on with its leases"),
    ("cordon-ignored", "a cordoned agent is given new work"),
    ("drain-costs", "what a drain ends counts as lost"),
    ("freed-at-cancel", "A3: a slot is free before its process is dead"),
    ("dependencies-ignored", "D1: a task starts before what it waits for"),
    ("outcome-ignored", "D1: any end of a dependency counts as the one asked for"),
    ("chunks-ignored", "T2, K1: a restart forgets how far tasks came"),
    ("fence-ignored", "C2: a leader that was replaced still writes"),
    ("authority-ignored", "A1, L1: a leader that was replaced still renews leases"),
    ("report-forgotten", "A2: a report is forgotten when it is sent"),
    ("room-not-passed", "S3: what was begun in the place of another takes no room"),
    ("reach-ignored", "R1: a caller touches work of queues that it may not"),
    ("audit-forgotten", "I23: a change is committed without its audit record"),
    ("report-not-resent", "A2: a report is not sent again to the next session"),
];

/// Whether the fault of this name is on. Never, but in a build for that.
#[cfg(not(muster_mutants))]
#[inline(always)]
pub const fn is_on(_name: &str) -> bool {
    false
}

/// Whether the fault of this name is on.
#[cfg(muster_mutants)]
pub fn is_on(name: &str) -> bool {
    debug_assert!(ALL.iter().any(|(known, _)| *known == name), "no such fault: {name}");
    chosen::NAME.get().is_some_and(|chosen| chosen == name)
}

#[cfg(muster_mutants)]
mod chosen {
    pub(super) static NAME: std::sync::OnceLock<String> = std::sync::OnceLock::new();
}

/// Switches one fault on, once in the life of a process.
///
/// # Errors
/// There is no fault of this name.
#[cfg(muster_mutants)]
pub fn switch_on(name: &str) -> Result<(), String> {
    if ALL.iter().all(|(known, _)| *known != name) {
        return Err(format!("there is no fault called `{name}`"));
    }
    let _was_on = chosen::NAME.set(name.to_owned());
    Ok(())
}
