//! Wires the rooms of a controller together, in one process or inside another program's.

pub mod bootstrap;
#[cfg(feature = "etcd")]
pub mod cluster;
#[cfg(feature = "etcd")]
mod elect;
mod lead;
#[cfg(feature = "etcd")]
pub mod promote;
pub mod restore;
mod secure;
#[cfg(feature = "etcd")]
pub mod standing;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, anyhow, bail};
use futures::future::BoxFuture;
use muster_common::{clock::Clock, proto::v1};
use muster_core::id::Term;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::lead::{About, Lead};
pub use crate::config::Config;
use crate::{
    engine::{Ended, Handle},
    grpc::{self, Door, Listener, Promotion},
    identity::Own,
    logs::{self, LogStore},
    store::{Store, embedded::Embedded},
    view::View,
};

/// A controller of one machine at work, on a store of its own.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it speaks there: `http` or `https`.
    pub scheme: &'static str,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// The way in to its engine, for programs that run it inside.
    pub handle: Handle,
    /// What its readers see.
    pub view: View,
    /// What it needs to lead again. Read where it may move.
    #[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "a build without etcd moves nowhere"))]
    ready: Ready,
    doors: Doors,
    lead: Lead,
}

/// Starts a controller; returns when it listens and schedules. A future in a box: an `async fn` would be compiled once
/// more, with all that it holds, by each program that calls it.
///
/// # Errors
/// In words for people: what is in the way, and what to do about it.
pub fn start(config: Config) -> BoxFuture<'static, anyhow::Result<Running>> {
    Box::pin(begin(config, None))
}

/// Runs a controller on a store and behind a listener of the caller's, in plain text, until `stop`: for simulations.
///
/// # Errors
/// The store cannot be taken up, or it cannot go on.
pub async fn run_on(
    (store, logs): (Arc<dyn Store>, LogStore),
    listener: impl Listener,
    config: &Config,
    clock: Clock,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let door = Door::closed("the controller is starting");
    let about = About {
        store: "a store of the caller's".to_owned(),
        members: watch::channel(Vec::new()).1,
        own: None,
        promotions: None,
        data_dir: PathBuf::new(),
    };
    let mut lead = Lead::begin(&door, store, logs, config, clock, about).await?;
    let doors = Doors::open(listener, door, None);
    let ended = tokio::select! {
        ended = lead.ended() => Err(explain_end(ended)),
        () = stop.cancelled() => Ok(()),
    };
    doors.door.close("the controller is stopping");
    lead.end().await;
    doors.shut().await;
    ended
}

/// `promotions`: where a wish to move to etcd is brought; none: it cannot.
async fn begin(config: Config, promotions: Option<mpsc::Sender<Promotion>>) -> anyhow::Result<Running> {
    let clock = Clock::system();
    secure::check(&config)?;
    let listener = listen(config.listen)?;
    let addr = listener.local_addr().context("the socket has no address")?;
    let data_dir = prepare(&config.data_dir)?;
    let scheme = secure::scheme(&config);
    let address = config.cluster.advertise.clone().unwrap_or_else(|| format!("{scheme}://{addr}"));
    let name = config.cluster.name.as_deref().unwrap_or("this");
    let identity = secure::own(&config, name, &address, addr, clock)?;
    let store = open_store(data_dir.clone()).await?;
    #[cfg(feature = "etcd")]
    if let Some(mark) = store.moved().await?.filter(|mark| !mark.done) {
        promote::resolve(&store, &mark, &config, clock).await?;
    }
    let door = Door::closed("the controller is starting").showing(identity.clone());
    let ready = Ready { addr, address, data_dir, config, clock, store, promotions, identity };
    let lead = ready.lead(&door).await?;
    if let Some(identity) = &ready.identity {
        secure::publish(identity, &ready.data_dir)?;
    }
    let doors = Doors::open(listener, door, ready.identity.clone());
    Ok(ready.running(doors, lead))
}

/// All that a controller on its own store needs to lead.
#[derive(Debug)]
struct Ready {
    addr: SocketAddr,
    /// Where others reach it.
    address: String,
    data_dir: PathBuf,
    config: Config,
    clock: Clock,
    store: Arc<Embedded>,
    promotions: Option<mpsc::Sender<Promotion>>,
    /// Who it is; none: it speaks plain text.
    identity: Option<Arc<Own>>,
}

impl Ready {
    async fn lead(&self, door: &Door) -> anyhow::Result<Lead> {
        let logs = open_logs(&self.data_dir, &self.config, self.clock).await?;
        let member = v1::MemberView {
            name: "this".to_owned(),
            address: self.address.clone(),
            leads: true,
            since_us: self.clock.wall().0,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let about = About {
            store: embedded_in(&self.data_dir),
            data_dir: self.data_dir.clone(),
            members: watch::channel(vec![member]).1,
            own: self.identity.clone(),
            promotions: self.promotions.clone(),
        };
        let store: Arc<dyn Store> = self.store.clone();
        Lead::begin(door, store, logs, &self.config, self.clock, about).await
    }

    fn running(self, doors: Doors, lead: Lead) -> Running {
        let (handle, view) = (lead.handle.clone(), lead.view.clone());
        Running {
            addr: self.addr,
            scheme: secure::scheme(&self.config),
            data_dir: self.data_dir.clone(),
            handle,
            view,
            ready: self,
            doors,
            lead,
        }
    }
}

/// What the store is called.
fn embedded_in(folder: &Path) -> String {
    format!("embedded store in {}", folder.display())
}

impl Running {
    /// The term under which it decides.
    pub fn term(&self) -> Term {
        self.handle.term()
    }

    /// Waits until it cannot go on by itself. Cancel safe.
    ///
    /// # Errors
    /// Why.
    pub fn failed(&mut self) -> BoxFuture<'_, anyhow::Error> {
        Box::pin(async { explain_end(self.lead.ended().await) })
    }

    /// Stops cleanly: no new calls, everything decided is committed, logs are stored, the store is closed.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(async {
            self.doors.door.close("the controller is stopping");
            self.lead.end().await;
            self.doors.shut().await;
            tracing::info!("stopped");
        })
    }
}

/// The listener and its server.
#[derive(Debug)]
struct Doors {
    door: Door,
    cancel: CancellationToken,
    server: JoinHandle<()>,
}

impl Doors {
    fn open(listener: impl Listener, door: Door, own: Option<Arc<Own>>) -> Self {
        let cancel = CancellationToken::new();
        if let Some(own) = &own {
            tokio::spawn(Arc::clone(own).keep(cancel.clone()));
        }
        let serving = grpc::serve(listener, door.clone(), own, cancel.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "nobody can connect any more");
            }
        });
        Self { door, cancel, server }
    }

    async fn shut(self) {
        self.cancel.cancel();
        if self.server.await.is_err() {
            tracing::error!("the server died");
        }
    }
}

/// Why a task that goes on until it is told to stop has ended. Cancel safe.
#[cfg(feature = "etcd")]
async fn ended(task: &mut JoinHandle<anyhow::Result<()>>) -> anyhow::Error {
    match task.await {
        Ok(Ok(())) => anyhow!("it has stopped"),
        Ok(Err(error)) => error,
        Err(error) => anyhow::Error::new(error).context("it died; this is a bug: please report it"),
    }
}

fn explain_end(ended: Result<Ended, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ended::Stopped) => anyhow!("the engine has stopped"),
        Ok(Ended::Fenced) => anyhow!("another controller has taken over the store; this one may decide no more"),
        Ok(Ended::Broken(error)) => anyhow::Error::new(error).context("the store failed and cannot be loaded again"),
        Err(error) => anyhow::Error::new(error).context("the engine died; this is a bug: please report it"),
    }
}

/// Connections that wait to be taken: all agents of a controller that died knock within a second, and one that finds no
/// room here knocks again after one, three and seven seconds.
const BACKLOG: u32 = 16_384;

fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // As the library's own `bind` does: a controller that starts again finds its port free.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "{addr} is in use by another program, perhaps another controller; stop it, or choose another address with --listen"
        ),
        std::io::ErrorKind::PermissionDenied => {
            anyhow!("{addr} may not be used by this user; choose a port above 1023 with --listen")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow!("{addr} is not an address of this machine; choose another with --listen")
        }
        _ => anyhow::Error::new(error).context(format!("cannot listen on {addr}")),
    })
}

fn prepare(folder: &Path) -> anyhow::Result<PathBuf> {
    let hint = || format!("cannot use {} for data; make it writable, or choose another with --data", folder.display());
    if folder.is_file() {
        bail!("{} is a file; --data takes a folder", folder.display());
    }
    fs::create_dir_all(folder).with_context(hint)?;
    fs::canonicalize(folder).with_context(hint)
}

async fn open_store(folder: PathBuf) -> anyhow::Result<Arc<Embedded>> {
    let store = tokio::task::spawn_blocking(move || Embedded::open(&folder)).await??;
    Ok(Arc::new(store))
}

async fn open_logs(data_dir: &Path, config: &Config, clock: Clock) -> anyhow::Result<LogStore> {
    let folder = data_dir.join("objects");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let buffer_bytes = usize::try_from(config.log_buffer).unwrap_or(usize::MAX);
    let config = logs::Config { quota_bytes: config.log_quota, buffer_bytes, ..logs::Config::default() };
    let objects = logs::local_objects(&folder)?;
    LogStore::open(objects, config, clock).await.context("the stored logs cannot be found")
}
