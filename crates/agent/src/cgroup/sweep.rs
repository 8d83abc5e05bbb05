//! Ends what is in cgroups that nobody needs any more, and removes them.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tracing::warn;

use super::{
    below::{bar, members},
    ground,
};
use crate::exec::kill_members;

/// What an earlier agent left must be dead by then.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Kills everybody in `dirs` and removes them. Returns those that could not be removed within `limit`, and whether
/// anybody had to be killed.
pub(super) fn clear(dirs: &[PathBuf], limit: Duration) -> (Vec<PathBuf>, bool) {
    let (mut left, mut had_any) = (dirs.to_vec(), false);
    // First: a daemon may be about to start somebody in them.
    left.iter().for_each(|dir| bar(dir));
    let mut waited = Duration::ZERO;
    loop {
        for dir in &left {
            let is_killed = std::fs::write(dir.join("cgroup.kill"), "1").is_ok();
            let there = members(dir);
            had_any |= !there.is_empty();
            if !is_killed && !there.is_empty() {
                kill_members(&|| members(dir).into_iter().collect());
            }
        }
        left.retain(|dir| ground::remove(dir).is_err());
        if left.is_empty() || waited >= limit {
            return (left, had_any);
        }
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

/// Kills everybody in `dirs` and below but `keeper`, until nobody is left, or for `limit`. The cgroups stay as they are, for
/// the keeper that made them may go on with them.
pub(crate) fn kill_all(dirs: &[PathBuf], keeper: Option<i32>, limit: Duration) {
    let there = || dirs.iter().flat_map(|dir| members(dir)).filter(|pid| Some(*pid) != keeper).collect::<BTreeSet<_>>();
    let mut waited = Duration::ZERO;
    while !there().is_empty() && waited < limit {
        kill_members(&there);
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

/// Does that with what is in `dirs`, which are one keeper's, but for the numbers `kept`. Returns the first number that was
/// never used there.
pub(super) fn clear_but(dirs: &[PathBuf], kept: &BTreeSet<u64>, limit: Duration) -> u64 {
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let number = |dir: &PathBuf| dir.file_name()?.to_str()?.parse::<u64>().ok();
    let numbered = entries.filter_map(|entry| Some((number(&entry.path())?, entry.path())));
    let numbered: Vec<_> = numbered.filter(|(_, dir)| dir.is_dir()).collect();
    let next = numbered.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
    let others = numbered.into_iter().filter(|(number, _)| !kept.contains(number)).map(|(_, dir)| dir);
    let (left, _) = clear(&others.collect::<Vec<_>>(), limit);
    if !left.is_empty() {
        warn!(cgroups = ?left, "cgroups of an earlier keeper cannot be emptied; they are tried again at the end");
    }
    next
}

/// Removes `dirs` once everybody in them has gone by himself. Returns those that are left after `limit`.
pub(super) fn remove(dirs: &[PathBuf], limit: Duration) -> Vec<PathBuf> {
    let mut left = dirs.to_vec();
    let mut waited = Duration::ZERO;
    loop {
        left.retain(|dir| ground::remove(dir).is_err());
        if left.is_empty() || waited >= limit {
            return left;
        }
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    #[test]
    fn nobody_is_born_any_more_where_an_earlier_agent_is_swept() {
        let folder = tempfile::tempdir().expect("a folder");
        let top = folder.path().join("muster-x");
        std::fs::create_dir_all(top.join("3")).expect("ours");
        for dir in [&top, &top.join("3")] {
            std::fs::write(dir.join("pids.max"), "max").expect("ours");
        }
        let barred = |dir: &PathBuf| std::fs::read_to_string(dir.join("pids.max")).is_ok_and(|text| text == "0");
        clear_but(from_ref(&top), &BTreeSet::new(), Duration::ZERO);
        assert!(barred(&top.join("3")) && !barred(&top), "what else is in it goes on");
        clear(from_ref(&top), Duration::ZERO);
        assert!(barred(&top));
    }
}
