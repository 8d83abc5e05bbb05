//! One path that means the same in every tree, so that a daemon which makes containers can be told to put them below an
//! attempt's cgroups.
//!
//! Such a daemon takes one path for all trees of version 1, and uses all of them: also those that we have no need of. We
//! may stand at another place in each tree, but one below the other is enough: in a tree in which we stand higher up, the
//! way down is made. In the one tree of version 2 the path is that of our folder, if we may give its controllers on.

use std::path::{Path, PathBuf};

use super::{
    ground, leaf,
    trees::{self, Controller, Tree, Version},
};

/// Our folder as the daemon is told of it, and what it leaves in trees that are not among ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelter {
    /// From the top of each tree.
    pub(super) path: PathBuf,
    /// Our folder in the other trees. Made and used by the daemon alone.
    pub(super) others: Vec<PathBuf>,
    /// In the one of them that counts the time on processors, where none of ours counts that of containers.
    pub(super) time: Option<PathBuf>,
}

/// What containers must be held to by the trees of version 1.
const NEEDED: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

/// Of which version the cgroups are that hold attempts, and the place below which our folders are, in each tree; or why there
/// is none, for people.
pub(crate) fn place() -> Result<(u8, PathBuf), String> {
    let trees = trees::read().map_err(|error| format!("/proc cannot be read: {error}"))?;
    let (version, place) = place_in(&trees)?;
    if version == Version::One {
        return Ok((1, place));
    }
    let whole = trees.iter().filter(|tree| tree.version == version).find_map(|tree| tree.whole.as_ref());
    whole.map_or(Ok(()), |(point, _)| ground::gives_on(&below(point, &place), &NEEDED))?;
    Ok((2, place))
}

pub(super) fn place_in(trees: &[Tree]) -> Result<(Version, PathBuf), String> {
    let of_one = |needed: &Controller| {
        trees.iter().find(|tree| tree.version == Version::One && tree.controllers.contains(needed))
    };
    if NEEDED.iter().all(|needed| of_one(needed).is_none()) {
        let two = trees.iter().find(|tree| tree.version == Version::Two).ok_or("no cgroups are mounted")?;
        refuse_reading(two)?;
        return Ok((Version::Two, place_of(two)?.to_owned()));
    }
    for needed in NEEDED {
        let tree = of_one(&needed)
            .ok_or_else(|| format!("no cgroups of version 1 have the controller `{}`", needed.name()))?;
        refuse_reading(tree)?;
    }
    let places: Vec<&Path> = trees.iter().map(place_of).collect::<Result<_, _>>()?;
    let deepest = *places.iter().max_by_key(|place| place.components().count()).ok_or("no cgroups are mounted")?;
    match places.iter().find(|place| !deepest.starts_with(place)) {
        None => Ok((Version::One, deepest.to_owned())),
        Some(other) => Err(format!(
            "the agent stands at {} in one tree of cgroups and at {} in another, and Docker takes one place for all; start \
             it as a service of its own",
            deepest.display(),
            other.display()
        )),
    }
}

fn refuse_reading(tree: &Tree) -> Result<(), String> {
    let shown = tree.own.display();
    if tree.is_writable { Ok(()) } else { Err(format!("{shown} is mounted for reading only")) }
}

/// Where we stand, as everybody knows it.
fn place_of(tree: &Tree) -> Result<&Path, String> {
    let whole = tree.whole.as_ref().map(|(_, place)| stands_in(place));
    whole.ok_or_else(|| {
        format!(
            "a part of a tree of cgroups alone is seen here ({}): this agent is in a container itself",
            tree.own.display()
        )
    })
}

/// The cgroup that was given to an agent, which may stand in a leaf of it.
fn stands_in(place: &Path) -> &Path {
    let is_leaf = place.file_name().is_some_and(|name| name == leaf::LEAF);
    place.parent().filter(|_| is_leaf).unwrap_or(place)
}

/// The folders from below `point` to `place`, the deepest first.
pub(super) fn way(point: &Path, place: &Path) -> Vec<PathBuf> {
    below(point, place).ancestors().take_while(|dir| *dir != point).map(Path::to_owned).collect()
}

/// `place` in a tree that is seen at `point`.
pub(super) fn below(point: &Path, place: &Path) -> PathBuf {
    match place.strip_prefix("/").unwrap_or(place) {
        top if top == Path::new("") => point.to_owned(),
        below => point.join(below),
    }
}

impl Shelter {
    /// For folders called `name` at `place`, where `ours` are those that we use ourselves.
    pub(super) fn of(place: &Path, name: &str, ours: &[ground::Base]) -> Self {
        let path = place.join(name);
        let ours = |dir: &PathBuf| ours.iter().any(|base| base.dir == *dir);
        let others: Vec<_> = trees::all_of_version_one().iter().map(|point| below(point, &path)).collect();
        let others: Vec<_> = others.into_iter().filter(|dir| !ours(dir)).collect();
        let counts = |dir: &&PathBuf| dir.ancestors().any(|above| above.join("cpuacct.usage").exists());
        Self { time: others.iter().find(counts).cloned(), path, others }
    }

    /// Microseconds of those below the cgroups with this number, in programs' own code and in the kernel, where none of our
    /// trees counts them.
    pub(super) fn times(&self, number: u64) -> (u64, u64) {
        let Some(dir) = self.time.as_ref().map(|dir| dir.join(number.to_string())) else { return (0, 0) };
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let us = |name: &str| text(name).trim().parse::<u64>().unwrap_or(0) / 1000;
        (us("cpuacct.usage_user"), us("cpuacct.usage_sys"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(controllers: &[Controller], place: &str) -> Tree {
        let point = PathBuf::from("/cg").join(controllers.first().map_or("two", |controller| controller.name()));
        Tree {
            version: if controllers.is_empty() { Version::Two } else { Version::One },
            controllers: controllers.to_vec(),
            own: below(&point, Path::new(place)),
            whole: Some((point, place.into())),
            is_writable: true,
        }
    }

    fn trees(memory: &str, cpu: &str, pids: &str) -> Vec<Tree> {
        let one = [(Controller::Memory, memory), (Controller::Cpu, cpu), (Controller::Pids, pids)];
        one.iter().map(|(controller, place)| tree(&[*controller], place)).collect()
    }

    #[test]
    fn one_place_is_found_where_each_place_is_on_the_way_to_the_deepest() {
        let found =
            |memory, cpu, pids| place_in(&trees(memory, cpu, pids)).map(|(_, place)| place.display().to_string());
        assert_eq!(found("/", "/", "/"), Ok("/".into()));
        assert_eq!(found("/a/b", "/a", "/"), Ok("/a/b".into()));
        assert!(found("/a/b", "/c", "/").is_err_and(|why| why.contains("at /a/b in one tree of cgroups and at /c")));
        assert!(found("/a/b", "/a/bc", "/").is_err());
        let mut hybrid = trees("/", "/", "/");
        hybrid.push(tree(&[], "/service"));
        assert_eq!(place_in(&hybrid), Ok((Version::One, "/service".into())));
        hybrid[0] = tree(&[Controller::Memory], "/service/agent");
        assert_eq!(place_in(&hybrid), Ok((Version::One, "/service".into())), "its leaf is not handed on");
    }

    #[test]
    fn trees_that_cannot_hold_a_container_are_refused_with_the_reason() {
        let mut all = trees("/", "/", "/");
        all[1].whole = None;
        assert!(place_in(&all).is_err_and(|why| why.contains("in a container itself")));
        let mut all = trees("/", "/", "/");
        all[2].is_writable = false;
        assert!(place_in(&all).is_err_and(|why| why.contains("reading only")));
        let some = trees("/", "/", "/").split_off(1);
        assert!(place_in(&some).is_err_and(|why| why.contains("have the controller `memory`")));
        assert!(place_in(&[]).is_err_and(|why| why.contains("no cgroups are mounted")));
        let mut two = tree(&[], "/");
        two.is_writable = false;
        assert!(place_in(&[two]).is_err_and(|why| why.contains("reading only")));
    }

    #[test]
    fn where_version_two_is_alone_the_place_is_the_cgroup_that_the_agent_was_given() {
        for (stands, given) in [("/", "/"), ("/a/b", "/a/b"), ("/a/b/agent", "/a/b")] {
            assert_eq!(place_in(&[tree(&[], stands)]), Ok((Version::Two, given.into())));
        }
    }

    #[test]
    fn the_way_to_a_place_ends_below_the_top_of_its_tree() {
        let found = |place: &str| way(Path::new("/cg/cpu"), Path::new(place));
        assert_eq!(found("/a/b"), [Path::new("/cg/cpu/a/b"), Path::new("/cg/cpu/a")]);
        assert_eq!(found("/"), Vec::<PathBuf>::new());
    }
}
