//! Connections as a client makes them: to whichever of several hosts answers, plain or secured.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, TlsStream};
use tonic::{
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// A machine next to us answers in microseconds, one across an ocean in a second.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A few messages to and fro, of a peer that answered just now.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// What carries bytes to another machine and back.
pub trait Io: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Io for T {}

/// A connection below TLS: a socket, or what a simulation has in its place.
pub type Wire = Box<dyn Io>;

/// How other machines are reached: over TCP ([`Tcp`]), or over a network that a simulation makes.
pub trait Network: fmt::Debug + Send + Sync {
    /// A connection to `HOST:PORT`, by whichever of its addresses answers.
    fn reach<'a>(&'a self, host: &'a str) -> Reached<'a>;
}

/// A connection that is being made.
pub type Reached<'a> = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send + 'a>>;

/// The network of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

/// A connection, secured or not.
#[derive(Debug)]
pub enum Stream {
    /// Anybody on the way can read it.
    Plain(Wire),
    /// Nobody can.
    Tls(Box<TlsStream<Wire>>),
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

/// Connects to `HOST:PORT`, and secures the connection if `tls` says how.
///
/// # Errors
/// Nobody answers there, or whoever answers is not believed.
pub async fn connect(host: &str, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
    connect_over(&Tcp, host, tls).await
}

async fn connect_over(network: &dyn Network, host: &str, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
    let stream = network.reach(host).await?;
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no name of a machine")))?;
    let secured = timeout(HANDSHAKE_WITHIN, TlsConnector::from(Arc::clone(tls)).connect(name, stream)).await;
    match secured {
        Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream.into()))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{host} does not answer in TLS"))),
    }
}

impl Network for Tcp {
    fn reach<'a>(&'a self, host: &'a str) -> Reached<'a> {
        Box::pin(async move { Ok(Box::new(reach(host).await?) as Wire) })
    }
}

async fn reach(host: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} stands for no address"));
    for address in lookup_host(host).await? {
        match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(failed)
}

/// Tries the hosts in turn, the one that answered last first. A name that stands for several is tried whole.
#[derive(Clone, Debug)]
pub struct Dial {
    hosts: Arc<[String]>,
    tls: Option<Arc<ClientConfig>>,
    network: Arc<dyn Network>,
    last: Arc<AtomicUsize>,
}

impl Dial {
    /// `hosts`: each `HOST:PORT`.
    pub fn new(hosts: Vec<String>, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { hosts: hosts.into(), tls, network: Arc::new(Tcp), last: Arc::default() }
    }

    /// The same over another network.
    #[must_use]
    pub fn through(self, network: Arc<dyn Network>) -> Self {
        Self { network, ..self }
    }

    /// A connection of `endpoint`, made now. Both of these are no generic functions on purpose: what HTTP/2 is built of is
    /// compiled here once, and not again by everybody who connects.
    ///
    /// # Errors
    /// Nobody answers, or whoever answers is not believed.
    pub fn open(
        self,
        endpoint: &Endpoint,
    ) -> Pin<Box<dyn Future<Output = Result<Channel, tonic::transport::Error>> + Send>> {
        let endpoint = endpoint.clone();
        Box::pin(async move { endpoint.connect_with_connector(self).await })
    }

    /// The same, made when it is first used. Needs a runtime.
    pub fn open_lazily(self, endpoint: &Endpoint) -> Channel {
        endpoint.connect_with_connector_lazy(self)
    }

    async fn connect(self) -> io::Result<TokioIo<Stream>> {
        let first = self.last.load(Ordering::Relaxed);
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "no address is given");
        for at in (first..first + self.hosts.len()).map(|at| at % self.hosts.len()) {
            match connect_over(&*self.network, &self.hosts[at], self.tls.as_ref()).await {
                Ok(stream) => {
                    self.last.store(at, Ordering::Relaxed);
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_first_that_answers_is_taken_and_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap().to_string();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let dial = Dial::new(vec![gone.clone(), there], None);
        dial.clone().connect().await.unwrap();
        assert_eq!(dial.last.load(Ordering::Relaxed), 1);
        drop(listener);
        let error = dial.connect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        assert!(Dial::new(Vec::new(), None).connect().await.is_err());
    }
}
