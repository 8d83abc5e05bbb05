//! Linux: what is read of tasks passes through a file in memory that outlives its reader, so that nothing is lost and
//! nothing comes twice when the reader is killed in the middle.
//!
//! A chamber says first whose bytes come, and after which of the stream's bytes. Then the kernel moves them from the pipe into
//! it, and the file's own place moves with them, in one system call: what lies between the head and that place has left the
//! pipe. Only when it is in the spool does the place go back. Who takes a chamber over compares it with the spool.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::{fd::BorrowedFd, unix::fs::FileExt},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use muster_core::id::Token;
use nix::{
    fcntl::{SpliceFFlags, splice},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::pipe::Pipe;
use crate::logs::{DATA_MAX, Stream};

/// Token, stream and offset.
const HEAD: usize = 24;

/// Whose bytes lie in a chamber, and after which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) token: Token,
    pub(crate) stream: Stream,
    pub(crate) offset: u64,
}

impl Mark {
    fn encode(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.token.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.stream as u64).to_le_bytes());
        bytes[16..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEAD]) -> Self {
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let stream = if word(8) == Stream::Stdout as u64 { Stream::Stdout } else { Stream::Stderr };
        Self { token: Token(word(0)), stream, offset: word(16) }
    }
}

/// One file; one reader at a time.
pub(crate) struct Chamber(File);

impl Chamber {
    fn make() -> io::Result<Self> {
        let file = File::from(memfd_create("muster-chamber", MFdFlags::MFD_CLOEXEC)?);
        let chamber = Self(file);
        chamber.leave()?;
        Ok(chamber)
    }

    /// What was taken and perhaps not kept; none: nothing.
    pub(crate) fn left(&self) -> io::Result<Option<(Mark, Vec<u8>)>> {
        let end = (&self.0).stream_position()?;
        let len = usize::try_from(end.saturating_sub(HEAD as u64)).unwrap_or(0).min(DATA_MAX);
        let (mut head, mut bytes) = ([0; HEAD], vec![0; len]);
        if len == 0 {
            return Ok(None);
        }
        self.0.read_exact_at(&mut head, 0)?;
        self.0.read_exact_at(&mut bytes, HEAD as u64)?;
        Ok(Some((Mark::decode(&head), bytes)))
    }

    /// Its bytes are where they belong.
    pub(crate) fn leave(&self) -> io::Result<()> {
        (&self.0).seek(SeekFrom::Start(HEAD as u64)).map(|_| ())
    }

    /// Moves what `pipe` has, for `mark`, and copies it to `room`. Returns how much; 0: nobody writes any more.
    fn take(&self, pipe: BorrowedFd<'_>, mark: Mark, room: &mut [u8]) -> io::Result<usize> {
        self.0.write_all_at(&mark.encode(), 0)?;
        let len = splice(pipe, None, &self.0, None, room.len().min(DATA_MAX), SpliceFFlags::SPLICE_F_NONBLOCK)?;
        self.0.read_exact_at(&mut room[..len], HEAD as u64)?;
        Ok(len)
    }
}

impl std::fmt::Debug for Sluice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sluice")
    }
}

/// The chambers of one keeper; as many as threads read at once.
pub(crate) struct Sluice(Mutex<Vec<Chamber>>);

impl Sluice {
    /// New ones.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let chambers = (0..count).map(|_| Chamber::make()).collect::<io::Result<_>>()?;
        Ok(Self(Mutex::new(chambers)))
    }

    /// Of an earlier keeper.
    pub(crate) fn of(files: impl IntoIterator<Item = File>) -> Self {
        Self(Mutex::new(files.into_iter().map(Chamber).collect()))
    }

    /// The same files, for whoever keeps them safe.
    pub(crate) fn files(&self) -> io::Result<Vec<File>> {
        self.lock().iter().map(|chamber| chamber.0.try_clone()).collect()
    }

    /// Does something with each; nobody reads yet.
    pub(crate) fn each(&self, work: impl FnMut(&Chamber)) {
        self.lock().iter().for_each(work);
    }

    /// One for a read that begins; none: more threads read than were thought of.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Inside> {
        let chamber = self.lock().pop()?;
        Some(Inside { sluice: Arc::clone(self), chamber: Some(chamber) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Chamber>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chamber in use. What it holds has been kept when it is dropped.
pub(crate) struct Inside {
    sluice: Arc<Sluice>,
    chamber: Option<Chamber>,
}

impl Inside {
    /// Reads what `pipe` has into `room`.
    pub(crate) fn poll_take(
        &self,
        pipe: &Pipe,
        context: &mut Context<'_>,
        mark: Mark,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(chamber) = &self.chamber else { return Poll::Ready(Ok(0)) };
        let full = room.len().min(DATA_MAX);
        let len = ready!(pipe.poll_with(context, full, |pipe| chamber.take(pipe, mark, room)))?;
        Poll::Ready(Ok(len))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(chamber) = self.chamber.take() {
            let _seeks = chamber.leave();
            self.sluice.lock().push(chamber);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd};

    use super::*;

    const MARK: Mark = Mark { token: Token(7), stream: Stream::Stderr, offset: 99 };

    fn written(bytes: &[u8]) -> (io::PipeReader, io::PipeWriter) {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(bytes).expect("room");
        (reader, writer)
    }

    #[test]
    fn a_reader_that_dies_at_any_point_leaves_what_it_took_and_whose_it_is() {
        let chamber = Chamber::make().expect("made");
        assert_eq!(chamber.left().expect("read"), None, "nothing was begun");
        let (reader, writer) = written(b"abc");
        // Killed before the bytes moved.
        chamber.0.write_all_at(&MARK.encode(), 0).expect("written");
        assert_eq!(chamber.left().expect("read"), None, "they are in the pipe");
        // Killed right after.
        let mut room = [0; 16];
        assert_eq!(chamber.take(reader.as_fd(), MARK, &mut room).expect("moved"), 3);
        assert_eq!(&room[..3], b"abc");
        let heir = Chamber(chamber.0.try_clone().expect("the same open file"));
        assert_eq!(heir.left().expect("read"), Some((MARK, b"abc".to_vec())));
        // Killed after they were kept.
        heir.leave().expect("sought");
        assert_eq!(chamber.left().expect("read"), None);
        drop(writer);
        assert_eq!(chamber.take(reader.as_fd(), MARK, &mut room).expect("the end"), 0);
    }

    #[test]
    fn what_an_earlier_read_left_in_the_file_is_not_told_again() {
        let chamber = Chamber::make().expect("made");
        let mut room = [0; 16];
        for (bytes, offset) in [(&b"long enough"[..], 0), (b"x", 11)] {
            let (reader, _writer) = written(bytes);
            let mark = Mark { offset, ..MARK };
            chamber.take(reader.as_fd(), mark, &mut room).expect("moved");
            assert_eq!(chamber.left().expect("read"), Some((mark, bytes.to_vec())));
            chamber.leave().expect("sought");
        }
    }

    #[test]
    fn no_chamber_is_entered_twice_and_each_comes_back() {
        let sluice = Arc::new(Sluice::new(2).expect("made"));
        let both = (sluice.enter(), sluice.enter());
        assert!(both.0.is_some() && both.1.is_some() && sluice.enter().is_none());
        drop(both);
        assert!(sluice.enter().is_some());
    }
}
