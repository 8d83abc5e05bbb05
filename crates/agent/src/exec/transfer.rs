//! What `exec` needs carried to and from the controller; `logs::bulk` does it over gRPC.

use std::path::Path;

use futures::future::BoxFuture;

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

/// Where results go that are too large for a report.
pub trait Results: Send + Sync + 'static {
    /// Stores the file `from`, whose content was checked; returns how many bytes were kept. May be
    /// tried again.
    fn put<'a>(&'a self, order: &'a Order, from: &'a Path) -> BoxFuture<'a, Result<u64, TransferError>>;
}
