//! `ctl admin promote`: a running installation moves to etcd with everything it has.

use muster_common::proto::v1::{self, backup_client::BackupClient};

use super::Ctl;
use crate::{error::Error, exit::Exit, model::backup::Promoted};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The etcd, where nothing of Muster lies yet: etcd://HOST:PORT,…
    #[arg(long, value_name = "URL")]
    to: String,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    let moved = BackupClient::new(client.channel).promote(v1::PromoteRequest { to: args.to }).await?.into_inner();
    ctl.output.one(&Promoted::from(moved))?;
    Ok(Exit::OK)
}
