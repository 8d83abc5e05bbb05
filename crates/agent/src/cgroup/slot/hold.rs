//! Writes what an attempt is held to into the files of its cgroups.

use std::{io, sync::atomic::Ordering};

use muster_core::usage::Unenforced;
use tracing::warn;

use super::{
    super::{
        disks::{self, Io},
        limits::{Limits, shares, weight},
        trees::{Controller, Version},
        unenforced,
    },
    Slot, write,
};

/// The period of a hard limit of processor time; the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// More processes no system has (`PID_MAX_LIMIT`), and the kernel takes no larger number.
const PIDS_MAX: u64 = 4 << 20;
/// The shortest slice that the kernel takes.
const QUOTA_MIN_US: u64 = 1000;

impl Slot {
    /// Writes the limits that differ from what stands there. `Err`: use another slot.
    pub(in crate::cgroup) fn hold_to(&mut self, limits: &Limits) -> io::Result<()> {
        let before = self.written;
        self.limit_memory(before.memory, limits.memory)?;
        if self.is_fresh || limits.weight_milli != before.weight_milli {
            self.set(
                Controller::Cpu,
                ("cpu.shares", shares(limits.weight_milli)),
                ("cpu.weight", weight(limits.weight_milli)),
            )?;
        }
        if limits.cpu_milli != before.cpu_milli {
            let quota = limits.cpu_milli.map(|milli| (milli.saturating_mul(PERIOD_US / 1000)).max(QUOTA_MIN_US));
            let v1 = quota.map_or_else(|| "-1".to_owned(), |us| us.to_string());
            let v2 = quota.map_or_else(|| format!("max {PERIOD_US}"), |us| format!("{us} {PERIOD_US}"));
            self.set(Controller::Cpu, ("cpu.cfs_quota_us", v1), ("cpu.max", v2))?;
        }
        if limits.pids != before.pids {
            let text = limits.pids.filter(|n| *n <= PIDS_MAX);
            let text = text.map_or_else(|| "max".to_owned(), |n| n.to_string());
            self.set(Controller::Pids, ("pids.max", text.clone()), ("pids.max", text))?;
        }
        let io_before = if std::mem::take(self.is_lifted.get_mut()) { None } else { before.io };
        (self.written, self.is_fresh) = (*limits, false);
        self.missed = Unenforced::default();
        match self.limit_io(io_before, limits.io) {
            // An attempt without its other limits would be worse; it says so.
            Err(error) if limits.io.is_some() => {
                warn!(%error, "an attempt is not held to its limits of disks");
                self.missed = Unenforced::IO;
                Ok(())
            }
            other => other,
        }
    }

    /// The same for an attempt that runs in it already: there is no other for it, and what could not be written is noted.
    pub(in crate::cgroup) fn hold_all(&mut self, limits: &Limits) {
        if let Err(error) = self.hold_to(limits) {
            warn!(%error, "an attempt is not held to all of its limits");
            self.missed = unenforced(limits, Unenforced::CPU.and(Unenforced::PIDS).and(Unenforced::IO));
            self.is_spoiled = true;
        }
    }

    fn limit_io(&self, before: Option<Io>, limits: Option<Io>) -> io::Result<()> {
        let Some(base) = self.ground.base_of(Controller::Io).filter(|_| before != limits) else { return Ok(()) };
        let dir = self.dir(base);
        let lines = disks::lines(base.version, before, limits);
        lines.into_iter().try_for_each(|(file, text)| write(&dir.join(file), &text))
    }

    /// Who waits for a slow disk cannot be killed while it waits, and what is written late must not go on slowly.
    pub(crate) fn lift_io(&self) {
        if self.written.io.is_some() && !self.is_lifted.load(Ordering::Relaxed) {
            let is_lifted = self.limit_io(self.written.io, None).is_ok();
            self.is_lifted.store(is_lifted, Ordering::Relaxed);
        }
    }

    /// No attempt runs in it, and whoever stands there has as much as he needs.
    pub(in crate::cgroup) fn lift_memory(&mut self) -> io::Result<()> {
        match self.written.memory {
            Some(_) => self.hold_to(&Limits { memory: None, ..self.written }),
            None => Ok(()),
        }
    }

    /// Always anew: a task of root can write there as well as we.
    fn limit_memory(&self, before: Option<u64>, limit: Option<u64>) -> io::Result<()> {
        let Some(base) = self.ground.base_of(Controller::Memory) else { return Ok(()) };
        let dir = self.dir(base);
        if base.version == Version::Two {
            // One process that is killed takes the whole attempt with it, rather than leave half of one.
            let _older_than_4_19 = write(&dir.join("memory.oom.group"), "1");
            // What does not fit must not creep on in swap; a kernel without swap has no such file.
            let _no_swap = write(&dir.join("memory.swap.max"), "0");
            return write(&dir.join("memory.max"), &limit.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string()));
        }
        if before.is_none() && limit.is_none() {
            return Ok(());
        }
        let text = limit.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
        // With swap together it may never be less than without: which comes first depends on the direction.
        let is_lower = limit.unwrap_or(u64::MAX) < before.unwrap_or(u64::MAX);
        let (alone, with_swap) = (dir.join("memory.limit_in_bytes"), dir.join("memory.memsw.limit_in_bytes"));
        if is_lower {
            write(&alone, &text)?;
        }
        match write(&with_swap, &text) {
            // A kernel that does not count swap: then none is used.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _without = write(&dir.join("memory.swappiness"), "0");
            }
            other => other?,
        }
        if is_lower { Ok(()) } else { write(&alone, &text) }
    }

    fn set(&self, controller: Controller, v1: (&str, String), v2: (&str, String)) -> io::Result<()> {
        let Some(base) = self.ground.base_of(controller) else { return Ok(()) };
        let (name, text) = if base.version == Version::One { v1 } else { v2 };
        write(&self.dir(base).join(name), &text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cgroup::ground::{Base, Ground};

    #[test]
    fn what_a_task_wrote_over_its_limits_of_memory_is_written_anew_for_the_next_attempt() {
        // In place of a tree of version 2, whose files the kernel makes with the folder.
        let tree = tempfile::tempdir().expect("a folder");
        let (dir, controllers) = (tree.path().to_owned(), vec![Controller::Memory]);
        let base = Base { version: Version::Two, controllers, dir, own: tree.path().to_owned(), before: String::new() };
        let ground = Arc::new(Ground { bases: vec![base], ..Ground::default() });
        let mut slot = Slot::make(&ground, 7).expect("a folder");
        let files = ["memory.max", "memory.swap.max", "memory.oom.group"].map(|name| tree.path().join("7").join(name));
        let limited = Limits { memory: Some(64 << 20), ..Limits::default() };
        for (limits, max) in [
            (limited, "67108864"),
            (limited, "67108864"),
            (Limits::default(), "max"),
            (Limits::default(), "max"),
            (limited, "67108864"),
        ] {
            files.iter().for_each(|file| std::fs::write(file, "").expect("ours"));
            slot.hold_to(&limits).expect("written");
            let [found, swap, group] = files.each_ref().map(|file| std::fs::read_to_string(file).expect("there"));
            assert_eq!([&*found, &swap, &group], [max, "0", "1"], "{limits:?}");
        }
    }
}
