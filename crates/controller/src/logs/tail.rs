//! Where the last lines begin: found by reading backwards, so that the tail of a large log costs no more than it shows.

use std::sync::Arc;

use bytes::Bytes;
use muster_common::proto::v1::LogFrame;

use crate::logs::{
    Error,
    read::Reader,
    segment::{self, Run, Segment},
};

/// Counts line ends backwards.
#[derive(Debug)]
struct Lines {
    /// Line ends that are still to be found; the one more before the first wanted line is among them.
    left: u64,
    /// Whether nothing was looked at yet.
    at_end: bool,
}

impl Lines {
    /// Where in `data`, which stands before all that was seen, the wanted lines begin; none: before it.
    fn begin(&mut self, data: &[u8]) -> Option<usize> {
        if data.is_empty() {
            return None;
        }
        if std::mem::take(&mut self.at_end) && data.last() != Some(&b'\n') {
            // The last line has no end yet.
            self.left = self.left.saturating_sub(1);
        }
        for (at, _) in data.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if self.left == 0 {
                return Some(at + 1);
            }
            self.left -= 1;
        }
        None
    }
}

impl Reader {
    /// Goes to where the last `lines` lines of what is selected and there now begin.
    ///
    /// # Errors
    /// The object store cannot be read.
    pub async fn tail(&mut self, lines: u64) -> Result<(), Error> {
        let mut count = Lines { left: lines, at_end: true };
        for (seq, segment) in self.backwards().await? {
            let found = match segment {
                Some(segment) => self.search(&segment.runs, &segment.body.clone().into(), 0, &mut count),
                None => self.search_stored(seq, &mut count).await?,
            };
            if let Some((offset, skip)) = found {
                (self.seq, self.offset, self.skip) = (seq, offset, skip);
                return Ok(());
            }
        }
        (self.seq, self.offset, self.skip) = (0, 0, 0);
        Ok(())
    }

    /// All segments, newest first, with those that are in memory.
    async fn backwards(&mut self) -> Result<Vec<(u32, Option<Arc<Segment>>)>, Error> {
        if self.job.lock().retired {
            self.renew().await?;
        }
        let state = self.job.lock();
        let filling = (state.filling.seq, Some(Arc::new(state.filling.clone())));
        let sealed = state.sealed.iter().rev().map(|segment| (segment.seq, Some(Arc::clone(segment))));
        let stored = state.stored.keys().rev().map(|seq| (*seq, None));
        Ok([filling].into_iter().chain(sealed).chain(stored).collect())
    }

    async fn search_stored(&mut self, seq: u32, count: &mut Lines) -> Result<Option<(u32, usize)>, Error> {
        let Some(size) = self.job.lock().stored.get(&seq).map(|stored| stored.size) else { return Ok(None) };
        let Some(footer) = self.index(seq, size).await? else { return Ok(None) };
        let wanted = |run: &&Run| run.len > 0 && self.selection.wants(run);
        let (Some(first), Some(last)) = (footer.runs.iter().find(wanted), footer.runs.iter().rfind(wanted)) else {
            return Ok(None);
        };
        if !footer.removed.is_empty() {
            return Ok(None);
        }
        let (start, end) = (first.start, last.end());
        let bytes = self.store.shared.shelf.body(self.selection.job, seq, start..end).await?;
        Ok(self.search(&footer.runs, &bytes, start, count))
    }

    /// The frame with which the wanted lines begin, and how many of its bytes come before them.
    fn search(&self, runs: &[Run], bytes: &Bytes, start: u32, count: &mut Lines) -> Option<(u32, usize)> {
        let (found, _) = segment::frames(runs, start, bytes, |run| self.selection.wants(run)).ok()?;
        let wanted = |frame: &LogFrame| self.selection.wants_frame(frame);
        let all = found.iter().rev().flat_map(|(_, placed)| placed.iter().rev());
        let mut wanted = all.filter(|placed| wanted(&placed.frame));
        wanted.find_map(|placed| count.begin(&placed.frame.data).map(|skip| (placed.at, skip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_begin_after_the_line_end_before_them() {
        let cases = [
            ("a\nb\nc\n", 1, Some(4)),
            ("a\nb\nc\n", 2, Some(2)),
            ("a\nb\nc\n", 3, None),
            ("a\nb\nc", 1, Some(4)),
            ("a\nb\nc", 2, Some(2)),
            ("\n\n\n", 2, Some(1)),
            ("abc", 1, None),
            ("", 1, None),
        ];
        for (text, lines, expected) in cases {
            let mut count = Lines { left: lines, at_end: true };
            assert_eq!(count.begin(text.as_bytes()), expected, "{lines} lines of {text:?}");
        }
    }

    #[test]
    fn a_line_may_stretch_over_many_frames() {
        let mut count = Lines { left: 2, at_end: true };
        let frames = ["x\nfirst ", "line\nsec", "ond ", "line\n"];
        let found: Vec<_> = frames.iter().rev().map(|data| count.begin(data.as_bytes())).collect();
        assert_eq!(found, [None, None, None, Some(2)]);
    }
}
