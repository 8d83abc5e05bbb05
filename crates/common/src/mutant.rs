//! Faults of a test build, switched on from outside a real program; see `muster_core::mutant`.

/// Names the fault to switch on.
const VARIABLE: &str = "MUSTER_MUTANT";

/// Switches on what `MUSTER_MUTANT` names, if it names anything.
///
/// # Errors
/// There is no fault of this name.
pub fn from_env() -> Result<(), String> {
    match std::env::var(VARIABLE) {
        Ok(name) => muster_core::mutant::switch_on(&name),
        Err(_) => Ok(()),
    }
}
