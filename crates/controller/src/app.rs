//! Wires the rooms of a controller together, in one process or inside another program's.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use muster_common::clock::Clock;
use muster_core::id::{JobId, Term};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use crate::config::Config;
use crate::{
    dispatch::Sessions,
    engine::{self, Ended, Engine, Handle},
    grpc,
    logs::{self, LogStore},
    store::{Store, embedded::Embedded},
    view::View,
};

/// Batches of deleted jobs whose logs are not deleted yet. Past that, they stay until the next start.
const FORGET_ROOM: usize = 256;

/// How long open calls may take to end at a stop, and logs to be stored.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A controller at work.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// The way in to its engine, for programs that run it inside.
    pub handle: Handle,
    /// What its readers see.
    pub view: View,
    stop: Stop,
}

/// What has to end, in this order.
struct Stop {
    doors: CancellationToken,
    door_tasks: TaskTracker,
    engine: CancellationToken,
    engine_task: Option<tokio::task::JoinHandle<Ended>>,
    rest: CancellationToken,
    rest_tasks: TaskTracker,
    store: Arc<dyn Store>,
}

/// Starts a controller; returns when it listens and schedules.
///
/// # Errors
/// In words for people: what is in the way, and what to do about it.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    let clock = Clock::system();
    let listener = listen(config.listen).await?;
    let addr = listener.local_addr().context("the socket has no address")?;
    let data_dir = prepare(&config.data_dir)?;
    let store = open_store(data_dir.clone()).await?;

    let (forget, forgotten) = mpsc::channel(FORGET_ROOM);
    let (sessions, view) = (Sessions::new(forget), View::default());
    let parts = engine::Parts {
        store: Arc::clone(&store),
        sessions: sessions.clone(),
        view: view.clone(),
        clock,
        config: config.core(),
        heartbeat: config.heartbeat,
    };
    let (handle, engine) = engine::start(parts).await.context("the state in the store cannot be taken up")?;
    let logs = open_logs(&data_dir, &config, clock).await?;

    let mut stop = Stop::new(store);
    stop.run_logs(logs.clone(), forgotten, view.clone());
    stop.run_engine(engine);
    stop.run_doors(
        listener,
        grpc::Parts {
            handle: handle.clone(),
            sessions,
            view: view.clone(),
            logs,
            clock,
            store: format!("embedded store in {}", data_dir.display()),
        },
    );
    Ok(Running { addr, data_dir, handle, view, stop })
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
    pub async fn failed(&mut self) -> anyhow::Error {
        let Some(task) = &mut self.stop.engine_task else { return std::future::pending().await };
        let ended = task.await;
        self.stop.engine_task = None;
        explain_end(ended)
    }

    /// Stops cleanly: no new calls, everything decided is committed, logs are stored, the store is closed.
    pub async fn stop(self) {
        self.stop.run().await;
        tracing::info!("stopped");
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

impl Stop {
    fn new(store: Arc<dyn Store>) -> Self {
        Self {
            doors: CancellationToken::new(),
            door_tasks: TaskTracker::new(),
            engine: CancellationToken::new(),
            engine_task: None,
            rest: CancellationToken::new(),
            rest_tasks: TaskTracker::new(),
            store,
        }
    }

    fn run_logs(&self, logs: LogStore, mut forgotten: mpsc::Receiver<Vec<JobId>>, view: View) {
        self.rest_tasks.spawn(logs.clone().run(self.rest.clone()));
        let cancel = self.rest.clone();
        self.rest_tasks.spawn(async move {
            let work = async {
                let known = view.load();
                logs.keep_only(|job| known.job(job).is_some()).await;
                drop(known);
                while let Some(jobs) = forgotten.recv().await {
                    for job in jobs {
                        logs.forget(job).await;
                    }
                }
            };
            // What is left undone here is done at the next start.
            cancel.run_until_cancelled(work).await;
        });
    }

    fn run_engine(&mut self, engine: Engine) {
        self.engine_task = Some(tokio::spawn(engine.run(self.engine.clone())));
    }

    fn run_doors(&self, listener: TcpListener, parts: grpc::Parts) {
        let cancel = self.doors.clone();
        self.door_tasks.spawn(async move {
            if let Err(error) = grpc::serve(listener, parts, cancel).await {
                tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "nobody can connect any more");
            }
        });
    }

    async fn run(self) {
        self.doors.cancel();
        self.door_tasks.close();
        if timeout(STOP_WITHIN, self.door_tasks.wait()).await.is_err() {
            tracing::warn!("open calls are cut off");
        }
        self.engine.cancel();
        if let Some(task) = self.engine_task {
            match task.await {
                Ok(Ended::Stopped) => {}
                other => tracing::error!(error = format!("{:#}", explain_end(other)), "the engine did not end well"),
            }
        }
        self.rest.cancel();
        self.rest_tasks.close();
        if timeout(STOP_WITHIN, self.rest_tasks.wait()).await.is_err() {
            tracing::warn!("the last logs are left to the agents, which have them still");
        }
        self.store.close().await;
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").finish_non_exhaustive()
    }
}

async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| match error.kind() {
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

async fn open_store(folder: PathBuf) -> anyhow::Result<Arc<dyn Store>> {
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
