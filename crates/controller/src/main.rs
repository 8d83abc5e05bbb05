//! `muster-controller`: the daemon that decides.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use muster_common::{shutdown, telemetry};
use muster_controller::app::{self, Config, cluster};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Owns the state of all work, decides what runs where, and streams it to agents.
#[derive(Debug, Parser)]
#[command(name = "muster-controller", version)]
struct Flags {
    /// Where agents and ctl connect [default: 127.0.0.1:7717]
    #[arg(long, value_name = "ADDRESS:PORT", env = "MUSTER_LISTEN")]
    listen: Option<SocketAddr>,
    /// The folder for all state, logs and results [default: muster-data]
    #[arg(long, value_name = "FOLDER", env = "MUSTER_DATA")]
    data: Option<PathBuf>,
    /// A store that several controllers share: etcd://HOST:PORT,… [default: one of its own in --data]
    #[arg(long, value_name = "URL", env = "MUSTER_STORE")]
    store: Option<String>,
    /// Where other controllers reach this one: http://HOST:PORT [default: where it listens]
    #[arg(long, value_name = "URL", env = "MUSTER_ADVERTISE")]
    advertise: Option<String>,
    /// A TOML file with everything that may be set; flags win over it
    #[arg(long, value_name = "FILE", env = "MUSTER_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(flags: Flags) -> anyhow::Result<()> {
    let telemetry = telemetry::init(telemetry::Options::daemon("muster-controller"))?;
    let worked = serve(flags).await;
    telemetry.shutdown().await;
    worked
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let config = configuration(flags)?;
    let closed = "cannot say where it listens: standard output is closed";
    if config.cluster.store.is_some() {
        let mut member = cluster::start(config).await?;
        announce(member.addr, &member.store).context(closed)?;
        let failed = until_asked(member.failed()).await;
        return finish(failed, member.stop()).await;
    }
    let mut running = app::start(config).await?;
    announce(running.addr, &running.data_dir.display().to_string()).context(closed)?;
    let failed = until_asked(running.failed()).await;
    finish(failed, running.stop()).await
}

/// Until somebody asks it to stop, or it fails by itself: why.
async fn until_asked(failed: impl Future<Output = anyhow::Error>) -> Option<anyhow::Error> {
    tokio::select! {
        asked = shutdown::signal() => {
            tracing::info!(asked, "stopping");
            None
        }
        error = failed => Some(error),
    }
}

async fn finish(failed: Option<anyhow::Error>, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // A person who asks twice does not want to wait.
    tokio::select! {
        () = stop => {}
        _ = shutdown::signal() => tracing::warn!("asked twice: ending at once"),
    }
    failed.map_or(Ok(()), Err)
}

fn configuration(flags: Flags) -> anyhow::Result<Config> {
    let mut config = match &flags.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.listen = flags.listen.unwrap_or(config.listen);
    config.data_dir = flags.data.unwrap_or(config.data_dir);
    config.cluster.store = flags.store.or(config.cluster.store);
    config.cluster.advertise = flags.advertise.or(config.cluster.advertise);
    Ok(config)
}

fn announce(addr: SocketAddr, store: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "muster-controller listens on http://{addr}, data in {store}")?;
    out.flush()
}
