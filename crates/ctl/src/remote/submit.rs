//! Handing a job to the controller, once, whatever the network does.

use muster_common::{proto::v1, telemetry};
use tracing::Instrument as _;

use super::{Client, by};
use crate::{error::Error, model::change::Submitted};

/// Submits `spec` under `key`; without one, under a key of its own, so that a repeated send makes no second job.
pub(crate) async fn submit(client: &Client, spec: v1::JobSpec, key: Option<&str>) -> Result<Submitted, Error> {
    let span = tracing::info_span!("submit", job.name = %spec.name);
    let call = async {
        let request = v1::SubmitRequest {
            key: key.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned),
            spec: Some(spec),
            by: by(),
            trace_parent: telemetry::trace_parent_or_new(),
        };
        let mut rpc = client.rpc.clone();
        match rpc.submit(request.clone()).await.map_err(Error::from) {
            // The answer may have been lost on the way: the key makes asking again safe.
            Err(error) if error.is_unreachable() => Ok(rpc.submit(request).await?),
            other => other,
        }
    };
    let reply = call.instrument(span).await?.into_inner();
    Ok(Submitted { job: reply.job, duplicate: reply.duplicate, warnings: reply.warnings, ended: None })
}
