//! What a batch is in etcd: writes of keys, none larger than etcd takes, in as few transactions as it allows.

use std::{collections::BTreeMap, ops::Range};

use muster_common::{proto::v1, wire::record};
use prost::Message as _;

use crate::store::Batch;

/// Larger values lie in parts.
pub(super) const PART_MAX: usize = 512 << 10;
/// Bytes of one transaction; etcd takes 1.5 MiB unless it is told otherwise.
const BYTES_MAX: usize = 1 << 20;
/// Above this, etcd's time for a transaction grows faster than what it carries (measured).
const OPERATIONS_MAX: usize = 1024;
/// What every etcd takes.
const OPERATIONS_MIN: usize = 128;
/// The start of a value that lies in parts; no protobuf message starts so.
const MARK: &[u8] = b"\xff\xffparts";
/// Of a write besides key and value: its frame on the wire.
const OVERHEAD: usize = 32;

/// What one transaction may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) operations: usize,
    pub(super) bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { operations: OPERATIONS_MAX, bytes: BYTES_MAX }
    }
}

impl Limits {
    /// Etcd takes fewer operations than these; whether there are fewer to try.
    pub(super) fn fewer(&mut self) -> bool {
        std::mem::replace(&mut self.operations, OPERATIONS_MIN) > OPERATIONS_MIN
    }
}

/// The writes of a batch; values that are too large are cut up. `parts` is what is known of those, and is kept true.
pub(super) fn writes(batch: &Batch, parts: &mut BTreeMap<String, u32>) -> Vec<v1::Write> {
    let mut writes = Vec::with_capacity(batch.puts.len() + batch.deletes.len());
    for (key, piece) in &batch.puts {
        let name = record::key_bytes(key);
        put(name, record::encode(piece, key), parts, &mut writes);
    }
    for key in &batch.deletes {
        delete(record::key_bytes(key), parts, &mut writes);
    }
    writes
}

pub(super) fn delete(name: String, parts: &mut BTreeMap<String, u32>, writes: &mut Vec<v1::Write>) {
    if parts.remove(&name).is_some() {
        writes.push(v1::Write { key: parts_of(&name), value: Vec::new(), delete: true });
    }
    writes.push(v1::Write { key: name, value: Vec::new(), delete: true });
}

pub(super) fn put(name: String, value: Vec<u8>, parts: &mut BTreeMap<String, u32>, writes: &mut Vec<v1::Write>) {
    let count = if value.len() > PART_MAX { value.len().div_ceil(PART_MAX) } else { 0 };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let before = if count > 0 { parts.insert(name.clone(), count) } else { parts.remove(&name) };
    for gone in count..before.unwrap_or(0) {
        writes.push(v1::Write { key: part(&name, gone), value: Vec::new(), delete: true });
    }
    if count == 0 {
        writes.push(v1::Write { key: name, value, delete: false });
        return;
    }
    for (n, piece) in (0..).zip(value.chunks(PART_MAX)) {
        writes.push(v1::Write { key: part(&name, n), value: piece.to_vec(), delete: false });
    }
    // After its parts: what has no mark does not exist.
    let mut mark = MARK.to_vec();
    mark.extend(count.to_le_bytes());
    writes.push(v1::Write { key: name, value: mark, delete: false });
}

/// Where the parts of a key's value lie; ends with a slash.
pub(super) fn parts_of(name: &str) -> String {
    format!("parts/{name}/")
}

pub(super) fn part(name: &str, n: u32) -> String {
    format!("parts/{name}/{n:010}")
}

/// In how many parts a value lies; none: it is here.
pub(super) fn marked(value: &[u8]) -> Option<u32> {
    let count = value.strip_prefix(MARK)?;
    Some(u32::from_le_bytes(*count.first_chunk()?))
}

/// Cuts writes into runs that one transaction can hold, in order; a write that is too large alone is a run of its own.
pub(super) fn runs(writes: &[v1::Write], limits: Limits) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, write) in writes.iter().enumerate() {
        let size = write.key.len() + write.value.len() + OVERHEAD;
        // One operation is for the head.
        if at > first && (bytes + size > limits.bytes || at - first + 1 >= limits.operations) {
            runs.push(first..at);
            (first, bytes) = (at, 0);
        }
        bytes += size;
    }
    if first < writes.len() {
        runs.push(first..writes.len());
    }
    runs
}

/// The same writes as records under `staged/`, each of which fits into one transaction.
pub(super) fn staged(writes: &[v1::Write]) -> Vec<v1::StagedRecord> {
    let limits = Limits { operations: usize::MAX, bytes: BYTES_MAX };
    let record = |run: Range<usize>| v1::StagedRecord {
        version: record::VERSION,
        writes: writes.get(run).unwrap_or_default().to_vec(),
    };
    runs(writes, limits).into_iter().map(record).collect()
}

/// The key of a staged record.
pub(super) fn staged_key(n: u32) -> String {
    format!("staged/{n:010}")
}

/// Reads a staged record.
pub(super) fn read_staged(bytes: &[u8]) -> Result<Vec<v1::Write>, String> {
    let record = v1::StagedRecord::decode(bytes).map_err(|error| error.to_string())?;
    Ok(record.writes)
}
