//! The second connection, for logs, inputs and results, and those of commands that people run.

use std::sync::Arc;

use futures::future::BoxFuture;
use muster_core::id::AgentId;
use rustls::ClientConfig;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::Address;
use crate::logs;

/// Where the agent is attached, and the present bulk connection; none: it is not attached.
pub(super) type Attachment = Option<Attached>;

/// See [`Attachment`].
#[derive(Clone, Debug)]
pub(super) struct Attached {
    address: Arc<Address>,
    tls: Option<Arc<ClientConfig>>,
    channel: Channel,
    agent: AgentId,
}

impl Attached {
    /// Taken in as `agent` by the controller at `address`. Needs a runtime.
    pub(super) fn to(address: Arc<Address>, tls: Option<Arc<ClientConfig>>, agent: AgentId) -> Self {
        let channel = address.bulk(tls.as_ref());
        Self { address, tls, channel, agent }
    }
}

/// Gives out the connection to the controller that the agent is attached to; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bulk {
    attachment: watch::Receiver<Attachment>,
}

impl Bulk {
    pub(super) fn new(attachment: watch::Receiver<Attachment>) -> Self {
        Self { attachment }
    }
}

impl Bulk {
    /// Waits for ever once the link has stopped; whoever waits is ended by its own limit.
    async fn wait(&self) -> Attached {
        let mut attachment = self.attachment.clone();
        loop {
            if let Some(attached) = attachment.borrow_and_update().clone() {
                return attached;
            }
            if attachment.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl logs::Bulk for Bulk {
    fn attached(&self) -> BoxFuture<'_, (Channel, AgentId)> {
        Box::pin(async {
            let Attached { channel, agent, .. } = self.wait().await;
            (channel, agent)
        })
    }

    fn apart(&self) -> BoxFuture<'_, (Channel, AgentId)> {
        Box::pin(async {
            let Attached { address, tls, agent, .. } = self.wait().await;
            (address.bulk(tls.as_ref()), agent)
        })
    }
}
