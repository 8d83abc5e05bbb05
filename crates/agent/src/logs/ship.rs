//! Sends spools to the controller over one stream, a window ahead of what it received, and deletes what it keeps.
//!
//! After a broken stream everything that was not kept is sent again; the controller knows frames by number.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use muster_common::proto::v1;
use muster_core::id::{AgentId, Token};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Entry, Shared,
    frame::{self, Content, FILE_HEAD, Frame, Parsed, Stream},
};

/// Bytes that may be under way without being received.
const WINDOW: u64 = 4 * 1024 * 1024;
/// Of spool files, read and sent at a time; below what a gRPC message may hold, above one record.
const BATCH: usize = 512 * 1024;
/// Batches of different attempts that share a message, so that many small outputs cost few messages.
const BATCHES_MAX: usize = 64;
/// First and longest wait after a stream that could not be opened or broke.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Both ends of one log stream.
pub struct Wire {
    /// Whose logs these are.
    pub agent: AgentId,
    /// To the controller.
    pub up: mpsc::Sender<v1::LogUp>,
    /// From it; ends when the stream is broken.
    pub down: BoxStream<'static, v1::LogDown>,
}

/// Where log streams come from.
pub trait Uplink: Send + Sync + 'static {
    /// Opens a new stream; waits for a connection. Or says why it could not.
    fn open(&self) -> BoxFuture<'_, Result<Wire, String>>;
}

/// The sending side. One for all spools.
pub(super) struct Shipper {
    shared: Arc<Shared>,
    cursors: BTreeMap<Token, Cursor>,
    /// Cursors that may have something to send.
    ready: VecDeque<Token>,
    under_way: u64,
}

/// How far one attempt's spool is sent.
struct Cursor {
    entry: Arc<Entry>,
    file: Option<File>,
    /// The next record to send: its place in the records, and its number.
    at: Place,
    /// The first record that the controller does not keep yet.
    kept: Place,
    /// Ends of batches under way or received, oldest first; their bytes until they are received.
    marks: VecDeque<(Place, u64)>,
    last_sent: bool,
    is_ready: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    byte: u64,
    frame: u64,
}

impl Shipper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cursors: BTreeMap::new(), ready: VecDeque::new(), under_way: 0 }
    }

    pub(super) async fn run(mut self, uplink: &impl Uplink, stop: &CancellationToken) {
        let mut backoff = BACKOFF.0;
        loop {
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = uplink.open() => opened,
            };
            match opened {
                Ok(wire) => {
                    self.rewind();
                    if self.converse(wire, stop).await {
                        backoff = BACKOFF.0;
                    }
                    debug!("the log stream ended");
                }
                Err(error) => warn!(%error, "could not open the log stream; output waits in the spool"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// One stream from open to broken. Whether the controller answered anything.
    async fn converse(&mut self, mut wire: Wire, stop: &CancellationToken) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut answered = false;
        loop {
            self.gather();
            let may_send = !self.ready.is_empty() && self.under_way < WINDOW;
            tokio::select! {
                () = stop.cancelled() => return answered,
                down = wire.down.next() => match down {
                    Some(down) => {
                        answered = true;
                        down.acks.iter().for_each(|ack| self.acknowledge(ack));
                    }
                    None => return answered,
                },
                permit = wire.up.reserve(), if may_send => match permit {
                    Ok(permit) => {
                        let batches = self.batches();
                        if !batches.is_empty() {
                            permit.send(v1::LogUp { agent: wire.agent.0, batches });
                        }
                    }
                    Err(_) => return answered,
                },
                () = shared.news.notified() => {}
            }
        }
    }

    /// Takes what writers listed.
    fn gather(&mut self) {
        while let Some(entry) = self.shared.next_news() {
            let token = entry.head.token;
            let cursor = self.cursors.entry(token).or_insert_with(|| Cursor::new(entry));
            if !std::mem::replace(&mut cursor.is_ready, true) {
                self.ready.push_back(token);
            }
        }
    }

    /// What was not kept is sent again.
    fn rewind(&mut self) {
        self.under_way = 0;
        self.ready.clear();
        for (token, cursor) in &mut self.cursors {
            cursor.at = cursor.kept;
            cursor.marks.clear();
            cursor.last_sent = false;
            cursor.is_ready = true;
            self.ready.push_back(*token);
        }
    }

    /// The next message's worth; each attempt in turn.
    fn batches(&mut self) -> Vec<v1::LogBatch> {
        let mut batches = Vec::new();
        let mut room = BATCH;
        while room > 0 && batches.len() < BATCHES_MAX {
            let Some(token) = self.ready.pop_front() else { break };
            let Some(cursor) = self.cursors.get_mut(&token) else { continue };
            cursor.is_ready = false;
            match cursor.next_batch() {
                Ok(Some((batch, bytes))) => {
                    self.under_way += bytes;
                    room = room.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
                    if cursor.has_more() {
                        cursor.is_ready = true;
                        self.ready.push_back(token);
                    }
                    batches.push(batch);
                }
                Ok(None) => {}
                Err(error) => {
                    let path = cursor.entry.path.display();
                    warn!(%path, %error, "a spool file cannot be read; its output is lost from here on");
                    cursor.give_up();
                    cursor.is_ready = true;
                    self.ready.push_back(token);
                }
            }
        }
        batches
    }

    fn acknowledge(&mut self, ack: &v1::LogAck) {
        let token = Token(ack.token);
        let Some(cursor) = self.cursors.get_mut(&token) else { return };
        self.under_way = self.under_way.saturating_sub(cursor.acknowledge(ack));
        if cursor.is_done() {
            self.shared.forget(&cursor.entry);
            self.cursors.remove(&token);
        }
    }
}

impl Cursor {
    fn new(entry: Arc<Entry>) -> Self {
        let start = Place::default();
        Self { entry, file: None, at: start, kept: start, marks: VecDeque::new(), last_sent: false, is_ready: false }
    }

    /// Where the records end that are there now; those in memory come after those in the file.
    fn end(&self) -> u64 {
        self.entry.end() + if self.entry.is_over() { self.entry.memory().len() as u64 } else { 0 }
    }

    fn has_more(&self) -> bool {
        self.at.byte < self.end() || (self.entry.is_over() && !self.last_sent)
    }

    fn is_done(&self) -> bool {
        self.last_sent && self.kept == self.at
    }

    /// What to send next, and how much of the window it takes; none: nothing yet.
    fn next_batch(&mut self) -> io::Result<Option<(v1::LogBatch, u64)>> {
        // Before the length: what a writer that is over wrote is then all there.
        let is_over = self.entry.is_over();
        let bytes = self.read()?;
        let first = self.at.frame;
        let mut frames = Vec::new();
        let mut used = 0;
        loop {
            match frame::parse(&bytes[used..]) {
                Parsed::Frame(frame, len) => {
                    frames.push(to_proto(&frame));
                    used += len;
                }
                Parsed::Partial if used < bytes.len() && frames.is_empty() => {
                    return Err(io::Error::other("a record is torn"));
                }
                Parsed::Partial => break,
                Parsed::Broken if frames.is_empty() => return Err(io::Error::other("a record is broken")),
                Parsed::Broken => break,
            }
        }
        self.at = Place { byte: self.at.byte + used as u64, frame: first + frames.len() as u64 };
        let last = is_over && self.at.byte >= self.end();
        if frames.is_empty() && (!last || self.last_sent) {
            return Ok(None);
        }
        self.last_sent = last;
        self.marks.push_back((self.at, used as u64));
        let head = self.entry.head;
        let batch = v1::LogBatch {
            token: head.token.0,
            job: head.task.job.0,
            task: head.task.index,
            attempt: head.attempt,
            first,
            frames,
            last,
        };
        Ok(Some((batch, used as u64)))
    }

    /// Some records from the place on; the last of them may be incomplete.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let in_file = self.entry.end();
        if self.at.byte >= in_file {
            if !self.entry.is_over() {
                return Ok(Vec::new());
            }
            let skip = usize::try_from(self.at.byte - in_file).unwrap_or(usize::MAX);
            return Ok(self.entry.memory().get(skip..).map(<[u8]>::to_vec).unwrap_or_default());
        }
        if self.file.is_none() {
            self.file = Some(File::open(&self.entry.path)?);
        }
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let len = usize::try_from(in_file - self.at.byte).unwrap_or(usize::MAX).min(BATCH);
        file.seek(SeekFrom::Start(FILE_HEAD as u64 + self.at.byte))?;
        let mut bytes = Vec::with_capacity(len);
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes the records up to here for all there are; the rest of the file is never sent.
    fn give_up(&mut self) {
        self.at.byte = self.end();
    }

    /// Returns the bytes that are no longer under way.
    fn acknowledge(&mut self, ack: &v1::LogAck) -> u64 {
        let mut received = 0;
        for (place, bytes) in &mut self.marks {
            if place.frame <= ack.received.max(ack.kept) {
                received += std::mem::take(bytes);
            }
        }
        while let Some((place, _)) = self.marks.front()
            && place.frame <= ack.kept
        {
            self.kept = *place;
            self.marks.pop_front();
        }
        received
    }
}

fn to_proto(frame: &Frame<'_>) -> v1::LogFrame {
    let stream = match frame.stream {
        Stream::Stdout => v1::Stream::Stdout,
        Stream::Stderr => v1::Stream::Stderr,
    };
    let mut message =
        v1::LogFrame { stream: stream.into(), at_us: frame.at.0, offset: frame.offset, ..v1::LogFrame::default() };
    match &frame.content {
        Content::Data(data) => message.data = bytes::Bytes::copy_from_slice(data),
        Content::Cut(bytes, reason) => (message.cut_bytes, message.cut_reason) = (*bytes, reason.clone()),
    }
    message
}
