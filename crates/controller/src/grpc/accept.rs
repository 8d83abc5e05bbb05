//! Connections as they come in: secured if TLS is on, bounded in number and in patience, and refused with one word in
//! the log however often they come.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use muster_common::tls::{Stream, Who, Wire};
use rustls::{AlertDescription, CertificateError};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{peer::Line, quiet::Quiet};
use crate::identity::Own;

/// For the handshake, and again for the first word of the protocol: whoever comes to say something says it.
const SPEAK_WITHIN: Duration = Duration::from_secs(10);
/// Connections at one time: agents have two each.
const CONNECTIONS: u64 = 65_536;
/// Files that this process needs besides.
#[cfg(unix)]
const OTHER_FILES: u64 = 256;
/// A connection that finds no room waits this long for one that gives way.
const ROOM_WITHIN: Duration = Duration::from_secs(1);
/// Connections that wait to be served.
const SECURED: usize = 64;
/// After the system had no room for another connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come in: a socket that listens, or what a simulation has in its place.
pub trait Listener: Send + Sync + 'static {
    /// The next connection and where it is from. Cancel safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Wire, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    async fn accept(&self) -> io::Result<(Wire, SocketAddr)> {
        let (stream, remote) = self.accept().await?;
        // A peer that went away is seen when something is read.
        let _late = stream.set_nodelay(true);
        Ok((Box::new(stream), remote))
    }
}

/// A connection that may be served.
pub(super) struct Conn {
    stream: Stream,
    pub(super) line: Line,
    /// Until its first word: ends when it was silent for too long, or must give way to others.
    silence: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Where others make it give way; over once it has said something.
    gives_way: CancellationToken,
    _room: OwnedSemaphorePermit,
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(silence) = &mut self.silence else { return read };
        if read.is_ready() {
            if buf.filled().len() > before {
                self.silence = None;
                self.gives_way.cancel();
            }
            return read;
        }
        ready!(silence.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said")))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.gives_way.cancel();
    }
}

/// Takes connections in until cancelled.
pub(super) fn incoming(
    listener: impl Listener,
    own: Option<Arc<Own>>,
    cancel: CancellationToken,
) -> impl futures::Stream<Item = io::Result<Conn>> {
    let (sender, receiver) = mpsc::channel(SECURED);
    let room = usize::try_from(limit()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
    let gate =
        Gate { own, room: Arc::new(Semaphore::new(room)), silent: Arc::default(), quiet: Arc::default(), sender };
    tokio::spawn(async move {
        let tracker = TaskTracker::new();
        cancel.run_until_cancelled(gate.run(&listener, &tracker, &cancel)).await;
        // Those who are still at their handshake end with us.
        tracker.close();
        tracker.wait().await;
    });
    ReceiverStream::new(receiver)
}

/// What this process may hold open, without what it needs itself.
fn limit() -> u64 {
    #[cfg(unix)]
    if let Ok((files, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        return CONNECTIONS.min(files.saturating_sub(OTHER_FILES).max(64));
    }
    CONNECTIONS
}

/// Those that have not secured their connection or said anything yet, the oldest first.
type Silent = Arc<Mutex<VecDeque<CancellationToken>>>;

#[derive(Clone)]
struct Gate {
    own: Option<Arc<Own>>,
    room: Arc<Semaphore>,
    silent: Silent,
    quiet: Arc<Quiet>,
    sender: mpsc::Sender<io::Result<Conn>>,
}

impl Gate {
    async fn run(&self, listener: &impl Listener, tracker: &TaskTracker, cancel: &CancellationToken) {
        loop {
            match listener.accept().await {
                Ok((wire, remote)) => {
                    let (gate, cancel) = (self.clone(), cancel.clone());
                    tracker.spawn(async move { cancel.run_until_cancelled(gate.admit(wire, remote)).await });
                }
                // One that went away before we looked, or no room for files: either passes.
                Err(error) => {
                    self.quiet.tell("accept", || tracing::warn!(%error, "a connection cannot be taken"));
                    self.make_room();
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn admit(self, wire: Wire, remote: SocketAddr) {
        let Some(room) = self.room().await else {
            self.quiet.tell("full", || {
                tracing::warn!("there are too many connections; more are refused until some end");
            });
            return;
        };
        let gives_way = CancellationToken::new();
        self.silent().push_back(gives_way.clone());
        // Its name on the list goes with it.
        let listed = gives_way.clone().drop_guard();
        let secured = async { timeout(SPEAK_WITHIN, self.secure(wire)).await.unwrap_or_else(|_| Err(silent())) };
        let secured = tokio::select! {
            secured = secured => secured,
            () = gives_way.cancelled() => Err(silent()),
        };
        match secured {
            Ok((stream, who)) => {
                let line = Line { who, remote: Some(remote) };
                let gives_way = listed.disarm();
                let conn = Conn { stream, line, silence: Some(silence(gives_way.clone())), gives_way, _room: room };
                // The server has ended.
                let _nobody = self.sender.send(Ok(conn)).await;
            }
            Err(error) => self.refused(remote, &error),
        }
        self.sweep();
    }

    async fn secure(&self, wire: Wire) -> io::Result<(Stream, Option<Who>)> {
        let Some(own) = &self.own else { return Ok((Stream::Plain(wire), None)) };
        let ready = own.when_ready().await;
        let stream = TlsAcceptor::from(Arc::clone(&ready.server)).accept(wire).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let who = match shown {
            None => None,
            Some(certificate) => Some(Who::of(certificate).ok_or_else(|| {
                let text = "its certificate is of our authority, and names neither an agent nor a controller";
                io::Error::new(io::ErrorKind::PermissionDenied, text)
            })?),
        };
        Ok((Stream::Tls(Box::new(stream.into())), who))
    }

    /// Room for one more; the longest silent one gives way if there is none.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            return Some(room);
        }
        self.make_room();
        timeout(ROOM_WITHIN, Arc::clone(&self.room).acquire_owned()).await.ok()?.ok()
    }

    fn make_room(&self) {
        let mut silent = self.silent();
        while let Some(oldest) = silent.pop_front() {
            if !oldest.is_cancelled() {
                oldest.cancel();
                return;
            }
        }
    }

    /// Forgets those at the head of the list that are over.
    fn sweep(&self) {
        let mut silent = self.silent();
        while silent.front().is_some_and(CancellationToken::is_cancelled) {
            silent.pop_front();
        }
    }

    fn silent(&self) -> std::sync::MutexGuard<'_, VecDeque<CancellationToken>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, remote: SocketAddr, error: &io::Error) {
        let (kind, why) = reason(error);
        self.quiet.tell(kind, || {
            let from = remote.ip().to_string();
            tracing::warn!(from, why, %error, "a connection is refused; more of its kind are told once a minute");
        });
    }
}

fn silence(gives_way: CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        // Either way it is over.
        let _late = timeout(SPEAK_WITHIN, gives_way.cancelled()).await;
    })
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing was said")
}

/// What was wrong with a handshake: one word for the log's memory, and one for people.
fn reason(error: &io::Error) -> (&'static str, &'static str) {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => ("expired", "its certificate has expired; an agent joins again with a new join token"),
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            ("foreign", "its certificate is of another authority")
        }
        Some(rustls::Error::InvalidCertificate(_)) => ("certificate", "its certificate is not accepted"),
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::CertificateUnknown,
        )) => ("distrust", "the other side does not trust this controller's certificate: it has another CA"),
        Some(rustls::Error::InvalidMessage(_)) => ("garbage", "what came is no TLS; plain text is not spoken here"),
        Some(_) => ("tls", "its handshake failed"),
        None if error.kind() == io::ErrorKind::TimedOut => ("silent", "it was silent for too long"),
        None if error.kind() == io::ErrorKind::PermissionDenied => ("nobody", "its certificate names nobody of ours"),
        None => ("broken", "it broke off"),
    }
}
