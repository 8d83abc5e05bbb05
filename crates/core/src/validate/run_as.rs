//! As whom a task may ask to run.

use super::{At, text::fits};
use crate::run_as::RunAs;

/// The most supplementary groups that may be listed.
const MAX_GROUPS: usize = 64;
/// Longer than any system's names.
const MAX_NAME: usize = 256;

pub(super) fn check(run_as: &RunAs, at: &mut At<'_>) {
    for (key, name) in [("run_as.user", &run_as.user), ("run_as.group", &run_as.group)] {
        if let Some(name) = name {
            at.expect(key, account(name));
        }
    }
    let groups = run_as.groups.as_deref().unwrap_or_default();
    if groups.len() > MAX_GROUPS {
        at.add("run_as.groups", format!("has {} entries; at most {MAX_GROUPS} are accepted", groups.len()));
    }
    for (index, name) in groups.iter().enumerate() {
        at.expect(format_args!("run_as.groups[{index}]"), account(name));
    }
    if let Some(umask) = run_as.umask.filter(|umask| *umask > 0o777) {
        at.add("run_as.umask", format!("{umask:o} is more than 777"));
    }
    if let Some(nice) = run_as.nice.filter(|nice| !(-20..=19).contains(nice)) {
        at.add("run_as.nice", format!("{nice} is outside -20 to 19"));
    }
}

fn account(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty; give a name or a number".to_owned());
    }
    if name.contains([':', ',', '/', '\n', ' ']) {
        return Err(format!("{name:?} is no name or number of a user or group"));
    }
    fits(name, MAX_NAME)
}
