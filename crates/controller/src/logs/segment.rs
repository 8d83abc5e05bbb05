//! A segment: what one job's tasks wrote in a while, in the order in which it came, with an index of whose it is.
//!
//! ```text
//! body:    length-delimited `LogFrame`s, run after run
//! footer:  protobuf: version, runs
//! trailer: length of the footer (u32), CRC-32 of the footer (u32), "MSTRLOG1"; little endian
//! ```
//! Version 1 is written; fields are only added; a higher version is refused.

use std::ops::Range;

use bytes::{Buf, Bytes};
use muster_common::proto::v1::LogFrame;
use prost::Message;

/// The version that this build writes, and the highest that it reads.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"MSTRLOG1";
/// Length and checksum of the footer, and the magic.
pub(super) const TRAILER: usize = 16;

/// Neighbouring frames of one attempt in a segment's body.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Run {
    /// Whose they are.
    #[prost(uint32, tag = "1")]
    pub(super) task: u32,
    #[prost(uint32, tag = "2")]
    pub(super) attempt: u32,
    /// The number of the first one, and how many they are.
    #[prost(uint64, tag = "3")]
    pub(super) first: u64,
    #[prost(uint32, tag = "4")]
    pub(super) frames: u32,
    /// Where they are in the body.
    #[prost(uint32, tag = "5")]
    pub(super) start: u32,
    #[prost(uint32, tag = "6")]
    pub(super) len: u32,
    /// The attempt wrote no more than this.
    #[prost(bool, tag = "7")]
    pub(super) last: bool,
    /// What the task wrote here, by stream; outlives the body (see `Footer::removed`).
    #[prost(uint64, tag = "8")]
    pub(super) stdout: u64,
    #[prost(uint64, tag = "9")]
    pub(super) stderr: u64,
}

impl Run {
    /// Where the next run begins.
    pub(super) fn end(&self) -> u32 {
        self.start.saturating_add(self.len)
    }

    /// The number of the frame after these.
    pub(super) fn next(&self) -> u64 {
        self.first.saturating_add(u64::from(self.frames))
    }
}

/// The index of a segment.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Footer {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) runs: Vec<Run>,
    /// Not empty: the body was deleted, and why, for people.
    #[prost(string, tag = "3")]
    pub(super) removed: String,
}

/// Why an object is not read as a segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("it is no log segment, or a torn one")]
    Foreign,
    #[error("it has version {0} and this build knows up to {VERSION}; start a newer muster-controller")]
    Newer(u32),
}

/// A segment in memory: being filled, or being stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    /// Its number in the job; only grows.
    pub(super) seq: u32,
    pub(super) body: Vec<u8>,
    pub(super) runs: Vec<Run>,
}

impl Segment {
    /// An empty one.
    pub(super) fn new(seq: u32) -> Self {
        Self { seq, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Adds frames of an attempt, the first of which has the number `first`; says how many bytes that took.
    pub(super) fn push(&mut self, (task, attempt): (u32, u32), first: u64, frames: &[LogFrame], last: bool) -> usize {
        let before = self.body.len();
        let run = match self.runs.last_mut() {
            Some(run) if (run.task, run.attempt) == (task, attempt) && run.next() == first && !run.last => run,
            _ => {
                let start = u32::try_from(before).unwrap_or(u32::MAX);
                self.runs.push(Run { task, attempt, first, start, ..Run::default() });
                let Some(run) = self.runs.last_mut() else { return 0 };
                run
            }
        };
        for frame in frames {
            // Writing to a `Vec` does not fail.
            let _ = frame.encode_length_delimited(&mut self.body);
            let written = frame.data.len() as u64 + frame.cut_bytes;
            match frame.stream() {
                muster_common::proto::v1::Stream::Stdout => run.stdout = run.stdout.saturating_add(written),
                muster_common::proto::v1::Stream::Stderr => run.stderr = run.stderr.saturating_add(written),
            }
        }
        let added = self.body.len() - before;
        run.len = run.len.saturating_add(u32::try_from(added).unwrap_or(u32::MAX));
        run.frames = run.frames.saturating_add(u32::try_from(frames.len()).unwrap_or(u32::MAX));
        run.last = last;
        added
    }

    /// The object's bytes after the body.
    pub(super) fn tail(&self) -> Vec<u8> {
        encode_footer(&Footer { version: VERSION, runs: self.runs.clone(), removed: String::new() })
    }
}

/// What is left of a segment whose body is deleted: who wrote how much, and why it is gone.
pub(super) fn tombstone(runs: Vec<Run>, why: &str) -> Vec<u8> {
    encode_footer(&Footer { version: VERSION, runs, removed: why.to_owned() })
}

fn encode_footer(footer: &Footer) -> Vec<u8> {
    let mut bytes = footer.encode_to_vec();
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    bytes
}

/// How long the footer is, and its checksum, from an object's last [`TRAILER`] bytes.
pub(super) fn read_trailer(mut bytes: &[u8]) -> Result<(usize, u32), Damage> {
    if bytes.len() != TRAILER || !bytes.ends_with(MAGIC) {
        return Err(Damage::Foreign);
    }
    Ok((bytes.get_u32_le() as usize, bytes.get_u32_le()))
}

/// The footer from its bytes.
pub(super) fn read_footer(bytes: &[u8], crc: u32) -> Result<Footer, Damage> {
    if crc32fast::hash(bytes) != crc {
        return Err(Damage::Foreign);
    }
    let footer = Footer::decode(bytes).map_err(|_| Damage::Foreign)?;
    if footer.version > VERSION {
        return Err(Damage::Newer(footer.version));
    }
    Ok(footer)
}

/// The next part of the body worth reading at or after `from`: from the first run that is wanted on,
/// and no longer than `limit`, if not even one frame is known to fit. None: nothing more is wanted.
pub(super) fn span(runs: &[Run], from: u32, limit: u32, wanted: impl Fn(&Run) -> bool) -> Option<Range<u32>> {
    let at = runs.partition_point(|run| run.end() <= from);
    let mut rest = runs.get(at..)?.iter().filter(|run| run.len > 0 && wanted(run));
    let first = rest.next()?;
    let start = first.start.max(from);
    let end = rest.map(Run::end).take_while(|end| end - start <= limit).last();
    Some(start..end.unwrap_or(first.end()).max(first.end()).min(start.saturating_add(limit)))
}

/// One frame and where it stands in the body.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) at: u32,
    pub(super) frame: LogFrame,
}

/// Frames, by the run they belong to.
pub(super) type Found<'a> = Vec<(&'a Run, Vec<Placed>)>;

/// The frames of the runs that are wanted in a part of the body that begins at `start`, by run; and where to go
/// on reading. That is `start` itself when not even one frame fitted into `bytes`.
pub(super) fn frames<'a>(
    runs: &'a [Run],
    start: u32,
    bytes: &Bytes,
    wanted: impl Fn(&Run) -> bool,
) -> Result<(Found<'a>, u32), Damage> {
    let stop = start.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    let mut found = Vec::new();
    let at = runs.partition_point(|run| run.end() <= start);
    for run in runs.get(at..).unwrap_or_default().iter().take_while(|run| run.start < stop) {
        if run.len == 0 || !wanted(run) {
            continue;
        }
        let begin = run.start.max(start);
        let part = bytes.slice((begin - start) as usize..(run.end().min(stop) - start) as usize);
        let (placed, read) = run_frames(part, begin)?;
        if !placed.is_empty() {
            found.push((run, placed));
        }
        if read < run.end() {
            return Ok((found, read));
        }
    }
    Ok((found, stop))
}

/// All complete frames in `bytes`, which begin at `at`; and where the first incomplete one begins.
fn run_frames(mut bytes: Bytes, mut at: u32) -> Result<(Vec<Placed>, u32), Damage> {
    let mut placed = Vec::new();
    while bytes.has_remaining() {
        let mut rest = bytes.clone();
        let Ok(len) = prost::decode_length_delimiter(&mut rest) else {
            // A length is at most ten bytes: with more there, it is no length.
            return if bytes.len() < 10 { Ok((placed, at)) } else { Err(Damage::Foreign) };
        };
        if rest.len() < len {
            return Ok((placed, at));
        }
        let frame = LogFrame::decode(rest.split_to(len)).map_err(|_| Damage::Foreign)?;
        placed.push(Placed { at, frame });
        at = at.saturating_add(u32::try_from(bytes.len() - rest.len()).unwrap_or(u32::MAX));
        bytes = rest;
    }
    Ok((placed, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> LogFrame {
        LogFrame { data: Bytes::copy_from_slice(text.as_bytes()), ..LogFrame::default() }
    }

    fn texts(found: &[(&Run, Vec<Placed>)]) -> Vec<(u32, String)> {
        let of = |placed: &Placed| String::from_utf8_lossy(&placed.frame.data).into_owned();
        found.iter().flat_map(|(run, all)| all.iter().map(move |placed| (run.task, of(placed)))).collect()
    }

    fn three() -> Segment {
        let mut segment = Segment::new(1);
        segment.push((0, 1), 0, &[frame("a0"), frame("a1")], false);
        segment.push((1, 1), 0, &[frame("b0")], true);
        segment.push((0, 1), 2, &[frame("a2")], true);
        segment
    }

    #[test]
    fn a_footer_comes_back_as_it_was_written() {
        let segment = three();
        let tail = segment.tail();
        let (len, crc) = read_trailer(&tail[tail.len() - TRAILER..]).unwrap();
        let footer = read_footer(&tail[tail.len() - TRAILER - len..tail.len() - TRAILER], crc).unwrap();
        assert_eq!(footer.runs, segment.runs);
        assert_eq!(footer.removed, "");
    }

    #[test]
    fn a_torn_or_foreign_or_newer_footer_is_refused() {
        let tail = three().tail();
        let (len, crc) = read_trailer(&tail[tail.len() - TRAILER..]).unwrap();
        assert_eq!(read_trailer(&tail[..TRAILER]), Err(Damage::Foreign));
        assert_eq!(read_trailer(b"short"), Err(Damage::Foreign));
        assert_eq!(read_footer(&tail[..len - 1], crc), Err(Damage::Foreign));
        let newer = Footer { version: 2, ..Footer::default() }.encode_to_vec();
        assert_eq!(read_footer(&newer, crc32fast::hash(&newer)), Err(Damage::Newer(2)));
    }

    #[test]
    fn neighbouring_batches_of_one_attempt_are_one_run() {
        let mut segment = Segment::new(1);
        segment.push((0, 1), 0, &[frame("a0")], false);
        segment.push((0, 1), 1, &[frame("a1")], false);
        segment.push((0, 1), 2, &[], true);
        assert_eq!(segment.runs.len(), 1);
        assert_eq!((segment.runs[0].frames, segment.runs[0].last, segment.runs[0].stdout), (3 - 1, true, 4));
    }

    #[test]
    fn frames_are_read_in_order_and_only_those_that_are_wanted() {
        let segment = three();
        let body = Bytes::from(segment.body.clone());
        let (found, next) = frames(&segment.runs, 0, &body, |_| true).unwrap();
        let all = [(0, "a0"), (0, "a1"), (1, "b0"), (0, "a2")].map(|(task, text)| (task, text.to_owned()));
        assert_eq!((texts(&found), next as usize), (all.to_vec(), body.len()));
        let (found, _) = frames(&segment.runs, 0, &body, |run| run.task == 1).unwrap();
        assert_eq!(texts(&found), [(1, "b0".to_owned())]);
    }

    #[test]
    fn reading_goes_on_where_a_part_ended_within_a_frame() {
        let segment = three();
        let body = Bytes::from(segment.body.clone());
        for limit in 1..=body.len() {
            let (mut at, mut limit, mut read) = (0, u32::try_from(limit).unwrap(), Vec::new());
            while let Some(part) = span(&segment.runs, at, limit, |run| run.task == 0) {
                let bytes = body.slice(part.start as usize..part.end as usize);
                let (found, next) = frames(&segment.runs, part.start, &bytes, |run| run.task == 0).unwrap();
                read.extend(texts(&found));
                if next == part.start {
                    limit *= 2;
                }
                at = next;
            }
            assert_eq!(read, [(0, "a0".to_owned()), (0, "a1".to_owned()), (0, "a2".to_owned())], "limit {limit}");
        }
    }
}
