//! Connections to whichever of several controllers answers: each of them leads or passes calls on to the one that does.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tonic::codegen::{Service, http::Uri};

/// A controller on this machine answers in microseconds, one across an ocean in a second.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Tries the addresses in turn, the one that answered last first. A name that stands for several is tried whole.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    hosts: Arc<[String]>,
    last: Arc<AtomicUsize>,
}

impl Dial {
    /// `hosts`: each `HOST:PORT`.
    pub(super) fn new(hosts: Vec<String>) -> Self {
        Self { hosts: hosts.into(), last: Arc::default() }
    }

    async fn connect(self) -> io::Result<TokioIo<TcpStream>> {
        let first = self.last.load(Ordering::Relaxed);
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "no address is given");
        for at in (first..first + self.hosts.len()).map(|at| at % self.hosts.len()) {
            match connect(&self.hosts[at]).await {
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

async fn connect(host: &str) -> io::Result<TcpStream> {
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

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
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
        let dial = Dial::new(vec![gone.clone(), there]);
        dial.clone().connect().await.unwrap();
        assert_eq!(dial.last.load(Ordering::Relaxed), 1);
        drop(listener);
        let error = dial.connect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        assert!(Dial::new(Vec::new()).connect().await.is_err());
    }
}
