//! Keeps what tasks write until the controller has it.

use std::path::PathBuf;

use futures::future::BoxFuture;
use muster_common::proto::v1;
use muster_core::id::AgentId;
use tokio::sync::mpsc;

/// How much output this machine keeps.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's folder; `spool/` in it is ours.
    pub data_dir: PathBuf,
    /// Bytes of one attempt, where its spec says nothing.
    pub attempt_limit: u64,
    /// Bytes of all attempts together that the controller does not have yet.
    pub total_limit: u64,
}

/// All spools of this agent; cheap to clone.
#[derive(Clone)]
pub struct Spools;

impl Spools {
    /// Opens the folder; what an earlier agent left there will be shipped.
    pub fn open(_config: Config) -> Result<Self, std::io::Error> {
        Ok(Self)
    }

    /// Ships until cancelled.
    pub async fn ship(self, _uplink: impl Uplink, _stop: tokio_util::sync::CancellationToken) {}
}

/// The connection for bulk, made by `link`.
pub trait Bulk: Send + Sync + 'static {
    /// Waits until the agent is attached; then the channel and the agent's number.
    fn attached(&self) -> BoxFuture<'_, (tonic::transport::Channel, AgentId)>;
}

/// Both ends of one log stream.
pub struct Wire {
    /// To the controller.
    pub up: mpsc::Sender<v1::LogUp>,
    /// From it; ends when the stream is broken.
    pub down: mpsc::Receiver<v1::LogDown>,
}

/// Where log streams come from.
pub trait Uplink: Send + Sync + 'static {
    /// Opens a new stream; waits for a connection.
    fn open(&self) -> BoxFuture<'_, Result<Wire, String>>;
}
