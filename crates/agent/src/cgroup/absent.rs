//! A system without control groups: nothing is held to limits, and attempts say so.

mod report;

use std::collections::BTreeSet;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use muster_core::{record::Enforced, spec::TaskSpec, usage::Unenforced};

pub use self::report::Enforce;
use self::report::Report;

/// Limits cannot be enforced as the operator demands.
#[derive(Debug, thiserror::Error)]
#[error("limits must be enforced here (`enforce = \"required\"`), and cannot be: {0}")]
pub struct Error(String);

/// See the other side.
#[derive(Clone, Debug)]
pub(crate) struct Groups(Enforce, Report);

/// There is none.
#[derive(Debug)]
pub(crate) enum Place {}

/// There is none.
#[derive(Debug)]
pub(crate) enum Slot {}

/// What an attempt asks to be held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory: Option<u64>,
    cpu: bool,
    pub(crate) pids: Option<u64>,
    io: bool,
}

/// See the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) oom_kills: u64,
    pub(crate) cpu_us: u64,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) memory_peak: u64,
}

impl Limits {
    pub(crate) fn of(spec: &TaskSpec) -> Self {
        Self {
            memory: Some(spec.request.memory).filter(|bytes| *bytes > 0),
            cpu: spec.cpu_limit,
            pids: spec.pids,
            io: !spec.io.is_empty(),
        }
    }
}

impl Groups {
    pub(crate) fn open(
        enforce: Enforce,
        _instance: &str,
        _run: &Path,
        _kept: &BTreeSet<u64>,
        _shelter: bool,
    ) -> Result<Self, Error> {
        let report = Report::nothing("this system has no control groups");
        match report.missing().filter(|_| enforce == Enforce::Required) {
            Some(missing) => Err(Error(missing)),
            None => Ok(Self(enforce, report)),
        }
    }

    pub(crate) fn report(&self) -> String {
        self.1.to_string()
    }

    pub(crate) fn enforced(&self) -> Vec<Enforced> {
        self.1.told()
    }

    pub(crate) fn unenforced(&self) -> Unenforced {
        self.1.unenforced()
    }

    pub(crate) fn find_disks(&self, limits: &mut Limits, _folder: &Path) -> Unenforced {
        if limits.io { Unenforced::IO } else { Unenforced::default() }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0 != Enforce::Off
    }

    /// Whether nothing may run that is not held to what it asks for.
    pub(crate) fn is_demanded(&self) -> bool {
        self.0 == Enforce::Required
    }

    pub(crate) fn prepare(&self, _limits: &Limits) -> Option<Place> {
        None
    }

    pub(crate) fn close(&self, _limit: Duration) {}
}

impl Place {
    pub(crate) fn slot(&self) -> Option<&Slot> {
        match *self {}
    }

    pub(crate) fn shelter(&mut self) -> Result<PathBuf, String> {
        match *self {}
    }

    pub(crate) fn abandon(&mut self) {
        match *self {}
    }

    pub(crate) fn is_strict(&self) -> bool {
        match *self {}
    }

    pub(crate) fn leave(&mut self) {
        match *self {}
    }

    pub(crate) fn counts(&self) -> Counts {
        match *self {}
    }

    pub(crate) fn oom_kills(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn missed(&self) -> Unenforced {
        match *self {}
    }

    pub(crate) fn lift_io(&self) {
        match *self {}
    }

    pub(crate) fn memory_limit(&self) -> Option<u64> {
        match *self {}
    }

    pub(crate) fn kills_one_by_one(&self) -> bool {
        match *self {}
    }

    pub(crate) fn give_up(self) {
        match self {}
    }

    pub(crate) fn end(self, _counts: &Counts) {
        match self {}
    }
}

impl Slot {
    pub(crate) fn kill_sheltered(&self) -> bool {
        match *self {}
    }

    pub(crate) fn is_empty(&self) -> bool {
        match *self {}
    }
}

/// There is none.
pub(crate) fn place() -> Result<(u8, PathBuf), String> {
    Err("this system has no control groups".to_owned())
}

/// Limits of `limits` that are not enforced where `missing` is.
pub(crate) fn unenforced(limits: &Limits, missing: Unenforced) -> Unenforced {
    let asked = [
        (limits.memory.is_some(), Unenforced::MEMORY),
        (limits.cpu, Unenforced::CPU),
        (limits.pids.is_some(), Unenforced::PIDS),
        (limits.io, Unenforced::IO),
    ];
    let both = asked.into_iter().filter(|(is_asked, one)| *is_asked && missing.has(*one));
    both.fold(Unenforced::default(), |all, (_, one)| all.and(one))
}
