//! What runs while this process leads: the engine, the logs, and the services that lead to them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use muster_common::{clock::Clock, proto::v1};
use muster_core::{id::JobId, time::micros};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{bootstrap, secure};
use crate::{
    backup::Source,
    config::Config,
    dispatch::Sessions,
    engine::{self, Ended, Handle},
    grpc::{self, Door, Promotion, Services},
    identity::Own,
    logs::LogStore,
    store::{Gauge, Store},
    view::View,
};

/// Batches of deleted jobs whose logs are not deleted yet. Past that, they stay until the next start.
const FORGET_ROOM: usize = 256;

/// How long logs may take to be stored at the end.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What people are told of the installation.
pub(super) struct About {
    /// What the store is.
    pub(super) store: String,
    /// Where its own files are.
    pub(super) data_dir: PathBuf,
    /// Which controllers there are.
    pub(super) members: watch::Receiver<Vec<v1::MemberView>>,
    /// Who this controller is; none: it speaks plain text.
    pub(super) own: Option<Arc<Own>>,
    /// Where a wish to move to etcd is brought.
    pub(super) promotions: Option<mpsc::Sender<Promotion>>,
}

/// One leadership at work; a controller on a store of its own has one only.
pub(super) struct Lead {
    pub(super) handle: Handle,
    pub(super) view: View,
    services: Services,
    engine: CancellationToken,
    engine_task: Option<JoinHandle<Ended>>,
    rest: CancellationToken,
    rest_tasks: TaskTracker,
    store: Arc<dyn Store>,
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lead").finish_non_exhaustive()
    }
}

impl Lead {
    /// Takes the store up, then opens `door`.
    pub(super) async fn begin(
        door: &Door,
        store: Arc<dyn Store>,
        logs: LogStore,
        config: &Config,
        clock: Clock,
        about: About,
    ) -> anyhow::Result<Self> {
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
        let (stop, rest, rest_tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        rest_tasks.spawn(logs.clone().run(rest.clone()));
        rest_tasks.spawn(forget_logs(logs.clone(), forgotten, view.clone(), rest.clone()));
        let engine_task = Some(tokio::spawn(engine.run(stop.clone())));
        if let Some(own) = &about.own
            && let Err(error) = secure::found(own, &handle).await
        {
            stop.cancel();
            rest.cancel();
            store.close().await;
            return Err(error);
        }
        let (folder, access) = (about.data_dir.as_path(), &config.access);
        bootstrap::ensure(folder, &handle, &view, clock, access).await;
        bootstrap::warn_if_open(&view, config);
        let (gauged, name) = (Arc::clone(&store), about.store.clone());
        let name_of_copies = name.clone();
        let parts = grpc::Parts {
            handle: handle.clone(),
            sessions,
            view: view.clone(),
            logs,
            clock,
            store: about.store,
            gauge: Arc::new(move || store_view(&name, &gauged.gauge())),
            members: about.members,
            own: about.own,
            copies: Source::new(Arc::clone(&store), name_of_copies),
            promotions: about.promotions,
            enforcement: config.access.enforcement,
            loads: grpc::Loads::default(),
            twins: grpc::Twins::default(),
        };
        let services = Services::open(door, parts)?;
        Ok(Self { handle, view, services, engine: stop, engine_task, rest, rest_tasks, store })
    }

    /// Waits until it cannot go on by itself. Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<Ended, JoinError> {
        let Some(task) = &mut self.engine_task else { return std::future::pending().await };
        let ended = task.await;
        self.engine_task = None;
        ended
    }

    /// Ends cleanly and closes the store.
    pub(super) async fn end(self) {
        self.leave().await.close().await;
    }

    /// Ends cleanly: open calls end, everything decided is committed, logs are stored. The door should lead elsewhere.
    /// The store stays open.
    pub(super) async fn leave(self) -> Arc<dyn Store> {
        self.services.end().await;
        self.engine.cancel();
        if let Some(task) = self.engine_task {
            match task.await {
                Ok(Ended::Stopped) => {}
                Ok(Ended::Fenced) => tracing::warn!("another controller leads; what was not committed did not happen"),
                other => {
                    let error = format!("{:#}", super::explain_end(other));
                    tracing::error!(error, "the engine did not end well");
                }
            }
        }
        self.rest.cancel();
        self.rest_tasks.close();
        if timeout(STOP_WITHIN, self.rest_tasks.wait()).await.is_err() {
            tracing::warn!("the last logs are left to the agents, which have them still");
        }
        self.store
    }
}

/// How the store is, for people.
fn store_view(about: &str, gauge: &Gauge) -> v1::StoreView {
    v1::StoreView {
        about: about.to_owned(),
        bytes: gauge.bytes,
        limit: gauge.limit,
        latency_us: gauge.latency.map_or(0, micros),
        problems: gauge.problems.iter().cloned().chain(gauge.is_full()).collect(),
    }
}

/// Deletes what jobs wrote that are gone themselves.
async fn forget_logs(logs: LogStore, mut forgotten: mpsc::Receiver<Vec<JobId>>, view: View, cancel: CancellationToken) {
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
}
