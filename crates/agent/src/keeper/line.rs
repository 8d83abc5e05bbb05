//! One connection between agent and keeper: messages in frames, many in one system call, with open files if need be.
//!
//! A frame is its length, four bytes, and a message. Files travel with the first byte of their frame.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use prost::Message;
use tokio::{io::Interest, net::UnixStream};

use crate::exec::os;

/// No message is longer; what claims more is no message of ours.
const FRAME_MAX: usize = 64 << 20;
/// Read at a time.
const CHUNK: usize = 64 << 10;

/// Bytes that are to be sent, and the files that go with the first of them.
#[derive(Default)]
struct Parcel {
    bytes: Vec<u8>,
    sent: usize,
    files: Vec<OwnedFd>,
}

/// Our end.
pub(super) struct Line {
    stream: UnixStream,
    /// What came and is not taken, from `taken` on.
    inbox: Vec<u8>,
    taken: usize,
    outbox: VecDeque<Parcel>,
    files: VecDeque<OwnedFd>,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, inbox: Vec::new(), taken: 0, outbox: VecDeque::new(), files: VecDeque::new() }
    }

    /// Puts a message behind those that wait to be sent.
    pub(super) fn put(&mut self, message: &impl Message) {
        self.put_with(message, Vec::new());
    }

    /// The same, with files.
    fn put_with(&mut self, message: &impl Message, files: Vec<OwnedFd>) {
        let length = message.encoded_len();
        let parcel = match self.outbox.back_mut() {
            // Small ones share a system call.
            Some(last) if files.is_empty() && last.files.is_empty() && last.bytes.len() < CHUNK => last,
            _ => {
                self.outbox.push_back(Parcel { files, ..Parcel::default() });
                let Some(last) = self.outbox.back_mut() else { return };
                last
            }
        };
        parcel.bytes.reserve(length + 4);
        parcel.bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        message.encode_raw(&mut parcel.bytes);
    }

    /// Bytes that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.outbox.iter().map(|parcel| parcel.bytes.len() - parcel.sent).sum()
    }

    /// Sends what can be sent now; the rest goes with [`Line::moves`].
    pub(super) fn send(&mut self) -> io::Result<()> {
        while let Some(parcel) = self.outbox.front_mut() {
            let Some(rest) = parcel.bytes.get(parcel.sent..).filter(|rest| !rest.is_empty()) else {
                self.outbox.pop_front();
                continue;
            };
            let files: Vec<RawFd> = parcel.files.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&files)];
            let rights = if files.is_empty() { &rights[..0] } else { &rights[..] };
            let socket = self.stream.as_raw_fd();
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                sendmsg::<()>(socket, &[IoSlice::new(rest)], rights, flags, None).map_err(io::Error::from)
            });
            match sent {
                Ok(sent) => {
                    parcel.sent += sent;
                    // They are in the socket: whoever reads has them, and ours can go.
                    parcel.files.clear();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until something came or went. `Ok(false)`: the other side is gone. Cancel safe.
    pub(super) async fn moves(&mut self) -> io::Result<bool> {
        let interest =
            if self.outbox.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = self.stream.ready(interest).await?;
        if ready.is_writable() {
            self.send()?;
        }
        if ready.is_readable() || ready.is_read_closed() { self.receive() } else { Ok(true) }
    }

    /// Reads what the other side said before it went; until it goes, if it is still there. Cancel safe.
    pub(super) async fn rest(&mut self) {
        while self.stream.ready(Interest::READABLE).await.is_ok() && self.receive().is_ok_and(|more| more) {}
    }

    /// Reads all that is there. Whether there may be more to come.
    fn receive(&mut self) -> io::Result<bool> {
        if self.taken > 0 {
            self.inbox.drain(..std::mem::take(&mut self.taken));
        }
        loop {
            let before = self.inbox.len();
            self.inbox.resize(before + CHUNK, 0);
            let socket = self.stream.as_raw_fd();
            let (inbox, files) = (&mut self.inbox[before..], &mut self.files);
            let got = self.stream.try_io(Interest::READABLE, || os::receive(socket, inbox, files));
            let got = got.map(|(len, _)| len);
            self.inbox.truncate(before + got.as_ref().copied().unwrap_or(0));
            match got {
                Ok(0) => return Ok(false),
                // What is left is told at the next look; a fast writer must not keep us here.
                Ok(len) if len < CHUNK || self.inbox.len() >= 16 * CHUNK => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole message that came; none: not yet.
    pub(super) fn take<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        let bytes = self.inbox.get(self.taken..).unwrap_or_default();
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes, which nobody sends")));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(body).map_err(io::Error::other)?;
        self.taken += 4 + length;
        if self.taken == self.inbox.len() {
            self.inbox.clear();
            self.taken = 0;
            self.inbox.shrink_to(4 * CHUNK);
        }
        Ok(Some(message))
    }

    /// Whose the other end is.
    pub(super) fn peer(&self) -> io::Result<u32> {
        Ok(self.stream.peer_cred()?.uid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::kit::soon;

    #[tokio::test]
    async fn what_the_other_side_said_before_it_went_is_read_also_by_who_writes_to_it_then() {
        let (ours, theirs) = UnixStream::pair().expect("two ends");
        let (mut ours, mut theirs) = (Line::new(ours), Line::new(theirs));
        let said: Vec<_> = (0..20).map(|n| vec![n; 4096]).collect();
        said.iter().for_each(|word| theirs.put(word));
        theirs.send().expect("it is there");
        let first = ours.moves().await.expect("it is there");
        assert!(first && theirs.waiting() == 0, "a socket has room for as much");
        drop(theirs);
        ours.put(&vec![0; 10]);
        ours.send().expect_err("nobody is there");
        soon("the rest", ours.rest()).await;
        let heard: Vec<Vec<u8>> = std::iter::from_fn(|| ours.take().expect("whole")).collect();
        assert_eq!(heard, said);
    }
}
