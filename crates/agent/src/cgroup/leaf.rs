//! The leaf of its own cgroup in which an agent stands in a tree of version 2, so that others may stand beside it.

use std::{io, path::Path};

use nix::errno::Errno;

use super::{ground::Base, trees::Version};

/// The leaf into which an agent moves. The same as `DelegateSubgroup=agent` of systemd makes.
pub(super) const LEAF: &str = "agent";
/// The controllers that a cgroup gives to its children.
pub(super) const GIVEN: &str = "cgroup.subtree_control";
/// More of the same program do not stand above one another.
const ABOVE: usize = 2;

/// The controllers that the children of `dir` have.
pub(super) fn given(dir: &Path) -> String {
    std::fs::read_to_string(dir.join(GIVEN)).unwrap_or_default()
}

/// Whoever stands in our own cgroup, if nobody but we do: whoever shares it with strangers was not given it.
pub(super) fn those_in(own: &Path) -> io::Result<Vec<String>> {
    let ours = ourselves();
    let text = std::fs::read_to_string(own.join("cgroup.procs"))?;
    let there: Vec<String> = text.lines().map(str::to_owned).collect();
    if there.iter().all(|pid| ours.contains(pid)) { Ok(there) } else { Err(Errno::EBUSY.into()) }
}

/// Moves this process into a leaf of its cgroup, so that others may stand beside it (the rule of no internal processes).
pub(super) fn step_aside(own: &Path) -> io::Result<()> {
    let there = those_in(own)?;
    let leaf = own.join(LEAF);
    match std::fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => there.iter().try_for_each(|pid| std::fs::write(leaf.join("cgroup.procs"), pid)),
    }
}

/// Takes that back, as far as nobody else needs it.
pub(super) fn step_back(base: &Base) {
    let leaf = base.own.join(LEAF);
    let text = std::fs::read_to_string(leaf.join("cgroup.procs")).unwrap_or_default();
    let ours = ourselves();
    if base.version != Version::Two || !text.lines().any(|pid| ours.iter().any(|ours| ours == pid)) {
        return;
    }
    for word in to_take_back(&given(&base.own), base) {
        let _others_need_it = std::fs::write(base.own.join(GIVEN), word);
    }
    for pid in text.lines() {
        let _others_need_it = std::fs::write(base.own.join("cgroup.procs"), pid);
    }
    let _somebody_stays = std::fs::remove_dir(leaf);
}

/// Of the controllers that are given `now`, what takes back ours, and those that whoever makes containers gave to all on the
/// way to them: nobody can stand in a cgroup that gives on any.
fn to_take_back(now: &str, base: &Base) -> Vec<String> {
    let was_there = |name: &str| base.before.split_whitespace().any(|before| before == name);
    let is_ours = |name: &str| base.controllers.iter().any(|one| one.name() == name);
    now.split_whitespace().filter(|name| is_ours(name) || !was_there(name)).map(|name| format!("-{name}")).collect()
}

/// This process, and those above it that are the same program, whose file an upgrade may have replaced: the safe of a
/// keeper, and the agent that started that.
fn ourselves() -> Vec<String> {
    let exe = |pid: &str| {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?.into_os_string().into_string().ok()?;
        Some(path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned))
    };
    let parent = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")).map(|parent| parent.trim().to_owned())
    };
    let own = exe("self");
    let above = |pid: &String| parent(pid).filter(|parent| own.is_some() && exe(parent) == own);
    std::iter::successors(Some(std::process::id().to_string()), above).take(ABOVE + 1).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::cgroup::trees::Controller;

    #[test]
    fn all_is_taken_back_that_was_not_given_before_us() {
        let base = Base {
            version: Version::Two,
            controllers: vec![Controller::Memory, Controller::Cpu, Controller::Pids],
            dir: PathBuf::new(),
            own: PathBuf::new(),
            before: "rdma memory\n".to_owned(),
        };
        let table = [
            ("", ""),
            ("cpu memory pids\n", "-cpu -memory -pids"),
            ("cpuset cpu io memory hugetlb pids rdma misc\n", "-cpuset -cpu -io -memory -hugetlb -pids -misc"),
            ("rdma\n", ""),
        ];
        for (now, expected) in table {
            assert_eq!(to_take_back(now, &base).join(" "), expected, "{now}");
        }
    }
}
