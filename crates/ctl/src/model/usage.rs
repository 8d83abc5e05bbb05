//! What attempts took, as their machines' kernels counted it.

use muster_common::proto::v1;
use muster_core::usage::Unenforced;
use serde::Serialize;

use super::resources::bytes;
use crate::output::time;

/// What one attempt took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// At the highest; none: not known.
    pub(crate) memory_peak_bytes: Option<u64>,
    cpu_user_seconds: f64,
    cpu_system_seconds: f64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// Keys of the job file whose limits were not enforced.
    unenforced: Vec<&'static str>,
    #[serde(skip)]
    pub(crate) cpu_us: u64,
}

impl From<v1::Usage> for Usage {
    fn from(usage: v1::Usage) -> Self {
        Self {
            memory_peak_bytes: Some(usage.memory_peak_bytes).filter(|bytes| *bytes > 0),
            cpu_user_seconds: time::seconds(usage.cpu_user_us),
            cpu_system_seconds: time::seconds(usage.cpu_system_us),
            read_bytes: usage.read_bytes,
            written_bytes: usage.written_bytes,
            unenforced: Unenforced((usage.unenforced & 0xff) as u8).keys().collect(),
            cpu_us: usage.cpu_user_us.saturating_add(usage.cpu_system_us),
        }
    }
}

impl Usage {
    /// Its memory and its processor time, for a table.
    pub(crate) fn cells(usage: Option<&Self>) -> [String; 2] {
        let none = || "-".to_owned();
        let memory = usage.and_then(|usage| usage.memory_peak_bytes).map_or_else(none, bytes);
        [memory, usage.map_or_else(none, |usage| time::short(usage.cpu_us))]
    }

    /// `limits not enforced: memory, pids`; what people should know.
    pub(crate) fn note(&self) -> Option<String> {
        (!self.unenforced.is_empty()).then(|| format!("limits not enforced: {}", self.unenforced.join(", ")))
    }
}
