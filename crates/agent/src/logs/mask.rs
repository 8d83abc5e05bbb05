//! Puts `***` in the place of secret values in what a task writes, before anything of it is kept or leaves the machine.
//!
//! Never shows a byte of a value because it came in two pieces: what may be the beginning of one is held back until more
//! is known, or the output ends.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, BuildError};

use super::Stream;

/// What is shown instead; also of several values that touch.
const SHOWN: &[u8] = b"***";

/// See the module; of one attempt.
#[derive(Clone)]
pub struct Mask {
    values: Arc<Values>,
    lanes: [Lane; 2],
}

struct Values {
    finder: AhoCorasick,
    words: Vec<Word>,
    longest: usize,
}

struct Word {
    bytes: Vec<u8>,
    /// By place: how long the longest other beginning of the word is that ends there (Knuth, Morris and Pratt).
    borders: Vec<usize>,
}

/// One stream.
#[derive(Clone, Default)]
struct Lane {
    /// What may be the beginning of a value.
    held: Vec<u8>,
    /// So many of its first bytes belong to a value that began before.
    covered: usize,
    /// What was shown last stands for a value.
    is_masked: bool,
    /// So many bytes that come next may belong to a value whose beginning nobody here has seen.
    doubtful: usize,
}

impl Mask {
    /// Of these values; none: there are none.
    ///
    /// # Errors
    /// They are too many or too long.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Self>, BuildError> {
        let words: Vec<Word> = values.into_iter().filter(|value| !value.is_empty()).map(Word::new).collect();
        let Some(longest) = words.iter().map(|word| word.bytes.len()).max() else { return Ok(None) };
        let finder = AhoCorasick::new(words.iter().map(|word| &word.bytes))?;
        Ok(Some(Self { values: Arc::new(Values { finder, words, longest }), lanes: Default::default() }))
    }

    /// The same, for output of which somebody else, who is gone, may have held back the beginning of a value.
    #[cfg(unix)]
    #[must_use]
    pub(crate) fn after_a_gap(mut self) -> Self {
        self.lanes.iter_mut().for_each(|lane| lane.doubtful = self.values.longest - 1);
        self
    }

    /// Of the `len` bytes that come next, how many nobody may see, whatever they are.
    pub(super) fn doubtful(&mut self, stream: Stream, len: usize) -> usize {
        let lane = &mut self.lanes[stream as usize];
        let doubtful = lane.doubtful.min(len);
        lane.doubtful -= doubtful;
        doubtful
    }

    /// Takes what was written next; returns what may be shown.
    pub(super) fn push(&mut self, stream: Stream, data: &[u8]) -> Vec<u8> {
        let lane = &mut self.lanes[stream as usize];
        lane.held.extend_from_slice(data);
        let kept = self.values.may_go_on(&lane.held);
        lane.show(&self.values, lane.held.len() - kept)
    }

    /// What of a text may be shown that is nobody's output.
    pub(crate) fn whole(&self, text: &[u8]) -> Vec<u8> {
        Lane { held: text.to_owned(), ..Lane::default() }.show(&self.values, text.len())
    }

    /// Nothing more comes; returns the rest.
    pub(super) fn finish(&mut self, stream: Stream) -> Vec<u8> {
        let lane = &mut self.lanes[stream as usize];
        lane.show(&self.values, lane.held.len())
    }
}

impl Values {
    /// How many bytes at the end of `text` are the beginning of a value.
    fn may_go_on(&self, text: &[u8]) -> usize {
        let end = text.get(text.len().saturating_sub(self.longest - 1)..).unwrap_or_default();
        self.words.iter().map(|word| word.begun_in(end)).max().unwrap_or(0)
    }

    /// Where values are, in order and without those that touch one another.
    fn spans(&self, text: &[u8], covered: usize) -> Vec<(usize, usize)> {
        let mut spans: Vec<(usize, usize)> = if covered > 0 { vec![(0, covered)] } else { Vec::new() };
        // By their ends: one may begin before others that end before it.
        for found in self.finder.find_overlapping_iter(text) {
            let (mut start, mut end) = (found.start(), found.end());
            while let Some((from, to)) = spans.pop_if(|(_, to)| *to >= start) {
                (start, end) = (start.min(from), end.max(to));
            }
            spans.push((start, end));
        }
        spans
    }
}

impl Word {
    fn new(bytes: &[u8]) -> Self {
        let mut word = Self { bytes: bytes.to_owned(), borders: vec![0; bytes.len()] };
        let mut length = 0;
        for (place, byte) in bytes.iter().enumerate().skip(1) {
            length = word.step(length, *byte);
            word.borders[place] = length;
        }
        word
    }

    /// The longest beginning, shorter than the word, with which what came before and `byte` end.
    fn step(&self, mut length: usize, byte: u8) -> usize {
        while length > 0 && (length == self.bytes.len() || self.bytes[length] != byte) {
            length = self.borders[length - 1];
        }
        if self.bytes[length] == byte { length + 1 } else { 0 }
    }

    fn begun_in(&self, text: &[u8]) -> usize {
        let length = text.iter().fold(0, |length, byte| self.step(length, *byte));
        if length == self.bytes.len() { self.borders[length - 1] } else { length }
    }
}

impl Lane {
    /// Shows the first `len` bytes of what is held.
    fn show(&mut self, values: &Values, len: usize) -> Vec<u8> {
        if len == 0 {
            return Vec::new();
        }
        let mut shown = Vec::with_capacity(len);
        let (mut at, mut covered) = (0, 0);
        for (start, end) in values.spans(&self.held, self.covered) {
            if start >= len {
                break;
            }
            self.plain(&mut shown, at, start);
            if !self.is_masked {
                shown.extend_from_slice(SHOWN);
                self.is_masked = true;
            }
            (at, covered) = (end.min(len), end.saturating_sub(len));
        }
        self.plain(&mut shown, at, len);
        self.held.drain(..len);
        self.covered = covered;
        shown
    }

    fn plain(&mut self, shown: &mut Vec<u8>, from: usize, to: usize) {
        if from < to {
            shown.extend_from_slice(&self.held[from..to]);
            self.is_masked = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(values: &[&str]) -> Mask {
        Mask::of(values.iter().map(|value| value.as_bytes())).expect("few").expect("some")
    }

    /// What is shown of pieces, one after another.
    fn shown(values: &[&str], pieces: &[&str]) -> Vec<String> {
        let mut mask = mask(values);
        let mut all: Vec<_> = pieces.iter().map(|piece| mask.push(Stream::Stdout, piece.as_bytes())).collect();
        all.push(mask.finish(Stream::Stdout));
        all.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }

    #[test]
    fn values_are_masked_whole_in_pieces_and_where_they_overlap() {
        let table: &[(&[&str], &[&str], &[&str])] = &[
            (&["hunter2"], &["pass hunter2!"], &["pass ***!", ""]),
            (&["hunter2"], &["pass hun", "ter2!"], &["pass ", "***!", ""]),
            (&["hunter2"], &["pass hun", "dred"], &["pass ", "hundred", ""]),
            (&["hunter2"], &["pass hun"], &["pass ", "hun"]),
            (&["hunter2"], &["hunter2", "hunter2"], &["***", "", ""]),
            (&["hunter2"], &["hunter2\n", "hunter2"], &["***\n", "***", ""]),
            // Not even the end of one that overlaps another is shown.
            (&["abcd", "cdef"], &["xabcdefx"], &["x***x", ""]),
            (&["abcd", "cdef"], &["xab", "cd", "ef", "x"], &["x", "***", "", "x", ""]),
            (&["abcd", "cdef"], &["xabcd", "x"], &["x***", "x", ""]),
            (&["abcdabce"], &["abcdabcdabce"], &["abcd***", ""]),
            (&["abcdabce"], &["abcdabc", "dabce"], &["", "abcd***", ""]),
            // One in another.
            (&["bcde", "abcdef"], &["abcde", "x"], &["", "a***x", ""]),
            (&["bcde", "abcdef"], &["abcde", "f"], &["", "***", ""]),
            (&["aaaa"], &["aaaaaaa", "b"], &["***", "b", ""]),
        ];
        for (values, pieces, expected) in table {
            assert_eq!(shown(values, pieces).concat(), expected.concat(), "{values:?} in {pieces:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_value_is_shown_at_once() {
        assert_eq!(shown(&["hunter2"], &["$ "]), ["$ ", ""]);
        assert_eq!(shown(&["hunter2"], &["oh, hu", "nger"]), ["oh, ", "hunger", ""]);
    }

    #[test]
    fn streams_are_apart() {
        let mut mask = mask(&["hunter2"]);
        assert_eq!(mask.push(Stream::Stdout, b"hun"), b"");
        assert_eq!(mask.push(Stream::Stderr, b"ter2"), b"ter2");
        assert_eq!(mask.push(Stream::Stdout, b"ter2"), b"***");
    }

    /// Every byte by itself: whether any value lies over it.
    fn by_hand(values: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
        let mut is_secret = vec![false; text.len()];
        for value in values {
            for start in 0..text.len() {
                if text[start..].starts_with(value) {
                    is_secret[start..start + value.len()].fill(true);
                }
            }
        }
        let mut shown = Vec::new();
        for (place, byte) in text.iter().enumerate() {
            match (is_secret[place], place > 0 && is_secret[place - 1]) {
                (false, _) => shown.push(*byte),
                (true, false) => shown.extend_from_slice(SHOWN),
                (true, true) => {}
            }
        }
        shown
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn however_it_comes_in_pieces_the_same_is_shown(
            values in proptest::collection::vec(proptest::collection::vec(b'a'..=b'c', 4..8), 1..4),
            text in proptest::collection::vec(b'a'..=b'c', 0..80),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.sort_unstable();
            let mut mask = Mask::of(values.iter().map(Vec::as_slice)).expect("few").expect("some");
            let (mut found, mut from) = (Vec::new(), 0);
            for to in cuts.into_iter().chain([text.len()]) {
                found.extend(mask.push(Stream::Stderr, &text[from..to]));
                from = to;
            }
            found.extend(mask.finish(Stream::Stderr));
            prop_assert_eq!(found, by_hand(&values, &text));
        }
    }
}
