//! A TCP proxy that breaks: it delays, drops what flows one way or both, closes, or holds connections half open.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

/// What becomes of bytes now. Of connections that are open as well as of new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They flow.
    Pass,
    /// They flow, each read after this.
    Delay(Duration),
    /// What clients say is heard; what they are answered is lost.
    DropAnswers,
    /// Nothing arrives anywhere, and nobody hears of it: half open.
    Hole,
    /// Every connection is reset, and no new one is made.
    Reset,
}

/// The proxy, on a thread of its own. Dropped, it closes everything.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
}

impl Proxy {
    /// Between a new port of the loopback and `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no port of the loopback is free")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (mode, watched) = watch::channel(Mode::Pass);
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        // A thread and a runtime of its own: it works the same for tests with and without one.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                let accept = async {
                    while let Ok((client, _)) = listener.accept().await {
                        count.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(relay(client, target, watched.clone()));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, mode, connections, _stop: stop })
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn relay(client: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow_and_update() == Mode::Reset {
        return reset(&client);
    }
    let Ok(server) = TcpStream::connect(target).await else { return reset(&client) };
    let _no_delay = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (asked, answered) = (mode.clone(), mode.clone());
    let up = pump(&mut from_client, &mut to_server, asked, |mode| mode == Mode::Hole);
    let down = pump(&mut from_server, &mut to_client, answered, |mode| matches!(mode, Mode::Hole | Mode::DropAnswers));
    tokio::select! {
        _ = up => {}
        _ = down => {}
        () = was_reset(&mut mode) => {}
    }
    if let (Ok(client), true) = (from_client.reunite(to_client), *mode.borrow() == Mode::Reset) {
        reset(&client);
    }
}

/// Closed with RST instead of FIN.
fn reset(stream: &TcpStream) {
    let _best_effort = stream.set_zero_linger();
}

async fn was_reset(mode: &mut watch::Receiver<Mode>) {
    let _gone = mode.wait_for(|mode| *mode == Mode::Reset).await;
}

async fn pump(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    mode: watch::Receiver<Mode>,
    is_lost: impl Fn(Mode) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let now = *mode.borrow();
        if let Mode::Delay(by) = now {
            tokio::time::sleep(by).await;
        }
        if !is_lost(now) {
            to.write_all(&buffer[..read]).await?;
        }
    }
}
