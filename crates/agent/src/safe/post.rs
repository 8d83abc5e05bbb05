//! One end of the line between keeper and safe, for who waits with all else: messages in frames, with open files.
//!
//! A frame is its length, four bytes, and a message. Files travel with the first byte of their frame.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};
use prost::Message;

use crate::exec::os;

/// No message is longer; what claims more is no message of ours.
const FRAME_MAX: usize = 64 << 20;
/// Read at a time.
const CHUNK: usize = 16 << 10;

/// See the module.
pub(super) struct Post {
    stream: UnixStream,
    inbox: Vec<u8>,
    files: VecDeque<OwnedFd>,
    /// No file was lost on its way: those that are there belong to whom we think.
    pub(super) is_whole: bool,
}

/// What a look gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    Something,
    Nothing,
    /// The other side is gone.
    End,
}

/// A message in its frame.
pub(super) fn framed(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(length + 4);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    message.encode_raw(&mut bytes);
    bytes
}

/// Sends the start of `bytes`, with `files` if it sends anything. Waits only as the socket does.
pub(super) fn send_some(socket: RawFd, bytes: &[u8], files: &[OwnedFd], flags: MsgFlags) -> io::Result<usize> {
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let rights = if files.is_empty() { &rights[..0] } else { &rights[..] };
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], rights, flags | MsgFlags::MSG_NOSIGNAL, None)?)
}

impl Post {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, inbox: Vec::new(), files: VecDeque::new(), is_whole: true }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Sends all of it, within `limit` for each part.
    pub(super) fn send(&self, message: &impl Message, files: &[OwnedFd], limit: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(limit))?;
        let bytes = framed(message);
        let (mut sent, mut files) = (0, files);
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match send_some(self.stream.as_raw_fd(), rest, files, MsgFlags::empty()) {
                Ok(len) => (sent, files) = (sent + len, &[]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in what is there, without waiting.
    pub(super) fn look(&mut self) -> io::Result<Came> {
        let before = self.inbox.len();
        self.inbox.resize(before + CHUNK, 0);
        let got = os::receive(self.stream.as_raw_fd(), &mut self.inbox[before..], &mut self.files);
        self.inbox.truncate(before + got.as_ref().map_or(0, |(len, _)| *len));
        match got {
            Ok((len, is_whole)) => {
                self.is_whole &= is_whole;
                Ok(if len == 0 { Came::End } else { Came::Something })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Came::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Came::Something),
            // It died before it read all that was sent to it; what it said itself was read before.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Came::End),
            Err(error) => Err(error),
        }
    }

    /// The next whole message that came; none: not yet.
    pub(super) fn take<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        let Some((length, rest)) = self.inbox.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes, which nobody sends")));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(body).map_err(io::Error::other)?;
        self.inbox.drain(..4 + length);
        if self.inbox.is_empty() {
            self.inbox.shrink_to(CHUNK);
        }
        Ok(Some(message))
    }

    /// The next message, waited for.
    pub(super) fn next<M: Message + Default>(&mut self, limit: Duration) -> io::Result<M> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            let wait = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.look()? == Came::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next `count` files that came.
    pub(super) fn files(&mut self, count: usize) -> Vec<OwnedFd> {
        let count = count.min(self.files.len());
        self.files.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
    };

    use super::*;
    use crate::safe::message::{Down, Put, Word};

    fn put(key: u64, size: usize, files: u32) -> Down {
        Down { word: Some(Word::Put(Put { key, pid: 3, record: vec![7; size], files })) }
    }

    #[test]
    fn messages_come_whole_and_in_order_each_with_its_files() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let writer = std::thread::spawn(move || {
            let post = Post::new(ours);
            let (reader, mut writer) = io::pipe().expect("a pipe");
            writer.write_all(b"hello").expect("room");
            post.send(&put(1, 300_000, 0), &[], Duration::from_secs(10)).expect("sent");
            post.send(&put(2, 10, 1), &[reader.into()], Duration::from_secs(10)).expect("sent");
        });
        let mut post = Post::new(theirs);
        let limit = Duration::from_secs(10);
        assert_eq!(post.next::<Down>(limit).expect("the first"), put(1, 300_000, 0));
        assert_eq!(post.next::<Down>(limit).expect("the second"), put(2, 10, 1));
        writer.join().expect("all is sent");
        let mut text = String::new();
        let mut files = post.files(1);
        File::from(files.remove(0)).read_to_string(&mut text).expect("read");
        assert_eq!((text.as_str(), post.is_whole), ("hello", true));
        assert_eq!(post.next::<Down>(limit).expect_err("it is gone").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        ours.write_all(&[0xff; 8]).expect("sent");
        assert!(Post::new(theirs).next::<Down>(Duration::from_secs(10)).is_err());
    }
}
