//! The second connection, for logs, inputs and results.

use futures::future::BoxFuture;
use muster_core::id::AgentId;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::logs;

/// The present bulk connection; none: the agent is not attached.
pub(super) type Attachment = Option<(Channel, AgentId)>;

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

impl logs::Bulk for Bulk {
    /// Waits for ever once the link has stopped; whoever waits is ended by its own limit.
    fn attached(&self) -> BoxFuture<'_, (Channel, AgentId)> {
        let mut attachment = self.attachment.clone();
        Box::pin(async move {
            loop {
                if let Some(attached) = attachment.borrow_and_update().clone() {
                    return attached;
                }
                if attachment.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }
}
