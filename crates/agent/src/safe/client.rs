//! A keeper's hand on its safe. What is said here is in the socket when the call returns, so that it outlives the caller.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{MsgFlags, Shutdown};
use tokio::{io::Interest, sync::Notify, sync::oneshot};
use tracing::warn;

use super::{
    Entry, Heritage, LIMIT,
    message::{Close, Down, Ended, Hold, Kept, Note, Put, Said, Up, Word},
    post::{Came, Post, framed, send_some},
};
use crate::exec::os::{Spent, Status};

/// A safe that does not take in so much is frozen, and no help.
const WAITING_MAX: usize = 256 << 20;

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Safe(Arc<Inner>);

struct Inner {
    stream: tokio::net::UnixStream,
    out: Mutex<Out>,
    has_more: Notify,
    is_gone: AtomicBool,
    gone: Notify,
    asked: Mutex<HashMap<u32, oneshot::Sender<Ended>>>,
    /// Keys that are in it.
    keys: Mutex<BTreeSet<u64>>,
}

#[derive(Default)]
struct Out {
    parcels: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    sent: usize,
    bytes: usize,
}

impl std::fmt::Debug for Safe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Safe")
    }
}

/// Takes over what an earlier keeper left; our standard input is the line. Blocks for a moment.
pub(crate) fn take_over(stdin: OwnedFd) -> io::Result<Heritage> {
    let mut post = Post::new(UnixStream::from(stdin));
    let next = |post: &mut Post| Ok::<_, io::Error>(post.next::<Up>(LIMIT)?.said);
    let Some(Said::Begin(begin)) = next(&mut post)? else { return Err(io::Error::other("the safe says nothing")) };
    let lock = post.files(1).pop().map(File::from);
    let mut entries = Vec::new();
    while let Some(Said::Entry(kept)) = next(&mut post)? {
        entries.push(entry(kept, &mut post));
    }
    if !post.is_whole {
        return Err(io::Error::other("this process may not open as many files as it needs to go on"));
    }
    let keys = entries.iter().map(|entry| entry.key).collect();
    let safe = Safe::begin(post.into_stream(), keys)?;
    let (cookie, generation) = (begin.cookie.into(), begin.generation);
    Ok(Heritage { safe, cookie, generation, entries, lock })
}

fn entry(kept: Kept, post: &mut Post) -> Entry {
    let Kept { key, record, note, files } = kept;
    let mut came = post.files(files.iter().filter(|is_there| **is_there).count()).into_iter();
    let files = files.into_iter().map(|is_there| if is_there { came.next() } else { None }).collect();
    Entry { key, record, note, files }
}

impl Safe {
    /// Must be called inside a runtime, which runs what is needed for as long as there is a handle.
    fn begin(stream: UnixStream, keys: BTreeSet<u64>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let inner = Arc::new(Inner {
            stream: tokio::net::UnixStream::from_std(stream)?,
            out: Mutex::default(),
            has_more: Notify::new(),
            is_gone: AtomicBool::new(false),
            gone: Notify::new(),
            asked: Mutex::default(),
            keys: Mutex::new(keys),
        });
        tokio::spawn(listen(Arc::clone(&inner)));
        tokio::spawn(flush(Arc::clone(&inner)));
        Ok(Self(inner))
    }

    /// One that nobody listens to.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let (ours, _) = UnixStream::pair().expect("a pair");
        Self::begin(ours, BTreeSet::new()).expect("inside a runtime")
    }

    /// Puts something under `key`: what does not change, and open files. How the process `pid` ends is kept for it.
    pub(crate) fn put(&self, key: u64, pid: u32, record: Vec<u8>, files: Vec<OwnedFd>) {
        lock(&self.0.keys).insert(key);
        let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        self.0.say_with(Word::Put(Put { key, pid, record, files: count }), files);
    }

    /// What is new of it, in the place of what was noted before.
    pub(crate) fn note(&self, key: u64, note: Vec<u8>) {
        self.0.say(Word::Note(Note { key, note }));
    }

    /// One of its files is not needed any more.
    pub(crate) fn close(&self, key: u64, file: u32) {
        self.0.say(Word::Close(Close { key, file }));
    }

    /// Without a word, if it is not there.
    pub(crate) fn take_out(&self, key: u64) {
        if lock(&self.0.keys).remove(&key) {
            self.0.say(Word::TakeOut(key));
        }
    }

    /// How a process ended that the safe has taken in; none: nobody can tell.
    pub(crate) async fn end_of(&self, pid: u32) -> Option<(Status, Spent)> {
        let (answer, hears) = oneshot::channel();
        lock(&self.0.asked).insert(pid, answer);
        self.0.say(Word::Ask(pid));
        if self.is_gone() {
            return None;
        }
        let ended = tokio::time::timeout(LIMIT, hears).await.ok()?.ok()?;
        let status = match (ended.exit, ended.signal) {
            (Some(code), _) => Status::Exit(code),
            (None, Some(number)) => Status::Signal(number),
            (None, None) => return None,
        };
        let Ended { memory_peak, user_us, system_us, read_bytes, written_bytes, .. } = ended;
        Some((status, Spent { memory_peak, user_us, system_us, read_bytes, written_bytes }))
    }

    /// Its end was noted.
    pub(crate) fn reap(&self, pid: u32) {
        self.0.say(Word::Reap(pid));
    }

    /// A1: for so long leases hold; none: nothing is held by one.
    pub(crate) fn hold(&self, ends_in: Option<Duration>) {
        let ms = ends_in.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        self.0.say(Word::Hold(Hold { ms }));
    }

    /// Everything was taken over: from here on our death is an accident.
    pub(crate) fn ready(&self) {
        self.0.say(Word::Ready(true));
    }

    /// Everything has been ended.
    pub(crate) fn farewell(&self) {
        self.0.say(Word::Farewell(true));
    }

    fn is_gone(&self) -> bool {
        self.0.is_gone.load(Ordering::Acquire)
    }

    /// Waits until the safe is dead. Cancel safe.
    pub(crate) async fn gone(&self) {
        loop {
            let gone = self.0.gone.notified();
            if self.is_gone() {
                return;
            }
            gone.await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn say(&self, word: Word) {
        self.say_with(word, Vec::new());
    }

    fn say_with(&self, word: Word, files: Vec<OwnedFd>) {
        if self.is_gone.load(Ordering::Acquire) {
            return;
        }
        let bytes = framed(&Down { word: Some(word) });
        let mut out = lock(&self.out);
        out.bytes += bytes.len();
        out.parcels.push_back((bytes, files));
        let sent = self.send(&mut out);
        drop(out);
        match sent {
            Ok(true) => {}
            Ok(false) => self.has_more.notify_one(),
            Err(error) => self.lose(&error),
        }
    }

    /// Whether all of it is in the socket.
    fn send(&self, out: &mut Out) -> io::Result<bool> {
        if out.bytes > WAITING_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        while let Some((bytes, files)) = out.parcels.front_mut() {
            let rest = bytes.get(out.sent..).unwrap_or_default();
            match send_some(self.stream.as_fd().as_raw_fd(), rest, files, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => {
                    files.clear();
                    out.sent += len;
                    out.bytes -= len;
                    if out.sent == bytes.len() {
                        out.sent = 0;
                        out.parcels.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn lose(&self, error: &io::Error) {
        if !self.is_gone.swap(true, Ordering::AcqRel) {
            warn!(%error, "the safe is gone: what runs would not outlive this keeper");
        }
        // If it lives, it must not go on with what it has: it hears nothing new.
        let _gone_already = nix::sys::socket::shutdown(self.stream.as_fd().as_raw_fd(), Shutdown::Both);
        lock(&self.asked).clear();
        *lock(&self.out) = Out::default();
        self.gone.notify_waiters();
    }
}

/// Sends what the socket did not take at once.
async fn flush(inner: Arc<Inner>) {
    loop {
        inner.has_more.notified().await;
        loop {
            if inner.stream.writable().await.is_err() {
                return;
            }
            let sent = inner.send(&mut lock(&inner.out));
            match sent {
                Ok(true) => break,
                Ok(false) => {
                    let full = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _clears_readiness = inner.stream.try_io(Interest::WRITABLE, full);
                }
                Err(error) => return inner.lose(&error),
            }
        }
    }
}

/// Hears answers, and the end.
async fn listen(inner: Arc<Inner>) {
    let Ok(copy) = inner.stream.as_fd().try_clone_to_owned() else { return };
    let mut post = Post::new(UnixStream::from(copy));
    loop {
        if let Err(error) = inner.stream.readable().await {
            return inner.lose(&error);
        }
        match post.look() {
            Ok(Came::Something) => {}
            Ok(Came::Nothing) => {
                let empty = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _clears_readiness = inner.stream.try_io(Interest::READABLE, empty);
            }
            Ok(Came::End) => return inner.lose(&io::ErrorKind::UnexpectedEof.into()),
            Err(error) => return inner.lose(&error),
        }
        loop {
            match post.take::<Up>() {
                Ok(Some(Up { said: Some(Said::Ended(ended)) })) => {
                    if let Some(answer) = lock(&inner.asked).remove(&ended.pid) {
                        let _nobody_waits = answer.send(ended);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return inner.lose(&error),
            }
        }
    }
}
