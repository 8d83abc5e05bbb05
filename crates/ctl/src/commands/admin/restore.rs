//! `ctl admin restore`: a backup becomes an installation, in an empty folder or an empty etcd.

use std::path::PathBuf;

use muster_controller::{app, backup, config::Config};

use super::{Ctl, blocking, told};
use crate::{error::Error, exit::Exit, model::backup::Restored};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The folder that becomes the controller's; logs go there too
    #[arg(long, value_name = "FOLDER", required_unless_present_any = ["store", "config"])]
    data: Option<PathBuf>,
    /// The etcd that takes the records, where several controllers share them: etcd://HOST:PORT,…
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The controller's file: `data`, `store`, and how to get into etcd
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Put an older store in the folder aside; it is kept there
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let clock = ctl.output.clock();
    let mut config = match &args.config {
        Some(path) => Config::read(path).map_err(|error| Error::new(Exit::USAGE, error.to_string()))?,
        None => Config::default(),
    };
    let names_data = args.data.is_some() || args.config.is_some();
    config.data_dir = args.data.unwrap_or(config.data_dir);
    config.cluster.store = args.store.or(config.cluster.store);
    let place = config.cluster.store.clone();
    let restored = if place.is_some() {
        if args.force {
            return Err(Error::new(Exit::USAGE, "nothing in etcd is put aside; --force is for folders")
                .next("restore into an empty place: the same etcd with a path after it, etcd://HOST:PORT/PATH"));
        }
        Box::pin(app::restore::into_etcd(&args.file, &config, names_data, clock)).await.map_err(told)?
    } else {
        let (file, folder) = (args.file.clone(), config.data_dir.clone());
        blocking(move || backup::into_folder(&file, &folder, args.force, clock)).await?
    };
    let place = place.unwrap_or_else(|| config.data_dir.display().to_string());
    ctl.output.one(&Restored::of(place, &restored))?;
    Ok(Exit::OK)
}
