//! The newest output of an attempt, in memory: what is kept of it beyond a limit, because the end is where errors are.

use std::collections::VecDeque;

use muster_core::time::Timestamp;

use super::frame::Stream;

/// Streams that take turns byte by byte cost a part each; what is older than so many parts goes.
const PARTS_MAX: usize = 4096;

/// The last bytes of both streams together, oldest first.
pub(super) struct Tail {
    max: usize,
    bytes: usize,
    parts: VecDeque<Part>,
}

/// Bytes that one stream wrote in a row.
struct Part {
    stream: Stream,
    at: Timestamp,
    /// Of the first byte of `data`.
    offset: u64,
    data: Vec<u8>,
    /// Bytes at the start of `data` that are gone.
    gone: usize,
}

impl Part {
    fn len(&self) -> usize {
        self.data.len() - self.gone
    }

    fn first(&self) -> u64 {
        self.offset + self.gone as u64
    }
}

impl Tail {
    /// Keeps at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max, bytes: 0, parts: VecDeque::new() }
    }

    /// Adds what a stream wrote at `offset`; as much of the oldest goes.
    pub(super) fn push(&mut self, stream: Stream, at: Timestamp, offset: u64, data: &[u8]) {
        let skipped = data.len().saturating_sub(self.max);
        let (data, offset) = (&data[skipped..], offset + skipped as u64);
        while self.bytes + data.len() > self.max || self.parts.len() >= PARTS_MAX {
            self.drop_oldest((self.bytes + data.len()).saturating_sub(self.max));
        }
        if data.is_empty() {
            return;
        }
        self.bytes += data.len();
        match self.parts.back_mut() {
            Some(last) if last.stream == stream && last.offset + last.data.len() as u64 == offset => {
                // Seldom, so that small writes do not move all the others each time.
                if last.gone > last.data.len() / 2 {
                    last.offset += last.gone as u64;
                    last.data.drain(..std::mem::take(&mut last.gone));
                }
                last.data.extend_from_slice(data);
            }
            _ => self.parts.push_back(Part { stream, at, offset, data: data.to_vec(), gone: 0 }),
        }
    }

    /// At least one byte, and no more than the oldest part.
    fn drop_oldest(&mut self, bytes: usize) {
        let Some(oldest) = self.parts.front_mut() else { return };
        let bytes = if bytes == 0 { oldest.len() } else { bytes.min(oldest.len()) };
        oldest.gone += bytes;
        self.bytes -= bytes;
        if oldest.len() == 0 {
            self.parts.pop_front();
        }
    }

    /// Where the kept bytes of a stream begin.
    pub(super) fn first(&self, stream: Stream) -> Option<u64> {
        self.parts.iter().find(|part| part.stream == stream).map(Part::first)
    }

    /// How much of a stream is kept.
    pub(super) fn len(&self, stream: Stream) -> u64 {
        self.parts.iter().filter(|part| part.stream == stream).map(|part| part.len() as u64).sum()
    }

    /// What is kept of a stream, in order: when, from where, the bytes.
    pub(super) fn of(&self, stream: Stream) -> impl Iterator<Item = (Timestamp, u64, &[u8])> {
        let parts = self.parts.iter().filter(move |part| part.stream == stream);
        parts.map(|part| (part.at, part.first(), &part.data[part.gone..]))
    }

    /// Bytes of what is kept of a stream as records, with `head` before each part.
    pub(super) fn cost(&self, stream: Stream, head: u64) -> u64 {
        self.parts.iter().filter(|part| part.stream == stream).map(|part| head + part.len() as u64).sum()
    }

    /// Of a stream, keeps the newest bytes that cost no more than `room`.
    pub(super) fn shorten(&mut self, stream: Stream, head: u64, room: u64) {
        let mut left = room;
        for part in self.parts.iter_mut().rev().filter(|part| part.stream == stream) {
            let len = part.len();
            let kept = usize::try_from(left.saturating_sub(head)).map_or(len, |may| may.min(len));
            part.gone = part.data.len() - kept;
            // What is older than a part that goes would leave a gap.
            left = if kept < len { 0 } else { left - head - kept as u64 };
        }
        self.parts.retain(|part| part.len() > 0);
        self.bytes = self.parts.iter().map(Part::len).sum();
    }

    /// Forgets a stream.
    pub(super) fn clear(&mut self, stream: Stream) {
        self.parts.retain(|part| part.stream != stream);
        self.bytes = self.parts.iter().map(Part::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_newest_bytes_of_both_streams(
            max in 0_usize..64,
            writes in proptest::collection::vec((any::<bool>(), 0_usize..40), 0..60),
        ) {
            let mut tail = Tail::new(max);
            let mut all: Vec<(Stream, u64, u8)> = Vec::new();
            let mut offsets = [0_u64; 2];
            for (n, (is_err, len)) in writes.into_iter().enumerate() {
                let stream = if is_err { Stream::Stderr } else { Stream::Stdout };
                let offset = &mut offsets[stream as usize];
                let data = vec![n as u8; len];
                tail.push(stream, Timestamp(1), *offset, &data);
                all.extend((0..len as u64).map(|at| (stream, *offset + at, n as u8)));
                *offset += len as u64;
            }
            let newest = &all[all.len().saturating_sub(max)..];
            for stream in [Stream::Stdout, Stream::Stderr] {
                let wanted: Vec<_> = newest.iter().filter(|byte| byte.0 == stream).copied().collect();
                let kept: Vec<_> = tail
                    .of(stream)
                    .flat_map(|(_, from, data)| (from..).zip(data.to_vec()).map(|(at, byte)| (stream, at, byte)))
                    .collect();
                prop_assert_eq!(&kept, &wanted);
                prop_assert_eq!(tail.len(stream), wanted.len() as u64);
                prop_assert_eq!(tail.first(stream), wanted.first().map(|byte| byte.1));
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                let before: Vec<u8> = tail.of(stream).flat_map(|(_, _, data)| data.to_vec()).collect();
                let offset = offsets[stream as usize];
                for less in [0, 1, 7, 40] {
                    let room = tail.cost(stream, 3).saturating_sub(less);
                    tail.shorten(stream, 3, room);
                    prop_assert!(tail.cost(stream, 3) <= room);
                    let after: Vec<u8> = tail.of(stream).flat_map(|(_, _, data)| data.to_vec()).collect();
                    prop_assert!(before.ends_with(&after), "not the newest");
                    prop_assert_eq!(tail.first(stream).unwrap_or(offset) + after.len() as u64, offset, "a gap");
                    prop_assert!(less > 0 || after == before);
                }
            }
        }
    }
}
