//! Lines of output: put together from frames, and looked through for a pattern.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_common::proto::v1::LogFrame;
use regex_lite::{Regex, RegexBuilder};

/// A longer line is looked at in parts of this.
const LINE_MAX: usize = 64 * 1024;
/// Unfinished lines of all streams together; more, and all of them are taken as they are.
const OPEN_MAX: usize = 16 << 20;
/// The longest pattern, and what its automaton may take.
const PATTERN_MAX: usize = 1024;
const AUTOMATON_MAX: usize = 1 << 20;

/// What a line is looked through for. The time it takes grows with the line, whatever the pattern.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// A regular expression, of `regex-lite`'s syntax.
    ///
    /// # Errors
    /// Why it is none, for people.
    pub fn new(text: &str, ignore_case: bool) -> Result<Self, String> {
        if text.len() > PATTERN_MAX {
            return Err(format!("has {} bytes; at most {PATTERN_MAX} are accepted", text.len()));
        }
        let built = RegexBuilder::new(text).case_insensitive(ignore_case).size_limit(AUTOMATON_MAX).build();
        built.map(Self).map_err(|error| {
            format!("`{text}` is no regular expression: {error}; put a backslash before a sign that stands for itself")
        })
    }

    /// Whether it is in this line. Bytes that are no UTF-8 stand for one sign that nothing names.
    pub fn is_in(&self, line: &[u8]) -> bool {
        self.0.is_match(&String::from_utf8_lossy(line))
    }
}

/// Whose a line is: task, attempt, stream.
type Whose = (u32, u32, i32);

/// Puts lines together.
#[derive(Debug, Default)]
pub struct Lines {
    open: BTreeMap<Whose, Open>,
    held: usize,
}

#[derive(Debug, Default)]
struct Open {
    at_us: u64,
    offset: u64,
    text: Vec<u8>,
}

impl Lines {
    /// Takes a frame of one attempt and gives each line that it ends with its task and attempt, as a frame of its own with
    /// the time and place of its beginning. A mark of what is missing is given as it is. Lines of others are given, too,
    /// where all of them together are too much to hold.
    pub fn push(&mut self, task: u32, attempt: u32, frame: &LogFrame, mut give: impl FnMut(u32, u32, LogFrame)) {
        let whose = (task, attempt, frame.stream);
        let is_mark = frame.data.is_empty();
        let follows = |open: &Open| open.offset + open.text.len() as u64 == frame.offset;
        if self.open.get(&whose).is_some_and(|open| is_mark || !follows(open)) {
            // The rest of this line is not here.
            self.end(whose, &mut give);
        }
        if is_mark {
            give(task, attempt, frame.clone());
            return;
        }
        let mut at = frame.offset;
        for part in frame.data.split_inclusive(|byte| *byte == b'\n').flat_map(|line| line.chunks(LINE_MAX)) {
            let open = self.open.entry(whose).or_default();
            if open.text.is_empty() {
                (open.at_us, open.offset) = (frame.at_us, at);
            }
            open.text.extend_from_slice(part);
            self.held += part.len();
            at += part.len() as u64;
            if part.ends_with(b"\n") || open.text.len() >= LINE_MAX {
                self.end(whose, &mut give);
            }
        }
        if self.held > OPEN_MAX {
            self.finish(give);
        }
    }

    /// Gives the lines that never ended.
    pub fn finish(&mut self, mut give: impl FnMut(u32, u32, LogFrame)) {
        for whose in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(whose, &mut give);
        }
    }

    fn end(&mut self, whose: Whose, give: &mut impl FnMut(u32, u32, LogFrame)) {
        let Some(open) = self.open.remove(&whose) else { return };
        self.held -= open.text.len();
        let ((task, attempt, stream), data) = (whose, Bytes::from(open.text));
        let line = LogFrame { stream, at_us: open.at_us, offset: open.offset, data, ..LogFrame::default() };
        give(task, attempt, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(offset: u64, text: &str) -> LogFrame {
        LogFrame { offset, data: text.to_owned().into(), at_us: offset + 1, ..LogFrame::default() }
    }

    fn split(frames: &[(u32, LogFrame)]) -> Vec<(u64, String)> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let text = |line: &LogFrame| (line.offset, String::from_utf8_lossy(&line.data).into_owned());
        for (task, frame) in frames {
            lines.push(*task, 1, frame, |_, _, line| found.push(text(&line)));
        }
        lines.finish(|_, _, line| found.push(text(&line)));
        assert_eq!(lines.held, 0);
        found
    }

    #[test]
    fn a_line_is_whole_however_it_came() {
        let all = "one\ntwo\n\nno end";
        for cut in 0..=all.len() {
            let frames = [(0, frame(0, &all[..cut])), (0, frame(cut as u64, &all[cut..]))];
            let frames: Vec<_> = frames.into_iter().filter(|(_, frame)| !frame.data.is_empty()).collect();
            let expected = [(0, "one\n"), (4, "two\n"), (8, "\n"), (9, "no end")];
            assert_eq!(split(&frames), expected.map(|(at, text)| (at, text.to_owned())), "cut at {cut}");
        }
    }

    #[test]
    fn lines_of_several_tasks_are_not_mixed_and_a_gap_ends_one() {
        let frames = [(0, frame(0, "a")), (1, frame(0, "b\n")), (0, frame(1, "a\nx")), (0, frame(9, "y\n"))];
        let expected = [(0, "b\n"), (0, "aa\n"), (3, "x"), (9, "y\n")];
        assert_eq!(split(&frames), expected.map(|(at, text)| (at, text.to_owned())));
    }

    #[test]
    fn a_mark_of_what_is_missing_is_passed_on_in_its_place() {
        let mark = LogFrame { offset: 1, cut_bytes: 8, cut_reason: "too much".to_owned(), ..LogFrame::default() };
        let frames = [(0, frame(0, "a")), (0, mark), (0, frame(9, "b\n"))];
        let expected = [(0, "a"), (1, ""), (9, "b\n")];
        assert_eq!(split(&frames), expected.map(|(at, text)| (at, text.to_owned())));
    }

    #[test]
    fn a_line_without_end_is_held_in_parts() {
        let long = "x".repeat(3 * LINE_MAX / 2);
        let found = split(&[(0, frame(0, &long)), (0, frame(long.len() as u64, "\n"))]);
        let lengths: Vec<_> = found.iter().map(|(at, text)| (*at, text.len())).collect();
        assert_eq!(lengths, [(0, LINE_MAX), (LINE_MAX as u64, LINE_MAX / 2 + 1)]);
    }

    #[test]
    fn many_unfinished_lines_are_given_up_before_they_fill_the_memory() {
        let (mut lines, mut given, half) = (Lines::default(), 0, "x".repeat(LINE_MAX / 2));
        for task in 0..2000 {
            let text = format!("{task} {half}");
            lines.push(task, task + 1, &frame(0, &text), |whose, attempt, line| {
                let of: u32 = std::str::from_utf8(&line.data).unwrap().split(' ').next().unwrap().parse().unwrap();
                assert_eq!((whose, attempt), (of, of + 1), "a line is told as another's");
                given += 1;
            });
            assert!(lines.held <= OPEN_MAX + LINE_MAX);
        }
        assert!(given > 0);
    }

    #[test]
    fn a_pattern_is_a_regular_expression_over_any_bytes() {
        let is_in = |pattern, ignore, line: &[u8]| Pattern::new(pattern, ignore).unwrap().is_in(line);
        assert!(is_in("err(or)?: [0-9]+$", false, b"x err: 17"));
        assert!(!is_in("ERR", false, b"err") && is_in("ERR", true, b"err"));
        assert!(is_in("tail", false, b"\xff\xfe tail"));
        for (wrong, word) in [("(", "no regular expression"), (&"x".repeat(2000) as &str, "at most")] {
            assert!(Pattern::new(wrong, false).unwrap_err().contains(word));
        }
        assert!(Pattern::new("(a{1000}){1000}", false).is_err(), "its automaton would fill the memory");
    }
}
