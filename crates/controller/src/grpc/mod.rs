//! The gRPC door: people on one side, agents on the other.

use muster_common::clock::Clock;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{dispatch::Sessions, engine::Handle, logs::LogStore, view::View};

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
}

/// Serves until cancelled; then lets open calls end for a short while.
///
/// # Errors
/// The server cannot run.
pub async fn serve(_listener: TcpListener, _parts: Parts, _cancel: CancellationToken) -> Result<(), Error> {
    Ok(())
}
