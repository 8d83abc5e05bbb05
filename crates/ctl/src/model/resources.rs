//! What a task takes and what an agent has.

use std::collections::BTreeMap;

use muster_common::proto::v1;
use serde::Serialize;

/// An amount of every resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Resources {
    pub(crate) cpus: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) gpus: u64,
    /// Other counted things by name.
    pub(crate) named: BTreeMap<String, u64>,
}

impl From<Option<v1::Request>> for Resources {
    fn from(request: Option<v1::Request>) -> Self {
        let request = request.unwrap_or_default();
        Self {
            cpus: cpus(request.cpu_milli),
            memory_bytes: request.memory_bytes,
            gpus: request.gpus,
            named: request.named.into_iter().collect(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 thousandths of a processor")]
fn cpus(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

impl Resources {
    /// `2 cpus, 4.0 GiB, 1 gpu, licence 3`; empty when nothing is asked for.
    pub(crate) fn text(&self) -> String {
        let mut parts = Vec::new();
        if self.cpus > 0.0 {
            parts.push(format!("{} cpu{}", self.cpus, plural(self.cpus != 1.0)));
        }
        if self.memory_bytes > 0 {
            parts.push(bytes(self.memory_bytes));
        }
        if self.gpus > 0 {
            parts.push(format!("{} gpu{}", self.gpus, plural(self.gpus != 1)));
        }
        parts.extend(self.named.iter().map(|(name, n)| format!("{name} {n}")));
        parts.join(", ")
    }
}

/// The letter of more than one.
pub(crate) fn plural(many: bool) -> &'static str {
    if many { "s" } else { "" }
}

/// `512 B`, `4.0 GiB`: one place, the unit that fits.
#[expect(clippy::cast_precision_loss, reason = "one decimal place is shown")]
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut amount = n as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    format!("{amount:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_unit_that_fits() {
        let table = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4 << 30, "4.0 GiB"), (u64::MAX, "16384.0 PiB")];
        for (n, text) in table {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn resources_name_only_what_is_asked_for() {
        let request =
            v1::Request { cpu_milli: 1500, memory_bytes: 1 << 20, gpus: 1, named: [("licence".to_owned(), 3)].into() };
        assert_eq!(Resources::from(Some(request)).text(), "1.5 cpus, 1.0 MiB, 1 gpu, licence 3");
        assert_eq!(Resources::from(None).text(), "");
    }
}
