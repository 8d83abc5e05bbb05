//! Reports from the moment they are made until they are acknowledged (A2).

use std::collections::{BTreeSet, VecDeque};

use muster_core::{
    event::{Report, What},
    id::{TaskId, Token},
    mutant,
};

/// Numbers reports and keeps them, oldest first.
#[derive(Debug)]
pub(super) struct Outbox {
    next_seq: u64,
    unacked: VecDeque<Report>,
}

impl Outbox {
    /// What an earlier instance of the agent left.
    pub(super) fn new(next_seq: u64, reports: Vec<Report>) -> Self {
        let after = reports.last().map_or(1, |last| last.seq.saturating_add(1));
        Self { next_seq: next_seq.max(after), unacked: reports.into() }
    }

    /// Numbers a report and keeps it.
    pub(super) fn push(&mut self, token: Token, task: TaskId, what: What) -> Report {
        let report = Report { seq: self.next_seq, token, task, what };
        self.next_seq += 1;
        if !mutant::is_on("report-forgotten") {
            self.unacked.push_back(report.clone());
        }
        report
    }

    /// Forgets what is durable; whether there was any. A number that was never given is not believed.
    pub(super) fn acknowledge(&mut self, up_to: u64) -> bool {
        let before = self.unacked.len();
        if up_to < self.next_seq {
            while self.unacked.front().is_some_and(|report| report.seq <= up_to) {
                self.unacked.pop_front();
            }
        }
        self.unacked.len() < before
    }

    /// What is not acknowledged, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Report> {
        self.unacked.iter().skip(if mutant::is_on("report-not-resent") { usize::MAX } else { 0 })
    }

    /// The leases that it speaks of.
    pub(super) fn tokens(&self) -> BTreeSet<Token> {
        self.unacked.iter().map(|report| report.token).collect()
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// The number of the next report.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }
}
