//! The way out: reading on from a place, from the object store first and from memory at the end.
//!
//! A follower is a reader that waits. It holds a place and no queue, so that one that does not read costs nothing
//! and stops nobody; frames that grow old meanwhile it finds in the object store.

use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use muster_common::proto::v1::{LogFrame, Stream};
use muster_core::id::JobId;
use tokio::sync::futures::OwnedNotified;

use crate::logs::{
    Error, LogStore,
    job::{JobLog, State, Who},
    segment::{self, Footer, Placed, Run, Segment},
};

/// How much is read at one time.
const PART: u32 = 256 * 1024;
/// A frame that does not fit into this is none.
const PART_MAX: u32 = 64 << 20;

/// Which frames are wanted.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The job.
    pub job: JobId,
    /// Tasks of it.
    pub tasks: Range<u32>,
    /// Attempts of them.
    pub attempts: Attempts,
    /// One stream; none: both.
    pub stream: Option<Stream>,
}

/// Which attempts are wanted.
#[derive(Clone)]
pub enum Attempts {
    /// This one.
    Only(u32),
    /// Of each task the one that this says, and later ones.
    From(Arc<dyn Fn(u32) -> u32 + Send + Sync>),
}

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(attempt) => write!(f, "Only({attempt})"),
            Self::From(_) => f.write_str("From(..)"),
        }
    }
}

impl Selection {
    fn wants_attempt(&self, (task, attempt): Who) -> bool {
        let wanted = || match &self.attempts {
            Attempts::Only(only) => attempt == *only,
            Attempts::From(from) => attempt >= from(task),
        };
        self.tasks.contains(&task) && wanted()
    }

    pub(super) fn wants(&self, run: &Run) -> bool {
        let written = match self.stream {
            None => true,
            Some(Stream::Stdout) => run.stdout > 0,
            Some(Stream::Stderr) => run.stderr > 0,
        };
        // A mark of what is missing stands for no stream and for no bytes.
        (written || run.stdout + run.stderr == 0) && self.wants_attempt((run.task, run.attempt))
    }

    pub(super) fn wants_frame(&self, frame: &LogFrame) -> bool {
        self.stream.is_none_or(|stream| frame.stream() == stream)
    }
}

/// Neighbouring frames of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The task.
    pub task: u32,
    /// The attempt.
    pub attempt: u32,
    /// What it wrote.
    pub frames: Vec<LogFrame>,
}

/// A place in a job's logs from which is read on.
#[derive(Debug)]
pub struct Reader {
    pub(super) store: LogStore,
    pub(super) selection: Selection,
    pub(super) job: Arc<JobLog>,
    /// The segment, and where in its body.
    pub(super) seq: u32,
    pub(super) offset: u32,
    /// Bytes of the first frame that are not wanted.
    pub(super) skip: usize,
    part: u32,
    /// The index of the stored segment that was read last.
    index: Option<(u32, Arc<Footer>)>,
}

/// Where the place is.
pub(super) enum Place {
    Retired,
    Stored(u64),
    Sealed(Arc<Segment>),
    /// What is wanted of it, copied; none: nothing yet.
    Filling(Option<Cut>),
}

/// A part of a body, and the runs that it belongs to.
pub(super) struct Cut {
    start: u32,
    bytes: Bytes,
    runs: Vec<Run>,
}

impl LogStore {
    /// Reads what is selected, from the first frame that is there.
    ///
    /// # Errors
    /// The object store cannot be read.
    pub async fn reader(&self, selection: Selection) -> Result<Reader, Error> {
        let job = self.warm_job(selection.job);
        self.load(selection.job, &job).await?;
        let store = self.clone();
        Ok(Reader { store, selection, job, seq: 0, offset: 0, skip: 0, part: PART, index: None })
    }
}

impl Reader {
    /// What comes next; none: no more is there yet. Never empty.
    ///
    /// # Errors
    /// The object store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<Piece>>, Error> {
        loop {
            let pieces = match self.place() {
                Place::Retired => {
                    self.renew().await?;
                    continue;
                }
                Place::Filling(None) => return Ok(None),
                Place::Filling(Some(cut)) => self.take(&cut),
                Place::Sealed(segment) => match self.cut(&segment) {
                    Some(cut) => self.take(&cut),
                    None => self.leave(),
                },
                Place::Stored(size) => self.read_stored(size).await?,
            };
            if !pieces.is_empty() {
                return Ok(Some(pieces));
            }
        }
    }

    /// Completes when something may have come since this was called. To be called before [`Reader::next`].
    pub fn grown(&self) -> OwnedNotified {
        Arc::clone(&self.job.grown).notified_owned()
    }

    /// Whether an attempt is selected and has not said that it writes no more.
    pub fn lacks_the_end_of(&self, task: u32, attempt: u32) -> bool {
        self.selection.wants_attempt((task, attempt)) && !self.job.lock().is_over((task, attempt))
    }

    /// Whether an attempt that is selected wrote something and may write more.
    pub fn is_open(&self) -> bool {
        self.job.lock().unfinished().any(|who| self.selection.wants_attempt(who))
    }

    pub(super) async fn renew(&mut self) -> Result<(), Error> {
        self.job = self.store.warm_job(self.selection.job);
        self.store.load(self.selection.job, &self.job).await
    }

    pub(super) fn place(&mut self) -> Place {
        let job = Arc::clone(&self.job);
        let state = job.lock();
        if state.retired {
            return Place::Retired;
        }
        if let Some(seq) = first_at(&state, self.seq)
            && seq != self.seq
        {
            (self.seq, self.offset) = (seq, 0);
        }
        if let Some(stored) = state.stored.get(&self.seq) {
            return Place::Stored(stored.size);
        }
        if let Some(segment) = state.sealed.iter().find(|sealed| sealed.seq == self.seq) {
            return Place::Sealed(Arc::clone(segment));
        }
        if state.filling.seq != self.seq {
            return Place::Filling(None);
        }
        let cut = self.cut(&state.filling);
        if cut.is_none() {
            // What is not wanted of this is not looked at again.
            self.offset = self.offset.max(u32::try_from(state.filling.body.len()).unwrap_or(u32::MAX));
        }
        Place::Filling(cut)
    }

    fn cut(&self, segment: &Segment) -> Option<Cut> {
        let part = segment::span(&segment.runs, self.offset, self.part, |run| self.selection.wants(run))?;
        let body = segment.body.get(part.start as usize..part.end as usize)?;
        let from = segment.runs.partition_point(|run| run.end() <= part.start);
        let to = segment.runs.partition_point(|run| run.start < part.end);
        let runs = segment.runs.get(from..to)?.to_vec();
        Some(Cut { start: part.start, bytes: Bytes::copy_from_slice(body), runs })
    }

    async fn read_stored(&mut self, size: u64) -> Result<Vec<Piece>, Error> {
        let Some(footer) = self.index(self.seq, size).await? else { return Ok(self.leave()) };
        if !footer.removed.is_empty() {
            let pieces = self.removed(&footer);
            self.leave();
            return Ok(pieces);
        }
        let span = segment::span(&footer.runs, self.offset, self.part, |run| self.selection.wants(run));
        let Some(part) = span else { return Ok(self.leave()) };
        let start = part.start;
        let bytes = self.store.shared.shelf.body(self.selection.job, self.seq, part).await?;
        Ok(self.decode(&footer.runs, start, &bytes))
    }

    /// The index of a stored segment; none: it is damaged.
    pub(super) async fn index(&mut self, seq: u32, size: u64) -> Result<Option<Arc<Footer>>, Error> {
        if let Some((known, footer)) = &self.index
            && *known == seq
        {
            return Ok(Some(Arc::clone(footer)));
        }
        match self.store.shared.shelf.index(self.selection.job, seq, size).await? {
            Ok(footer) => {
                let footer = Arc::new(footer);
                self.index = Some((seq, Arc::clone(&footer)));
                Ok(Some(footer))
            }
            Err(damage) => {
                tracing::warn!(job = %self.selection.job, seq, %damage, "a log segment is left out");
                Ok(None)
            }
        }
    }

    fn take(&mut self, cut: &Cut) -> Vec<Piece> {
        self.decode(&cut.runs, cut.start, &cut.bytes)
    }

    fn decode(&mut self, runs: &[Run], start: u32, bytes: &Bytes) -> Vec<Piece> {
        let decoded = segment::frames(runs, start, bytes, |run| self.selection.wants(run));
        let (found, next) = match decoded {
            Ok(found) => found,
            Err(damage) => {
                tracing::warn!(job = %self.selection.job, seq = self.seq, %damage, "the rest of a log segment is left out");
                return self.leave();
            }
        };
        if next == start {
            // Not even one frame: read more at once, but not without end.
            if self.part >= PART_MAX {
                return self.leave();
            }
            self.part = self.part.saturating_mul(2);
            return Vec::new();
        }
        self.part = PART;
        self.offset = next;
        let mut pieces = Vec::new();
        for (run, placed) in found {
            let frames = self.wanted_frames(placed);
            if !frames.is_empty() {
                pieces.push(Piece { task: run.task, attempt: run.attempt, frames });
            }
        }
        pieces
    }

    fn wanted_frames(&mut self, placed: Vec<Placed>) -> Vec<LogFrame> {
        let wanted = placed.into_iter().map(|placed| placed.frame).filter(|frame| self.selection.wants_frame(frame));
        let mut frames: Vec<_> = wanted.collect();
        if let Some(first) = frames.first_mut() {
            let skip = std::mem::take(&mut self.skip).min(first.data.len());
            first.data = first.data.slice(skip..);
            first.offset = first.offset.saturating_add(skip as u64);
            if skip > 0 && first.data.is_empty() {
                frames.remove(0);
            }
        }
        frames
    }

    /// What is told of a segment whose body is deleted.
    fn removed(&self, footer: &Footer) -> Vec<Piece> {
        let mut gone = BTreeMap::<Who, [u64; 2]>::new();
        for run in footer.runs.iter().filter(|run| self.selection.wants(run)) {
            let [stdout, stderr] = gone.entry((run.task, run.attempt)).or_default();
            *stdout = stdout.saturating_add(run.stdout);
            *stderr = stderr.saturating_add(run.stderr);
        }
        let piece = |((task, attempt), bytes): (Who, [u64; 2])| {
            let frames = [Stream::Stdout, Stream::Stderr].into_iter().zip(bytes);
            let frames = frames.filter(|(_, bytes)| *bytes > 0).map(|(stream, cut_bytes)| LogFrame {
                stream: stream.into(),
                cut_bytes,
                cut_reason: footer.removed.clone(),
                ..LogFrame::default()
            });
            let frames: Vec<_> = frames.filter(|frame| self.selection.wants_frame(frame)).collect();
            Piece { task, attempt, frames }
        };
        gone.into_iter().map(piece).filter(|piece| !piece.frames.is_empty()).collect()
    }

    /// Goes to the next segment.
    fn leave(&mut self) -> Vec<Piece> {
        (self.seq, self.offset, self.part) = (self.seq.saturating_add(1), 0, PART);
        Vec::new()
    }
}

/// The first segment there is at or after `seq`.
fn first_at(state: &State, seq: u32) -> Option<u32> {
    let stored = state.stored.range(seq..).next().map(|(seq, _)| *seq);
    let sealed = state.sealed.iter().map(|segment| segment.seq).find(|sealed| *sealed >= seq);
    let filling = (state.filling.seq >= seq).then_some(state.filling.seq);
    [stored, sealed, filling].into_iter().flatten().min()
}
