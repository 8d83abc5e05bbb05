//! One job's logs: what is stored, what is being stored, what gathers, and how far each attempt has come.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_common::proto::v1::{LogBatch, LogFrame};
use muster_core::time::Mono;
use tokio::sync::{Notify, OnceCell};

use crate::logs::{
    intake::Mailbox,
    segment::{Run, Segment},
};

/// A segment that has grown to this is stored at once. Larger ones make fewer objects, smaller ones less to
/// read for one task.
pub(super) const SEGMENT_BYTES: usize = 4 << 20;

/// A job's logs, shared by writers, readers and the flusher.
#[derive(Debug)]
pub(super) struct JobLog {
    pub(super) state: Mutex<State>,
    /// Whether `State::done` and `State::open` tell of all stored segments.
    pub(super) loaded: OnceCell<()>,
    /// Something was appended, or this was retired.
    pub(super) grown: Arc<Notify>,
    /// At most one store of this job's segments at a time: they must become durable in order.
    pub(super) storing: tokio::sync::Mutex<()>,
}

/// One task's one attempt.
pub(super) type Who = (u32, u32);

/// See [`JobLog`].
#[derive(Debug, Default)]
pub(super) struct State {
    /// Forgotten or put away: whoever holds this must ask for the job again.
    pub(super) retired: bool,
    /// Segments in the object store: their size, and whether only a tombstone is left.
    pub(super) stored: BTreeMap<u32, Stored>,
    /// Segments that are complete, oldest first.
    pub(super) sealed: VecDeque<Arc<Segment>>,
    /// The one of them that is on its way.
    pub(super) in_flight: Option<u32>,
    /// The segment that grows.
    pub(super) filling: Segment,
    /// Attempts that may still write, or have something that is not stored.
    pub(super) open: HashMap<Who, Open>,
    /// Attempts of which everything is stored, and how many frames they have.
    pub(super) done: HashMap<Who, u64>,
    /// When the growing segment is to be stored; none: there is nothing in it.
    pub(super) due: Option<Mono>,
    /// How often in a row little was stored.
    pub(super) trickles: u32,
    /// How often in a row storing failed.
    pub(super) failures: u32,
    /// When something was last appended.
    pub(super) touched: Mono,
}

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) size: u64,
    pub(super) removed: bool,
}

/// How far an attempt has come.
#[derive(Debug, Default)]
pub(super) struct Open {
    token: u64,
    /// The number of the next frame.
    next: u64,
    /// Frames before this are stored.
    kept: u64,
    last: bool,
    /// The frame that was last refused because those before it are missing.
    refused: Option<u64>,
    /// Who is to be told.
    mailbox: Option<Arc<Mailbox>>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Appended {
    /// Bytes that are in memory now and were not before.
    pub(super) bytes: usize,
    /// A segment is full, or an attempt is over.
    pub(super) hurry: bool,
    /// Something gathers that is to be stored some time.
    pub(super) dirty: bool,
    /// Frames before these are missing: nothing was taken.
    pub(super) gap: bool,
}

impl JobLog {
    /// The logs of a job of which `stored` is in the object store.
    pub(super) fn new(stored: BTreeMap<u32, Stored>) -> Self {
        let next = stored.last_key_value().map_or(0, |(seq, _)| seq + 1);
        let loaded = if stored.is_empty() { OnceCell::new_with(Some(())) } else { OnceCell::new() };
        let state = State { stored, filling: Segment::new(next), ..State::default() };
        Self { state: Mutex::new(state), loaded, grown: Arc::default(), storing: tokio::sync::Mutex::default() }
    }

    /// The state. Every change under this lock is complete in itself.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the runs of a stored segment, oldest segment first.
    pub(super) fn recall(&mut self, runs: &[Run]) {
        for run in runs {
            let who = (run.task, run.attempt);
            if run.last {
                self.open.remove(&who);
                self.done.insert(who, run.next());
            } else {
                let open = self.open.entry(who).or_default();
                open.next = open.next.max(run.next());
                open.kept = open.next;
            }
        }
    }

    /// Takes what is new in a batch and tells its sender.
    pub(super) fn append(&mut self, batch: LogBatch, mailbox: &Arc<Mailbox>) -> Appended {
        let who = (batch.task, batch.attempt);
        let token = batch.token;
        if let Some(next) = self.done.get(&who) {
            mailbox.note(token, *next, *next);
            return Appended::default();
        }
        if batch.frames.is_empty() && batch.last && batch.first == 0 && !self.open.contains_key(&who) {
            // Silent to its end: there is nothing to store.
            self.done.insert(who, 0);
            mailbox.note(token, 0, 0);
            return Appended { hurry: true, ..Appended::default() };
        }
        let open = self.open.entry(who).or_default();
        open.token = token;
        if open.mailbox.as_ref().is_none_or(|known| !Arc::ptr_eq(known, mailbox)) {
            open.mailbox = Some(Arc::clone(mailbox));
        }
        let before = self.filling.runs.is_empty();
        let Some((first, frames)) = open.accept(batch.first, batch.frames) else {
            mailbox.note(token, open.next, open.kept);
            return Appended { gap: true, ..Appended::default() };
        };
        if frames.is_empty() && (!batch.last || open.last) {
            mailbox.note(token, open.next, open.kept);
            return Appended::default();
        }
        open.last |= batch.last;
        let bytes = self.filling.push(who, first, &frames, batch.last);
        open.next = first.saturating_add(frames.len() as u64);
        mailbox.note(token, open.next, open.kept);
        let full = self.filling.body.len() >= SEGMENT_BYTES;
        if full {
            self.seal();
        }
        Appended { bytes, hurry: full || batch.last, dirty: before, gap: false }
    }

    /// Ends the segment that grows; the next one begins.
    pub(super) fn seal(&mut self) {
        self.due = None;
        if self.filling.is_empty() {
            return;
        }
        let next = Segment::new(self.filling.seq + 1);
        self.sealed.push_back(Arc::new(std::mem::replace(&mut self.filling, next)));
    }

    /// A segment is in the object store: tells those who wrote it, and lets go of it.
    pub(super) fn confirm(&mut self, segment: &Segment, size: u64) {
        self.stored.insert(segment.seq, Stored { size, removed: false });
        self.sealed.retain(|sealed| sealed.seq != segment.seq);
        for run in &segment.runs {
            let who = (run.task, run.attempt);
            let Some(open) = self.open.get_mut(&who) else { continue };
            open.kept = open.kept.max(run.next());
            if let Some(mailbox) = &open.mailbox {
                mailbox.note(open.token, open.next, open.kept);
            }
            if run.last {
                let next = open.next;
                self.open.remove(&who);
                self.done.insert(who, next);
            }
        }
    }

    /// Lets go of everything. How many bytes of memory that frees: all but those of the segment that is on
    /// its way, which whoever stores it counts.
    pub(super) fn retire(&mut self) -> usize {
        self.retired = true;
        let on_its_way = self.sealed.iter().find(|sealed| Some(sealed.seq) == self.in_flight);
        let freed = self.buffered() - on_its_way.map_or(0, |segment| segment.body.len());
        self.sealed.clear();
        self.filling = Segment::new(self.filling.seq);
        freed
    }

    /// Whether an attempt has said that it writes no more.
    pub(super) fn is_over(&self, who: Who) -> bool {
        self.done.contains_key(&who) || self.open.get(&who).is_some_and(|open| open.last)
    }

    /// Attempts that wrote something and have not said that it was all.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = Who> {
        self.open.iter().filter(|(_, open)| !open.last && open.next > 0).map(|(who, _)| *who)
    }

    /// Bytes that are only in memory.
    pub(super) fn buffered(&self) -> usize {
        self.sealed.iter().map(|segment| segment.body.len()).sum::<usize>() + self.filling.body.len()
    }

    /// Whether everything is stored.
    pub(super) fn is_clean(&self) -> bool {
        self.sealed.is_empty() && self.filling.is_empty()
    }
}

impl Open {
    /// The frames of a batch that are new, and the number of the first of them; none: frames before
    /// them are missing, and the sender is to begin there.
    fn accept(&mut self, first: u64, mut frames: Vec<LogFrame>) -> Option<(u64, Vec<LogFrame>)> {
        if first > self.next {
            if self.refused != Some(first) {
                self.refused.get_or_insert(first);
                return None;
            }
            // The sender was told and still begins here: it does not have them either. A hole that is marked is
            // better than an attempt that never goes on.
            let missing = first - self.next;
            let cut_reason = format!("{missing} pieces were lost between agent and controller");
            frames.insert(0, LogFrame { cut_reason, ..LogFrame::default() });
            self.refused = None;
            // The mark takes the number of the last one that is missing.
            return Some((first - 1, frames));
        }
        self.refused = None;
        let known = usize::try_from(self.next - first).unwrap_or(usize::MAX).min(frames.len());
        frames.drain(..known);
        Some((self.next, frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, texts: &[&str], last: bool) -> LogBatch {
        let frame = |text: &&str| LogFrame { data: text.as_bytes().to_vec().into(), ..LogFrame::default() };
        LogBatch { token: 9, job: 1, task: 0, attempt: 1, first, frames: texts.iter().map(frame).collect(), last }
    }

    fn frames(state: &State) -> u32 {
        state.filling.runs.iter().map(|run| run.frames).sum()
    }

    fn place(state: &State) -> (u64, u64) {
        state.open.get(&(0, 1)).map_or((0, 0), |open| (open.next, open.kept))
    }

    #[test]
    fn frames_that_come_again_are_dropped_and_acknowledged() {
        let (mut state, mailbox) = (State::default(), Arc::default());
        state.append(batch(0, &["a", "b"], false), &mailbox);
        state.append(batch(0, &["a", "b", "c"], false), &mailbox);
        state.append(batch(1, &["b"], false), &mailbox);
        assert_eq!((frames(&state), place(&state)), (3, (3, 0)));
    }

    #[test]
    fn frames_after_a_gap_are_refused_until_the_sender_insists() {
        let (mut state, mailbox) = (State::default(), Arc::default());
        state.append(batch(0, &["a"], false), &mailbox);
        assert!(state.append(batch(3, &["d"], false), &mailbox).gap);
        assert!(state.append(batch(4, &["e"], false), &mailbox).gap);
        assert_eq!(place(&state), (1, 0));
        state.append(batch(3, &["d"], false), &mailbox);
        assert_eq!(place(&state), (4, 0), "with a mark in place of the second and third");
        assert_eq!(frames(&state), 3);
    }

    #[test]
    fn frames_are_kept_when_their_segment_is_stored_and_no_earlier() {
        let (mut state, mailbox) = (State::default(), Arc::default());
        state.append(batch(0, &["a"], false), &mailbox);
        state.seal();
        state.append(batch(1, &["b"], true), &mailbox);
        let first = Arc::clone(&state.sealed[0]);
        state.confirm(&first, 10);
        assert_eq!(place(&state), (2, 1));
        state.seal();
        let second = Arc::clone(&state.sealed[0]);
        state.confirm(&second, 10);
        assert_eq!((state.open.len(), state.done.get(&(0, 1))), (0, Some(&2)));
        assert!(state.is_clean());
    }

    #[test]
    fn an_attempt_that_wrote_nothing_costs_no_segment() {
        let (mut state, mailbox) = (State::default(), Arc::default());
        state.append(batch(0, &[], true), &mailbox);
        assert!(state.is_clean() && state.open.is_empty());
        assert_eq!(state.done.get(&(0, 1)), Some(&0));
    }

    #[test]
    fn what_a_stored_segment_tells_is_where_an_attempt_goes_on() {
        let mut state = State::default();
        let run = |first, last| Run { task: 0, attempt: 1, first, frames: 2, last, ..Run::default() };
        state.recall(&[run(0, false), run(2, false)]);
        assert_eq!(place(&state), (4, 4));
        state.recall(&[run(4, true)]);
        assert_eq!(state.done.get(&(0, 1)), Some(&6));
    }
}
