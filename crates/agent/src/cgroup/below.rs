//! What is in a cgroup and in those below it: a task may make some of its own, and whoever makes a container does.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The links that a folder without folders has.
const BARE: u64 = 2;

/// Whether there are cgroups below `dir`. The kernel counts them: to list the files of a cgroup costs far more.
pub(super) fn has_any(dir: &Path) -> bool {
    // Some file systems count none; then one looks.
    fs::metadata(dir).is_ok_and(|folder| folder.nlink() != BARE)
}

/// The cgroups right below `dir`.
pub(super) fn children(dir: &Path) -> Vec<PathBuf> {
    if !has_any(dir) {
        return Vec::new();
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// All cgroups below `dir`, however deep.
pub(super) fn all(dir: &Path) -> Vec<PathBuf> {
    children(dir).into_iter().flat_map(|child| [all(&child), vec![child]].concat()).collect()
}

/// All processes in a cgroup and below it but our own.
pub(super) fn members(dir: &Path) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let here = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != own && *pid > 0);
    here.chain(children(dir).iter().flat_map(|below| members(below))).collect()
}

/// Whoever is in `dir` or below it, of the tree that counts processes, makes no more of them.
pub(super) fn bar(dir: &Path) {
    let file = dir.join("pids.max");
    if file.exists() {
        let _somebody_removed_it = fs::write(file, "0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_it_is_found_however_deep() {
        let folder = tempfile::tempdir().expect("a folder");
        let top = folder.path().join("top");
        fs::create_dir_all(top.join("a/b")).expect("ours");
        fs::create_dir_all(top.join("c")).expect("ours");
        for (place, text) in [("", "1\n2\n"), ("a", ""), ("a/b", "3\n"), ("c", "4\nodd\n0\n")] {
            fs::write(top.join(place).join("cgroup.procs"), text).expect("ours");
        }
        fs::write(top.join("c/cgroup.threads"), format!("{}\n", std::process::id())).expect("ours");
        let mut found = members(&top);
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4]);
        fs::write(top.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("ours");
        assert_eq!(members(&top.join("a")), [3]);
        assert!(!members(&top).contains(&i32::try_from(std::process::id()).expect("small")));
    }
}
