//! What a run came to, in a few lines for people and in one for machines.

use std::fmt;

use serde_json::{Value, json};

use crate::run::Outcome;

/// Entries of the diary that are no faults.
const NO_FAULTS: [&str; 5] = ["told", "missed", "fallen", "etcd-fell", "herd"];
/// Violations that are shown; the rest is in the folder.
const SHOWN: usize = 20;

/// Of one run.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) outcome: Outcome,
}

impl Report {
    fn faults(&self) -> impl Iterator<Item = (&str, usize)> {
        let faults = self.outcome.verdict.faults.iter().map(|(id, count)| (id.as_str(), *count));
        faults.filter(|(id, _)| !NO_FAULTS.contains(id))
    }

    fn worst_handover_s(&self) -> f64 {
        seconds(self.outcome.verdict.handovers_us.iter().max().copied().unwrap_or(0))
    }

    fn median_handover_s(&self) -> f64 {
        let mut all = self.outcome.verdict.handovers_us.clone();
        all.sort_unstable();
        seconds(all.get(all.len() / 2).copied().unwrap_or(0))
    }

    /// For machines.
    pub(crate) fn json(&self) -> Value {
        let verdict = &self.outcome.verdict;
        json!({
            "seed": self.seed,
            "faults": self.faults().collect::<std::collections::BTreeMap<_, _>>(),
            "compactions": self.outcome.compactions,
            "missed": verdict.faults.get("missed").copied().unwrap_or(0),
            "jobs": verdict.jobs,
            "attempts": verdict.attempts,
            "polls": verdict.polls,
            "calls_tried_again": self.outcome.refused,
            "violations": verdict.violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "handover_median_s": self.median_handover_s(),
            "handover_worst_s": self.worst_handover_s(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (outcome, verdict) = (&self.outcome, &self.outcome.verdict);
        for violation in verdict.violations.iter().take(SHOWN) {
            writeln!(f, "violation: {violation}")?;
        }
        let other = |id| verdict.faults.get(id).copied().unwrap_or(0);
        writeln!(
            f,
            "seed {}: {} attempts, {} reads of all jobs, {} calls tried again, {} compactions, {} faults missed, \
             {} members of etcd fell, median hand-over {:.1} s",
            self.seed,
            verdict.attempts,
            verdict.polls,
            outcome.refused,
            outcome.compactions,
            other("missed"),
            other("etcd-fell"),
            self.median_handover_s(),
        )?;
        let mut kinds: Vec<_> = self.faults().collect();
        kinds.sort_by_key(|(id, _)| (id.trim_start_matches('X').parse::<u32>().unwrap_or(u32::MAX), id.to_owned()));
        let total: usize = kinds.iter().map(|(_, count)| count).sum();
        let kinds: Vec<_> = kinds.iter().map(|(id, count)| format!("{id} {count}")).collect();
        write!(
            f,
            "{total} faults ({}), {} jobs checked, {} violations, worst hand-over {:.1} s",
            kinds.join(", "),
            verdict.jobs,
            verdict.violations.len(),
            self.worst_handover_s()
        )
    }
}

fn seconds(us: u64) -> f64 {
    f64::from(u32::try_from(us / 1_000).unwrap_or(u32::MAX)) / 1_000.0
}
