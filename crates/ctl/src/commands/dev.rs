//! `ctl dev`: a whole Muster in this process, until Ctrl-C.

use std::{net::SocketAddr, path::PathBuf};

use muster_agent::containers::Choice;
use muster_common::{DEFAULT_PORT, shutdown};

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    output::{self, style::Look},
    remote::find,
    system::{self, System},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keep all work in this folder, across restarts; otherwise it goes with this process
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to listen; port 0 takes any that is free
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)))]
    listen: SocketAddr,
    #[command(flatten)]
    offer: system::OfferArgs,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let kept = args.data.clone();
    let options = system::Options {
        data: args.data,
        listen: args.listen,
        offer: args.offer,
        insecure: ctl.insecure,
        containers: Choice::Auto,
    };
    let mut system = tokio::select! {
        system = System::start(options) => system?,
        _ = shutdown::signal() => return Ok(Exit::INTERRUPTED),
    };
    output::raw(greeting(ctl, &system, kept).as_bytes())?;
    tokio::select! {
        error = system.failed() => return Err(error),
        _ = shutdown::signal() => {}
    }
    ctl.output.note(Look::Warn, "\nstopping; Ctrl-C again stops at once");
    tokio::select! {
        folder = system.stop() => ctl.leave_behind(folder),
        _ = shutdown::signal() => return Ok(Exit::INTERRUPTED),
    }
    Ok(Exit::OK)
}

fn greeting(ctl: &Ctl, system: &System, kept: Option<PathBuf>) -> String {
    let url = system.url();
    let folder = kept.map_or_else(
        || format!("{} (temporary; --data DIR keeps it)", system.folder().display()),
        |dir| dir.display().to_string(),
    );
    let paint = |text: &str| ctl.output.style.paint(Look::Head, text);
    let point = if url == format!("http://127.0.0.1:{DEFAULT_PORT}") {
        "ctl on this machine finds it by itself".to_owned()
    } else if cfg!(windows) {
        format!("set {}={url}", find::VARIABLE)
    } else {
        format!("export {}={url}", find::VARIABLE)
    };
    format!(
        "{}    {url}\n{}      {folder}\n{}       {point}\n{}       Ctrl-C\n",
        paint("listens"),
        paint("keeps"),
        paint("use"),
        paint("stop")
    )
}
