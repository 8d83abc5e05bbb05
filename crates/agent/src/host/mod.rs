//! Looks at the machine once: what it is and what it can give.

#[cfg(target_os = "linux")]
mod linux;

use std::{collections::BTreeMap, env::consts};

use muster_core::{record::Offer, resources::Request};
use tracing::warn;

/// What a machine offers that does not tell its memory.
const MEMORY_UNKNOWN: u64 = 1 << 30;

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
}

/// What this machine offers. Never fails: what cannot be found out is guessed low and said in the log.
pub fn offer(overrides: &Overrides) -> Offer {
    let host = host_name();
    let found = [("os", consts::OS), ("arch", consts::ARCH), ("hostname", &host)];
    let mut labels: BTreeMap<String, String> =
        found.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    labels.extend(overrides.labels.clone());
    Offer {
        name: overrides.name.clone().unwrap_or_else(|| host.clone()),
        os: consts::OS.into(),
        arch: consts::ARCH.into(),
        labels,
        capacity: Request {
            cpu_milli: overrides.cpu_milli.unwrap_or_else(cpu_milli),
            memory: overrides.memory.unwrap_or_else(memory),
            gpus: overrides.gpus.unwrap_or_else(gpus),
            named: overrides.named.clone(),
        },
        version: env!("CARGO_PKG_VERSION").into(),
        host,
        ..Offer::default()
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

/// What the machine has, or what our cgroup may have of it.
fn memory() -> u64 {
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
    total.min(memory_limit())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_offers_what_it_has() {
        let offer = offer(&Overrides::default());
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
        };
        let offer = offer(&overrides);
        assert_eq!(
            (offer.name.as_str(), offer.labels["os"].as_str(), offer.labels["team"].as_str()),
            ("a", "mine", "x")
        );
        let named = [("license".to_owned(), 3)].into();
        assert_eq!(offer.capacity, Request { cpu_milli: 1500, memory: 5, gpus: 2, named });
    }
}
