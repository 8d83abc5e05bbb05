//! The three pipes of one attempt: what it writes goes to its spool, what it reads is fed to it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use muster_common::clock::Clock;
use muster_core::{id::Token, spec::TaskSpec};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::{
    contained::Said,
    os::{Input, Mark, Output, Sluice},
};
use crate::logs::{Spool, Stream, with_scratch};

/// Our ends.
pub(super) struct Pipes {
    clock: Clock,
    stdout: Option<Output>,
    stderr: Option<Output>,
    feed: Option<BoxFuture<'static, ()>>,
    spool: Spool,
    /// The end of stderr, where somebody may ask for it.
    said: Option<Said>,
    token: Token,
    /// What is read goes this way, so that our death loses nothing of it.
    way: Option<Arc<Sluice>>,
}

impl Pipes {
    pub(super) fn new(clock: Clock, stdout: Output, stderr: Output, spool: Spool, said: Option<Said>) -> Self {
        Self { clock, stdout: Some(stdout), stderr: Some(stderr), feed: None, spool, said, token: Token(0), way: None }
    }

    /// The same, read by a way that outlives us; those are the bytes of `token`.
    pub(super) fn through(self, token: Token, way: Option<Arc<Sluice>>) -> Self {
        Self { token, way, ..self }
    }

    /// Somebody else feeds its stdin.
    pub(super) fn feed_by(&mut self, feed: BoxFuture<'static, ()>) {
        self.feed = Some(feed);
    }

    /// Feeds the spec's stdin, as fast as the task reads. A task that does not want it may close it.
    pub(super) fn feed(&mut self, mut stdin: Input, spec: Arc<TaskSpec>) {
        self.feed = Some(Box::pin(async move {
            let _closed_early = stdin.write_all(spec.stdin.as_deref().unwrap_or_default()).await;
        }));
    }

    /// Whether anybody can still write to one of them.
    pub(super) fn is_open(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    /// Whether anything can still move, in either direction.
    pub(super) fn is_busy(&self) -> bool {
        self.is_open() || self.feed.is_some()
    }

    /// Waits until something moved. Cancel safe: nothing that was read is lost.
    pub(super) async fn pump(&mut self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }

    /// Pumps until both are closed.
    pub(super) async fn drain(&mut self) {
        while self.is_open() {
            self.pump().await;
        }
    }

    /// Nothing more is taken. Returns what was said on stderr in the end, and whether anything was said at all, if
    /// that is known.
    pub(super) fn finish(self) -> (Option<Said>, Option<bool>) {
        let said = self.said.map(|said| said.hide(self.spool.mask()));
        (said, self.spool.finish())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut moved = false;
        if let Some(feed) = &mut self.feed
            && feed.as_mut().poll(context).is_ready()
        {
            self.feed = None;
            moved = true;
        }
        for (pipe, stream) in [(&mut self.stdout, Stream::Stdout), (&mut self.stderr, Stream::Stderr)] {
            let Some(output) = pipe else { continue };
            let said = self.said.as_mut().filter(|_| stream == Stream::Stderr);
            let from = From { output, stream, token: self.token, way: self.way.as_ref() };
            match poll_one(from, context, self.clock, (&mut self.spool, said)) {
                Poll::Pending => {}
                Poll::Ready(Read::Some) => moved = true,
                Poll::Ready(Read::End) => {
                    *pipe = None;
                    moved = true;
                }
            }
        }
        if moved { Poll::Ready(()) } else { Poll::Pending }
    }
}

enum Read {
    Some,
    End,
}

/// What is read, and how.
struct From<'a> {
    output: &'a mut Output,
    stream: Stream,
    token: Token,
    way: Option<&'a Arc<Sluice>>,
}

/// One read into this thread's scratch and from there to the spool: no buffer for each attempt.
fn poll_one(
    from: From<'_>,
    context: &mut Context<'_>,
    clock: Clock,
    (spool, said): (&mut Spool, Option<&mut Said>),
) -> Poll<Read> {
    let From { output, stream, token, way } = from;
    with_scratch(|scratch| {
        // Left when it is dropped: then all of it is in the spool.
        let inside = way.and_then(Sluice::enter);
        let read = match &inside {
            Some(inside) => {
                let mark = Mark { token, stream, offset: spool.offset(stream) };
                std::task::ready!(inside.poll_take(output, context, mark, scratch.room()))
            }
            None => {
                let mut room = ReadBuf::new(scratch.room());
                let read = std::task::ready!(Pin::new(output).poll_read(context, &mut room));
                read.map(|()| room.filled().len())
            }
        };
        let len = read.unwrap_or(0);
        // A pipe that cannot be read is as good as closed.
        if len == 0 {
            return Poll::Ready(Read::End);
        }
        if let Some(said) = said {
            said.add(scratch.data(0, len));
        }
        spool.take(stream, clock.wall(), scratch, len);
        drop(inside);
        Poll::Ready(Read::Some)
    })
}
