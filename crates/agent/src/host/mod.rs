//! Looks at the machine: what it is, what it can give, and how it is from moment to moment.

mod facts;
mod labels;

#[cfg(target_os = "linux")]
mod linux;
mod live;
#[cfg(target_os = "linux")]
mod nvml;
mod slots;
mod watch;

use std::{
    collections::BTreeMap,
    env::consts,
    path::{Path, PathBuf},
};

use muster_core::{
    record::{Facts, Gpu, Offer},
    resources::Request,
    validate,
};
use tracing::warn;

pub use self::{
    slots::{Slots, of_process},
    watch::{Check, News, Watch},
};

/// What a machine offers that does not tell its memory.
const MEMORY_UNKNOWN: u64 = 1 << 30;
/// What is kept of a disk where nobody says: this part of it, for tasks write their inputs and their scratch there.
const DISK_PART: u64 = 20;
/// And no more than this.
const DISK_MOST: u64 = 64 << 20;
/// No machine has more GPUs.
const GPUS_MAX: u32 = 1024;

/// What a person says of the machine instead of what is found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The agent's name; none: the machine's.
    pub name: Option<String>,
    /// Thousandths of processors.
    pub cpu_milli: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Whole GPUs.
    pub gpus: Option<u64>,
    /// Named resources.
    pub named: BTreeMap<String, u64>,
    /// Labels, besides `os`, `arch` and `hostname`; they win over those.
    pub labels: BTreeMap<String, String>,
    /// An executable that writes more labels; those above win over them.
    pub labels_from: Option<PathBuf>,
    /// What is kept for the system of what is found. What a person says is offered as it stands.
    pub reserve: Reserve,
}

/// What is kept for the system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Thousandths of processors.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the disk that holds the agent's folder: with less than this free, it takes no new work. None: a twentieth
    /// of the disk, 64 MiB at most.
    pub disk: Option<u64>,
}

impl Reserve {
    /// Bytes of a disk that has `all`.
    fn of_disk(&self, all: u64) -> u64 {
        self.disk.unwrap_or((all / DISK_PART).min(DISK_MOST))
    }
}

/// The machine as it was found.
#[derive(Clone, Debug)]
pub struct Machine {
    host: String,
    cpu_milli: u64,
    memory: u64,
    gpus: u64,
    facts: Facts,
}

impl Machine {
    /// Looks at it. `folder` is the agent's own. Never fails: what cannot be found out is guessed low and said in the log.
    pub fn look(folder: &Path) -> Self {
        let gpus = nvidia();
        let memory = memory();
        Self {
            host: host_name(),
            cpu_milli: cpu_milli(),
            gpus: if gpus.is_empty() { self::gpus() } else { gpus.len() as u64 },
            facts: facts::found(folder, memory.0, gpus),
            memory: memory.1,
        }
    }

    /// What it offers, with what a person says instead and the labels of an executable.
    pub fn offer(&self, overrides: &Overrides, found: &BTreeMap<String, String>) -> Offer {
        let own = [("os", consts::OS), ("arch", consts::ARCH), ("hostname", &self.host)];
        let mut labels: BTreeMap<String, String> =
            own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        labels.extend(found.clone());
        labels.extend(overrides.labels.clone());
        let reserve = &overrides.reserve;
        Offer {
            name: overrides.name.clone().unwrap_or_else(|| validate::agent_name_of(&self.host)),
            os: consts::OS.into(),
            arch: consts::ARCH.into(),
            labels,
            capacity: Request {
                cpu_milli: overrides.cpu_milli.unwrap_or(self.cpu_milli.saturating_sub(reserve.cpu_milli)),
                memory: overrides.memory.unwrap_or(self.memory.saturating_sub(reserve.memory)),
                gpus: overrides.gpus.map_or(self.gpus, |gpus| gpus.min(self.gpus_most())),
                named: overrides.named.clone(),
            },
            version: env!("CARGO_PKG_VERSION").into(),
            host: self.host.clone(),
            unfit: String::new(),
            facts: Box::new(self.facts.clone()),
        }
    }

    /// As many GPUs as there can be: those of the driver, if it tells of any.
    fn gpus_most(&self) -> u64 {
        if self.facts.gpus.is_empty() { u64::MAX } else { self.gpus }
    }

    /// Tells whoever starts the agent of settings that do not go with the machine.
    fn warn_of(&self, overrides: &Overrides) {
        if let Some(said) = overrides.gpus.filter(|gpus| *gpus > self.gpus_most()) {
            warn!(said, found = self.gpus, "`gpus` is more than the driver can reach: what it reaches is offered");
        }
        let reserve = &overrides.reserve;
        if overrides.cpu_milli.is_none() && reserve.cpu_milli >= self.cpu_milli {
            warn!(found = self.cpu_milli / 1000, "`reserve` keeps every processor of the machine: no task gets one");
        }
        if overrides.memory.is_none() && reserve.memory >= self.memory {
            warn!(found = self.memory, "`reserve` keeps all the machine's memory: no task gets any");
        }
    }

    /// The indices of the GPUs that `offer` lets tasks take.
    pub fn gpu_indices(&self, offer: &Offer) -> Vec<u32> {
        let count = usize::try_from(offer.capacity.gpus).unwrap_or(usize::MAX);
        if self.facts.gpus.is_empty() {
            return (0..u32::try_from(offer.capacity.gpus).unwrap_or(0).min(GPUS_MAX)).collect();
        }
        self.facts.gpus.iter().map(|gpu| gpu.index).take(count).collect()
    }
}

fn host_name() -> String {
    match sysinfo::System::host_name() {
        Ok(name) if !name.is_empty() => name,
        _ => "localhost".into(),
    }
}

/// Whole processors that we may use: affinity and cgroup quotas count.
fn cpu_milli() -> u64 {
    match std::thread::available_parallelism() {
        Ok(count) => u64::try_from(count.get()).unwrap_or(1) * 1000,
        Err(error) => {
            warn!(%error, "cannot count the processors; one is offered");
            1000
        }
    }
}

/// What the machine has, and what our cgroup may have of it.
fn memory() -> (u64, u64) {
    let total = sysinfo::System::new().map(|mut system| {
        // Memory alone: a refresh of everything costs much, and under Wine the process its life.
        system.refresh_memory();
        system.total_memory()
    });
    let total = match total {
        Ok(total) if total > 0 => total,
        _ => {
            warn!("cannot find out how much memory there is; 1 GiB is offered");
            MEMORY_UNKNOWN
        }
    };
    (total, total.min(memory_limit()))
}

#[cfg(target_os = "linux")]
fn memory_limit() -> u64 {
    linux::memory_limit().unwrap_or(u64::MAX)
}

#[cfg(not(target_os = "linux"))]
fn memory_limit() -> u64 {
    u64::MAX
}

#[cfg(target_os = "linux")]
fn gpus() -> u64 {
    linux::gpus()
}

#[cfg(not(target_os = "linux"))]
fn gpus() -> u64 {
    0
}

#[cfg(target_os = "linux")]
fn nvidia() -> Vec<Gpu> {
    nvml::gpus()
}

#[cfg(not(target_os = "linux"))]
fn nvidia() -> Vec<Gpu> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_offers_what_it_has() {
        let offer = Machine::look(Path::new(".")).offer(&Overrides::default(), &BTreeMap::new());
        assert!(!offer.name.is_empty() && offer.name == offer.host);
        assert_eq!((offer.os.as_str(), offer.labels["os"].as_str()), (consts::OS, consts::OS));
        assert_eq!(offer.labels["arch"], consts::ARCH);
        assert_eq!(offer.labels["hostname"], offer.host);
        assert!(offer.capacity.cpu_milli >= 1000 && offer.capacity.cpu_milli.is_multiple_of(1000));
        assert!(offer.capacity.memory >= 64 << 20);
    }

    #[test]
    fn what_a_person_says_wins() {
        let overrides = Overrides {
            name: Some("a".into()),
            cpu_milli: Some(1500),
            memory: Some(5),
            gpus: Some(2),
            named: [("license".to_owned(), 3)].into(),
            labels: [("os".to_owned(), "mine".to_owned()), ("team".to_owned(), "x".to_owned())].into(),
            reserve: Reserve { cpu_milli: 1000, memory: 4, disk: None },
            labels_from: None,
        };
        let offer = machine(&[]).offer(&overrides, &BTreeMap::new());
        assert_eq!(
            (offer.name.as_str(), offer.labels["os"].as_str(), offer.labels["team"].as_str()),
            ("a", "mine", "x")
        );
        let named = [("license".to_owned(), 3)].into();
        assert_eq!(offer.capacity, Request { cpu_milli: 1500, memory: 5, gpus: 2, named });
    }

    fn machine(gpus: &[u32]) -> Machine {
        let gpus: Vec<_> = gpus.iter().map(|index| Gpu { index: *index, ..Gpu::default() }).collect();
        let facts = Facts { gpus: gpus.clone(), ..Facts::default() };
        Machine { host: "h".to_owned(), cpu_milli: 4000, memory: 8 << 30, gpus: gpus.len() as u64, facts }
    }

    #[test]
    fn a_reserve_is_kept_of_what_was_found_and_labels_of_a_person_win_over_those_of_an_executable() {
        let found = [("zone".to_owned(), "a".to_owned()), ("rack".to_owned(), "1".to_owned())].into();
        let overrides = Overrides {
            reserve: Reserve { cpu_milli: 500, memory: 9 << 30, disk: None },
            labels: [("zone".to_owned(), "b".to_owned())].into(),
            ..Overrides::default()
        };
        let offer = machine(&[]).offer(&overrides, &found);
        assert_eq!((offer.capacity.cpu_milli, offer.capacity.memory), (3500, 0), "more than all is all");
        assert_eq!((offer.labels["zone"].as_str(), offer.labels["rack"].as_str()), ("b", "1"));
    }

    #[test]
    fn indices_are_those_of_the_driver_and_a_person_may_offer_fewer() {
        let few = Overrides { gpus: Some(2), ..Overrides::default() };
        for (there, overrides, indices) in [
            (&[0, 2, 5][..], Overrides::default(), vec![0, 2, 5]),
            (&[0, 2, 5], few.clone(), vec![0, 2]),
            (&[], few, vec![0, 1]),
            (&[], Overrides::default(), vec![]),
        ] {
            let machine = machine(there);
            assert_eq!(machine.gpu_indices(&machine.offer(&overrides, &BTreeMap::new())), indices);
        }
    }
}
