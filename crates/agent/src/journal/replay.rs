//! What a segment's bytes say: the memory at their end, and whether anything is damaged.

use std::collections::BTreeMap;

use muster_common::wire::link;
use muster_core::id::{Term, Token};

use super::codec::{self, Kind, Record};
use crate::supervisor::{Memory, Remembered};

/// What was found in one segment.
#[derive(Debug, PartialEq)]
pub(super) struct Replay {
    /// All that could be read.
    pub(super) memory: Memory,
    /// Whether the segment begins with its head.
    pub(super) headed: bool,
    /// Whether all that it begins with can be read, so that nothing before it is missing.
    pub(super) whole: bool,
    /// Where the bytes end that mean nothing because the last write was cut short.
    pub(super) torn_at: Option<usize>,
    /// Places of damage with readable records behind them, and records that contradict what is known.
    pub(super) damaged: Vec<String>,
    /// The version of a newer build.
    pub(super) newer: Option<u32>,
}

/// Reads one segment.
pub(super) fn replay(bytes: &[u8]) -> Replay {
    let mut state = State::default();
    let mut at = 0;
    let mut torn_at = None;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        if let Some((record, size)) = codec::record(rest) {
            state.take(record, at, size);
            at += size;
        } else if let Some(skip) = next_record(rest) {
            state.damaged.push(format!("{skip} bytes at {at} cannot be read"));
            state.unread.get_or_insert(at);
            at += skip;
        } else {
            torn_at = Some(at);
            break;
        }
    }
    let State { mut memory, leases, reports, begins_with, unread, damaged, newer } = state;
    let read = unread.or(torn_at).unwrap_or(bytes.len());
    let (headed, whole) = (begins_with.is_some(), begins_with.is_some_and(|size| size <= read));
    memory.leases = leases.into_values().collect();
    let after = reports.keys().next_back().map_or(1, |last| last.saturating_add(1));
    memory.next_seq = memory.next_seq.max(after);
    memory.reports = reports.into_values().collect();
    Replay { memory, headed, whole, torn_at, damaged, newer }
}

/// How far away the next readable record is. Only called where one is damaged.
fn next_record(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len().saturating_sub(codec::HEADER)).find(|skip| bytes.get(*skip..).and_then(codec::record).is_some())
}

#[derive(Default)]
struct State {
    memory: Memory,
    leases: BTreeMap<Token, Remembered>,
    reports: BTreeMap<u64, muster_core::event::Report>,
    /// Where the memory ends that the segment begins with; none: it does not begin with its head.
    begins_with: Option<usize>,
    /// The first place that cannot be read.
    unread: Option<usize>,
    damaged: Vec<String>,
    newer: Option<u32>,
}

impl State {
    fn take(&mut self, record: Record, at: usize, size: usize) {
        match record.kind {
            // A kind that a newer build added: what it says is of no use to this one.
            None => {}
            Some(Kind::Head(head)) => {
                if at == 0 {
                    self.begins_with = Some(size.saturating_add(usize::try_from(head.size).unwrap_or(usize::MAX)));
                }
                self.newer = Some(head.version).filter(|version| *version > codec::VERSION);
                self.memory.term = self.memory.term.max(Term(head.term));
                self.memory.highest = self.memory.highest.max(Token(head.highest));
                self.memory.next_seq = self.memory.next_seq.max(head.next_seq);
            }
            Some(Kind::Lease(lease)) => {
                let lease = lease.remembered();
                self.memory.highest = self.memory.highest.max(lease.token);
                self.leases.insert(lease.token, lease);
            }
            Some(Kind::Started(started)) => {
                // Without its lease: that record is damaged, or it was dropped.
                if let Some(lease) = self.leases.get_mut(&Token(started.token)) {
                    lease.identity = Some(started.identity());
                }
            }
            Some(Kind::Report(report)) => self.report(report, at),
            Some(Kind::Acked(up_to)) => {
                self.memory.next_seq = self.memory.next_seq.max(up_to.saturating_add(1));
                self.reports = self.reports.split_off(&up_to.saturating_add(1));
            }
            Some(Kind::Released(token)) => {
                self.leases.remove(&Token(token));
            }
            Some(Kind::Term(term)) => self.memory.term = self.memory.term.max(Term(term)),
        }
    }

    fn report(&mut self, report: muster_common::proto::v1::Report, at: usize) {
        let report = match link::report_from_proto(report) {
            Ok(report) => report,
            Err(error) => return self.damaged.push(format!("the report at {at} says what cannot be: {error}")),
        };
        self.memory.highest = self.memory.highest.max(report.token);
        match codec::ends(&report) {
            Some(true) => {
                self.leases.remove(&report.token);
            }
            Some(false) => {
                if let Some(lease) = self.leases.get_mut(&report.token) {
                    lease.reported = true;
                }
            }
            None => {}
        }
        self.reports.insert(report.seq, report);
    }
}
