//! Takes the folder in each tree in which attempts' cgroups are made, and finds out what may be done there.
//!
//! A tree of version 2 wants processes in leaves only: an agent that stands in a cgroup that it was given for itself
//! (`Delegate=yes`) first moves into a leaf of it.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use tracing::warn;

use super::{
    disks,
    leaf::{GIVEN, LEAF, given, step_aside, those_in},
    report::{Line, Report},
    shelter::{self, Shelter},
    trees::{Controller, Tree, Version},
};

/// Our folders begin with this, in every tree; nothing else is ever removed.
pub(super) const PREFIX: &str = "muster-";
/// Ten times what all attempts have together beside it: whoever keeps their leases never waits behind them.
const LEAF_WEIGHT: &str = "1000";
/// What has no name in a v2 tree: every cgroup there counts processor time and can be frozen, also beside version 1.
const BUILT_IN: [Controller; 2] = [Controller::Cpuacct, Controller::Freezer];

/// Our folder in one tree.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) version: Version,
    /// What it does for attempts.
    pub(crate) controllers: Vec<Controller>,
    pub(crate) dir: PathBuf,
    /// Where we stand ourselves.
    pub(super) own: PathBuf,
    /// Controllers that were given to cgroups there before us, in version 2.
    pub(super) before: String,
}

/// Our folders in all trees, version 2 first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ground {
    pub(crate) bases: Vec<Base>,
    /// The first base has `cgroup.kill` (Linux 5.14).
    pub(crate) has_kill: bool,
    /// How somebody else is told of our folders, where somebody makes containers in them.
    pub(super) shelter: Option<Shelter>,
    /// Folders on the way to ours where we stand higher up, the deepest first.
    pub(super) ways: Vec<PathBuf>,
}

impl Ground {
    /// Which of `bases` does it.
    pub(crate) fn base_of(&self, controller: Controller) -> Option<&Base> {
        self.bases.iter().find(|base| base.controllers.contains(&controller))
    }

    /// Whether processes enter by the thread that starts them.
    pub(crate) fn has_v1(&self) -> bool {
        self.bases.iter().any(|base| base.version == Version::One)
    }

    /// Whether the kernel holds to limits of disks.
    pub(super) fn limits_io(&self) -> bool {
        let file = |base: &Base| match base.version {
            Version::One => base.dir.join("blkio.throttle.read_bps_device"),
            Version::Two => base.dir.join("io.max"),
        };
        self.base_of(Controller::Io).is_some_and(|base| file(base).exists())
    }

    /// All our folders, also those that others make for us.
    pub(super) fn dirs(&self) -> Vec<PathBuf> {
        let others = self.shelter.iter().flat_map(|shelter| &shelter.others);
        self.bases.iter().map(|base| &base.dir).chain(others).cloned().collect()
    }

    pub(crate) fn v2(&self) -> Option<&Base> {
        self.bases.first().filter(|base| base.version == Version::Two)
    }
}

/// Makes the folder `name` in every tree that can do something, and says what is enforced; of disks, of the one on which
/// `folder` lies. At `place` in all of them, where there is one.
pub(super) fn take(trees: &[Tree], name: &str, folder: &Path, place: Option<&Path>) -> (Ground, Report) {
    let ways = place.map(|place| ways(trees, place)).unwrap_or_default();
    let mut ground = Ground { ways, ..Ground::default() };
    let mut refused: Vec<(Controller, String)> = Vec::new();
    let lowered: Vec<Tree> = trees.iter().map(|tree| lowered(tree, place)).collect();
    for (tree, stands) in lowered.iter().zip(trees) {
        let needed = |controller: &Controller| ground.base_of(*controller).is_none();
        let taken = match tree.version {
            Version::Two => take_v2(tree, name, &mut refused),
            Version::One => {
                let wanted: Vec<_> = tree.controllers.iter().copied().filter(needed).collect();
                if wanted.is_empty() { None } else { take_v1(tree, name, wanted, &mut refused) }
            }
        };
        if let Some(mut base) = taken {
            if tree.version == Version::One {
                base.own.clone_from(&stands.own);
            }
            ground.has_kill |= base.version == Version::Two && base.dir.join("cgroup.kill").exists();
            ground.bases.push(base);
        }
    }
    ground.shelter = place.map(|place| Shelter::of(place, name, &ground.bases));
    let report = report(&ground, trees, &refused, folder);
    (ground, report)
}

/// The way to `place` in all trees, ours or not.
fn ways(trees: &[Tree], place: &Path) -> Vec<PathBuf> {
    let points = trees.iter().filter_map(|tree| Some(tree.whole.as_ref()?.0.clone()));
    points.chain(super::trees::all_of_version_one()).flat_map(|point| shelter::way(&point, place)).collect()
}

/// `tree` as if we stood at `place` in it, which we stand on the way to.
fn lowered(tree: &Tree, place: Option<&Path>) -> Tree {
    let mut tree = tree.clone();
    if let Some((place, (point, _))) = place.zip(tree.whole.as_ref()) {
        tree.own = shelter::below(point, place);
    }
    tree
}

fn report(ground: &Ground, trees: &[Tree], refused: &[(Controller, String)], folder: &Path) -> Report {
    let found = |controller: Controller| match ground.base_of(controller) {
        Some(base) => Ok(shown(base)),
        None => Err(match refused.iter().rev().find(|(found, _)| *found == controller) {
            Some((_, why)) => why.clone(),
            None if trees.is_empty() => "no cgroups are mounted".to_owned(),
            None => format!("no cgroup tree here has the controller `{}`", controller.name()),
        }),
    };
    let kill = match (ground.bases.first(), ground.has_kill) {
        (Some(first), true) => Ok(format!("cgroup.kill in {}", first.dir.display())),
        (Some(first), false) => Ok(format!("by signals to all in {}", first.dir.display())),
        (None, _) => found(Controller::Memory),
    };
    let io = found(Controller::Io).and_then(|by| match disks::under(folder) {
        _ if !ground.limits_io() => Err("this kernel was built without limits of disks (blk-throttle)".to_owned()),
        // What is written later from the kernel's memory is nobody's there.
        Ok(disk) if ground.base_of(Controller::Io).is_some_and(|base| base.version == Version::One) => {
            Ok(format!("{by}, for disk {disk}: what is read, and written directly or at once"))
        }
        Ok(disk) => Ok(format!("{by}, for disk {disk}")),
        Err(why) => Err(why),
    });
    let lines = [
        ("memory", found(Controller::Memory)),
        ("cpu", found(Controller::Cpu)),
        ("pids", found(Controller::Pids)),
        ("io", io),
        ("kill", kill),
    ];
    Report(lines.into_iter().map(|(what, found)| Line { what, found }).collect())
}

fn shown(base: &Base) -> String {
    let version = if base.version == Version::Two { "v2" } else { "v1" };
    format!("cgroup {version} in {}", base.dir.display())
}

fn take_v1(
    tree: &Tree,
    name: &str,
    controllers: Vec<Controller>,
    refused: &mut Vec<(Controller, String)>,
) -> Option<Base> {
    let dir = tree.own.join(name);
    if let Err(why) = make(tree, &dir) {
        refused.extend(controllers.into_iter().map(|controller| (controller, why.clone())));
        return None;
    }
    if controllers.contains(&Controller::Memory) {
        // Before Linux 5.11 a cgroup's limit did not hold for those below it unless this was said.
        let _newer_kernels_refuse_it = std::fs::write(dir.join("memory.use_hierarchy"), "1");
    }
    Some(Base { version: Version::One, controllers, dir, own: tree.own.clone(), before: String::new() })
}

fn take_v2(tree: &Tree, name: &str, refused: &mut Vec<(Controller, String)>) -> Option<Base> {
    let (mut tree, mut is_ours) = (tree.clone(), false);
    // Who started us, or an earlier start of ours, put us into the leaf already.
    if tree.own.file_name().is_some_and(|name| name == LEAF)
        && let Some(above) = tree.own.parent().filter(|above| above.join(GIVEN).exists())
    {
        tree.own = above.to_owned();
        // So all that is given there was given by us, or by those whom we had make something below.
        is_ours = true;
    }
    let before = if is_ours { String::new() } else { given(&tree.own) };
    let listed = std::fs::read_to_string(tree.own.join("cgroup.controllers")).unwrap_or_default();
    let named = |controller: &Controller| listed.split_whitespace().any(|name| name == controller.name());
    let there: Vec<_> = Controller::ALL.into_iter().filter(named).collect();
    let dir = tree.own.join(name);
    if let Err(why) = make(&tree, &dir) {
        let all = [Controller::Memory, Controller::Cpu, Controller::Pids, Controller::Io].into_iter().chain(there);
        refused.extend(all.map(|controller| (controller, why.clone())));
        return None;
    }
    let mut controllers = Vec::new();
    for controller in there {
        match enable(&tree.own, controller).and_then(|()| enable(&dir, controller)) {
            Ok(()) => controllers.push(controller),
            Err(error) => refused.push((controller, why_not(&tree.own, controller, &error))),
        }
    }
    if controllers.contains(&Controller::Cpu) {
        let _in_the_root_there_is_no_leaf = std::fs::write(tree.own.join(LEAF).join("cpu.weight"), LEAF_WEIGHT);
    }
    controllers.extend(BUILT_IN);
    Some(Base { version: Version::Two, controllers, dir, own: tree.own, before })
}

fn make(tree: &Tree, dir: &Path) -> Result<(), String> {
    let shown = tree.own.display();
    if !tree.is_writable {
        return Err(format!("{shown} is mounted for reading only"));
    }
    // Something may be mounted over the tree, in which folders can be made that hold nobody.
    let is_cgroup = |dir: &&Path| dir.join("cgroup.procs").exists();
    if dir.ancestors().find(|above| above.exists()).filter(is_cgroup).is_none() {
        return Err(format!("{shown} is not to be seen here, or is no cgroup"));
    }
    match std::fs::create_dir_all(&tree.own).and_then(|()| std::fs::create_dir(dir)) {
        Ok(()) => Ok(()),
        // Of the keeper whose work we go on with: nobody else knows the name.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "this user may not make cgroups in {shown}; run the agent as root, or as a service with Delegate=yes"
        )),
        Err(error) => Err(format!("no cgroup can be made in {shown}: {error}")),
    }
}

/// Gives a controller to the children of `dir`.
fn enable(dir: &Path, controller: Controller) -> io::Result<()> {
    let file = dir.join(GIVEN);
    let on = std::fs::read_to_string(&file)?;
    if on.split_whitespace().any(|name| name == controller.name()) {
        return Ok(());
    }
    let word = format!("+{}", controller.name());
    match std::fs::write(&file, &word) {
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            step_aside(dir)?;
            std::fs::write(&file, &word)
        }
        other => other,
    }
}

/// Whether the cgroup `own`, in which we stand, or in a leaf of it, can give `controllers` to its children; `Err` is for
/// people.
pub(super) fn gives_on(own: &Path, controllers: &[Controller]) -> Result<(), String> {
    let listed = std::fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    if let Some(missing) = controllers.iter().find(|one| !listed.split_whitespace().any(|name| name == one.name())) {
        return Err(format!(
            "the agent's cgroup {} has no controller `{}`; start the agent as a service of its own with Delegate=yes",
            own.display(),
            missing.name()
        ));
    }
    // The root of the tree alone has no type, and may have processes beside children.
    let is_root = !own.join("cgroup.type").exists();
    if is_root || those_in(own).is_ok() {
        return Ok(());
    }
    let busy = Errno::EBUSY.into();
    Err(controllers.first().map_or_else(String::new, |first| why_not(own, *first, &busy)))
}

fn why_not(own: &Path, controller: Controller, error: &io::Error) -> String {
    let (name, own) = (controller.name(), own.display());
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => format!(
            "others stand in the agent's cgroup {own}, so that `{name}` cannot be given to its children; start the agent \
             as a service of its own with Delegate=yes"
        ),
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => {
            format!(
                "this user may not give `{name}` to cgroups in {own}; start the agent with Delegate=yes, or as root"
            )
        }
        _ => format!("`{name}` cannot be given to cgroups in {own}: {error}"),
    }
}

/// Removes `dir` and what is in it; `Err`: somebody still stands there.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Notes in `file` which folders are ours, for the next agent, beside those that are left of earlier ones.
pub(super) fn note(file: &Path, left: &[PathBuf], ground: &Ground) {
    let all: String = left.iter().chain(&ground.dirs()).map(|dir| format!("{}\n", dir.display())).collect();
    write(file, &all);
}

/// Removes the ways to our folders, as far as nobody stands there: who does not, needs none of them.
pub(super) fn unmake(ground: &Ground) {
    for dir in &ground.ways {
        let _somebody_does = std::fs::remove_dir(dir);
    }
}

/// What an earlier agent noted and is still there.
pub(crate) fn earlier(file: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let is_ours = |dir: &PathBuf| {
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PREFIX) && dir.join("cgroup.procs").exists()
    };
    text.lines().map(PathBuf::from).filter(is_ours).collect()
}

pub(super) fn write(file: &Path, text: &str) {
    if let Err(error) = std::fs::write(file, text) {
        warn!(%error, file = %file.display(), "cgroups cannot be noted; after a crash they are left behind");
    }
}
