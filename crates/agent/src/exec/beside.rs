//! Commands that people run beside a task: in its place, with its limits, and gone when it is.

use std::{pin::pin, time::Duration};

use muster_core::{run_as::RunAs, state::End};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};

use super::{
    ProcessIdentity, Rules,
    os::{self, Input, Output, Running, Status},
};
use crate::logs::Stream;

/// Bytes of output in one piece.
const PIECE: usize = 64 << 10;
/// Between SIGTERM and SIGKILL for a command whose caller went away.
const GRACE: Duration = Duration::from_secs(2);
/// After its end, for output that somebody else may hold open.
const DRAIN: Duration = Duration::from_millis(500);

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

/// What a command reads.
#[derive(Debug)]
pub enum Fed {
    /// This.
    Bytes(Vec<u8>),
    /// Nothing more.
    End,
}

/// Runs `command` beside the process of `beside`, with no more rights than that was started with. What it reads comes by `fed`, and when that is closed nobody wants it
/// any more; what it writes goes to `said`. Not cancel safe: a command that is dropped is killed.
///
/// # Errors
/// It was not started, and why, for people.
pub async fn run(
    beside: Beside,
    command: Vec<String>,
    mut fed: mpsc::Receiver<Fed>,
    said: mpsc::Sender<(Stream, Vec<u8>)>,
) -> Result<End, String> {
    let fresh = tokio::task::spawn_blocking(move || os::join(&beside, &command));
    let fresh = fresh.await.unwrap_or_else(|error| Err(format!("the starter broke: {error}")))?;
    let running = fresh.watch().map_err(|error| format!("its process could not be watched: {error}"))?;
    let Running { mut leader, stdin, stdout, stderr, .. } = running;
    let mut gone = pin!(feed(stdin, &mut fed));
    let mut output =
        pin!(async { tokio::join!(copy(stdout, Stream::Stdout, &said), copy(stderr, Stream::Stderr, &said)) });
    let mut is_drained = false;
    let is_gone = loop {
        tokio::select! {
            () = leader.exited() => break false,
            () = &mut gone => break true,
            _ = &mut output, if !is_drained => is_drained = true,
        }
    };
    if is_gone {
        leader.terminate();
        let _in_time = timeout(GRACE, leader.exited()).await;
        leader.kill_group();
        leader.exited().await;
    } else if !is_drained {
        let _others_hold_it = timeout(DRAIN, output).await;
    }
    match leader.reap() {
        Some(Status::Exit(code)) => Ok(End::Exit(code)),
        Some(Status::Signal(number)) => Ok(End::Signal(number)),
        None => Err("nobody can say how it ended".into()),
    }
}

/// Ends when nobody wants the command any more.
async fn feed(stdin: Option<Input>, fed: &mut mpsc::Receiver<Fed>) {
    let mut stdin = stdin;
    while let Some(piece) = fed.recv().await {
        let is_open = match (piece, stdin.as_mut()) {
            // One that reads no more loses what it does not read.
            (Fed::Bytes(bytes), Some(open)) => open.write_all(&bytes).await.is_ok(),
            _ => false,
        };
        if !is_open {
            stdin = None;
        }
    }
}

async fn copy(mut from: Output, stream: Stream, said: &mpsc::Sender<(Stream, Vec<u8>)>) {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        match from.read_buf(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(_) if said.send((stream, piece)).await.is_err() => return,
            Ok(_) => {}
        }
    }
}
