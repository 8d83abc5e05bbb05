//! Goes on with the spool file of a writer that was killed in the middle: half a record at its end goes, and every stream
//! goes on at the byte after its last record.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use muster_core::time::Timestamp;

use super::{
    Entry, Head, Spool, Spools, Stream,
    frame::{self, Content, DATA_MAX, FILE_HEAD, Parsed, RECORD_HEAD},
};

/// Why bytes are missing that only a keeper's memory had.
const LOST: &str = "the keeper was killed, which had the end of it in memory";

/// Read at a time; far more than a record.
const BLOCK: usize = 1 << 20;
const _: () = assert!(BLOCK > RECORD_HEAD + DATA_MAX);

/// How far a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// Bytes of whole records.
    end: u64,
    offsets: [u64; 2],
    /// Bytes of the task among them.
    kept: u64,
}

impl Spools {
    /// A writer that goes on where another one was killed. One that wrote nothing is a new one.
    pub(crate) fn resume(&self, head: Head, limit: Option<u64>, rate: Option<u64>) -> Spool {
        let shared = &self.shared;
        let entry = Arc::new(Entry::new(shared.path(head.token), head));
        let spool = self.writer(Arc::clone(&entry), limit, rate);
        match open(&entry.path, head) {
            Ok(Some((file, found))) => {
                entry.end.store(found.end, Ordering::Release);
                shared.list(&entry);
                spool.resumed(file, found.offsets, found.kept)
            }
            Ok(None) => spool,
            Err(error) => {
                let Head { token, task, attempt } = head;
                tracing::warn!(%error, job = %task.job, %task, attempt, %token, "output that was kept cannot be gone on with");
                spool.forgetful()
            }
        }
    }

    /// Tells once more of a file that was finished.
    pub(crate) fn tell_again(&self, head: Head) {
        if let Some(entry) = Entry::leftover(self.shared.path(head.token)) {
            self.shared.list(&Arc::new(entry));
        }
    }
}

impl Spool {
    /// Keeps what was read for `stream` from `offset` on, as far as it is not kept already.
    pub(crate) fn take_again(&mut self, stream: Stream, offset: u64, at: Timestamp, bytes: &[u8]) {
        let end = self.offset(stream);
        if let Some(missing) = offset.checked_sub(end).filter(|missing| *missing > 0) {
            self.skip(stream, at, missing, LOST);
        }
        let known = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        if known > 0 && self.mask().is_some() {
            // What was shown of them is not as long as they are.
            return;
        }
        if let Some(new) = bytes.get(known..).filter(|new| !new.is_empty()) {
            self.append(stream, at, new);
        }
    }
}

/// The file, cut behind its last whole record and ready for the next; none: there is none.
fn open(path: &Path, head: Head) -> io::Result<Option<(File, Found)>> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut first = [0; FILE_HEAD];
    if file.read_exact(&mut first).is_err() || Head::decode(&first) != Some(head) {
        // Killed before its head was whole; it is made again.
        return Ok(None);
    }
    let found = look(&file)?;
    let end = found.end + FILE_HEAD as u64;
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok(Some((file, found)))
}

/// All whole records; whatever comes behind the last of them was being written.
fn look(file: &File) -> io::Result<Found> {
    let mut found = Found::default();
    // Millions of records may be short, and leases end while we look.
    let (mut block, mut read, mut taken) = (vec![0; BLOCK], 0, 0);
    loop {
        match frame::parse(&block[taken..read]) {
            Parsed::Frame(frame, len) => {
                let bytes = match &frame.content {
                    Content::Data(data) => {
                        found.kept += data.len() as u64;
                        data.len() as u64
                    }
                    Content::Cut(bytes, _) => *bytes,
                };
                found.offsets[frame.stream as usize] = frame.offset + bytes;
                found.end += len as u64;
                taken += len;
            }
            Parsed::Partial => {
                block.copy_within(taken..read, 0);
                (read, taken) = (read - taken, 0);
                let got = file.read_at(&mut block[read..], found.end + FILE_HEAD as u64 + read as u64)?;
                if got == 0 {
                    return Ok(found);
                }
                read += got;
            }
            Parsed::Broken => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_core::id::{JobId, TaskId, Token};

    use super::*;
    use crate::logs::Config;

    const HEAD: Head = Head { token: Token(3), task: TaskId { job: JobId(1), index: 0 }, attempt: 1 };

    fn spools(dir: &Path) -> Spools {
        Spools::to_write(&Config::new(dir.to_owned())).expect("a folder")
    }

    fn text(dir: &Path) -> (Vec<u8>, Vec<u8>) {
        let bytes = std::fs::read(dir.join("spool").join("3.log")).expect("a file");
        let (mut rest, mut lanes) = (&bytes[FILE_HEAD..], [Vec::new(), Vec::new()]);
        while !rest.is_empty() {
            let Parsed::Frame(frame, len) = frame::parse(rest) else { panic!("a record is broken") };
            let lane = &mut lanes[frame.stream as usize];
            assert_eq!(frame.offset, lane.len() as u64, "offsets have no gaps");
            match frame.content {
                Content::Data(data) => lane.extend_from_slice(data),
                Content::Cut(bytes, _) => lane.extend(std::iter::repeat_n(b'?', usize::try_from(bytes).expect("few"))),
            }
            rest = &rest[len..];
        }
        let [out, err] = lanes;
        (out, err)
    }

    /// A writer that was killed after it wrote "ab" and "X", with so many bytes of what followed.
    fn killed(dir: &Path, torn: usize) {
        let mut spool = spools(dir).attempt(HEAD, None, None);
        spool.append(Stream::Stdout, Timestamp(1), b"ab");
        spool.append(Stream::Stderr, Timestamp(2), b"X");
        drop(spool);
        let record = frame::data_record(Stream::Stdout, Timestamp(3), 2, b"cd");
        let mut file = OpenOptions::new().append(true).open(dir.join("spool").join("3.log")).expect("there");
        io::Write::write_all(&mut file, &record[..torn]).expect("written");
    }

    #[test]
    fn wherever_the_writer_was_killed_each_byte_is_kept_once() {
        let whole = RECORD_HEAD + 2;
        for torn in 0..=whole {
            let folder = tempfile::tempdir().expect("a folder");
            killed(folder.path(), torn);
            let mut spool = spools(folder.path()).resume(HEAD, None, None);
            assert_eq!(spool.offset(Stream::Stdout), if torn == whole { 4 } else { 2 }, "torn at {torn}");
            // What lay in the chamber: the record was written, or was not.
            spool.take_again(Stream::Stdout, 2, Timestamp(4), b"cd");
            spool.append(Stream::Stderr, Timestamp(5), b"Y");
            spool.finish();
            assert_eq!(text(folder.path()), (b"abcd".to_vec(), b"XY".to_vec()), "torn at {torn}");
        }
    }

    #[test]
    fn of_a_part_that_was_kept_in_part_the_rest_is_kept_and_a_hole_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        killed(folder.path(), 0);
        let mut spool = spools(folder.path()).resume(HEAD, None, None);
        spool.take_again(Stream::Stdout, 1, Timestamp(4), b"bcd");
        spool.take_again(Stream::Stderr, 3, Timestamp(4), b"Z");
        spool.finish();
        assert_eq!(text(folder.path()), (b"abcd".to_vec(), b"X??Z".to_vec()));
    }

    #[test]
    fn a_file_that_is_not_there_or_has_half_a_head_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let spools = spools(folder.path());
        for half in [None, Some(&b"MSL"[..])] {
            if let Some(half) = half {
                std::fs::write(folder.path().join("spool").join("3.log"), half).expect("written");
            }
            let mut spool = spools.resume(HEAD, None, None);
            spool.take_again(Stream::Stdout, 0, Timestamp(1), b"abc");
            spool.finish();
            assert_eq!(text(folder.path()).0, b"abc");
        }
    }

    #[test]
    fn what_an_attempt_wrote_before_is_remembered_at_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let at_its_end = || spools(folder.path()).resume(HEAD, None, None).finish();
        assert_eq!(at_its_end(), Some(false), "nobody wrote anything");
        killed(folder.path(), 0);
        assert_eq!(at_its_end(), Some(true), "an earlier keeper wrote it");
        let file = folder.path().join("spool").join("3.log");
        std::fs::remove_file(&file).expect("there");
        std::fs::create_dir(&file).expect("made");
        assert_eq!(at_its_end(), None, "nobody can read what was written");
    }

    #[test]
    fn what_an_attempt_wrote_before_counts_against_its_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        killed(folder.path(), 0);
        let mut spool = spools(folder.path()).resume(HEAD, Some(8), None);
        spool.append(Stream::Stdout, Timestamp(4), b"0123456789");
        spool.finish();
        let (out, _) = text(folder.path());
        assert_eq!(out, b"ab0?????6789", "one more, and the last four");
    }

    #[test]
    fn of_a_secret_whose_beginning_was_only_in_memory_nothing_is_shown() {
        let secret = || crate::logs::Mask::of([&b"secret"[..]]).expect("short");
        for (before, after, shown) in [
            ("ab sec", "ret and on, no secret", &b"ab ?????nd on, no ***"[..]),
            ("ab", "12345 on", &b"ab????? on"[..]),
            ("ab", "12", &b"ab??"[..]),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut spool = spools(folder.path()).attempt(HEAD, None, None).masking(secret());
            spool.append(Stream::Stdout, Timestamp(1), before.as_bytes());
            let offset = spool.offset(Stream::Stdout);
            drop(spool);
            let spool = spools(folder.path()).resume(HEAD, None, None);
            let mut spool = spool.masking(secret().map(crate::logs::Mask::after_a_gap));
            let (first, rest) = after.as_bytes().split_at(2);
            spool.take_again(Stream::Stdout, offset, Timestamp(2), first);
            spool.append(Stream::Stdout, Timestamp(3), rest);
            spool.finish();
            assert_eq!(text(folder.path()).0, shown, "{before}|{after}");
        }
    }

    #[test]
    fn what_was_shown_of_a_secret_is_not_shown_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = || crate::logs::Mask::of([&b"secret"[..]]).expect("short");
        let mut spool = spools(folder.path()).attempt(HEAD, None, None).masking(secret());
        spool.append(Stream::Stdout, Timestamp(1), b"a secret b");
        drop(spool);
        let mut spool =
            spools(folder.path()).resume(HEAD, None, None).masking(secret().map(crate::logs::Mask::after_a_gap));
        spool.take_again(Stream::Stdout, 0, Timestamp(2), b"a secret b");
        spool.finish();
        assert_eq!(text(folder.path()).0, b"a *** b");
    }
}
