//! Of what tasks wrote, what a person asked for: written in a span of time, lines that have a pattern, the last of them.

use std::collections::VecDeque;

use muster_common::proto::v1::{LogFrame, LogsRequest};
use tonic::Status;

use crate::{
    grpc::status::of_field,
    logs::{Lines, Pattern, Piece},
};

/// Of the last lines with a pattern, how many bytes are held until it is known which are the last.
const TAIL_MAX: usize = 16 << 20;

/// A span of time, in microseconds; 0: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) since: u64,
    pub(super) until: u64,
}

impl Span {
    /// Whether this was written in it. A mark of what is missing was not written at any time.
    pub(super) fn has(self, frame: &LogFrame) -> bool {
        frame.at_us == 0 || (frame.at_us >= self.since && (self.until == 0 || frame.at_us < self.until))
    }
}

/// What lets pieces through.
#[derive(Debug)]
pub(super) struct Sieve {
    span: Span,
    pattern: Option<(Pattern, Lines)>,
    /// The last lines so far, until all that is there was seen.
    tail: Option<Tail>,
}

#[derive(Debug)]
struct Tail {
    lines: usize,
    held: usize,
    last: VecDeque<Piece>,
}

/// A pattern as a request has it; none: it has none.
pub(super) fn pattern(text: &str, ignore_case: bool) -> Result<Option<Pattern>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    Pattern::new(text, ignore_case).map(Some).map_err(|why| of_field("pattern", why))
}

impl Sieve {
    pub(super) fn new(request: &LogsRequest) -> Result<Self, Status> {
        let span = Span { since: request.since_us, until: request.until_us };
        let pattern = pattern(&request.pattern, request.ignore_case)?.map(|pattern| (pattern, Lines::default()));
        let lines = usize::try_from(request.tail_lines).unwrap_or(usize::MAX);
        let tail = (pattern.is_some() && lines > 0).then(|| Tail { lines, held: 0, last: VecDeque::new() });
        Ok(Self { span, pattern, tail })
    }

    /// Whether the last lines are found here, since only here is known which lines count.
    pub(super) fn finds_the_last(&self) -> bool {
        self.tail.is_some()
    }

    /// What is let through now.
    pub(super) fn sift(&mut self, mut piece: Piece) -> Vec<Piece> {
        piece.frames.retain(|frame| self.span.has(frame));
        let Some((pattern, lines)) = &mut self.pattern else { return self.through(piece).into_iter().collect() };
        let mut kept: Vec<Piece> = Vec::new();
        for frame in &piece.frames {
            lines.push(piece.task, piece.attempt, frame, |task, attempt, line| {
                let Some(line) = matching(pattern, line) else { return };
                match kept.last_mut() {
                    Some(last) if (last.task, last.attempt) == (task, attempt) => last.frames.push(line),
                    _ => kept.push(Piece { task, attempt, frames: vec![line] }),
                }
            });
        }
        kept.into_iter().filter_map(|piece| self.through(piece)).collect()
    }

    /// Lines that never ended, when there is no more.
    pub(super) fn rest(&mut self) -> Vec<Piece> {
        let mut rest = Vec::new();
        if let Some((pattern, lines)) = &mut self.pattern {
            lines.finish(|task, attempt, line| {
                rest.extend(matching(pattern, line).map(|line| Piece { task, attempt, frames: vec![line] }));
            });
        }
        rest.into_iter().filter_map(|piece| self.through(piece)).collect()
    }

    /// All that is there was seen: the last lines are known. What comes later is let through as it comes.
    pub(super) fn known(&mut self) -> Vec<Piece> {
        self.tail.take().map(|tail| tail.last.into()).unwrap_or_default()
    }

    fn through(&mut self, piece: Piece) -> Option<Piece> {
        let Some(tail) = &mut self.tail else { return Some(piece).filter(|piece| !piece.frames.is_empty()) };
        let (task, attempt) = (piece.task, piece.attempt);
        for frame in piece.frames {
            tail.held += frame.data.len();
            tail.last.push_back(Piece { task, attempt, frames: vec![frame] });
            while tail.last.len() > tail.lines || (tail.held > TAIL_MAX && tail.last.len() > 1) {
                let gone = tail.last.pop_front();
                tail.held -= gone.map_or(0, |piece| piece.frames.iter().map(|frame| frame.data.len()).sum());
            }
        }
        None
    }
}

/// The line, if it has the pattern or is a mark of what is missing.
fn matching(pattern: &Pattern, line: LogFrame) -> Option<LogFrame> {
    let text = line.data.strip_suffix(b"\n").unwrap_or(&line.data);
    (line.data.is_empty() || pattern.is_in(text)).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(at_us: u64, offset: u64, text: &str) -> Piece {
        let frame = LogFrame { at_us, offset, data: text.to_owned().into(), ..LogFrame::default() };
        Piece { task: 0, attempt: 1, frames: vec![frame] }
    }

    fn text(pieces: impl IntoIterator<Item = Piece>) -> String {
        let frames = pieces.into_iter().flat_map(|piece| piece.frames);
        frames.map(|frame| String::from_utf8_lossy(&frame.data).into_owned()).collect()
    }

    /// What comes through of two pieces that are there and one that comes later.
    fn through(request: &LogsRequest) -> [String; 3] {
        let mut sieve = Sieve::new(request).unwrap();
        let mut there = sieve.sift(piece(10, 0, "a1\nb1\na2"));
        there.extend(sieve.sift(piece(20, 8, "x\nb2\n")));
        let known = sieve.known();
        let mut later = sieve.sift(piece(30, 13, "b3\na3"));
        later.extend(sieve.rest());
        [text(there), text(known), text(later)]
    }

    #[test]
    fn what_was_asked_for_comes_through() {
        let ask = |pattern: &str, since_us, until_us, tail_lines| {
            let pattern = pattern.to_owned();
            through(&LogsRequest { pattern, since_us, until_us, tail_lines, ..Default::default() })
        };
        assert_eq!(ask("", 0, 0, 0), ["a1\nb1\na2x\nb2\n", "", "b3\na3"]);
        assert_eq!(ask("", 20, 30, 0), ["x\nb2\n", "", ""]);
        assert_eq!(ask("^a", 0, 0, 0), ["a1\na2x\n", "", "a3"]);
        assert_eq!(ask("2$", 0, 0, 0), ["b2\n", "", ""], "the end of a line is no part of it");
        assert_eq!(ask("^b", 0, 0, 1), ["", "b2\n", "b3\n"]);
        assert_eq!(ask("^a", 0, 0, 9), ["", "a1\na2x\n", "a3"]);
        assert_eq!(ask("^a", 30, 0, 0), ["", "", "a3"]);
    }

    #[test]
    fn a_mark_of_what_is_missing_comes_through_a_pattern() {
        let mut sieve = Sieve::new(&LogsRequest { pattern: "^a".to_owned(), ..Default::default() }).unwrap();
        let mark = LogFrame { cut_bytes: 8, cut_reason: "too much".to_owned(), ..LogFrame::default() };
        let found = sieve.sift(Piece { task: 0, attempt: 1, frames: vec![mark.clone()] });
        assert_eq!(found.into_iter().flat_map(|piece| piece.frames).collect::<Vec<_>>(), [mark]);
    }

    #[test]
    fn lines_that_never_end_are_let_through_as_those_of_their_tasks() {
        let mut sieve = Sieve::new(&LogsRequest { pattern: "x".to_owned(), ..Default::default() }).unwrap();
        let (line, mut seen) = ("x".repeat(60_000), 0);
        for task in 0..1000_u32 {
            let of_task = |piece| Piece { task, attempt: 1, ..piece };
            for found in sieve.sift(of_task(piece(u64::from(task) + 1, 0, &line))) {
                for frame in &found.frames {
                    assert_eq!(frame.at_us, u64::from(found.task) + 1, "a line is told as another's");
                    seen += 1;
                }
            }
        }
        assert!(seen > 0, "more was held than may be");
    }

    #[test]
    fn the_last_lines_never_fill_the_memory() {
        let request = LogsRequest { pattern: "x".to_owned(), tail_lines: u64::MAX, ..Default::default() };
        let mut sieve = Sieve::new(&request).unwrap();
        let line = format!("{}\n", "x".repeat(60_000));
        for n in 0..1000 {
            sieve.sift(piece(10, n * line.len() as u64, &line));
        }
        assert!(sieve.known().len() <= TAIL_MAX / line.len());
    }
}
