//! `muster-controller`: the daemon that decides.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, builder::FalseyValueParser};
use muster_common::{
    precedence,
    service::Service,
    shutdown::{Asked, Requests},
    telemetry,
};
use muster_controller::app::{
    Config, cluster,
    promote::Installation,
    standing::{self, Standing},
};
use muster_core::access::Enforcement;
use tokio::sync::watch;

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
    /// Where other controllers reach this one: https://HOST:PORT [default: where it listens]
    #[arg(long, value_name = "URL", env = "MUSTER_ADVERTISE")]
    advertise: Option<String>,
    /// Secure every connection; Muster makes its own certificates, or takes an authority from [tls] in the file
    #[arg(long, env = "MUSTER_TLS", value_parser = FalseyValueParser::new(), conflicts_with = "insecure")]
    tls: bool,
    /// Speak plain text to other machines, too: everybody on the network may read and do everything
    #[arg(long, env = "MUSTER_INSECURE", value_parser = FalseyValueParser::new())]
    insecure: bool,
    /// Ask every caller for an access token from the start; otherwise from when the first one exists
    #[arg(long)]
    require_token: bool,
    /// Make a new admin's token, in the file admin.token of --data: for who has lost the others
    #[arg(long)]
    new_admin_token: bool,
    /// A TOML file with everything that may be set; flags win over it
    #[arg(long, value_name = "FILE", env = "MUSTER_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    small_pages();
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Memory in small pages. Each connection has tens of kilobytes of room that it hardly uses, and huge pages make all of it
/// real: ten thousand agents took 600 MB with them and 427 MB without, and nothing was slower (measured).
fn small_pages() {
    #[cfg(target_os = "linux")]
    // Where the kernel cannot, it takes more memory.
    let _as_before = nix::sys::prctl::set_thp_disable(true);
}

#[tokio::main]
async fn run(flags: Flags) -> anyhow::Result<()> {
    #[cfg(muster_mutants)]
    muster_common::mutant::from_env().map_err(anyhow::Error::msg)?;
    let telemetry = telemetry::init(telemetry::Options::daemon("muster-controller"))?;
    let worked = serve(flags).await;
    telemetry.shutdown().await;
    worked
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let config = configuration(flags)?;
    let service = Service::from_environment();
    raise_files();
    precedence::take();
    let closed = "cannot say where it listens: standard output is closed";
    if config.cluster.store.is_some() {
        let mut member = cluster::start(config).await?;
        announce(member.scheme, member.addr, &member.store).context(closed)?;
        let mut requests = Requests::listen(false);
        let failed = until_asked(&service, &mut requests, member.standing(), member.failed()).await;
        return finish(failed, requests, member.stop()).await;
    }
    let start = Box::pin(Installation::start(config));
    let mut running = service.starting("takes up its store", start).await?;
    announce(running.scheme, running.addr, &running.data_dir.display().to_string()).context(closed)?;
    let mut requests = Requests::listen(false);
    let failed = until_asked(&service, &mut requests, running.standing(), running.failed()).await;
    finish(failed, requests, running.stop()).await
}

/// Each agent holds two connections, and shells mostly allow a thousand files.
fn raise_files() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
        let raised = getrlimit(RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(RLIMIT_NOFILE, most, most));
        if let Err(error) = raised {
            tracing::warn!(%error, "the limit on open files stays as it is");
        }
    }
}

/// Until somebody asks it to stop, or it fails by itself: why. Meanwhile the service manager is told how it goes.
async fn until_asked(
    service: &Service,
    requests: &mut Requests,
    standing: watch::Receiver<Standing>,
    failed: impl Future<Output = anyhow::Error>,
) -> Option<anyhow::Error> {
    let failed = tokio::select! {
        asked = requests.next() => {
            // Without `rereads` nothing else is asked for.
            if let Asked::End(asked) = asked {
                tracing::info!(asked, "stopping");
            }
            None
        }
        error = failed => Some(error),
        () = standing::tell(service, standing) => None,
    };
    service.stopping("commits what was decided and ends");
    failed
}

async fn finish(
    failed: Option<anyhow::Error>,
    mut requests: Requests,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    // A person who asks twice does not want to wait.
    tokio::select! {
        () = stop => {}
        _ = requests.next() => tracing::warn!("asked twice: ending at once"),
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
    if flags.tls {
        config.tls.get_or_insert_default();
    }
    config.insecure |= flags.insecure;
    config.cluster.advertise = flags.advertise.or(config.cluster.advertise);
    if flags.require_token {
        config.access.enforcement = Enforcement::Always;
    }
    config.access.new_admin_token = flags.new_admin_token;
    Ok(config)
}

fn announce(scheme: &str, addr: SocketAddr, store: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "muster-controller listens on {scheme}://{addr}, data in {store}")?;
    out.flush()
}
