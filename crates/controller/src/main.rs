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
use muster_controller::app::{self, Config};

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
    let mut running = app::start(configuration(flags)?).await?;
    announce(&running).context("cannot say where it listens: standard output is closed")?;
    let failed = tokio::select! {
        asked = shutdown::signal() => {
            tracing::info!(asked, "stopping");
            None
        }
        error = running.failed() => Some(error),
    };
    // A person who asks twice does not want to wait.
    tokio::select! {
        () = running.stop() => {}
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
    Ok(config)
}

fn announce(running: &app::Running) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "muster-controller listens on http://{}, data in {}", running.addr, running.data_dir.display())?;
    out.flush()
}
