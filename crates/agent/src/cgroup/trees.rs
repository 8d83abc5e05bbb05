//! Which trees of cgroups there are and where this process stands in each: `/proc/self/mountinfo` and `/proc/self/cgroup`.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

/// What a tree can do for attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    /// Version 1 only: in version 2 every cgroup counts processor time.
    Cpuacct,
    Pids,
    /// Version 1 only: in version 2 every cgroup can be frozen and killed.
    Freezer,
    /// How fast disks are used.
    Io,
}

impl Controller {
    pub(super) const ALL: [Self; 6] = [Self::Memory, Self::Cpu, Self::Cpuacct, Self::Pids, Self::Freezer, Self::Io];

    /// What the kernel calls it in version 2; only one had another name before.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
            Self::Io => "io",
        }
    }

    fn of(name: &str) -> Option<Self> {
        let name = if name == "blkio" { "io" } else { name };
        Self::ALL.into_iter().find(|controller| controller.name() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// One tree that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) version: Version,
    /// Version 1: what is bound to it. Version 2 says it in a file.
    pub(super) controllers: Vec<Controller>,
    /// The folder of our own cgroup.
    pub(super) own: PathBuf,
    /// Where the whole tree is seen, and where we stand in it; none: a part of it alone is seen here.
    pub(super) whole: Option<(PathBuf, PathBuf)>,
    pub(super) is_writable: bool,
}

/// All trees that matter, version 2 first.
pub(super) fn read() -> std::io::Result<Vec<Tree>> {
    read_of("self")
}

/// Where trees of version 1 are seen, those too that do nothing for attempts: each that may be written to, as a whole.
pub(super) fn all_of_version_one() -> Vec<PathBuf> {
    points(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn points(mounts: &str) -> Vec<PathBuf> {
    let lines =
        mounts.lines().filter(|line| line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("cgroup ")));
    let mounts = lines.filter_map(Mount::parse_any).filter(|mount| mount.is_writable && mount.root == Path::new("/"));
    mounts.map(|mount| mount.point).collect()
}

/// The folders in which a process stands, of all trees in which somebody can be put.
pub(crate) fn folders_of(pid: i32) -> std::io::Result<Vec<PathBuf>> {
    Ok(read_of(&pid.to_string())?.into_iter().filter(|tree| tree.is_writable).map(|tree| tree.own).collect())
}

fn read_of(process: &str) -> std::io::Result<Vec<Tree>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let places = std::fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    Ok(parse(&mounts, &places))
}

fn parse(mounts: &str, places: &str) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let Some(place) = places.lines().find_map(|line| mount.place(line)) else { continue };
        let same = |tree: &Tree| tree.version == mount.version && tree.controllers == mount.controllers;
        let tree = Tree {
            version: mount.version,
            own: mount.folder_of(place),
            whole: mount.is_whole(place).then(|| (mount.point.clone(), PathBuf::from(place))),
            is_writable: mount.is_writable,
            controllers: mount.controllers.clone(),
        };
        // Mounted twice: the one that can be written to.
        match trees.iter_mut().find(|tree| same(tree)) {
            Some(known) if !known.is_writable => *known = tree,
            Some(_) => {}
            None => trees.push(tree),
        }
    }
    trees.sort_by_key(|tree| tree.version == Version::One);
    trees
}

struct Mount {
    version: Version,
    controllers: Vec<Controller>,
    /// Which folder of the tree is seen at `point`.
    root: PathBuf,
    point: PathBuf,
    is_writable: bool,
}

impl Mount {
    /// A line as proc_pid_mountinfo(5) describes it; none: it is no tree that we use.
    fn parse(line: &str) -> Option<Self> {
        Self::parse_any(line).filter(|mount| mount.version == Version::Two || !mount.controllers.is_empty())
    }

    /// The same of any tree of cgroups.
    fn parse_any(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let version = match kind {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let mut controllers: Vec<_> = options.split(',').filter_map(Controller::of).collect();
        controllers.sort_unstable();
        let is_writable = [*before.get(5)?, options].iter().all(|list| list.split(',').all(|option| option != "ro"));
        Some(Self { version, controllers, root: path(before.get(3)?), point: path(before.get(4)?), is_writable })
    }

    /// The path in a line of `/proc/self/cgroup`, if it is of this tree.
    fn place<'a>(&self, line: &'a str) -> Option<&'a str> {
        let mut parts = line.splitn(3, ':');
        let (number, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_ours = match self.version {
            Version::Two => number == "0" && names.is_empty(),
            Version::One => names.split(',').filter_map(Controller::of).any(|found| self.controllers.contains(&found)),
        };
        is_ours.then_some(path)
    }

    /// Whether a place is known by the same name to everybody who sees the tree.
    fn is_whole(&self, place: &str) -> bool {
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::RootDir);
        self.root == Path::new("/") && Path::new(place).components().all(is_plain)
    }

    /// A place outside of what is mounted cannot be named from here; then we stand at the top of what can.
    fn folder_of(&self, place: &str) -> PathBuf {
        let place = Path::new(place);
        let below = place.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let below = below.strip_prefix("/").unwrap_or(below);
        let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        let is_below = is_plain && below != Path::new("");
        if is_below { self.point.join(below) } else { self.point.clone() }
    }
}

/// Spaces and the like are written as `\040` there.
pub(crate) fn path(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(mounts: &str, places: &str) -> Vec<(Version, Vec<&'static str>, String, bool)> {
        let tree = |tree: Tree| {
            let names = tree.controllers.iter().map(|controller| controller.name()).collect();
            (tree.version, names, tree.own.display().to_string(), tree.is_writable)
        };
        parse(mounts, places).into_iter().map(tree).collect()
    }

    #[test]
    fn a_service_of_systemd_stands_in_its_own_cgroup_of_version_two() {
        let mounts = "22 1 0:20 / / rw - ext4 /dev/sda rw\n\
                      35 28 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "/sys/fs/cgroup/system.slice/muster-agent.service".to_owned();
        let place = "0::/system.slice/muster-agent.service\n";
        assert_eq!(seen(mounts, place), [(Version::Two, vec![], own, true)]);
    }

    #[test]
    fn trees_of_version_one_are_found_by_their_controllers_and_others_are_left_out() {
        let mounts = "31 28 0:26 / /cg/systemd rw - cgroup cgroup rw,name=systemd\n\
                      32 28 0:27 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 28 0:28 / /cg/memory ro - cgroup cgroup rw,memory\n\
                      34 28 0:29 / /cg/unified rw - cgroup2 cgroup2 rw\n\
                      35 28 0:30 / /cg/blkio rw - cgroup cgroup rw,blkio\n\
                      36 28 0:31 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n";
        let places = "6:cpuset:/\n5:blkio:/x\n4:memory:/a b\n3:cpu,cpuacct:/\n1:name=systemd:/x\n0::/\n";
        let expected = [
            (Version::Two, vec![], "/cg/unified".to_owned(), true),
            (Version::One, vec!["cpu", "cpuacct"], "/cg/cpu,cpuacct".to_owned(), true),
            (Version::One, vec!["memory"], "/cg/memory/a b".to_owned(), false),
            (Version::One, vec!["io"], "/cg/blkio/x".to_owned(), true),
        ];
        assert_eq!(seen(mounts, places), expected);
    }

    #[test]
    fn a_container_that_sees_a_part_of_a_tree_stands_in_that_part() {
        let mounts = "35 28 0:30 /docker/77 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let own = |place: &str| seen(mounts, &format!("0::{place}\n"))[0].2.clone();
        assert_eq!(own("/docker/77/inner"), "/sys/fs/cgroup/inner");
        assert_eq!(own("/docker/77"), "/sys/fs/cgroup");
        assert_eq!(own("/../../elsewhere"), "/sys/fs/cgroup", "a place that is not mounted here");
    }

    #[test]
    fn a_tree_that_is_mounted_twice_is_used_where_it_can_be_written() {
        let mounts = "35 28 0:30 / /a ro - cgroup2 cgroup2 rw\n36 28 0:30 / /with\\040space rw - cgroup2 cgroup2 rw\n";
        assert_eq!(seen(mounts, "0::/\n"), [(Version::Two, vec![], "/with space".to_owned(), true)]);
    }
}
