//! `ctl version`: of this program, and of the controller if one answers.

use muster_common::proto::{self, v1};

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::change::{Controller, Version, mismatch},
    output::style::Look,
};

/// No arguments of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(ctl: &Ctl, _args: Args) -> Result<Exit, Error> {
    let controller = match controller(ctl).await {
        Ok(controller) => Some(controller),
        Err(error) if error.is_unreachable() && ctl.named()?.is_none() => None,
        // A controller that was named should answer; the version of ctl is still told.
        Err(error) if error.is_unreachable() => {
            ctl.output.note(Look::Warn, &format!("warning: {error}"));
            None
        }
        Err(error) => return Err(error),
    };
    ctl.output.one(&Version { version: env!("CARGO_PKG_VERSION"), protocol: proto::PROTOCOL, controller })?;
    Ok(Exit::OK)
}

async fn controller(ctl: &Ctl) -> Result<Controller, Error> {
    let mut client = ctl.client().await?;
    let info = client.rpc.info(v1::InfoRequest {}).await?.into_inner();
    if let Some(problem) = mismatch(&info) {
        ctl.output.note(Look::Warn, &format!("warning: {problem}"));
    }
    Ok(Controller::of(client.place.url, info))
}
