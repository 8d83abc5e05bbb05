//! How output lies on disk: a head, then records that can be checked one by one.
//!
//! Version 1: `MSL1`, token u64, job u64, task u32, attempt u32; then records of length u32, CRC-32
//! u32 of what follows, kind u8, time u64, offset u64, and the bytes (or, of a cut, their number u64
//! and the reason). All little-endian. A file may end in the middle of a record: a crash did that.

use std::cell::RefCell;

use muster_core::{
    id::{JobId, TaskId, Token},
    time::Timestamp,
};

/// The most bytes of a task in one frame.
pub(crate) const DATA_MAX: usize = 64 * 1024;
/// Bytes before the data of a record.
pub(crate) const RECORD_HEAD: usize = 4 + 4 + BODY_HEAD;
/// The part of them that the length and the checksum cover.
const BODY_HEAD: usize = 1 + 8 + 8;
/// Bytes of the head of a file.
pub(crate) const FILE_HEAD: usize = 28;
const MAGIC: &[u8; 4] = b"MSL1";
/// Of a cut's reason; the writer cuts longer ones.
const REASON_MAX: usize = 256;

/// Which of a task's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Whose output a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The lease.
    pub token: Token,
    /// The task.
    pub task: TaskId,
    /// Which try.
    pub attempt: u32,
}

/// What one record says, past its stream, time and offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    Data(&'a [u8]),
    /// So many bytes from `offset` on are not kept, and why.
    Cut(u64, String),
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) stream: Stream,
    pub(crate) at: Timestamp,
    pub(crate) offset: u64,
    pub(crate) content: Content<'a>,
}

/// What the start of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A record, and its length.
    Frame(Frame<'a>, usize),
    /// The start of one; more bytes are needed.
    Partial,
    /// No record: nothing from here on can be trusted.
    Broken,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; FILE_HEAD] {
        let mut bytes = [0; FILE_HEAD];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..12].copy_from_slice(&self.token.0.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.task.job.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.task.index.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.attempt.to_le_bytes());
        bytes
    }

    /// `None`: not a file of ours, or of a version that we do not know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        Some(Self {
            token: Token(u64_at(rest, 0)?),
            task: TaskId::new(JobId(u64_at(rest, 8)?), u32_at(rest, 16)?),
            attempt: u32_at(rest, 20)?,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A buffer that is read into and written out without a copy: room for a record's head, then data.
pub(crate) struct Scratch(Box<[u8]>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(vec![0; RECORD_HEAD + DATA_MAX].into_boxed_slice())
    }

    /// Where data goes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.0[RECORD_HEAD..]
    }

    pub(crate) fn data(&self, from: usize, to: usize) -> &[u8] {
        &self.0[RECORD_HEAD + from..RECORD_HEAD + to]
    }

    /// The first `len` bytes of the data as a record.
    pub(crate) fn record(&mut self, stream: Stream, at: Timestamp, offset: u64, len: usize) -> &[u8] {
        let record = &mut self.0[..RECORD_HEAD + len];
        fill_head(record, kind(stream, false), at, offset);
        record
    }
}

/// Runs `f` with this thread's scratch; attempts share it, because each uses it for one read only.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new()));
    SCRATCH.with_borrow_mut(f)
}

/// A record of data that lies elsewhere.
pub(crate) fn data_record(stream: Stream, at: Timestamp, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEAD];
    record.extend_from_slice(data);
    fill_head(&mut record, kind(stream, false), at, offset);
    record
}

/// A record of what is not kept.
pub(crate) fn cut_record(stream: Stream, at: Timestamp, offset: u64, bytes: u64, reason: &str) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEAD];
    record.extend_from_slice(&bytes.to_le_bytes());
    let end = (0..=reason.len().min(REASON_MAX)).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
    record.extend_from_slice(&reason.as_bytes()[..end]);
    fill_head(&mut record, kind(stream, true), at, offset);
    record
}

fn kind(stream: Stream, is_cut: bool) -> u8 {
    match stream {
        Stream::Stdout => u8::from(is_cut) * 2,
        Stream::Stderr => 1 + u8::from(is_cut) * 2,
    }
}

/// `record` is at least [`RECORD_HEAD`] long and has its bytes already.
fn fill_head(record: &mut [u8], kind: u8, at: Timestamp, offset: u64) {
    let len = u32::try_from(record.len() - 8).unwrap_or(u32::MAX);
    record[8] = kind;
    record[9..17].copy_from_slice(&at.0.to_le_bytes());
    record[17..25].copy_from_slice(&offset.to_le_bytes());
    let crc = crc32fast::hash(&record[8..]);
    record[..4].copy_from_slice(&len.to_le_bytes());
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the record at the start of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let (Some(len), Some(crc)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else { return Parsed::Partial };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if !(BODY_HEAD..=BODY_HEAD + DATA_MAX).contains(&len) {
        return Parsed::Broken;
    }
    let Some(body) = bytes.get(8..8 + len) else { return Parsed::Partial };
    if crc32fast::hash(body) != crc {
        return Parsed::Broken;
    }
    parse_body(body).map_or(Parsed::Broken, |frame| Parsed::Frame(frame, 8 + len))
}

fn parse_body(body: &[u8]) -> Option<Frame<'_>> {
    let stream = if body.first()? % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
    let rest = body.get(BODY_HEAD..)?;
    let content = match body.first()? {
        0 | 1 => Content::Data(rest),
        2 | 3 => Content::Cut(u64_at(rest, 0)?, String::from_utf8_lossy(rest.get(8..)?).into_owned()),
        _ => return None,
    };
    Some(Frame { stream, at: Timestamp(u64_at(body, 1)?), offset: u64_at(body, 9)?, content })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(data in proptest::collection::vec(any::<u8>(), 0..300), at: u64, offset: u64, err: bool) {
            let stream = if err { Stream::Stderr } else { Stream::Stdout };
            let record = data_record(stream, Timestamp(at), offset, &data);
            let frame = Frame { stream, at: Timestamp(at), offset, content: Content::Data(&data) };
            prop_assert_eq!(parse(&record), Parsed::Frame(frame, record.len()));
            for short in 0..record.len() {
                prop_assert_eq!(parse(&record[..short]), Parsed::Partial);
            }
        }

        #[test]
        fn no_bytes_at_all_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = parse(&bytes);
            let _any = Head::decode(&bytes);
        }

        #[test]
        fn a_changed_byte_is_never_data(data in proptest::collection::vec(any::<u8>(), 1..100), at in 4usize..100, flip in 1u8..) {
            let mut record = data_record(Stream::Stdout, Timestamp(1), 2, &data);
            let at = at % record.len();
            prop_assume!(at >= 4);
            record[at] ^= flip;
            prop_assert_eq!(parse(&record), Parsed::Broken);
        }
    }

    #[test]
    fn a_cut_tells_how_much_and_why() {
        let record = cut_record(Stream::Stderr, Timestamp(3), 4, 5, "because");
        let content = Content::Cut(5, "because".into());
        let frame = Frame { stream: Stream::Stderr, at: Timestamp(3), offset: 4, content };
        assert_eq!(parse(&record), Parsed::Frame(frame, record.len()));
        let long = "ä".repeat(400);
        assert!(matches!(parse(&cut_record(Stream::Stdout, Timestamp(0), 0, 1, &long)), Parsed::Frame(..)));
    }

    #[test]
    fn a_head_comes_back_and_a_foreign_one_does_not() {
        let head = Head { token: Token(7), task: TaskId::new(JobId(8), 9), attempt: 10 };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        assert_eq!(Head::decode(b"MSL2 something else, and longer"), None);
        assert_eq!(Head::decode(b"MSL1"), None);
    }
}
