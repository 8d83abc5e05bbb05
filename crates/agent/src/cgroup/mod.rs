//! Control groups: every attempt runs in some of its own from its first instruction, with its limits, and is counted.
//!
//! A cgroup serves many attempts, one after another, since making one, and moving a process into one, cost more than a
//! short task does. In a v2 tree a process is made inside (`clone3`); in trees of version 1 a child stands where the
//! *thread* stood that made it, so each starter's thread sits in cgroups that it shares with one attempt at a time, and
//! leaves them to one that lasts.

mod below;
mod disks;
mod ground;
mod leaf;
mod limits;
mod report;
mod shelter;
mod slot;
mod sweep;
mod trees;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_core::{record::Enforced, usage::Unenforced};
use tracing::warn;

pub use self::report::Enforce;
#[cfg(unix)]
pub(crate) use self::trees::{folders_of, path as unescaped};
use self::{
    ground::Ground,
    report::Report,
    trees::{Controller, Version},
};
pub(crate) use self::{
    ground::earlier as noted,
    limits::{Counts, Limits},
    shelter::place,
    slot::Slot,
    sweep::kill_all,
};

/// The file in `run/` that names our folders in all trees.
pub(crate) const NOTED: &str = "cgroups";
/// Empty cgroups that are kept for the next attempts.
const SPARE_MAX: usize = 64;

/// Cgroups cannot be used as the operator demands.
#[derive(Debug, thiserror::Error)]
#[error("limits must be enforced here (`enforce = \"required\"`), and cannot be: {0}")]
pub struct Error(String);

/// All cgroups of this agent; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Groups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ground: Arc<Ground>,
    enforce: Enforce,
    report: Report,
    made: AtomicU64,
    spare: Mutex<Vec<Slot>>,
    /// Where our folders are noted for the next agent.
    noted: PathBuf,
}

thread_local! {
    /// The cgroups in which this starter's thread sits; those of version 2 wait for the next attempt.
    static SEAT: RefCell<Option<Slot>> = const { RefCell::new(None) };
}

/// An attempt's cgroups, from before its process is started to its proven end.
#[derive(Debug)]
pub(crate) struct Place {
    groups: Groups,
    /// Always there but while it is handed on.
    slot: Option<Slot>,
    limits: Limits,
    from: Counts,
    /// This thread still sits in it.
    is_shared: bool,
    /// Somebody may still want to put processes there.
    is_abandoned: bool,
}

impl Groups {
    /// Takes what this machine has. `instance` names our folders, and `run` is where they are noted. Ends and removes
    /// what an earlier agent left in its own.
    /// Of an earlier keeper of this instance, the cgroups with the numbers `kept` stay as they are. With `shelter`, somebody
    /// else puts processes below them.
    pub(crate) fn open(
        enforce: Enforce,
        instance: &str,
        run: &Path,
        kept: &BTreeSet<u64>,
        shelter: bool,
    ) -> Result<Self, Error> {
        let noted = run.join(NOTED);
        let name = format!("{}{instance}", ground::PREFIX);
        let (own, earlier): (Vec<_>, _) =
            ground::earlier(&noted).into_iter().partition(|dir| dir.file_name().is_some_and(|found| *found == *name));
        let made = sweep::clear_but(&own, kept, sweep::LIMIT);
        let (left, _) = sweep::clear(&earlier, sweep::LIMIT);
        if !left.is_empty() {
            warn!(cgroups = ?left, "cgroups of an earlier agent cannot be emptied; they are tried again at the next start");
        }
        let (ground, report) = match enforce {
            Enforce::Off => (Ground::default(), Report::nothing("the configuration says so")),
            Enforce::Auto | Enforce::Required => match trees::read() {
                Ok(trees) => {
                    let place = Some(&trees).filter(|_| shelter).and_then(|trees| shelter::place_in(trees).ok());
                    ground::take(&trees, &name, run, place.as_ref().map(|(_, place)| place.as_path()))
                }
                Err(error) => (Ground::default(), Report::nothing(&format!("/proc cannot be read: {error}"))),
            },
        };
        ground::note(&noted, &left, &ground);
        let inner = Inner {
            ground: Arc::new(ground),
            enforce,
            report,
            made: AtomicU64::new(made),
            spare: Mutex::default(),
            noted,
        };
        let groups = Self(Arc::new(inner));
        match groups.0.report.missing().filter(|_| enforce == Enforce::Required) {
            Some(missing) => {
                groups.close(Duration::ZERO);
                Err(Error(missing))
            }
            None => Ok(groups),
        }
    }

    /// What is enforced here, and what not and why.
    pub(crate) fn report(&self) -> String {
        self.0.report.to_string()
    }

    /// The same, one by one, for those who look from elsewhere.
    pub(crate) fn enforced(&self) -> Vec<Enforced> {
        self.0.report.told()
    }

    /// Limits that are not.
    pub(crate) fn unenforced(&self) -> Unenforced {
        self.0.report.unenforced()
    }

    /// Finds the disks that an attempt uses which works in `folder`: that one's, and ours. Returns what of its limits cannot
    /// hold there.
    pub(crate) fn find_disks(&self, limits: &mut Limits, folder: &Path) -> Unenforced {
        let Some(io) = &mut limits.io else { return Unenforced::default() };
        if !self.0.ground.limits_io() {
            return Unenforced::IO;
        }
        let (there, own) = (disks::under(folder).ok(), disks::under(&self.0.noted).ok());
        io.disks = [there, own.filter(|_| own != there)];
        if there.is_some() { Unenforced::default() } else { Unenforced::IO }
    }

    /// Whether the operator wants limits at all.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.enforce != Enforce::Off
    }

    /// Whether nothing may run that is not held to what it asks for.
    pub(crate) fn is_demanded(&self) -> bool {
        self.0.enforce == Enforce::Required
    }

    /// Makes ready what the next process of this thread runs in; none: there are no cgroups here.
    pub(crate) fn prepare(&self, limits: &Limits) -> Option<Place> {
        if self.0.ground.bases.is_empty() {
            return None;
        }
        let mut tries = 0;
        loop {
            let found = self.seat().and_then(|mut slot| match slot.hold_to(&self.at_first(limits)) {
                Ok(()) => Ok(slot),
                Err(error) => {
                    self.discard(slot);
                    Err(error)
                }
            });
            match found {
                Ok(mut slot) => {
                    let from = slot.begin();
                    let is_shared = self.0.ground.has_v1();
                    let groups = self.clone();
                    return Some(Place {
                        groups,
                        slot: Some(slot),
                        limits: *limits,
                        from,
                        is_shared,
                        is_abandoned: false,
                    });
                }
                // What lay in the cgroup did not fit into the limit: a new one has nothing in it.
                Err(_) if tries == 0 => tries += 1,
                Err(error) => {
                    warn!(%error, "an attempt starts without its cgroup");
                    return None;
                }
            }
        }
    }

    /// The cgroups with this number, in which an attempt is that an earlier keeper started. What was counted when it began
    /// is `from`, and `peak` the file through which its highest use of memory is told.
    pub(crate) fn adopt(&self, number: u64, limits: &Limits, from: Counts, peak: Option<File>) -> Option<Place> {
        let is_there = self.0.ground.bases.iter().any(|base| base.dir.join(number.to_string()).exists());
        let slot = is_there.then(|| Slot::adopt(&self.0.ground, number, limits, peak))?;
        let (groups, limits) = (self.clone(), *limits);
        Some(Place { groups, slot: Some(slot), limits, from, is_shared: false, is_abandoned: false })
    }

    /// Limits while this thread shares the cgroup: it counts as one process more, and must never be held up itself.
    fn at_first(&self, limits: &Limits) -> Limits {
        if !self.0.ground.has_v1() {
            return *limits;
        }
        Limits { cpu_milli: None, io: None, pids: limits.pids.map(|pids| pids.saturating_add(1)), ..*limits }
    }

    /// The cgroups of this thread.
    fn seat(&self) -> io::Result<Slot> {
        if let Some(slot) = SEAT.take() {
            return Ok(slot);
        }
        let slot = self.take()?;
        match slot.enter() {
            Ok(()) => Ok(slot),
            Err(error) => {
                self.discard(slot);
                Err(error)
            }
        }
    }

    fn take(&self) -> io::Result<Slot> {
        let spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match spare {
            Some(mut slot) => {
                slot.open();
                Ok(slot)
            }
            None => Slot::make(&self.0.ground, self.0.made.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// This thread, if it sits there, leaves first.
    fn discard(&self, slot: Slot) {
        let _elsewhere = Slot::step_out(&self.0.ground);
        // Who still stands in it is found when all is removed.
        let _stays = slot.remove();
    }

    /// Takes back the cgroups of an attempt of which nothing is left.
    fn put(&self, mut slot: Slot, counts: &Counts, killed: u64) {
        let mut spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX && slot.is_clean(counts, killed) {
            spare.push(slot);
        } else {
            drop(spare);
            let _stays = slot.remove();
        }
    }

    /// Removes all of it when nobody needs it any more. Blocks for at most `limit` while somebody is still there.
    pub(crate) fn close(&self, limit: Duration) {
        self.0.spare.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let dirs = self.0.ground.dirs();
        let left = sweep::remove(&dirs, limit);
        self.0.ground.bases.iter().filter(|base| !left.contains(&base.dir)).for_each(leaf::step_back);
        let keep: Vec<PathBuf> = ground::earlier(&self.0.noted).into_iter().filter(|dir| !dirs.contains(dir)).collect();
        ground::unmake(&self.0.ground);
        let keep: String = keep.iter().chain(&left).map(|dir| format!("{}\n", dir.display())).collect();
        ground::write(&self.0.noted, &keep);
    }
}

impl Place {
    /// Its cgroups.
    pub(crate) fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }

    /// Lets somebody else put processes below its cgroups, and says how they are told of; `Err` is for people.
    pub(crate) fn shelter(&mut self) -> Result<PathBuf, String> {
        let slot = self.slot.as_mut().ok_or("its cgroups were handed on")?;
        let path = slot.shelter().map_err(|error| format!("no cgroup could be made for its client: {error}"))?;
        path.ok_or_else(|| "the agent's cgroups are not at one place in all trees".to_owned())
    }

    /// Somebody may still want to put processes there when nothing of the attempt is left; they find no room. Removed when
    /// the agent ends.
    pub(crate) fn abandon(&mut self) {
        self.slot.iter().for_each(Slot::bar);
        self.is_abandoned = true;
    }

    /// Whether it must be left to its attempt at once, since its thread must not be held to its limits.
    pub(crate) fn is_strict(&self) -> bool {
        self.is_shared && (self.limits.cpu_milli.is_some() || self.limits.io.is_some())
    }

    /// The attempt lasts: this thread leaves it alone with its cgroups.
    pub(crate) fn leave(&mut self) {
        if !std::mem::take(&mut self.is_shared) {
            return self.slot.iter_mut().for_each(Slot::close_files);
        }
        let at_first = self.groups.at_first(&self.limits);
        if let Some(slot) = self.slot.as_mut().filter(|_| self.limits.io.is_some()) {
            // What follows may take longer than the first reads of a task; what fails is tried again below.
            let _later = slot.hold_to(&Limits { io: self.limits.io, ..at_first });
        }
        if self.limits.memory.is_some() {
            // What the kernel keeps of the folders that this thread makes and the files that it opens is charged to where it
            // stands, and a task's limit may have no room for that.
            let _stays = Slot::step_out(&self.groups.0.ground);
        }
        let next = self.groups.take().and_then(|slot| slot.enter().map(|()| slot));
        match next {
            Ok(slot) => SEAT.set(Some(slot)),
            Err(error) => {
                let out = Slot::step_out(&self.groups.0.ground);
                warn!(%error, ?out, "no cgroup for the next attempt of a thread");
            }
        }
        if let Some(slot) = &mut self.slot {
            slot.hold_all(&self.limits);
            slot.close_files();
        }
    }

    /// What [`Groups::adopt`] needs to go on with it.
    pub(crate) fn remains(&self) -> (Option<u64>, &Counts, Option<File>) {
        let peak = self.slot.as_ref().and_then(Slot::peak);
        (self.slot.as_ref().map(Slot::number), &self.from, peak)
    }

    /// What was counted since it began.
    pub(crate) fn counts(&self) -> Counts {
        let now = self.slot.as_ref().map(Slot::counts).unwrap_or_default();
        let from = &self.from;
        Counts {
            cpu_us: now.cpu_us.saturating_sub(from.cpu_us),
            user_us: now.user_us.saturating_sub(from.user_us),
            system_us: now.system_us.saturating_sub(from.system_us),
            oom_kills: now.oom_kills.saturating_sub(from.oom_kills),
            ..now
        }
    }

    /// Processes of the attempt that were killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.slot.as_ref().map_or(0, Slot::oom_kills).saturating_sub(self.from.oom_kills)
    }

    /// What it was not held to, though that seemed possible.
    pub(crate) fn missed(&self) -> Unenforced {
        self.slot.as_ref().map(|slot| slot.missed).unwrap_or_default()
    }

    /// Its disks are as fast as they are: it is being killed, and must not wait for them.
    pub(crate) fn lift_io(&self) {
        self.slot.iter().for_each(Slot::lift_io);
    }

    /// The limit of memory, if it has one.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        self.limits.memory
    }

    /// Whether the kernel kills only one process for want of memory and leaves the rest: version 1, with a limit.
    pub(crate) fn kills_one_by_one(&self) -> bool {
        let base = self.groups.0.ground.base_of(Controller::Memory);
        self.limits.memory.is_some() && base.is_some_and(|base| base.version == Version::One)
    }

    /// Gives its cgroups up, in which nothing could be started.
    pub(crate) fn give_up(mut self) {
        self.slot.iter_mut().for_each(Slot::spoil);
        let counts = self.counts();
        self.end(&counts);
    }

    /// Hands its cgroups on, of which nothing is left. `counts` are its last.
    pub(crate) fn end(mut self, counts: &Counts) {
        let Some(mut slot) = self.slot.take().filter(|_| !self.is_abandoned) else { return };
        slot.lift_io();
        let groups = self.groups.clone();
        let killed = self.from.oom_kills.saturating_add(counts.oom_kills);
        if !self.is_shared {
            return groups.put(slot, counts, killed);
        }
        // Before there are cgroups for its next attempt, this thread makes a folder for it, which would be charged here.
        if slot.is_clean(counts, killed) && slot.lift_memory().is_ok() {
            SEAT.set(Some(slot));
        } else {
            groups.discard(slot);
        }
    }
}

/// Limits of `limits` that are not enforced where `missing` is.
pub(crate) fn unenforced(limits: &Limits, missing: Unenforced) -> Unenforced {
    let asked = [
        (limits.memory.is_some(), Unenforced::MEMORY),
        (limits.cpu_milli.is_some(), Unenforced::CPU),
        (limits.pids.is_some(), Unenforced::PIDS),
        (limits.io.is_some(), Unenforced::IO),
    ];
    let both = asked.into_iter().filter(|(is_asked, one)| *is_asked && missing.has(*one));
    both.fold(Unenforced::default(), |all, (_, one)| all.and(one))
}
