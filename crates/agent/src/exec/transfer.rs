//! What `exec` needs carried to and from the controller; `logs::bulk` does it over gRPC.

use std::{path::Path, time::Duration};

use futures::future::BoxFuture;
use muster_core::id::{TaskId, Token};

use super::Order;

/// A transfer that failed, in words for people.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransferError(pub String);

/// Where the results of an attempt's dependencies come from.
pub trait Inputs: Send + Sync + 'static {
    /// Writes the document for `order` to the file `to`, replacing what is there. May be tried again.
    fn fetch<'a>(&'a self, order: &'a Order, to: &'a Path) -> BoxFuture<'a, Result<(), TransferError>>;
}

/// Inputs that could not be fetched get so many tries, so far apart.
const FETCH_TRIES: u32 = 3;
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// Fetches, with some patience. Cancel safe: half a file is replaced by the next try.
pub(crate) async fn fetch_inputs(inputs: &dyn Inputs, order: &Order, to: &Path) -> Result<(), TransferError> {
    let mut tries = 1;
    loop {
        match inputs.fetch(order, to).await {
            Err(_) if tries < FETCH_TRIES => tokio::time::sleep(FETCH_PAUSE * tries).await,
            fetched => return fetched,
        }
        tries += 1;
    }
}

/// Where results go that are too large for a report.
pub trait Results: Send + Sync + 'static {
    /// Stores the file `from`, whose content was checked, as the result of `task` under the lease `token`; returns how
    /// many bytes were kept. May be tried again.
    fn put<'a>(&'a self, token: Token, task: TaskId, from: &'a Path) -> BoxFuture<'a, Result<u64, TransferError>>;
}
