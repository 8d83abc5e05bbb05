//! A whole Muster in this process: a controller and an agent that speak gRPC to one another over the loopback.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_agent::{containers::Choice, exec::guard};
use muster_core::access::Enforcement;
use tempfile::TempDir;

use crate::{
    error::Error,
    exit::Exit,
    remote::{
        Client,
        credential::Credential,
        find::{Place, Source},
    },
};

/// The agent's connection is looked for this often, and for this long.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// What the system is made with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Kept; none: a temporary folder that goes with the system.
    pub(crate) data: Option<PathBuf>,
    pub(crate) listen: SocketAddr,
    pub(crate) offer: OfferArgs,
    /// Plain text is spoken to other machines, too.
    pub(crate) insecure: bool,
    /// What runs containers. To look for an engine takes longer than a small job does.
    pub(crate) containers: Choice,
}

impl Default for Options {
    /// Temporary, on a port that is free, with everything this machine has.
    fn default() -> Self {
        Self {
            data: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            offer: OfferArgs::default(),
            insecure: false,
            containers: Choice::Off,
        }
    }
}

/// What the agent offers, where that is not what the machine has.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OfferArgs {
    /// Processors to offer, like 4 or 0.5; otherwise those of this machine
    #[arg(long, value_name = "N", value_parser = muster_agent::config::cpus)]
    cpus: Option<u64>,
    /// Memory to offer, like 4GiB; otherwise that of this machine
    #[arg(long, value_name = "SIZE", value_parser = muster_agent::config::bytes)]
    memory: Option<u64>,
    /// GPUs to offer
    #[arg(long, value_name = "N")]
    gpus: Option<u64>,
}

/// The running two and their folder.
#[derive(Debug)]
pub(crate) struct System {
    controller: muster_controller::app::Running,
    agent: muster_agent::app::Running,
    folder: Folder,
}

/// Where everything is kept. Dropping it removes a temporary one.
#[derive(Debug)]
pub(crate) enum Folder {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

impl Folder {
    fn new(data: Option<PathBuf>) -> Result<Self, Error> {
        let fault = |what: &Path, error| {
            Error::new(Exit::FAULT, format!("cannot make the folder {}: {error}", what.display()))
                .next("name another with --data, or set TMPDIR for temporary ones")
        };
        match data {
            Some(path) => match fs::create_dir_all(&path) {
                Ok(()) => Ok(Self::Kept(path)),
                Err(error) => Err(fault(&path, error)),
            },
            None => match tempfile::Builder::new().prefix("muster-").tempdir() {
                Ok(dir) => Ok(Self::Temporary(dir)),
                Err(error) => Err(fault(&std::env::temp_dir(), error)),
            },
        }
    }
}

impl System {
    /// Starts both; returns when the controller listens. The agent connects in its own time.
    pub(crate) async fn start(options: Options) -> Result<Self, Error> {
        let folder = Folder::new(options.data)?;
        let config = muster_controller::app::Config {
            data_dir: folder.path().join("controller"),
            listen: options.listen,
            insecure: options.insecure,
            // One person's own, in their own process.
            access: muster_controller::config::Access { enforcement: Enforcement::Never, ..Default::default() },
            ..Default::default()
        };
        let controller = muster_controller::app::start(config).await.map_err(|error| fault("controller", &error))?;
        let mut config = agent_config(&folder, controller.addr, options.offer)?;
        config.insecure = options.insecure;
        config.containers.engine = options.containers;
        match muster_agent::app::start(config).await {
            Ok(agent) => Ok(Self { controller, agent, folder }.attached().await),
            Err(error) => {
                controller.stop().await;
                Err(fault("agent", &error))
            }
        }
    }

    /// Waits for the agent's connection, so that the first job finds it. One that takes long is not waited for:
    /// the work waits then, and says so.
    async fn attached(self) -> Self {
        let is_attached = async {
            while let Ok(agents) = self.controller.handle.agents().await {
                if agents.iter().any(|agent| agent.session.is_some()) {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // What is late is told with the submission.
        let _late = tokio::time::timeout(ATTACH_LIMIT, is_attached).await;
        self
    }

    /// Where its controller listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", reachable(self.controller.addr))
    }

    /// Where it keeps everything.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection to its controller.
    pub(crate) async fn client(&self) -> Result<Client, Error> {
        let place = Place { url: self.url(), source: Source::Inside, ca: None, insecure: true };
        Client::connect(place, Credential::default()).await
    }

    /// Waits until one of the two cannot go on. Cancel safe.
    pub(crate) async fn failed(&mut self) -> Error {
        tokio::select! {
            error = self.controller.failed() => fault("controller", &error),
            () = self.agent.finished() => Error::new(Exit::FAULT, "the agent ended by itself; the log above says why"),
        }
    }

    /// Ends all work cleanly, then both. The folder is what is left.
    pub(crate) async fn stop(self) -> Folder {
        self.agent.stop().await;
        self.controller.stop().await;
        self.folder
    }

    /// Ends both when all work is over: a temporary folder needs no order in which it is left.
    pub(crate) async fn leave(self) -> Folder {
        match self.folder {
            Folder::Kept(_) => self.stop().await,
            Folder::Temporary(_) => self.abandon(),
        }
    }

    /// Leaves at once; the guard kills what still runs when this process is gone. The folder is still written to
    /// until the threads of this process have ended.
    pub(crate) fn abandon(self) -> Folder {
        self.folder
    }
}

fn agent_config(folder: &Folder, controller: SocketAddr, offer: OfferArgs) -> Result<muster_agent::app::Config, Error> {
    let exe = std::env::current_exe()
        .map_err(|error| Error::new(Exit::FAULT, format!("cannot tell where this program is: {error}")))?;
    let machine = muster_agent::host::Overrides {
        cpu_milli: offer.cpus,
        memory: offer.memory,
        gpus: offer.gpus,
        ..Default::default()
    };
    Ok(muster_agent::app::Config {
        data_dir: folder.path().join("agent"),
        // Wherever the folder is brought, the controller of this agent is in it, too.
        adopt_data: true,
        controllers: vec![format!("http://{}", reachable(controller))],
        machine,
        guard: Some(guard::Program { exe, args: vec![crate::GUARD.into()] }),
        ..Default::default()
    })
}

/// A socket on every address is reached on this machine's own.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr
}

fn fault(who: &str, error: &anyhow::Error) -> Error {
    Error::new(Exit::FAULT, format!("the {who} cannot run here: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_on_every_address_is_reached_on_the_loopback() {
        for (from, to) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")] {
            assert_eq!(reachable(from.parse().unwrap()), to.parse().unwrap());
        }
    }
}
