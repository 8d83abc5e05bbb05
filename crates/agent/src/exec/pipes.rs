//! The three pipes of one attempt: what it writes goes to its spool, what it reads is fed to it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use muster_common::clock::Clock;
use muster_core::spec::TaskSpec;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::{
    contained::Said,
    os::{Input, Output},
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
}

impl Pipes {
    pub(super) fn new(clock: Clock, stdout: Output, stderr: Output, spool: Spool, said: Option<Said>) -> Self {
        Self { clock, stdout: Some(stdout), stderr: Some(stderr), feed: None, spool, said }
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

    /// Nothing more is taken. Returns what was said on stderr in the end.
    pub(super) fn finish(self) -> Option<Said> {
        let said = self.said.map(|said| said.hide(self.spool.mask()));
        self.spool.finish();
        said
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
            match poll_one(output, context, self.clock, (&mut self.spool, said), stream) {
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

/// One read into this thread's scratch and from there to the spool: no buffer for each attempt.
fn poll_one(
    output: &mut Output,
    context: &mut Context<'_>,
    clock: Clock,
    (spool, said): (&mut Spool, Option<&mut Said>),
    stream: Stream,
) -> Poll<Read> {
    with_scratch(|scratch| {
        let mut room = ReadBuf::new(scratch.room());
        let read = std::task::ready!(Pin::new(output).poll_read(context, &mut room));
        let len = room.filled().len();
        // A pipe that cannot be read is as good as closed.
        if read.is_err() || len == 0 {
            return Poll::Ready(Read::End);
        }
        if let Some(said) = said {
            said.add(room.filled());
        }
        spool.take(stream, clock.wall(), scratch, len);
        Poll::Ready(Read::Some)
    })
}
