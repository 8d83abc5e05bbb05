//! One attempt's output on its way to disk: bounded in memory, bounded on disk, never in the task's way.
//!
//! Of output up to the limit all is kept; of more, the head and the last, which together are the limit. What lies
//! between is counted and named in cut records, so that a reader always knows what is missing and why.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use muster_core::time::Timestamp;

use super::{
    Entry, Shared,
    frame::{DATA_MAX, Scratch, Stream, cut_record, data_record, with_scratch},
    tail::Tail,
};

/// Of an attempt's limit, how much belongs to its newest output, but never more than half: the end is where errors are.
const TAIL_MAX: u64 = 64 * 1024;
/// A cut that goes on is told of each time it has grown by so much, so that who follows sees life.
const CUT_STEP: u64 = 16 * 1024 * 1024;

/// The writer of one attempt. Makes no file before the first byte.
pub struct Spool {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    file: Option<File>,
    /// Bytes of the attempt that may still be kept, without the tail.
    left: u64,
    limit: u64,
    lanes: [Lane; 2],
    tail: Tail,
    last_at: Timestamp,
}

/// One stream.
#[derive(Default)]
struct Lane {
    /// Bytes that the task wrote.
    offset: u64,
    cut: Option<Cut>,
}

/// What is being left out.
struct Cut {
    why: Why,
    /// The first byte that no record tells of yet.
    from: u64,
    told: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Attempt(u64),
    Total(u64),
    Disk(String),
}

impl Why {
    fn text(&self) -> String {
        match self {
            Self::Attempt(limit) => format!("the attempt wrote more than its limit of {limit} bytes"),
            Self::Total(limit) => format!("the agent keeps at most {limit} bytes of output that is not yet delivered"),
            Self::Disk(error) => format!("the agent could not write to its disk: {error}"),
        }
    }
}

impl Spool {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>, limit: u64) -> Self {
        let lanes = [Lane::default(), Lane::default()];
        let tail = TAIL_MAX.min(limit / 2);
        let left = limit - tail;
        let tail = Tail::new(usize::try_from(tail).unwrap_or(0));
        Self { shared, entry, file: None, left, limit, lanes, tail, last_at: Timestamp(0) }
    }

    /// Keeps the first `len` bytes of `scratch`, which the task wrote next to `stream`.
    pub(crate) fn take(&mut self, stream: Stream, at: Timestamp, scratch: &mut Scratch, len: usize) {
        self.last_at = at;
        if self.lanes[stream as usize].cut.is_some() && !self.resume(stream, at) {
            self.leave_out(stream, at, scratch.data(0, len));
            return;
        }
        let total_left = self.shared.room();
        let kept = usize::try_from(self.left.min(total_left)).unwrap_or(usize::MAX).min(len);
        let offset = self.lanes[stream as usize].offset;
        if kept > 0 {
            // The tail of a split frame is saved first: the head of the record overwrites nothing of it.
            if let Err(error) = self.write(scratch.record(stream, at, offset, kept)) {
                self.begin_cut(stream, Why::Disk(error.to_string()));
                self.leave_out(stream, at, scratch.data(0, len));
                return;
            }
            self.left -= kept as u64;
            self.lanes[stream as usize].offset += kept as u64;
        }
        if kept < len {
            let full = if self.left == 0 { Why::Attempt(self.limit) } else { Why::Total(self.shared.total_limit) };
            self.begin_cut(stream, full);
            self.leave_out(stream, at, scratch.data(kept, len));
        }
    }

    /// Keeps `bytes`, which lie elsewhere.
    pub fn append(&mut self, stream: Stream, at: Timestamp, bytes: &[u8]) {
        for part in bytes.chunks(DATA_MAX) {
            with_scratch(|scratch| {
                scratch.room()[..part.len()].copy_from_slice(part);
                self.take(stream, at, scratch, part.len());
            });
        }
    }

    /// The attempt is over: tells of what was left out and lets the shipper finish.
    pub fn finish(mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let at = self.last_at;
            if self.close_cut(stream, at).is_err() {
                self.tell_from_memory(stream, at);
            }
        }
        self.shared.over(&self.entry);
    }

    fn begin_cut(&mut self, stream: Stream, why: Why) {
        let lane = &mut self.lanes[stream as usize];
        lane.cut = Some(Cut { why, from: lane.offset, told: false });
    }

    fn leave_out(&mut self, stream: Stream, at: Timestamp, data: &[u8]) {
        let lane = &mut self.lanes[stream as usize];
        self.tail.push(stream, at, lane.offset, data);
        lane.offset += data.len() as u64;
        // What one stream writes pushes the other's last bytes out as well.
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.tell_cut(stream, at);
        }
    }

    /// Tells of a cut that began or went on for long.
    fn tell_cut(&mut self, stream: Stream, at: Timestamp) {
        let left_out = self.left_out(stream);
        let Some(cut) = &self.lanes[stream as usize].cut else { return };
        if left_out >= CUT_STEP || (left_out > 0 && !cut.told) {
            let record = cut_record(stream, at, cut.from, left_out, &cut.why.text());
            if self.write(&record).is_ok()
                && let Some(cut) = &mut self.lanes[stream as usize].cut
            {
                cut.from += left_out;
                cut.told = true;
            }
        }
    }

    /// Bytes that a cut left out and no record tells of.
    fn left_out(&self, stream: Stream) -> u64 {
        let lane = &self.lanes[stream as usize];
        let Some(cut) = &lane.cut else { return 0 };
        self.tail.first(stream).unwrap_or(lane.offset).saturating_sub(cut.from)
    }

    /// Whether the reason of a cut is gone; what it left out is told of then. The attempt's own limit stays.
    fn resume(&mut self, stream: Stream, at: Timestamp) -> bool {
        let Some(cut) = &self.lanes[stream as usize].cut else { return true };
        let may = match cut.why {
            Why::Attempt(_) => false,
            Why::Total(limit) => self.shared.room() > limit / 8,
            Why::Disk(_) => true,
        };
        let kept = self.tail.len(stream);
        if !may || self.left <= kept || self.close_cut(stream, at).is_err() {
            return false;
        }
        // Bytes like all others now: there will be another tail.
        self.left -= kept;
        true
    }

    /// Writes what a cut left out and the tail that it kept.
    fn close_cut(&mut self, stream: Stream, at: Timestamp) -> io::Result<()> {
        let left_out = self.left_out(stream);
        let Some(cut) = &self.lanes[stream as usize].cut else { return Ok(()) };
        let mut records = Vec::new();
        if left_out > 0 {
            records = cut_record(stream, at, cut.from, left_out, &cut.why.text());
        }
        for (at, from, data) in self.tail.of(stream) {
            records.extend(data_record(stream, at, from, data));
        }
        self.write(&records)?;
        self.lanes[stream as usize].cut = None;
        self.tail.clear(stream);
        Ok(())
    }

    /// The disk does not take even a cut record: the shipper reads it from memory. The tail goes too.
    fn tell_from_memory(&mut self, stream: Stream, at: Timestamp) {
        let lane = &self.lanes[stream as usize];
        let Some(cut) = &lane.cut else { return };
        let record = cut_record(stream, at, cut.from, lane.offset - cut.from, &cut.why.text());
        self.entry.append_in_memory(&record);
    }

    /// Appends whole records; a half-written one is taken back.
    fn write(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(self.entry.create()?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(records) {
            self.entry.take_back(file);
            return Err(error);
        }
        self.shared.written(&self.entry, records.len() as u64);
        Ok(())
    }
}
