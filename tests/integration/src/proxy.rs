//! A TCP proxy that breaks: it delays, drops what flows one way or both, loses answers, closes, or holds connections
//! half open.
//!
//! A connection that lost bytes never carries a byte again: TCP has no gaps, and no program could be asked to bear one.

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
    /// What clients say is lost; what the other side says by itself is heard.
    DropQuestions,
    /// One answer of so many is lost together with its connection, after its question was heard.
    LoseAnswers(u16),
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
    heard: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
}

impl Proxy {
    /// Between a new port of the loopback and `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        Self::between(SocketAddr::from(([127, 0, 0, 1], 0)), target)
    }

    /// Between `address` and `target`, in the network of the thread that calls.
    pub fn between(address: SocketAddr, target: SocketAddr) -> Result<Self> {
        let listener =
            std::net::TcpListener::bind(address).with_context(|| format!("the proxy cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (mode, watched) = watch::channel(Mode::Pass);
        let connections = Arc::new(AtomicU64::new(0));
        let heard = Arc::new(AtomicU64::new(0));
        let (count, bytes) = (Arc::clone(&connections), Arc::clone(&heard));
        // A thread and a runtime of its own: it works the same for tests with and without one.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                let accept = async {
                    while let Ok((client, _)) = listener.accept().await {
                        count.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(relay(client, target, watched.clone(), Arc::clone(&bytes)));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, mode, connections, heard, _stop: stop })
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many bytes of answers were passed on so far.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

async fn relay(client: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>, heard: Arc<AtomicU64>) {
    if *mode.borrow_and_update() == Mode::Reset {
        return reset(&client);
    }
    let Ok(server) = TcpStream::connect(target).await else { return reset(&client) };
    let _no_delay = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let said = AtomicU64::new(0);
    let up = pump(&mut from_client, &mut to_server, (Way::Up, &said), mode.clone());
    let down = pump(&mut from_server, &mut to_client, (Way::Down, &heard), mode.clone());
    let is_broken = tokio::select! {
        ended = up => ended.is_err(),
        ended = down => ended.is_err(),
        () = was_reset(&mut mode) => true,
    };
    if let (Ok(client), true) = (from_client.reunite(to_client), is_broken) {
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

/// From the client, or to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

async fn pump(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    (way, count): (Way, &AtomicU64),
    mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut has_gap = false;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let now = *mode.borrow();
        if let Mode::Delay(by) = now {
            tokio::time::sleep(by).await;
        }
        let is_lost = match now {
            Mode::Hole => true,
            Mode::DropAnswers => way == Way::Down,
            Mode::DropQuestions => way == Way::Up,
            Mode::LoseAnswers(one_in) if way == Way::Down && one_in_so_many(one_in) => return Err(broken()),
            Mode::Pass | Mode::Delay(_) | Mode::Reset | Mode::LoseAnswers(_) => false,
        };
        has_gap |= is_lost;
        match (is_lost, has_gap) {
            (true, _) => {}
            (false, true) => return Err(broken()),
            (false, false) => {
                to.write_all(&buffer[..read]).await?;
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        }
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// The same sequence in every run of a program; which answer meets which number is the network's affair anyway.
fn one_in_so_many(many: u16) -> bool {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut z = COUNT.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)).is_multiple_of(u64::from(many.max(1)))
}
