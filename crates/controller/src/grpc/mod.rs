//! The gRPC door: people on one side, agents on the other.
//!
//! Never touches state: what changes something goes to the engine, what only looks reads the view.

mod agents;
mod bulk;
mod control;
mod filter;
mod fleet;
mod follow;
mod inputs;
mod jobs;
mod layout;
mod orders;
mod people;
mod result;
mod select;
mod stats;
mod status;
mod tasks;
#[cfg(test)]
mod tests;

use std::time::Duration;

use muster_common::{
    clock::Clock,
    proto::{
        DESCRIPTORS,
        v1::{agent_link_server::AgentLinkServer, muster_server::MusterServer},
    },
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::server::HealthReporter;

use self::{agents::Agents, people::People};
use crate::{dispatch::Sessions, engine::Handle, logs::LogStore, view::View};

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
/// How long open calls may take to end when we stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How often, and how patiently, it is asked whether the engine answers.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// What the door leads to.
#[derive(Clone, Debug)]
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

/// Serves until cancelled; then lets open calls end for a short while.
///
/// # Errors
/// The server cannot run.
pub async fn serve(listener: TcpListener, parts: Parts, cancel: CancellationToken) -> Result<(), Error> {
    let tracker = TaskTracker::new();
    let (health, health_service) = tonic_health::server::health_reporter();
    tracker.spawn(report_health(health, parts.handle.clone(), cancel.clone()));
    let people = People { started: parts.clock.wall(), parts: parts.clone(), cancel: cancel.clone() };
    let agents = Agents { parts, tracker: tracker.clone(), cancel: cancel.clone() };
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(MusterServer::new(people).max_decoding_message_size(PEOPLE_MESSAGE_MAX))
        .add_service(AgentLinkServer::new(agents).max_decoding_message_size(AGENT_MESSAGE_MAX))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = router.serve_with_incoming_shutdown(incoming, cancel.clone().cancelled_owned());
    tokio::pin!(server);
    let served = tokio::select! {
        served = &mut server => Some(served),
        () = cancel.cancelled() => timeout(STOP_WITHIN, &mut server).await.ok(),
    };
    // Also where the server ended by itself: nothing may outlive it.
    cancel.cancel();
    tracker.close();
    if served.is_none() || timeout(STOP_WITHIN, tracker.wait()).await.is_err() {
        tracing::warn!("open calls did not end in time and are cut off");
    }
    Ok(served.unwrap_or(Ok(()))?)
}

/// Says that the services serve while the engine answers.
async fn report_health(health: HealthReporter, handle: Handle, cancel: CancellationToken) {
    let probe = async {
        loop {
            let answers = matches!(timeout(PROBE_WITHIN, handle.queues()).await, Ok(Ok(_)));
            set_health(&health, answers).await;
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    cancel.run_until_cancelled(probe).await;
    set_health(&health, false).await;
}

async fn set_health(health: &HealthReporter, serves: bool) {
    let status = if serves { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    for service in ["", "muster.v1.Muster", "muster.v1.AgentLink"] {
        health.set_service_status(service, status).await;
    }
}
