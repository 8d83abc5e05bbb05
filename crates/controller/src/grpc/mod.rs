//! The gRPC door: people on one side, agents on the other.
//!
//! Never touches state: what changes something goes to the engine, what only looks reads the view.

mod accept;
mod access;
mod admin;
mod agents;
mod audit;
mod backup;
mod bulk;
mod control;
mod door;
mod exec;
mod filter;
mod fleet;
mod follow;
mod guard;
mod identity;
mod inputs;
mod installation;
mod jobs;
mod layout;
mod load;
mod machine;
mod orders;
pub mod peer;
mod people;
mod quiet;
mod result;
mod search;
mod select;
mod sieve;
mod stats;
mod status;
mod tasks;
#[cfg(test)]
mod tests;
mod twins;

use std::{sync::Arc, time::Duration};

use muster_common::{
    clock::Clock,
    proto::{
        DESCRIPTORS,
        v1::{
            MemberView, StoreView, access_server::AccessServer, admin_server::AdminServer,
            agent_link_server::AgentLinkServer, backup_server::BackupServer, identity_server::IdentityServer,
            muster_server::MusterServer,
        },
    },
};
use muster_core::access::Enforcement;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};
use tonic_health::server::HealthReporter;

pub use self::{
    accept::Listener,
    backup::{Promotion, Refused},
    door::{BadLeader, Door},
    load::Loads,
    twins::Twins,
};
use self::{
    access::Tokens, admin::Admins, agents::Agents, backup::Copies, door::Way, guard::Guard, identity::Machines,
    people::People,
};
use crate::{backup::Source, dispatch::Sessions, engine::Handle, identity::Own, logs::LogStore, view::View};

/// A peer that does not answer a ping for this long is gone (D4).
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// Calls at one time over one connection (D6): a person's program may share one among many followers.
const STREAMS: u32 = 256;
const HEADERS_MAX: u32 = 16 * 1024;
const RESETS_MAX: usize = 20;
/// What a sender may send before it is read. More than the default, so that logs and specs flow over long lines.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A spec of ten thousand tasks that are all written out, each with its script.
const PEOPLE_MESSAGE_MAX: usize = 64 << 20;
const AGENT_MESSAGE_MAX: usize = 4 << 20;
const SMALL_MESSAGE_MAX: usize = 64 << 10;
/// How long open calls may take to end when we stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How often, and how patiently, it is asked whether the engine answers.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// What the door leads to.
#[derive(Clone)]
pub struct Parts {
    /// The way in.
    pub handle: Handle,
    /// The way out to agents.
    pub sessions: Sessions,
    /// What readers see.
    pub view: View,
    /// What tasks wrote.
    pub logs: LogStore,
    /// The time.
    pub clock: Clock,
    /// What the store is, for people: `redb at /var/lib/muster/state.redb`.
    pub store: String,
    /// How the store is.
    pub gauge: Arc<dyn Fn() -> StoreView + Send + Sync>,
    /// Which controllers there are.
    pub members: watch::Receiver<Vec<MemberView>>,
    /// Who this controller is; none: it speaks plain text.
    pub own: Option<Arc<Own>>,
    /// What a backup is taken of.
    pub copies: Source,
    /// Where a wish to move to etcd is brought; none: it cannot.
    pub promotions: Option<mpsc::Sender<Promotion>>,
    /// When callers must say who they are.
    pub enforcement: Enforcement,
    /// How machines are.
    pub loads: Loads,
    /// Which agents have one name.
    pub twins: Twins,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Why the door is shut.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server ended.
    #[error("the gRPC server ended")]
    Server(#[from] tonic::transport::Error),
    /// The protocol's own description is damaged.
    #[error("the reflection service cannot be made")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The services of one leadership, from when it begins until it ends.
#[derive(Debug)]
pub struct Services {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Services {
    /// Opens `door` to the services over `parts`, with a guard before all of them.
    ///
    /// # Errors
    /// The protocol's own description is damaged.
    pub fn open(door: &Door, parts: Parts) -> Result<Self, Error> {
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let handle = parts.handle.clone();
        let (machines, admins) = (Machines { parts: parts.clone() }, Admins { parts: parts.clone() });
        let guard = Guard::new(handle.clone(), parts.view.clone(), parts.clock, parts.enforcement);
        guard.start(&tracker, &cancel);
        let tokens = Tokens { parts: parts.clone(), guard: guard.clone() };
        let searches = Arc::new(Semaphore::new(search::AT_ONCE));
        let calls = exec::Calls::default();
        let people = People {
            started: parts.clock.wall(),
            parts: parts.clone(),
            searches,
            calls: calls.clone(),
            tracker: tracker.clone(),
            cancel: cancel.clone(),
        };
        let copies = Copies { parts: parts.clone(), tracker: tracker.clone(), cancel: cancel.clone() };
        let agents = Agents { parts, calls, tracker: tracker.clone(), cancel: cancel.clone() };
        let routes = Routes::new(MusterServer::new(people).max_decoding_message_size(PEOPLE_MESSAGE_MAX))
            .add_service(AgentLinkServer::new(agents).max_decoding_message_size(AGENT_MESSAGE_MAX))
            .add_service(IdentityServer::new(machines).max_decoding_message_size(SMALL_MESSAGE_MAX))
            .add_service(AdminServer::new(admins).max_decoding_message_size(SMALL_MESSAGE_MAX))
            .add_service(BackupServer::new(copies))
            .add_service(AccessServer::new(tokens))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        door.lead(Way::Here(Box::new((guard, routes.prepare())), handle));
        Ok(Self { tracker, cancel })
    }

    /// Ends all that is open. The door should lead elsewhere by then.
    pub async fn end(self) {
        self.cancel.cancel();
        self.tracker.close();
        if timeout(STOP_WITHIN, self.tracker.wait()).await.is_err() {
            tracing::warn!("open calls did not end in time and are cut off");
        }
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Serves until cancelled; then lets open calls end for a short while. With `own`, all that comes in is TLS.
///
/// # Errors
/// The server cannot run.
pub async fn serve(
    listener: impl Listener,
    door: Door,
    own: Option<Arc<Own>>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let reporting = tokio::spawn(report_health(health, door.clone(), cancel.clone()));
    let always = Routes::new(health_service);
    let routes = Routes::from(always.into_axum_router().fallback_service(door)).prepare();
    let router = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes);
    let incoming = accept::incoming(listener, own, cancel.clone());
    let server = router.serve_with_incoming_shutdown(incoming, cancel.clone().cancelled_owned());
    tokio::pin!(server);
    let served = tokio::select! {
        served = &mut server => Some(served),
        () = cancel.cancelled() => timeout(STOP_WITHIN, &mut server).await.ok(),
    };
    // Also where the server ended by itself: nothing may outlive it.
    cancel.cancel();
    if served.is_none() {
        tracing::warn!("open calls did not end in time and are cut off");
    }
    if reporting.await.is_err() {
        tracing::error!("the health report died");
    }
    Ok(served.unwrap_or(Ok(()))?)
}

/// Says that the services serve while the engine answers, or while there is a leader to forward to.
async fn report_health(health: HealthReporter, door: Door, cancel: CancellationToken) {
    let mut changes = door.changes();
    let probe = async {
        loop {
            let serves = match &*door.way() {
                Way::Here(_, handle) => matches!(timeout(PROBE_WITHIN, handle.queues()).await, Ok(Ok(_))),
                Way::There(..) => true,
                Way::Closed(_) | Way::Soon(_) => false,
            };
            set_health(&health, serves).await;
            // Nothing new within the time is as good as news.
            let _news = timeout(PROBE_EVERY, changes.changed()).await;
        }
    };
    cancel.run_until_cancelled(probe).await;
    set_health(&health, false).await;
}

async fn set_health(health: &HealthReporter, serves: bool) {
    let status = if serves { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    for service in ["", "muster.v1.Muster", "muster.v1.AgentLink", "muster.v1.Backup"] {
        health.set_service_status(service, status).await;
    }
}
