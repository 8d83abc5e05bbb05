//! Linux: our end of a pipe to a task, which the runtime watches and whose descriptor can be handed on.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::fcntl::{SpliceFFlags, splice};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Of a file, moved to a task at a time.
const PART: usize = 64 << 10;

/// See the module. It does not block.
pub(crate) struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Must be called inside a runtime.
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: `AsyncFd` owns the descriptor from here on, and nobody else closes it.
        #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor stays open")]
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(Self(fd))
    }

    /// Does `work` with it as soon as there is something to read, and again until it does not want to wait. Of `full`
    /// bytes that it asked for, whoever gets less has emptied the pipe.
    pub(super) fn poll_with(
        &self,
        context: &mut Context<'_>,
        full: usize,
        mut work: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match work(self.0.get_ref().as_fd()) {
                Ok(len) => {
                    if len > 0 && len < full {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(len));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Feeds it what `file` has from its place on. That place moves with the bytes, in one system call: whoever goes on with
    /// the same open file repeats none and leaves none out. Ends early when nobody reads any more.
    pub(crate) async fn feed(self, file: File) {
        loop {
            let Ok(mut guard) = self.0.writable().await else { return };
            match splice(&file, None, self.0.get_ref(), None, PART, SpliceFFlags::SPLICE_F_NONBLOCK) {
                Ok(0) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = into.initialize_unfilled();
        let full = room.len();
        let len = ready!(self.poll_with(context, full, |fd| Ok(nix::unistd::read(fd, room)?)))?;
        into.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match nix::unistd::write(self.0.get_ref(), bytes) {
                Err(nix::errno::Errno::EAGAIN) => guard.clear_ready(),
                Err(nix::errno::Errno::EINTR) => {}
                written => return Poll::Ready(Ok(written?)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
