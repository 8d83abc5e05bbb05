//! One attempt's output on its way to disk: bounded in memory, bounded on disk, never in the task's way.
//!
//! Of output up to the limit all is kept; of more, the head and the last, which together are the limit. What lies
//! between is counted and named in cut records, so that a reader always knows what is missing and why.

use std::{
    fs::File,
    io::{self, Write},
    sync::{Arc, atomic::Ordering},
};

use muster_core::time::Timestamp;

use super::{
    Entry, Shared,
    frame::{DATA_MAX, FILE_HEAD, RECORD_HEAD, Scratch, Stream, cut_record, data_record, with_scratch},
    mask::Mask,
    rate::Rate,
    tail::Tail,
};

/// Of an attempt's limit, how much belongs to its newest output, but never more than half: the end is where errors are.
const TAIL_MAX: u64 = 64 * 1024;
/// A cut that goes on is told of each time it has grown by so much, so that who follows sees life.
const CUT_STEP: u64 = 16 * 1024 * 1024;

/// Why the first bytes after a gap are not shown.
const DOUBTFUL: &str = "the keeper was killed, and this may be the rest of a secret whose beginning it had in memory";

/// The writer of one attempt. Makes no file before the first byte.
pub struct Spool {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    file: Option<File>,
    /// Bytes of the attempt that may still be kept, without the tail.
    left: u64,
    limit: u64,
    rate: Option<Rate>,
    mask: Option<Mask>,
    lanes: [Lane; 2],
    tail: Tail,
    last_at: Timestamp,
    /// A writer before it may have written something.
    has_forgotten: bool,
}

/// One stream.
#[derive(Default)]
struct Lane {
    /// Bytes that the task wrote.
    offset: u64,
    cut: Option<Cut>,
}

impl Lane {
    fn is_too_fast(&self) -> bool {
        matches!(self.cut, Some(Cut { why: Why::Rate(_), .. }))
    }
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
    /// Bytes in a second.
    Rate(u64),
    Total(u64),
    Disk(String),
}

impl Why {
    fn text(&self) -> String {
        match self {
            Self::Attempt(limit) => format!("the attempt wrote more than its limit of {limit} bytes"),
            Self::Rate(limit) => {
                format!("the attempt wrote faster than its log_rate of {limit} bytes in a second allows")
            }
            Self::Total(limit) => format!("the agent keeps at most {limit} bytes of output that is not yet delivered"),
            Self::Disk(error) => format!("the agent could not write to its disk: {error}"),
        }
    }
}

impl Spool {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>, limit: u64, rate: Option<u64>) -> Self {
        let lanes = [Lane::default(), Lane::default()];
        let rate = rate.map(Rate::new);
        // What a cut keeps is written when it ends: it must fit into half a burst, for cuts end when that came in.
        let burst = rate.as_ref().map_or(u64::MAX, Rate::burst);
        let tail = TAIL_MAX.min(limit / 2).min(burst / 2);
        let left = limit - tail;
        let tail = Tail::new(usize::try_from(tail).unwrap_or(0));
        Self {
            shared,
            entry,
            file: None,
            left,
            limit,
            rate,
            mask: None,
            lanes,
            tail,
            last_at: Timestamp(0),
            has_forgotten: false,
        }
    }

    /// Shows none of what `mask` hides; offsets are those of what is shown.
    pub(crate) fn masking(self, mask: Option<Mask>) -> Self {
        Self { mask, ..self }
    }

    pub(crate) fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// Goes on with what a writer left that died: `offsets` of both streams, and so many bytes of the attempt kept.
    #[cfg(unix)]
    pub(super) fn resumed(self, file: File, offsets: [u64; 2], kept: u64) -> Self {
        let lanes = offsets.map(|offset| Lane { offset, cut: None });
        Self { file: Some(file), left: self.left.saturating_sub(kept), lanes, ..self }
    }

    /// Goes on without what a writer left that died, which cannot be read.
    #[cfg(unix)]
    pub(super) fn forgetful(self) -> Self {
        Self { has_forgotten: true, ..self }
    }

    /// Bytes that the task wrote to `stream`.
    pub(crate) fn offset(&self, stream: Stream) -> u64 {
        self.lanes[stream as usize].offset
    }

    /// Tells of `bytes` that are not kept, and why.
    pub(super) fn skip(&mut self, stream: Stream, at: Timestamp, bytes: u64, why: &str) {
        let offset = self.lanes[stream as usize].offset;
        let (mark, head) = (cut_record(stream, at, offset, bytes, why), self.file_head());
        if self.write(&mark).is_ok() {
            // Whether or not there was room: what follows lies behind it.
            self.shared.used.fetch_add(head + mark.len() as u64, Ordering::Relaxed);
            self.lanes[stream as usize].offset += bytes;
        }
    }

    /// Keeps the first `len` bytes of `scratch`, which the task wrote next to `stream`.
    pub(crate) fn take(&mut self, stream: Stream, at: Timestamp, scratch: &mut Scratch, len: usize) {
        self.last_at = at;
        let Some(mask) = &mut self.mask else { return self.keep(stream, at, scratch, len) };
        let doubtful = mask.doubtful(stream, len);
        let shown = mask.push(stream, scratch.data(doubtful, len));
        if doubtful > 0 {
            self.skip(stream, at, doubtful as u64, DOUBTFUL);
        }
        self.keep_all(stream, at, scratch, &shown);
    }

    fn keep_all(&mut self, stream: Stream, at: Timestamp, scratch: &mut Scratch, bytes: &[u8]) {
        for part in bytes.chunks(DATA_MAX) {
            scratch.room()[..part.len()].copy_from_slice(part);
            self.keep(stream, at, scratch, part.len());
        }
    }

    fn keep(&mut self, stream: Stream, at: Timestamp, scratch: &mut Scratch, len: usize) {
        self.end_rate_cuts(at);
        if self.lanes[stream as usize].cut.is_some() && !self.resume(stream, at) {
            self.leave_out(stream, at, scratch.data(0, len));
            return;
        }
        let may = self.left.min(self.rate_left(at)).min(len as u64);
        let head = self.file_head() + RECORD_HEAD as u64;
        let claimed = if may > 0 { self.shared.claim(head, may) } else { 0 };
        let kept = usize::try_from(claimed).unwrap_or(len);
        let offset = self.lanes[stream as usize].offset;
        if kept > 0 {
            // The tail of a split frame is saved first: the head of the record overwrites nothing of it.
            if let Err(error) = self.write(scratch.record(stream, at, offset, kept)) {
                self.shared.give_back(head + claimed);
                self.begin_cut(stream, Why::Disk(error.to_string()));
                self.leave_out(stream, at, scratch.data(0, len));
                return;
            }
            self.pay(kept as u64);
            self.lanes[stream as usize].offset += kept as u64;
        }
        if kept < len {
            let full = match &self.rate {
                _ if claimed < may => Why::Total(self.shared.total_limit),
                Some(rate) if self.left > 0 => Why::Rate(rate.per_second()),
                _ => Why::Attempt(self.limit),
            };
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

    /// The attempt is over: tells of what was left out and lets the shipper finish. Returns whether it wrote anything; none:
    /// that is not known.
    pub fn finish(mut self) -> Option<bool> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let at = self.last_at;
            if let Some(rest) = self.mask.as_mut().map(|mask| mask.finish(stream)) {
                with_scratch(|scratch| self.keep_all(stream, at, scratch, &rest));
            }
            if self.close_cut(stream, at).is_err() {
                self.tell_from_memory(stream, at);
            }
        }
        self.shared.over(&self.entry);
        let has_output = self.lanes.iter().any(|lane| lane.offset > 0);
        (has_output || !self.has_forgotten).then_some(has_output)
    }

    /// So much of what the attempt may write was written.
    fn pay(&mut self, bytes: u64) {
        self.left -= bytes;
        if let Some(rate) = &mut self.rate {
            rate.take(bytes);
        }
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
            if self.tell(&record).is_ok()
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
            Why::Attempt(_) | Why::Rate(_) => false,
            Why::Total(limit) => self.shared.room() > limit / 8,
            Why::Disk(_) => true,
        };
        may && self.go_on(stream, at)
    }

    /// The streams share one rate: they are cut, and go on, together, or the one that writes more often would have it all.
    fn rate_left(&mut self, at: Timestamp) -> u64 {
        let Some(rate) = &mut self.rate else { return u64::MAX };
        let room = rate.room(at);
        if self.lanes.iter().any(Lane::is_too_fast) { 0 } else { room }
    }

    /// Not for each byte that comes in: every cut that ends writes a record.
    fn end_rate_cuts(&mut self, at: Timestamp) {
        if self.rate.as_mut().is_none_or(|rate| rate.room(at) < rate.burst() / 2) {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (is_spent, lane) = (self.left <= self.tail.len(stream), &mut self.lanes[stream as usize]);
            match &mut lane.cut {
                Some(Cut { why: why @ Why::Rate(_), .. }) if is_spent => *why = Why::Attempt(self.limit),
                Some(Cut { why: Why::Rate(_), .. }) => _ = self.go_on(stream, at),
                _ => {}
            }
        }
    }

    /// Ends a cut of which nothing is left out any more, if the attempt may still write what it kept.
    fn go_on(&mut self, stream: Stream, at: Timestamp) -> bool {
        if self.left <= self.tail.len(stream) {
            return false;
        }
        let Ok(kept) = self.close_cut(stream, at) else { return false };
        // Bytes like all others now: there will be another tail.
        self.pay(kept);
        true
    }

    /// Writes what a cut left out and, of the tail that it kept, the newest for which there is room. Returns how much.
    fn close_cut(&mut self, stream: Stream, at: Timestamp) -> io::Result<u64> {
        let lane = &self.lanes[stream as usize];
        let Some(cut) = &lane.cut else { return Ok(0) };
        let first = |tail: &Tail| tail.first(stream).unwrap_or(lane.offset);
        let mut marks = Vec::new();
        let mut leave_out = |from: u64, to: u64, why: &Why| {
            if to > from {
                marks.extend(cut_record(stream, at, from, to - from, &why.text()));
            }
        };
        let (head, begin) = (RECORD_HEAD as u64, first(&self.tail));
        leave_out(cut.from, begin, &cut.why);
        let wanted = self.tail.cost(stream, head);
        let claimed = self.shared.claim(0, wanted);
        if claimed < wanted {
            self.tail.shorten(stream, head, claimed);
            leave_out(begin, first(&self.tail), &Why::Total(self.shared.total_limit));
        }
        let cost = self.tail.cost(stream, head);
        self.shared.give_back(claimed - cost);
        let kept = self.tail.len(stream);
        let tail = self.tail.of(stream).flat_map(|(at, from, data)| data_record(stream, at, from, data));
        let tail: Vec<u8> = tail.collect();
        if let Err(error) = self.tell_and_write(&marks, &tail) {
            self.shared.give_back(cost);
            return Err(error);
        }
        self.lanes[stream as usize].cut = None;
        self.tail.clear(stream);
        Ok(kept)
    }

    /// The disk does not take even a cut record, or all that is for those is used: the shipper reads it from memory. The tail
    /// goes too.
    fn tell_from_memory(&mut self, stream: Stream, at: Timestamp) {
        let lane = &self.lanes[stream as usize];
        let Some(cut) = &lane.cut else { return };
        let record = cut_record(stream, at, cut.from, lane.offset - cut.from, &cut.why.text());
        self.entry.append_in_memory(&record);
    }

    /// Bytes that a file has before its first record, if that is still to come.
    fn file_head(&self) -> u64 {
        if self.entry.end() == 0 { FILE_HEAD as u64 } else { 0 }
    }

    /// Writes marks of what is not kept, if there is room.
    fn tell(&mut self, marks: &[u8]) -> io::Result<()> {
        self.tell_and_write(marks, &[])
    }

    /// The same with records behind them, for which room was taken.
    fn tell_and_write(&mut self, marks: &[u8], records: &[u8]) -> io::Result<()> {
        if marks.is_empty() && records.is_empty() {
            return Ok(());
        }
        let room = self.file_head() + marks.len() as u64;
        if !self.shared.claim_mark(room) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let written = self.write(&[marks, records].concat());
        if written.is_err() {
            self.shared.give_back(room);
        }
        written
    }

    /// Appends whole records, for which room was taken; a half-written one is taken back.
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

#[cfg(test)]
mod tests {
    use muster_core::id::{JobId, TaskId, Token};
    use proptest::prelude::*;

    use super::*;
    use crate::logs::{
        Config, Head, Spools,
        frame::{Content, FILE_HEAD, Parsed, parse},
    };

    const RATE: u64 = 10_000;

    /// What is on disk of one stream: what was kept, and what was cut and why. Its offsets have no gap.
    #[derive(Debug, Default)]
    struct Kept {
        data: Vec<u8>,
        cut: u64,
        whys: Vec<String>,
        end: u64,
    }

    struct Rig {
        folder: tempfile::TempDir,
        spool: Spool,
    }

    impl Rig {
        fn new(change: impl FnOnce(&mut Config), limit: Option<u64>, rate: Option<u64>) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let mut config = Config::new(folder.path().to_owned());
            change(&mut config);
            let head = Head { token: Token(1), task: TaskId::new(JobId(1), 0), attempt: 1 };
            let spool = Spools::open(&config).expect("a spool").attempt(head, limit, rate);
            Self { folder, spool }
        }

        fn say(&mut self, at_ms: u64, stream: Stream, len: usize) {
            self.spool.append(stream, Timestamp(at_ms * 1000), &vec![b'x'; len]);
        }

        fn read(self) -> [Kept; 2] {
            self.spool.finish();
            let mut kept = [Kept::default(), Kept::default()];
            let bytes = std::fs::read(self.folder.path().join("spool/1.log")).unwrap_or_default();
            let mut rest = bytes.get(FILE_HEAD..).unwrap_or_default();
            while let Parsed::Frame(frame, len) = parse(rest) {
                let lane = &mut kept[frame.stream as usize];
                assert_eq!(frame.offset, lane.end, "a gap");
                match frame.content {
                    Content::Data(data) => {
                        lane.data.extend_from_slice(data);
                        lane.end += data.len() as u64;
                    }
                    Content::Cut(bytes, why) => {
                        lane.cut += bytes;
                        lane.end += bytes;
                        lane.whys.push(why);
                    }
                }
                rest = &rest[len..];
            }
            assert_eq!(rest, b"", "half a record");
            kept
        }
    }

    #[test]
    fn a_burst_is_kept_and_what_comes_faster_than_the_rate_is_cut_and_told() {
        let mut rig = Rig::new(|_| {}, None, Some(RATE));
        rig.say(0, Stream::Stdout, 40_000);
        rig.say(1, Stream::Stdout, 1_000_000);
        // Half a burst is back: what was kept of the end is written, and then all goes on.
        rig.say(2_100, Stream::Stdout, 500);
        rig.say(4_000, Stream::Stdout, 500);
        let [out, err] = rig.read();
        assert_eq!((out.data.len(), out.cut, err.end), (40_000 + 10 + 20_000 + 1000, 1_000_000 - 20_010, 0));
        assert_eq!(out.whys, ["the attempt wrote faster than its log_rate of 10000 bytes in a second allows"; 2]);
    }

    #[test]
    fn output_at_its_rate_is_never_cut_and_both_streams_have_it_together() {
        let mut rig = Rig::new(|_| {}, None, Some(RATE));
        for tenth in 0..600 {
            rig.say(tenth * 100, if tenth % 2 == 0 { Stream::Stdout } else { Stream::Stderr }, 1000);
        }
        let [out, err] = rig.read();
        assert_eq!((out.data.len(), err.data.len(), out.cut + err.cut), (300_000, 300_000, 0));
        let mut rig = Rig::new(|_| {}, None, Some(RATE));
        for second in 0..60 {
            rig.say(second * 1000, Stream::Stdout, 10_000);
            rig.say(second * 1000, Stream::Stderr, 10_000);
        }
        let [out, err] = rig.read();
        assert!(out.cut > 0 && err.cut > 0, "{} and {}", out.cut, err.cut);
        assert_eq!([&out, &err].map(|kept| kept.data.len() as u64 + kept.cut), [600_000; 2]);
    }

    #[test]
    fn an_attempt_has_its_own_rate_or_the_agents_and_never_more_than_the_agents_most() {
        // The agent's, its most, the task's; what of a million bytes is kept: a burst, and half of one for the end.
        let table = [
            (None, None, None, 1_000_000),
            (Some(RATE), None, None, 60_000),
            (Some(RATE), None, Some(2 * RATE), 120_000),
            (Some(RATE), None, Some(RATE / 2), 30_000),
            (Some(RATE), Some(3 * RATE), Some(9 * RATE), 180_000),
            (None, Some(RATE), None, 60_000),
        ];
        for (rate, rate_max, own, kept) in table {
            let mut rig = Rig::new(|config| (config.rate, config.rate_max) = (rate, rate_max), None, own);
            rig.say(0, Stream::Stdout, 1_000_000);
            let [out, _] = rig.read();
            assert_eq!(out.data.len(), kept, "{rate:?} {rate_max:?} {own:?}");
        }
    }

    #[test]
    fn who_writes_too_fast_for_long_comes_to_the_limit_of_all_as_others_do() {
        let mut rig = Rig::new(|_| {}, Some(100_000), Some(RATE));
        for second in 0..100 {
            rig.say(second * 1000, Stream::Stdout, 20_000);
        }
        let [out, _] = rig.read();
        assert!((80_000..=100_000).contains(&out.data.len()), "{}", out.data.len());
        assert_eq!(out.data.len() as u64 + out.cut, 2_000_000);
        assert!(out.whys.iter().any(|why| why.contains("limit of 100000 bytes")), "{:?}", out.whys);
    }

    #[test]
    fn what_is_masked_is_nowhere_on_the_disk_and_offsets_are_of_what_is_shown() {
        let mut rig = Rig::new(|_| {}, None, None);
        let mask = Mask::of([b"hunter2".as_slice()]).expect("one");
        rig.spool = rig.spool.masking(mask);
        for piece in ["say hun", "ter", "2 twice: hunter2", "\n", "hunt"] {
            rig.spool.append(Stream::Stderr, Timestamp(5), piece.as_bytes());
        }
        // More than one record, with values where it is split.
        let long = "hunter2.".repeat(30_000);
        rig.spool.append(Stream::Stdout, Timestamp(6), long.as_bytes());
        let [out, err] = rig.read();
        assert_eq!(String::from_utf8_lossy(&err.data), "say *** twice: ***\nhunt");
        assert_eq!(String::from_utf8_lossy(&out.data), "***.".repeat(30_000));
    }

    /// Bytes of all files of a folder.
    fn size(folder: &std::path::Path) -> u64 {
        let files =
            std::fs::read_dir(folder).expect("there").map(|file| file.expect("ours").metadata().expect("there"));
        files.map(|file| file.len()).sum()
    }

    #[test]
    fn many_floods_take_no_more_of_the_disk_than_all_may_have_and_each_is_told_of() {
        // With room for every mark, for some of them, and for next to nothing.
        for (quota, floods) in [(16 << 20, 200), (1 << 20, 200), (4 << 10, 50)] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut config = Config::new(folder.path().to_owned());
            config.total_limit = quota;
            let spools = Spools::open(&config).expect("a spool");
            for n in 0..floods {
                let head = Head { token: Token(n), task: TaskId::new(JobId(1), 0), attempt: 1 };
                // Some come to their own limit, and some write byte by byte.
                let mut spool = spools.attempt(head, (n % 3 == 0).then_some(150_000), None);
                for part in 0..40 {
                    spool.append(Stream::Stdout, Timestamp(part), &[b'x'; 5000]);
                    spool.append(Stream::Stderr, Timestamp(part), b"x");
                }
                assert_eq!([spool.offset(Stream::Stdout), spool.offset(Stream::Stderr)], [200_000, 40]);
                let entry = Arc::clone(&spool.entry);
                spool.finish();
                let in_memory = !entry.memory().is_empty();
                assert!(if quota >= 16 << 20 { !in_memory } else { in_memory || entry.end() > 0 }, "{n} of {quota}");
                let on_disk = size(&folder.path().join("spool"));
                assert!(on_disk <= quota, "{on_disk} of {quota} after {n}");
                assert_eq!(spools.shared.used.load(Ordering::Relaxed), on_disk, "after {n}");
            }
            let entries: Vec<_> = spools.shared.board().entries.values().cloned().collect();
            entries.iter().for_each(|entry| spools.shared.forget(entry));
            assert_eq!(spools.shared.used.load(Ordering::Relaxed), 0);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_when_every_byte_is_kept_or_told_and_the_rate_holds(
            words in proptest::collection::vec((0_u64..3000, any::<bool>(), 0_usize..30_000), 1..60),
        ) {
            let mut rig = Rig::new(|_| {}, None, Some(RATE));
            let (mut at, mut said) = (0, [0, 0]);
            for (wait_ms, is_stderr, len) in words {
                at += wait_ms;
                said[usize::from(is_stderr)] += len as u64;
                rig.say(at, if is_stderr { Stream::Stderr } else { Stream::Stdout }, len);
            }
            let kept = rig.read();
            for (lane, said) in kept.iter().zip(said) {
                prop_assert_eq!(lane.end, said);
            }
            let all: u64 = kept.iter().map(|lane| lane.data.len() as u64).sum();
            // A burst, what came in, and the end.
            prop_assert!(all <= 4 * RATE + RATE * at / 1000 + 2 * RATE, "{all} in {at} ms");
        }
    }
}
