//! Countable things: what a task takes, what an agent has, and what is left.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An amount of every resource. What one task takes, and what an agent offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Thousandths of a processor.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Whole GPUs.
    pub gpus: u64,
    /// Anything else that is counted, by name.
    pub named: BTreeMap<String, u64>,
}

/// How fast one attempt may use disks, in each second; none: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IoLimits {
    /// Bytes that it reads.
    pub read: Option<u64>,
    /// Bytes that it writes.
    pub write: Option<u64>,
    /// How often it reads.
    pub read_ops: Option<u64>,
    /// How often it writes.
    pub write_ops: Option<u64>,
}

impl IoLimits {
    /// With less than a page in a second, one that reads its own program would be taken for dead.
    pub const BYTES_MIN: u64 = 4096;

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each with the key of the job file that names it.
    pub fn by_key(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("io_read", self.read),
            ("io_write", self.write),
            ("io_read_ops", self.read_ops),
            ("io_write_ops", self.write_ops),
        ]
    }
}

/// One resource that does not suffice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// `cpus`, `memory`, `gpus`, or a name.
    pub resource: String,
    /// What is asked for; thousandths for `cpus`, bytes for `memory`.
    pub wanted: u64,
    /// What there is, in the same unit.
    pub there: u64,
}

impl Request {
    /// Whether nothing at all is asked for.
    pub fn is_empty(&self) -> bool {
        self.cpu_milli == 0 && self.memory == 0 && self.gpus == 0 && self.named.values().all(|n| *n == 0)
    }

    /// Whether this fits into `free`.
    pub fn fits(&self, free: &Self) -> bool {
        self.cpu_milli <= free.cpu_milli
            && self.memory <= free.memory
            && self.gpus <= free.gpus
            && self.named.iter().all(|(name, n)| *n <= free.named.get(name).copied().unwrap_or(0))
    }

    /// Everything of which `free` has too little for this; empty when it fits.
    pub fn shortages(&self, free: &Self) -> Vec<Shortage> {
        let fixed = [
            ("cpus", self.cpu_milli, free.cpu_milli),
            ("memory", self.memory, free.memory),
            ("gpus", self.gpus, free.gpus),
        ];
        let named = self.named.iter().map(|(name, n)| (name.as_str(), *n, free.named.get(name).copied().unwrap_or(0)));
        fixed
            .into_iter()
            .chain(named)
            .filter(|(_, wanted, there)| wanted > there)
            .map(|(resource, wanted, there)| Shortage { resource: resource.to_owned(), wanted, there })
            .collect()
    }

    /// Takes `other` away. The caller has asked `fits` first; what is missing stops at zero.
    pub fn take(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.saturating_sub(other.cpu_milli);
        self.memory = self.memory.saturating_sub(other.memory);
        self.gpus = self.gpus.saturating_sub(other.gpus);
        for (name, n) in &other.named {
            if let Some(there) = self.named.get_mut(name) {
                *there = there.saturating_sub(*n);
            }
        }
    }

    /// Gives `other` back.
    pub fn give(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.saturating_add(other.cpu_milli);
        self.memory = self.memory.saturating_add(other.memory);
        self.gpus = self.gpus.saturating_add(other.gpus);
        for (name, n) in &other.named {
            let there = self.named.entry(name.clone()).or_default();
            *there = there.saturating_add(*n);
        }
    }
}
