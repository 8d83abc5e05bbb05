//! The outside checker: it reads what tasks, people and `ctl` said, and says what may not have happened.
//!
//! Shares no code with the product, not even its words for states: what it believes of them stands here once more.

mod floods;
mod history;
mod lives;
mod rules;

use std::{collections::BTreeMap, fmt};

pub(crate) use self::history::History;

/// Something that was promised never to happen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// Of which kind: `overlap`, `lost`, …
    pub(crate) kind: &'static str,
    /// What exactly.
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

/// What a history came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<Violation>,
    /// Acknowledged submissions.
    pub(crate) jobs: usize,
    /// Attempts that began.
    pub(crate) attempts: usize,
    /// Reads of all jobs that were compared.
    pub(crate) polls: usize,
    /// Faults made, by their ids.
    pub(crate) faults: BTreeMap<String, usize>,
    /// From the end of a leader to the first start of what was handed in after it, microseconds: each of them.
    pub(crate) handovers_us: Vec<u64>,
}

/// Holds a history against every rule.
pub(crate) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict {
        jobs: history.acked.len(),
        attempts: history.attempts.len(),
        polls: history.polls.len(),
        handovers_us: rules::handovers(history),
        ..Verdict::default()
    };
    for fault in &history.faults {
        *verdict.faults.entry(fault.id.clone()).or_default() += 1;
    }
    let found = &mut verdict.violations;
    found.extend(history.odd.iter().map(|text| Violation { kind: "witness", text: text.clone() }));
    rules::ends(history, found);
    rules::stopped(history, found);
    rules::survivors(history, found);
    rules::finals(history, found);
    rules::keys(history, found);
    rules::order(history, found);
    rules::fallen(history, found);
    lives::one_at_a_time(history, found);
    lives::capacity(history, found);
    lives::last_word(history, found);
    floods::unhurt(history, found);
    floods::whole(history, found);
    found.sort();
    found.dedup();
    verdict
}

#[cfg(test)]
mod tests;
