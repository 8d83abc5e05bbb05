//! Records as bytes: length, checksum, protobuf. Fields are only added: old reads new, new reads old.
//!
//! What comes from disk is checked and refused here, never believed.

use muster_common::{
    proto::v1,
    wire::{link, spec},
};
use muster_core::{
    event::{Report, What},
    id::{JobId, TaskId, Term, Token},
    state::End,
};
use prost::Message as _;

use crate::{
    exec::{Order, ProcessIdentity},
    supervisor::{Entry, Memory, Remembered},
};

/// The version that this build writes; it reads every version up to this one.
pub(super) const VERSION: u32 = 1;
/// Length and checksum.
pub(super) const HEADER: usize = 8;
/// No record is longer: an inline result has 64 KiB and a reason is a sentence. What claims more is damage.
const BODY_MAX: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(super) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
    /// The first of every segment: all that was before is in what follows it.
    #[prost(message, tag = "1")]
    Head(Head),
    #[prost(message, tag = "2")]
    Lease(Lease),
    #[prost(message, tag = "3")]
    Started(Started),
    #[prost(message, tag = "4")]
    Report(v1::Report),
    /// Every report up to and with this one is durable elsewhere.
    #[prost(uint64, tag = "5")]
    Acked(u64),
    /// The token of a lease that is over without a word.
    #[prost(uint64, tag = "6")]
    Released(u64),
    #[prost(uint64, tag = "7")]
    Term(u64),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Head {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(uint64, tag = "2")]
    pub(super) term: u64,
    #[prost(uint64, tag = "3")]
    pub(super) highest: u64,
    #[prost(uint64, tag = "4")]
    pub(super) next_seq: u64,
    /// Bytes behind this record that belong to the memory which the segment begins with: without all of them it does not
    /// count. 0: of an older build, whose segments had a name only when they were on disk.
    #[prost(uint64, tag = "5")]
    pub(super) size: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Lease {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint64, tag = "2")]
    pub(super) job: u64,
    #[prost(uint32, tag = "3")]
    pub(super) task: u32,
    #[prost(message, optional, tag = "4")]
    pub(super) request: Option<v1::Request>,
    #[prost(bool, tag = "5")]
    pub(super) reported: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Started {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(string, tag = "2")]
    pub(super) boot: String,
    #[prost(uint32, tag = "3")]
    pub(super) pid: u32,
    #[prost(uint64, tag = "4")]
    pub(super) start: u64,
    #[prost(uint32, tag = "5")]
    pub(super) group: u32,
}

impl Started {
    fn new(token: Token, identity: &ProcessIdentity) -> Self {
        let ProcessIdentity { boot, pid, start, group } = identity;
        Self { token: token.0, boot: boot.to_string(), pid: *pid, start: *start, group: *group }
    }

    /// The process.
    pub(super) fn identity(self) -> ProcessIdentity {
        ProcessIdentity { boot: self.boot.into(), pid: self.pid, start: self.start, group: self.group }
    }
}

impl Lease {
    fn of(order: &Order) -> Self {
        let request = Some(spec::request_to_proto(&order.spec.request));
        Self { token: order.token.0, job: order.task.job.0, task: order.task.index, request, reported: false }
    }

    fn again(lease: &Remembered) -> Self {
        let request = Some(spec::request_to_proto(&lease.request));
        let Remembered { token, task, reported, .. } = lease;
        Self { token: token.0, job: task.job.0, task: task.index, request, reported: *reported }
    }

    /// The lease, its process not yet known.
    pub(super) fn remembered(self) -> Remembered {
        Remembered {
            token: Token(self.token),
            task: TaskId::new(JobId(self.job), self.task),
            request: spec::request_from_proto(self.request.unwrap_or_default()),
            identity: None,
            reported: self.reported,
        }
    }
}

/// Appends one entry as a record.
pub(super) fn append(entry: &Entry, to: &mut Vec<u8>) {
    let kind = match entry {
        Entry::Lease(order) => Kind::Lease(Lease::of(order)),
        Entry::Started { token, identity } => Kind::Started(Started::new(*token, identity)),
        Entry::Report(report) => Kind::Report(link::report_to_proto(report)),
        Entry::Acked { up_to } => Kind::Acked(*up_to),
        Entry::Released { token } => Kind::Released(token.0),
        Entry::Term(Term(term)) => Kind::Term(*term),
    };
    frame(kind, to);
}

/// A whole memory as the beginning of a segment.
pub(super) fn append_memory(memory: &Memory, to: &mut Vec<u8>) {
    let Memory { term, highest, next_seq, leases, reports } = memory;
    let mut rest = Vec::new();
    for report in reports {
        frame(Kind::Report(link::report_to_proto(report)), &mut rest);
    }
    // After the reports: the start of an attempt may be unacknowledged while its lease lives on, and
    // a lease that comes after its own `KillFailed` holds a slot (`reported`).
    for lease in leases {
        frame(Kind::Lease(Lease::again(lease)), &mut rest);
        if let Some(identity) = &lease.identity {
            frame(Kind::Started(Started::new(lease.token, identity)), &mut rest);
        }
    }
    let size = u64::try_from(rest.len()).unwrap_or(u64::MAX);
    let head = Head { version: VERSION, term: term.0, highest: highest.0, next_seq: *next_seq, size };
    frame(Kind::Head(head), to);
    to.append(&mut rest);
}

fn frame(kind: Kind, to: &mut Vec<u8>) {
    let body = Record { kind: Some(kind) }.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    to.extend_from_slice(&length);
    to.extend_from_slice(&checksum(&length, &body).to_le_bytes());
    to.extend_from_slice(&body);
}

/// Of the length too: a length that was damaged must not find a body that fits it.
fn checksum(length: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(body);
    hasher.finalize()
}

/// The record at the beginning of `bytes` and how long it is; none: there is no whole, undamaged one.
/// A record of a kind that a newer build added has no `kind`.
pub(super) fn record(bytes: &[u8]) -> Option<(Record, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|size| (1..=BODY_MAX).contains(size))?;
    let body = rest.get(..size)?;
    if checksum(length, body) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((Record::decode(body).ok()?, HEADER + size))
}

/// Whether a report ends its lease for good, ends it but not its slot, or neither.
pub(super) fn ends(report: &Report) -> Option<bool> {
    match &report.what {
        What::Started { .. } => None,
        What::Ended { end, .. } => Some(*end != End::KillFailed),
        What::Returned { .. } => Some(true),
    }
}

#[cfg(test)]
pub(super) fn append_head_of(version: u32, to: &mut Vec<u8>) {
    frame(Kind::Head(Head { version, ..Head::default() }), to);
}
