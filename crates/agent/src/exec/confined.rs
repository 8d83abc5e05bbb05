//! What holds one attempt and counts what it takes: its cgroups, or what stands in for them.

use std::path::PathBuf;

use muster_core::{
    state::End,
    usage::{Amount, Unenforced, Usage},
};

use super::os::{Confines, Spent, Status, Who};
use crate::cgroup::{Counts, Place};

/// More processor time than this, and the kernel's own ticks tell well how it was spent.
const SPLIT_US: u64 = 500_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Confined {
    /// None: no cgroups could be used.
    pub(super) place: Option<Place>,
    /// See [`Confines::data_limit`].
    pub(super) data_limit: Option<u64>,
    /// What the task asked for and is not held to.
    pub(super) unenforced: Unenforced,
}

/// An end for want of memory, as the kernel tells of it.
pub(super) struct Oom {
    pub(super) end: End,
    pub(super) why: String,
}

impl Confined {
    /// For the process that is started, as `who`.
    pub(super) fn confines<'a>(&'a self, who: Option<&'a Who>) -> Confines<'a> {
        Confines { place: self.place.as_ref(), data_limit: self.data_limit, who, joins: None }
    }

    /// Where a daemon is to put what belongs to it. `Err` is for people.
    pub(super) fn shelter(&mut self) -> Result<PathBuf, String> {
        let place =
            self.place.as_mut().ok_or("no cgroup could be made for it, and nothing else holds what Docker starts")?;
        place.shelter()
    }

    /// Nothing was started: the next attempt may have its cgroups.
    pub(super) fn hand_back(self) {
        if let Some(place) = self.place {
            let counts = place.counts();
            place.end(&counts);
        }
    }

    /// Nothing could be started, maybe for what an earlier attempt left in its cgroups: nobody has them again.
    pub(super) fn give_up(self) {
        self.place.into_iter().for_each(Place::give_up);
    }

    /// What the task asks for and is not held to, as far as is known by now.
    pub(super) fn missed(&self) -> Unenforced {
        self.place.as_ref().map_or(self.unenforced, |place| self.unenforced.and(place.missed()))
    }

    /// Whether its thread must not wait for its end.
    pub(super) fn is_strict(&self) -> bool {
        self.place.as_ref().is_some_and(Place::is_strict)
    }

    /// Whether nobody is left in its cgroups; none: there are none to tell it.
    pub(super) fn is_deserted(&self) -> Option<bool> {
        Some(self.place.as_ref()?.slot()?.is_empty())
    }

    /// Of what was counted, what people want to know.
    pub(super) fn usage(&self, counts: Option<&Counts>, spent: Option<Spent>) -> Usage {
        let spent = spent.unwrap_or_default();
        let counted = counts.filter(|counts| counts.cpu_us > 0);
        let (user, system) = match counted {
            Some(counts) if counts.user_us + counts.system_us > 0 => (counts.user_us, counts.system_us),
            Some(counts) => split(counts.cpu_us, spent),
            None => (spent.user_us, spent.system_us),
        };
        let peak = counts.map_or(0, |counts| counts.memory_peak);
        Usage {
            memory_peak: Amount::new(if peak > 0 { peak } else { spent.memory_peak }),
            cpu_user_us: Amount::new(user),
            cpu_system_us: Amount::new(system),
            read_bytes: Amount::new(spent.read_bytes),
            written_bytes: Amount::new(spent.written_bytes),
            unenforced: self.missed(),
            has_output: None,
        }
    }

    /// Reads the last counts and hands the cgroups on.
    pub(super) fn settle(self, spent: Option<Spent>) -> Usage {
        let counts = self.place.as_ref().map(Place::counts);
        self.settle_at(counts, spent)
    }

    /// The same, with the last counts.
    pub(super) fn settle_at(self, counts: Option<Counts>, spent: Option<Spent>) -> Usage {
        let usage = self.usage(counts.as_ref(), spent);
        if let (Some(place), Some(counts)) = (self.place, counts) {
            place.end(&counts);
        }
        usage
    }

    /// Whether the kernel killed a process of it for want of memory, and what follows for an attempt that ended by itself.
    /// The cgroup's own count says it, never an exit code.
    /// Where a daemon `told` of one the count went with the cgroups that it had made.
    pub(super) fn oom(&self, status: Status, told: bool) -> Option<Oom> {
        let is_known = |place: &&Place| place.oom_kills() > 0 || told && is_full(place);
        let place = self.place.as_ref().filter(is_known)?;
        let whose = match place.memory_limit() {
            Some(bytes) => format!("its limit of {}", shown(bytes)),
            None => "what the machine, or a group above it, had left".to_owned(),
        };
        Some(match status {
            Status::Exit(0) => Oom {
                end: End::Succeeded,
                why: format!("the kernel killed a process of it that needed more memory than {whose}"),
            },
            Status::Signal(_) => Oom { end: End::Oom, why: format!("it needed more memory than {whose}") },
            Status::Exit(code) => Oom {
                end: End::Oom,
                why: format!("a process of it needed more memory than {whose}; then it ended with exit code {code}"),
            },
        })
    }
}

/// Whether it came up to its limit of memory. A daemon hears of the want of every cgroup above its container's.
fn is_full(place: &Place) -> bool {
    let peak = place.counts().memory_peak;
    place.memory_limit().is_some_and(|limit| peak >= limit - limit / 16)
}

/// Bytes for people.
pub(super) fn shown(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{bytes} bytes"),
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// Of a whole that is exact, parts as the processes that were waited for tell of theirs.
fn split(whole: u64, spent: Spent) -> (u64, u64) {
    let both = u128::from(spent.user_us) + u128::from(spent.system_us);
    if both == 0 || whole > SPLIT_US && u128::from(whole) > 4 * both {
        return (whole, 0);
    }
    let user = u64::try_from(u128::from(whole) * u128::from(spent.user_us) / both).unwrap_or(whole);
    (user, whole - user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_is_split_as_the_parts_are() {
        let spent = |user_us, system_us| Spent { user_us, system_us, ..Spent::default() };
        assert_eq!(split(100, spent(3, 1)), (75, 25));
        assert_eq!(split(100, spent(0, 0)), (100, 0));
        assert_eq!(split(u64::MAX, spent(1, 1)), (u64::MAX, 0), "too little is known of so much");
    }

    #[test]
    fn without_cgroups_what_the_parent_hears_is_told() {
        let confined = Confined { place: None, data_limit: None, unenforced: Unenforced::MEMORY };
        let spent = Spent { memory_peak: 5, user_us: 7, system_us: 8, read_bytes: 512, written_bytes: 1024 };
        let usage = confined.usage(None, Some(spent));
        assert_eq!((usage.memory_peak.get(), usage.cpu_user_us.get(), usage.written_bytes.get()), (5, 7, 1024));
        assert_eq!(usage.unenforced, Unenforced::MEMORY);
        assert!(confined.oom(Status::Signal(9), true).is_none() && confined.is_deserted().is_none());
    }

    #[test]
    fn sizes_are_told_as_people_write_them() {
        assert_eq!(
            [shown(77), shown(64 << 20), shown(3 << 30), shown((3 << 20) + (1 << 19))],
            ["77 bytes", "64 MiB", "3 GiB", "3.5 MiB"]
        );
    }
}
