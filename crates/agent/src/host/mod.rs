//! Looks at the machine once: what it is and what it can give.

use std::collections::BTreeMap;

use muster_core::record::Offer;

/// What a person says instead of what was found.
#[derive(Clone, Debug, Default)]
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
    /// Labels, besides `os`, `arch` and `hostname`.
    pub labels: BTreeMap<String, String>,
}

/// What this machine offers.
pub fn offer(_overrides: &Overrides) -> Offer {
    Offer::default()
}
