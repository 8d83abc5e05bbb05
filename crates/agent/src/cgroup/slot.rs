//! One cgroup in each tree, in which one attempt at a time runs: its limits, its counters, and who is in it.

mod hold;

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_core::usage::Unenforced;

use crate::exec::kill_members;

use super::{
    below::{self, bar, members},
    ground::{self, Base, Ground},
    limits::{Counts, Limits},
    trees::{Controller, Version},
};

/// What lies in a cgroup when its attempt is over (files in memory, above all) would be counted as the next one's;
/// with more than this it is not used again.
const LEFTOVER_MAX: u64 = 4 << 20;
/// Where an attempt's own process stands if others are put beside it. A cgroup of version 2 gives controllers to what is made
/// below it only while nobody stands in itself.
const CLIENT: &str = "client";

/// The files that every attempt reads, open while attempts come and go.
#[derive(Debug, Default)]
struct Files {
    /// The folder in the v2 tree, for processes to be made in.
    v2: Option<File>,
    events: Option<File>,
    peak: Option<File>,
    memory: Option<File>,
    oom: Option<File>,
    cpu: Option<File>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slot {
    ground: Arc<Ground>,
    number: u64,
    files: Files,
    /// What stands in the limits' files.
    written: Limits,
    /// Until the first limits are written: what stands there is the kernel's default.
    is_fresh: bool,
    /// How many were killed for want of memory by the end of its last attempt, when the mark of the highest use went back
    /// as well. Nobody lived in it since.
    before: Option<u64>,
    /// It serves no other attempt: it is an earlier keeper's, or `cgroup.kill` was used in it. Linux 6.13 and later then
    /// kill everybody who is ever made inside, at once: they compare
    /// how often it was killed with how often its maker's own cgroup was.
    is_killed: AtomicBool,
    /// The limits of disks were taken away before the next attempt came.
    is_lifted: AtomicBool,
    /// What was asked for and could not be written.
    pub(super) missed: Unenforced,
    /// What stands in its files is not known: it serves no other attempt.
    is_spoiled: bool,
    /// A daemon puts processes below it, who need not be in every tree of ours. It serves no other attempt then.
    is_shelter: bool,
}

impl Slot {
    pub(super) fn make(ground: &Arc<Ground>, number: u64) -> io::Result<Self> {
        let mut slot = Self {
            ground: Arc::clone(ground),
            number,
            files: Files::default(),
            written: Limits::default(),
            is_fresh: true,
            before: None,
            is_killed: AtomicBool::new(false),
            is_lifted: AtomicBool::new(false),
            missed: Unenforced::default(),
            is_spoiled: false,
            is_shelter: false,
        };
        for base in &ground.bases {
            match std::fs::create_dir(slot.dir(base)) {
                // Of ourselves, when something went wrong half-way: nobody else knows the name.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        slot.open();
        Ok(slot)
    }

    /// One that an earlier keeper made, for the attempt that is in it and for no other.
    pub(super) fn adopt(ground: &Arc<Ground>, number: u64, limits: &Limits, peak: Option<File>) -> Self {
        Self {
            ground: Arc::clone(ground),
            number,
            files: Files { peak, ..Files::default() },
            written: *limits,
            is_fresh: false,
            before: None,
            is_killed: AtomicBool::new(true),
            is_lifted: AtomicBool::new(false),
            missed: Unenforced::default(),
            is_spoiled: false,
            is_shelter: false,
        }
    }

    /// From now on others are below it, and its own process is started beside them. Returns how they are told of it; none: by
    /// no one path.
    pub(super) fn shelter(&mut self) -> io::Result<Option<PathBuf>> {
        let Some(shelter) = &self.ground.shelter else { return Ok(None) };
        self.is_shelter = true;
        if let Some(base) = self.ground.v2().filter(|_| !self.ground.has_v1()) {
            let client = self.dir(base).join(CLIENT);
            match std::fs::create_dir(&client) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => self.files.v2 = Some(File::open(client)?),
            }
        }
        Ok(Some(shelter.path.join(self.number.to_string())))
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// In version 2 the highest use since a mark is told by this open file alone.
    pub(super) fn peak(&self) -> Option<File> {
        self.files.peak.as_ref()?.try_clone().ok()
    }

    fn dir(&self, base: &Base) -> PathBuf {
        base.dir.join(self.number.to_string())
    }

    fn file(&self, controller: Controller, v1: &str, v2: &str) -> Option<PathBuf> {
        let base = self.ground.base_of(controller)?;
        Some(self.dir(base).join(if base.version == Version::One { v1 } else { v2 }))
    }

    /// Opens what every attempt reads; its files are closed while it serves one that lasts.
    pub(super) fn open(&mut self) {
        // In version 2 the mark belongs to the open file.
        self.before = None;
        let open = |path: Option<PathBuf>| path.and_then(|path| File::open(path).ok());
        let both = |path: Option<PathBuf>| {
            path.and_then(|path| {
                OpenOptions::new().read(true).write(true).open(&path).or_else(|_| File::open(&path)).ok()
            })
        };
        let memory = Controller::Memory;
        self.files = Files {
            v2: open(self.ground.v2().map(|base| self.dir(base))),
            events: open(self.ground.v2().map(|base| self.dir(base).join("cgroup.events"))),
            peak: both(self.file(memory, "memory.max_usage_in_bytes", "memory.peak")),
            memory: open(self.file(memory, "memory.usage_in_bytes", "memory.current")),
            oom: open(self.file(memory, "memory.oom_control", "memory.events")),
            cpu: open(self.file(Controller::Cpuacct, "cpuacct.usage", "cpu.stat")),
        };
    }

    /// An attempt that lasts is not worth six open files. In version 2 the highest use since a mark is told only by the
    /// file through which the mark was set.
    pub(super) fn close_files(&mut self) {
        self.files = Files { peak: self.files.peak.take(), ..Files::default() };
    }

    /// Where a process is to be made; none: it enters with the thread that makes it.
    pub(crate) fn v2(&self) -> Option<BorrowedFd<'_>> {
        self.files.v2.as_ref().map(AsFd::as_fd)
    }

    /// Moves this thread into the cgroups of version 1: what it starts from now on is born there. Cheap for a thread that
    /// moves itself; moving another takes a grace period of the kernel.
    pub(super) fn enter(&self) -> io::Result<()> {
        enter(self.ground.bases.iter().map(|base| (base, self.dir(base))))
    }

    /// Moves this thread to where the agent stands.
    pub(super) fn step_out(ground: &Ground) -> io::Result<()> {
        enter(ground.bases.iter().map(|base| (base, base.own.clone())))
    }

    /// The mark of the highest use goes back to what is in use, where the kernel can do that. Returns what only grows.
    pub(super) fn begin(&mut self) -> Counts {
        if let Some(oom_kills) = self.before.take() {
            return Counts { oom_kills, ..self.processor() };
        }
        self.reset_peak();
        Counts { oom_kills: self.oom_kills(), ..self.processor() }
    }

    /// Whether it could be done: in version 2 only from Linux 6.12 on.
    fn reset_peak(&self) -> bool {
        self.files.peak.as_ref().is_some_and(|peak| peak.write_at(b"0", 0).is_ok())
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.processor();
        let memory = Controller::Memory;
        let number = |file: &Option<File>, path: Option<PathBuf>| text_of(file, path).trim().parse().unwrap_or(0);
        counts.memory_peak = number(&self.files.peak, self.file(memory, "memory.max_usage_in_bytes", "memory.peak"));
        counts.memory = number(&self.files.memory, self.file(memory, "memory.usage_in_bytes", "memory.current"));
        counts.oom_kills = self.oom_kills();
        counts
    }

    /// Its time on processors alone.
    fn processor(&self) -> Counts {
        let mut counts = Counts::default();
        let text = text_of(&self.files.cpu, self.file(Controller::Cpuacct, "cpuacct.usage", "cpu.stat"));
        match text.trim().parse::<u64>() {
            Ok(ns) => counts.cpu_us = ns / 1000,
            Err(_) => {
                let word = |name| word(&text, name).unwrap_or(0);
                (counts.cpu_us, counts.user_us, counts.system_us) =
                    (word("usage_usec"), word("user_usec"), word("system_usec"));
            }
        }
        self.add_sheltered(&mut counts);
        counts
    }

    /// Those who are below it are counted in a tree that is not among ours.
    fn add_sheltered(&self, counts: &mut Counts) {
        let Some(shelter) = self.ground.shelter.as_ref().filter(|_| self.is_shelter) else { return };
        let (user, system) = shelter.times(self.number);
        counts.user_us += user;
        counts.system_us += system;
        counts.cpu_us += user + system;
    }

    /// How many processes in it were killed for want of memory, ever.
    pub(crate) fn oom_kills(&self) -> u64 {
        let text = text_of(&self.files.oom, self.file(Controller::Memory, "memory.oom_control", "memory.events"));
        let here = word(&text, "oom_kill").unwrap_or(0);
        // Version 1 counts each where it stood.
        let base = self.ground.base_of(Controller::Memory);
        let base = base.filter(|base| self.is_shelter && base.version == Version::One);
        let dirs = base.map(|base| below::children(&self.dir(base))).unwrap_or_default();
        let texts = dirs.into_iter().map(|dir| text_of(&None, Some(dir.join("memory.oom_control"))));
        here + texts.filter_map(|text| word(&text, "oom_kill")).sum::<u64>()
    }

    /// Whether nobody lives in it: nearly free where there is a v2 tree.
    pub(crate) fn is_empty(&self) -> bool {
        match self.ground.v2() {
            Some(base) => {
                let text = text_of(&self.files.events, Some(self.dir(base).join("cgroup.events")));
                word(&text, "populated") == Some(0) && (!self.is_shelter || self.members().is_empty())
            }
            None => self.members().is_empty(),
        }
    }

    /// Who is in it or in a cgroup below, which a task may make; in any tree. Never this process, which may have a thread
    /// there.
    pub(crate) fn members(&self) -> BTreeSet<i32> {
        self.dirs().flat_map(|dir| members(&dir)).collect()
    }

    /// Its folder, for people.
    pub(crate) fn shown(&self) -> String {
        self.dirs().next().unwrap_or_default().display().to_string()
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.ground.bases.iter().map(|base| self.dir(base))
    }

    /// Nobody is born in it any more, nor below it.
    pub(super) fn bar(&self) {
        if let Some(base) = self.ground.base_of(Controller::Pids) {
            bar(&self.dir(base));
        }
    }

    /// Kills those below it whom somebody else put there, and leaves those in it alone. Says whether anybody was killed: who is
    /// there and not ours to kill has to be ended by whoever put him there.
    pub(crate) fn kill_sheltered(&self) -> bool {
        let dirs =
            self.ground.bases.iter().filter(|_| self.is_shelter).flat_map(|base| below::children(&self.dir(base)));
        let dirs: Vec<_> = dirs.filter(|dir| dir.file_name().is_none_or(|name| name != CLIENT)).collect();
        dirs.iter().for_each(|dir| bar(dir));
        kill_members(&|| dirs.iter().flat_map(|dir| members(dir)).collect())
    }

    /// Whether everybody in it can be killed with one word.
    pub(crate) fn kill(&self) -> bool {
        self.lift_io();
        if self.is_shelter {
            self.bar();
        }
        match self.ground.v2().filter(|_| self.ground.has_kill) {
            Some(base) => {
                self.is_killed.store(true, Ordering::Relaxed);
                write(&self.dir(base).join("cgroup.kill"), "1").is_ok()
            }
            None => false,
        }
    }

    /// Stops them from forking while they are killed one by one, or lets them go on to their ends.
    pub(crate) fn freeze(&self, is_frozen: bool) {
        let (v1, v2) = if is_frozen { ("FROZEN", "1") } else { ("THAWED", "0") };
        let Some(file) = self.file(Controller::Freezer, "freezer.state", "cgroup.freeze") else { return };
        if !file.ends_with("freezer.state") {
            let _without = write(&file, v2);
            return;
        }
        let _without = write(&file, v1);
        // Whom a task froze itself, in a cgroup below, version 1 lets nobody kill.
        let below = file.parent().filter(|_| !is_frozen).map(below::all);
        for dir in below.into_iter().flatten() {
            let _gone = write(&dir.join("freezer.state"), v1);
        }
    }

    /// Whether the next attempt would find it as if it were new. `counts` are its last, with all that were `killed` in it.
    pub(super) fn is_clean(&mut self, counts: &Counts, killed: u64) -> bool {
        let resets = self.reset_peak();
        self.before = Some(killed).filter(|_| resets);
        // Where the highest mark stays, a small one does not matter. Where a task made cgroups, it may have given controllers
        // to them: then nothing can be started in the one above (EBUSY).
        !self.is_killed.load(Ordering::Relaxed)
            && !self.is_spoiled
            && !self.is_shelter
            && !self.dirs().any(|dir| below::has_any(&dir))
            && counts.memory <= LEFTOVER_MAX
            && (resets || counts.memory_peak <= 2 * LEFTOVER_MAX)
    }

    /// Nothing could be started in it, and nobody knows why.
    pub(super) fn spoil(&mut self) {
        self.is_spoiled = true;
    }

    /// Removes it. `Err`: somebody is still in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        let others = self.ground.shelter.iter().filter(|_| self.is_shelter).flat_map(|shelter| &shelter.others);
        let others = others.map(|dir| ground::remove(&dir.join(self.number.to_string()))).fold(Ok(()), io::Result::and);
        self.ground.bases.iter().try_for_each(|base| ground::remove(&self.dir(base))).and(others)
    }
}

fn enter<'a>(places: impl Iterator<Item = (&'a Base, PathBuf)>) -> io::Result<()> {
    for (base, dir) in places.filter(|(base, _)| base.version == Version::One) {
        debug_assert_eq!(base.version, Version::One);
        // "0" is the thread that writes.
        write(&dir.join("tasks"), "0")?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    // One call: these files take each as a whole word.
    file.write_at(text.as_bytes(), 0).map(|_| ())
}

/// A short file of the kernel's, through an open one if there is one.
fn text_of(open: &Option<File>, path: Option<PathBuf>) -> String {
    let mut bytes = [0; 1024];
    let read = match (open, path) {
        (Some(file), _) => file.read_at(&mut bytes, 0),
        (None, Some(path)) => File::open(path).and_then(|file| file.read_at(&mut bytes, 0)),
        (None, None) => Ok(0),
    };
    String::from_utf8_lossy(bytes.get(..read.unwrap_or(0)).unwrap_or_default()).into_owned()
}

/// The number behind a name at the beginning of a line.
fn word(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_kernel_are_found_by_their_whole_name() {
        let text = "low 0\noom 2\noom_kill 3\noom_group_kill 1\n";
        assert_eq!((word(text, "oom"), word(text, "oom_kill"), word(text, "max")), (Some(2), Some(3), None));
    }
}
