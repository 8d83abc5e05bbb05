//! `ctl admin promote`: a running installation moves to etcd with everything it has.

use muster_common::proto::v1;

use super::Ctl;
use crate::{error::Error, exit::Exit, model::backup::Promoted};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The etcd, where nothing of Muster lies yet: etcd://HOST:PORT,…
    #[arg(long, value_name = "URL")]
    to: String,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    let moved = client.backup.promote(v1::PromoteRequest { to: args.to }).await?.into_inner();
    ctl.output.one(&Promoted::from(moved))?;
    Ok(Exit::OK)
}
