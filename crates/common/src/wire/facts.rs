//! What is known of a machine beside its offer, and what people wish of it.

use muster_core::{
    fleet::{Cordon, Limits},
    record::{Enforced, Facts, Gpu},
    time::Timestamp,
};

use crate::proto::v1;

pub(super) fn facts_to_proto(facts: &Facts) -> v1::Facts {
    let gpu = |gpu: &Gpu| v1::Gpu {
        index: gpu.index,
        name: gpu.name.clone(),
        uuid: gpu.uuid.clone(),
        memory_bytes: gpu.memory,
    };
    v1::Facts {
        kernel: facts.kernel.clone(),
        distribution: facts.distribution.clone(),
        processors: facts.processors,
        numa: facts.numa.clone(),
        memory_bytes: facts.memory,
        disk_bytes: facts.disk,
        gpus: facts.gpus.iter().map(gpu).collect(),
        enforced: facts.enforced.iter().map(enforced_to_proto).collect(),
    }
}

pub(super) fn facts_from_proto(facts: v1::Facts) -> Facts {
    let gpu = |gpu: v1::Gpu| Gpu { index: gpu.index, name: gpu.name, uuid: gpu.uuid, memory: gpu.memory_bytes };
    Facts {
        kernel: facts.kernel,
        distribution: facts.distribution,
        processors: facts.processors,
        numa: facts.numa,
        memory: facts.memory_bytes,
        disk: facts.disk_bytes,
        gpus: facts.gpus.into_iter().map(gpu).collect(),
        enforced: facts.enforced.into_iter().map(enforced_from_proto).collect(),
    }
}

/// What attempts are held to in one respect, as the wire carries it.
pub fn enforced_to_proto(one: &Enforced) -> v1::Enforced {
    v1::Enforced { what: one.what.clone(), by: one.by.clone(), why_not: one.why_not.clone() }
}

/// What attempts are held to in one respect, as it is meant.
pub fn enforced_from_proto(one: v1::Enforced) -> Enforced {
    Enforced { what: one.what, by: one.by, why_not: one.why_not }
}

/// A cordon as the wire and the store carry it.
pub fn cordon_to_proto(cordon: &Cordon) -> v1::Cordon {
    v1::Cordon {
        at_us: cordon.at.0,
        by: cordon.by.to_string(),
        reason: cordon.reason.to_string(),
        drain: cordon.drain,
        deadline_us: cordon.deadline.0,
    }
}

/// A cordon as it is meant.
pub fn cordon_from_proto(cordon: v1::Cordon) -> Cordon {
    Cordon {
        at: Timestamp(cordon.at_us),
        by: cordon.by.into(),
        reason: cordon.reason.into(),
        drain: cordon.drain,
        deadline: Timestamp(cordon.deadline_us),
    }
}

/// Limits as the wire and the store carry them.
pub fn limits_to_proto(limits: Limits) -> v1::Limits {
    v1::Limits { cpu_milli: limits.cpu_milli, memory_bytes: limits.memory, gpus: limits.gpus }
}

/// Limits as they are meant.
pub fn limits_from_proto(limits: v1::Limits) -> Limits {
    Limits { cpu_milli: limits.cpu_milli, memory: limits.memory_bytes, gpus: limits.gpus }
}
