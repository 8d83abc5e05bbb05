//! Commands that people run beside a task: in its place, with its limits, and gone when it is.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use muster_core::{run_as::RunAs, state::End};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ProcessIdentity, Rules,
    os::{self, Input, Output, Pty, Status, Ways},
};
use crate::logs::Stream;

/// Bytes of output in one piece.
const PIECE: usize = 64 << 10;
/// The same of a terminal, of which the kernel keeps no more than this.
const SCREEN: usize = 4 << 10;
/// Between SIGTERM, or the hang-up of its terminal, and SIGKILL for a command whose caller went away.
const GRACE: Duration = Duration::from_secs(2);
/// After its end, for output that somebody else may hold open: time without any, in all.
const DRAIN: Duration = Duration::from_millis(500);
/// Bytes of each stream that are read after its end, more than a pipe holds: somebody else may write on and on.
const REST: usize = 2 << 20;

/// The attempt that a command runs beside.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Its first process.
    pub process: ProcessIdentity,
    /// As whom that was started: by a program that is setuid, it may have become another since.
    pub run_as: RunAs,
    /// What the operator says of that.
    pub rules: Rules,
}

/// A command that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// A program and its arguments.
    pub command: Vec<String>,
    /// What it reads from and writes to; none: pipes.
    pub terminal: Option<Terminal>,
}

/// A terminal as it is at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// What `TERM` is; empty: what it is for the task.
    pub name: String,
    /// How large it is.
    pub size: Size,
}

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// From left to right.
    pub columns: u16,
    /// From top to bottom.
    pub rows: u16,
}

/// What a command reads, and how large its terminal is.
#[derive(Debug)]
pub enum Fed {
    /// This.
    Bytes(Vec<u8>),
    /// Nothing more.
    End,
    /// From now on; nothing to one that has no terminal.
    Size(Size),
}

/// Runs a command beside the process of `beside`, with no more rights than that was started with. What it reads comes by
/// `fed`; what it writes goes to `said`, on a terminal all as stdout. When either is closed nobody wants it any more: it is
/// asked to end, and killed two seconds later. Not cancel safe: a command that is dropped is killed.
///
/// # Errors
/// It was not started, and why, for people.
pub async fn run(
    beside: Beside,
    asked: Asked,
    mut fed: mpsc::Receiver<Fed>,
    said: mpsc::Sender<(Stream, Vec<u8>)>,
) -> Result<End, String> {
    let is_on_terminal = asked.terminal.is_some();
    let joined = tokio::task::spawn_blocking(move || os::join(&beside, &asked));
    let joined = joined.await.unwrap_or_else(|error| Err(format!("the starter broke: {error}")))?;
    let (mut leader, ways) = joined.watch().map_err(|error| format!("its process could not be watched: {error}"))?;
    let over = CancellationToken::new();
    let (mut gone, mut output) = moved(ways, &mut fed, &said, &over);
    let mut is_drained = false;
    let is_gone = loop {
        tokio::select! {
            () = leader.exited() => break false,
            () = &mut gone => break true,
            () = said.closed() => break true,
            () = &mut output, if !is_drained => is_drained = true,
        }
    };
    if is_gone {
        if is_on_terminal {
            // Both have our end of it: it hangs up.
            drop((gone, output));
        } else {
            leader.terminate();
        }
        let _in_time = timeout(GRACE, leader.exited()).await;
        leader.kill_group();
        leader.exited().await;
    } else if !is_drained {
        over.cancel();
        // For as long as its caller takes to read it.
        output.await;
    }
    match leader.reap() {
        Some(Status::Exit(code)) => Ok(End::Exit(code)),
        Some(Status::Signal(number)) => Ok(End::Signal(number)),
        None => Err("nobody can say how it ended".into()),
    }
}

/// All that moves: what the command reads, which ends when nobody wants it any more, and what it writes, which ends soon after
/// the command is `over`.
fn moved<'a>(
    ways: Ways,
    fed: &'a mut mpsc::Receiver<Fed>,
    said: &'a mpsc::Sender<(Stream, Vec<u8>)>,
    over: &'a CancellationToken,
) -> (BoxFuture<'a, ()>, BoxFuture<'a, ()>) {
    match ways {
        Ways::Pipes { stdin, stdout, stderr } => {
            let output = async move {
                tokio::join!(copy(stdout, Stream::Stdout, said, over), copy(stderr, Stream::Stderr, said, over));
            };
            (feed(stdin, fed).boxed(), output.boxed())
        }
        Ways::Terminal(pty) => {
            let pty = Arc::new(pty);
            (keys(Arc::clone(&pty), fed).boxed(), show(pty, said, over).boxed())
        }
    }
}

/// What is typed. Ends when nobody wants the command any more.
async fn keys(pty: Arc<Pty>, fed: &mut mpsc::Receiver<Fed>) {
    while let Some(piece) = fed.recv().await {
        // What nobody reads any more is lost, and so is the size of a terminal that nobody has.
        let _typed = match piece {
            Fed::Bytes(bytes) => pty.write(&bytes).await,
            Fed::End => pty.write_end().await,
            Fed::Size(size) => pty.resize(size),
        };
    }
}

/// What is written to a terminal, until nobody has it open any more.
async fn show(pty: Arc<Pty>, said: &mpsc::Sender<(Stream, Vec<u8>)>, over: &CancellationToken) {
    let mut rest = Rest::new(over);
    loop {
        let mut piece = Vec::with_capacity(SCREEN);
        let is_read = rest.read(pty.read(&mut piece)).await;
        if !is_read || said.send((Stream::Stdout, piece)).await.is_err() {
            return;
        }
    }
}

/// Ends when nobody wants the command any more.
async fn feed(stdin: Option<Input>, fed: &mut mpsc::Receiver<Fed>) {
    let mut stdin = stdin;
    while let Some(piece) = fed.recv().await {
        let is_open = match (piece, stdin.as_mut()) {
            // One that reads no more loses what it does not read.
            (Fed::Bytes(bytes), Some(open)) => open.write_all(&bytes).await.is_ok(),
            (Fed::Size(_), _) => continue,
            _ => false,
        };
        if !is_open {
            stdin = None;
        }
    }
}

async fn copy(mut from: Output, stream: Stream, said: &mpsc::Sender<(Stream, Vec<u8>)>, over: &CancellationToken) {
    let mut rest = Rest::new(over);
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let is_read = rest.read(from.read_buf(&mut piece)).await;
        if !is_read || said.send((stream, piece)).await.is_err() {
            return;
        }
    }
}

/// What is still read when a command is over. The time that its caller takes to read does not count.
struct Rest<'a> {
    over: &'a CancellationToken,
    time: Duration,
    bytes: usize,
}

impl<'a> Rest<'a> {
    fn new(over: &'a CancellationToken) -> Self {
        Self { over, time: DRAIN, bytes: REST }
    }

    /// Whether there was more.
    async fn read(&mut self, read: impl Future<Output = std::io::Result<usize>>) -> bool {
        let mut read = std::pin::pin!(read);
        if !self.over.is_cancelled() {
            tokio::select! {
                read = &mut read => return read.is_ok_and(|n| n > 0),
                () = self.over.cancelled() => {}
            }
        }
        if self.bytes == 0 {
            return false;
        }
        let began = Instant::now();
        let read = timeout(self.time, read).await.unwrap_or(Ok(0)).unwrap_or(0);
        self.time = self.time.saturating_sub(began.elapsed());
        self.bytes = self.bytes.saturating_sub(read);
        read > 0
    }
}
