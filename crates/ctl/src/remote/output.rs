//! What tasks wrote: streamed from the controller to this terminal, raw, line by line, or for machines.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_common::proto::v1::{self, LogsReply};
use serde::Serialize;

use super::Client;
use crate::{
    error::Error,
    output::{self, Format, Output, style::Look, time},
};

/// Where and how the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Bytes as they are, each stream to its own.
    Split,
    /// Bytes as they are, all to standard output.
    Raw,
    /// Everything to standard error: standard output belongs to a machine format.
    Aside,
    /// Whole lines on standard output, with what stands before them.
    Lines { names: bool, times: bool },
    /// One JSON object per frame.
    Machine,
}

/// One piece of output, for machines.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Frame {
    job: u64,
    task: u32,
    task_name: String,
    attempt: u32,
    stream: &'static str,
    at: Option<String>,
    /// Where it stands in what the task wrote to this stream, in bytes.
    offset: u64,
    /// What is UTF-8.
    text: Option<String>,
    /// What is not.
    base64: Option<String>,
    /// Bytes that were written here and not kept.
    cut_bytes: u64,
    cut_reason: Option<String>,
}

/// All frames as one answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Frames {
    frames: Vec<Frame>,
}

/// The longest line that is put together before it is shown in parts.
const LONGEST_LINE: usize = 1 << 20;

/// With [`PAUSE`], as long as a controller may take to restart.
const TRIES: u32 = 30;

const PAUSE: Duration = Duration::from_secs(1);

/// Prints frames as they come.
#[derive(Debug)]
pub(crate) struct Printer {
    shape: Shape,
    output: Output,
    /// The unfinished line of each task's stream, and when it began.
    open: BTreeMap<(u32, i32), Line>,
    /// How far each attempt's stream was shown: a stream that was opened again repeats nothing.
    shown: BTreeMap<(u32, u32, i32), u64>,
    /// Where text goes.
    sink: fn(&[u8]) -> Result<(), Error>,
    /// Counts what came, so that somebody can see whether more does.
    pub(crate) arrived: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Line {
    name: String,
    at_us: u64,
    bytes: Vec<u8>,
}

impl Printer {
    /// A printer that has printed nothing.
    pub(crate) fn new(shape: Shape, output: Output) -> Self {
        Self {
            shape,
            output,
            open: BTreeMap::new(),
            shown: BTreeMap::new(),
            sink: output::raw,
            arrived: Arc::default(),
        }
    }

    /// The same, with its text somewhere else than on standard output.
    #[cfg(test)]
    pub(crate) fn into(self, sink: fn(&[u8]) -> Result<(), Error>) -> Self {
        Self { sink, ..self }
    }

    /// Everything that `request` names until it ends; a controller that restarts in between is waited for.
    pub(crate) async fn drain(&mut self, client: Client, request: v1::LogsRequest) -> Result<(), Error> {
        let mut failures = 0;
        loop {
            let before = self.arrived.load(Ordering::Relaxed);
            match self.drain_once(client.clone(), request.clone()).await {
                Err(error) if error.is_unreachable() && request.follow && failures < TRIES => {
                    // Tries in a row: a stream that brought something was found again.
                    failures = if self.arrived.load(Ordering::Relaxed) > before { 1 } else { failures + 1 };
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok(()) => return self.finish(),
            }
        }
    }

    async fn drain_once(&mut self, mut client: Client, request: v1::LogsRequest) -> Result<(), Error> {
        let mut stream = client.rpc.logs(request).await?.into_inner();
        while let Some(reply) = stream.message().await? {
            self.arrived.fetch_add(1, Ordering::Relaxed);
            self.reply(&reply)?;
        }
        Ok(())
    }

    /// Every frame of `request`, for an answer in one piece.
    pub(crate) async fn collect(mut client: Client, request: v1::LogsRequest) -> Result<Frames, Error> {
        let mut frames = Vec::new();
        let mut stream = client.rpc.logs(request).await?.into_inner();
        while let Some(reply) = stream.message().await? {
            frames.extend(reply.frames.iter().map(|frame| Frame::of(&reply, frame)));
        }
        Ok(Frames { frames })
    }

    fn is_new(&mut self, reply: &LogsReply, frame: &v1::LogFrame) -> bool {
        let shown = self.shown.entry((reply.task, reply.attempt, frame.stream)).or_default();
        let length = u64::try_from(frame.data.len()).unwrap_or(u64::MAX);
        let end = frame.offset.saturating_add(length).saturating_add(frame.cut_bytes);
        let is_new = end > *shown;
        *shown = end.max(*shown);
        is_new
    }

    fn reply(&mut self, reply: &LogsReply) -> Result<(), Error> {
        let mut text = Vec::new();
        for frame in &reply.frames {
            if !self.is_new(reply, frame) {
                continue;
            }
            if frame.cut_bytes > 0 && self.shape != Shape::Machine {
                self.cut(reply, frame);
            }
            match self.shape {
                Shape::Split if frame.stream == v1::Stream::Stderr as i32 => output::raw_error(&frame.data)?,
                Shape::Split | Shape::Raw => text.extend_from_slice(&frame.data),
                Shape::Aside => output::raw_error(&frame.data)?,
                Shape::Lines { names, times } => self.lines(reply, frame, names, times, &mut text),
                Shape::Machine => text.extend(output::machine(Format::Jsonl, &Frame::of(reply, frame))?.into_bytes()),
            }
        }
        if text.is_empty() { Ok(()) } else { (self.sink)(&text) }
    }

    fn cut(&self, reply: &LogsReply, frame: &v1::LogFrame) {
        let (job, name, n, offset) = (reply.job, &reply.task_name, frame.cut_bytes, frame.offset);
        let text = format!("[{job}.{name}: {n} bytes cut at byte {offset}: {}]", frame.cut_reason);
        self.output.note(Look::Warn, &output::table::plain(&text));
    }

    fn lines(&mut self, reply: &LogsReply, frame: &v1::LogFrame, names: bool, times: bool, out: &mut Vec<u8>) {
        let line = self.open.entry((reply.task, frame.stream)).or_default();
        for part in frame.data.split_inclusive(|byte| *byte == b'\n') {
            if line.bytes.is_empty() {
                line.at_us = frame.at_us;
                line.name.clone_from(&reply.task_name);
            }
            line.bytes.extend_from_slice(part);
            if part.ends_with(b"\n") || line.bytes.len() > LONGEST_LINE {
                line.print(self.output, names, times, out);
            }
        }
    }

    /// Lines that never ended.
    fn finish(&mut self) -> Result<(), Error> {
        let Shape::Lines { names, times } = self.shape else { return Ok(()) };
        let mut out = Vec::new();
        for line in self.open.values_mut().filter(|line| !line.bytes.is_empty()) {
            line.print(self.output, names, times, &mut out);
        }
        (self.sink)(&out)
    }
}

impl Line {
    fn print(&mut self, output: Output, names: bool, times: bool, out: &mut Vec<u8>) {
        if times {
            let at = time::instant(self.at_us).unwrap_or_default();
            out.extend(output.style.paint(Look::Dim, &at).bytes().chain([b' ']));
        }
        if names {
            let name = output::table::plain(&self.name);
            out.extend(output.style.paint(Look::Busy, &name).bytes().chain(*b" | "));
        }
        if !self.bytes.ends_with(b"\n") {
            self.bytes.push(b'\n');
        }
        if names && output.is_terminal {
            // Between lines of others. One task alone is shown as it is.
            out.extend(output::table::harmless(&String::from_utf8_lossy(&self.bytes)).into_bytes());
            self.bytes.clear();
        } else {
            out.append(&mut self.bytes);
        }
    }
}

impl Frame {
    /// A frame of what a task wrote.
    pub(super) fn of(reply: &LogsReply, frame: &v1::LogFrame) -> Self {
        let text = std::str::from_utf8(&frame.data).ok();
        Self {
            job: reply.job,
            task: reply.task,
            task_name: reply.task_name.clone(),
            attempt: reply.attempt,
            stream: if frame.stream == v1::Stream::Stderr as i32 { "stderr" } else { "stdout" },
            at: time::instant(frame.at_us),
            offset: frame.offset,
            text: text.map(str::to_owned),
            base64: text.is_none().then(|| base64(&frame.data)),
            cut_bytes: frame.cut_bytes,
            cut_reason: crate::model::some(&frame.cut_reason),
        }
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * n) & 63) as usize];
            text.push(if n <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::style::When;

    fn reply(task: u32, name: &str, data: &str) -> LogsReply {
        let frame = v1::LogFrame { data: data.to_owned().into(), at_us: 1_790_000_000_000_000, ..Default::default() };
        LogsReply { job: 17, task, task_name: name.into(), attempt: 1, frames: vec![frame] }
    }

    fn lines(replies: &[LogsReply], names: bool, times: bool) -> String {
        let mut printer = Printer::new(Shape::Lines { names, times }, Output::new(Format::Table, When::Never));
        let mut out = Vec::new();
        for reply in replies {
            printer.lines(reply, &reply.frames[0], names, times, &mut out);
        }
        for line in printer.open.values_mut().filter(|line| !line.bytes.is_empty()) {
            line.print(printer.output, names, times, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_of_tasks_that_write_at_once_are_never_mixed() {
        let replies = [reply(0, "a", "one "), reply(1, "b", "two\nthree"), reply(0, "a", "half\n")];
        assert_eq!(lines(&replies, true, false), "b | two\na | one half\nb | three\n");
    }

    #[test]
    fn a_time_stamp_stands_before_the_name() {
        assert_eq!(lines(&[reply(0, "a", "x\n")], true, true), "2026-09-21T14:13:20.000000Z a | x\n");
    }

    #[test]
    fn what_tasks_wrote_does_nothing_to_the_terminal_between_lines_of_others() {
        let evil = || reply(0, "a", "x\u{1b}]52;c;aGk=\u{7}\n");
        let shown = |names, is_terminal| {
            let mut output = Output::new(Format::Table, When::Never);
            output.is_terminal = is_terminal;
            let mut printer = Printer::new(Shape::Lines { names, times: false }, output);
            let mut out = Vec::new();
            printer.lines(&evil(), &evil().frames[0], names, false, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(true, true), "a | x\\u{1b}]52;c;aGk=\\u{7}\n");
        assert_eq!(shown(true, false), "a | x\u{1b}]52;c;aGk=\u{7}\n", "a file has what was written");
        assert_eq!(shown(false, true), "x\u{1b}]52;c;aGk=\u{7}\n", "one task alone is shown as it is");
    }

    #[test]
    fn a_stream_that_was_opened_again_repeats_nothing() {
        let mut printer = Printer::new(Shape::Raw, Output::new(Format::Table, When::Never));
        let mut is_new = |offset, data: &str, cut_bytes| {
            let mut reply = reply(0, "a", data);
            (reply.frames[0].offset, reply.frames[0].cut_bytes) = (offset, cut_bytes);
            printer.is_new(&reply, &reply.frames[0])
        };
        assert!(is_new(0, "one", 0) && is_new(3, "two", 0) && is_new(6, "", 5));
        assert!(!is_new(0, "one", 0) && !is_new(3, "two", 0) && !is_new(6, "", 5));
        assert!(is_new(11, "three", 0));
    }

    #[test]
    fn bytes_that_are_no_text_reach_machines_as_base64() {
        let table: [(&[u8], &str); 5] =
            [(b"", ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"\xff\xfe\xfd\xfc", "//79/A==")];
        for (bytes, text) in table {
            assert_eq!(base64(bytes), text);
        }
    }
}
