//! Who takes part: the members of etcd, the controllers, the agents; each a real program in a network of its own.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use muster_integration::{binaries, daemon::Daemon};
use nix::sys::signal::Signal;

use crate::{ground::Ground, wires::Wire};

pub(crate) const ETCDS: usize = 3;
pub(crate) const CONTROLLERS: usize = 3;
pub(crate) const AGENTS: usize = 5;

/// How long a leader's session outlives it, and an agent's lease: short, so that many faults fit into a run.
pub(crate) const SESSION_TTL_S: u64 = 2;
pub(crate) const LEASE_TTL_S: u64 = 3;
/// More than the second of grace that an agent gives to what it must end.
const LEASE_MARGIN_S: u64 = 2;
/// Of etcd's file. Past the budget, which is below it, the controllers refuse new work by themselves.
pub(crate) const QUOTA_MIB: u64 = 40;
const BUDGET_MIB: u64 = 24;
/// etcd keeps five log files of 64 MB and lays out two more ahead; a snapshot that a member is sent is its whole file once more.
const ETCD_FOLDER_MIB: u32 = 1024;
const AGENT_FOLDER_MIB: u32 = 24;
const SHARED_FOLDER_MIB: u32 = 64;
/// Bytes that an agent keeps of one attempt's output: a flood is past it at once.
pub(crate) const LOG_LIMIT: u64 = 256 << 10;
/// Of all that lies on an agent's disk, and of all logs of long runs together: neither disk becomes full by itself.
const AGENT_LOGS_MIB: u32 = 6;
const LOGS_MIB: u32 = 32;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Etcd(usize),
    Controller(usize),
    Agent(usize),
    /// Where `ctl` runs.
    Client,
}

impl Node {
    /// Everybody.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::daemons().chain([Self::Client])
    }

    /// Those whose programs run all the time.
    pub(crate) fn daemons() -> impl Iterator<Item = Self> {
        let etcds = (0..ETCDS).map(Self::Etcd);
        etcds.chain((0..CONTROLLERS).map(Self::Controller)).chain((0..AGENTS).map(Self::Agent))
    }

    /// What it is called, everywhere.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Etcd(n) => format!("etcd{n}"),
            Self::Controller(n) => format!("ctrl{n}"),
            Self::Agent(n) => format!("agent{n}"),
            Self::Client => "client".to_owned(),
        }
    }

    /// Its address in the bridge's network.
    pub(crate) fn address(self) -> Ipv4Addr {
        let (kind, n) = match self {
            Self::Etcd(n) => (1, n),
            Self::Controller(n) => (2, n),
            Self::Agent(n) => (3, n),
            Self::Client => (4, 0),
        };
        Ipv4Addr::new(10, 99, kind, u8::try_from(n + 1).unwrap_or(u8::MAX))
    }

    fn at(self) -> usize {
        match self {
            Self::Etcd(n) => n,
            Self::Controller(n) => ETCDS + n,
            Self::Agent(n) => ETCDS + CONTROLLERS + n,
            Self::Client => usize::MAX,
        }
    }
}

/// How many thousandths of a processor an agent offers: not all the same.
pub(crate) fn capacity(agent: usize) -> u64 {
    [4_000, 3_000, 5_000, 2_000, 4_000].get(agent).copied().unwrap_or(1_000)
}

/// What the whole run uses and no fault changes.
pub(crate) struct Settings {
    /// Of etcd.
    pub(crate) etcd: PathBuf,
    /// Set for all: what is switched on in a build that holds faults.
    pub(crate) mutant: Option<String>,
    /// The library that moves the clocks of programs.
    pub(crate) faketime: Option<PathBuf>,
}

/// All of them, and their folders.
pub(crate) struct Cast {
    seats: Vec<Mutex<Seat>>,
    folder: PathBuf,
    settings: Settings,
}

/// One place, whoever sits there now.
#[derive(Default)]
struct Seat {
    daemon: Option<Daemon>,
    data: PathBuf,
    /// Whether it should run; what ended by itself is looked into.
    is_wanted: bool,
}

impl Cast {
    /// Nobody has started yet.
    pub(crate) fn new(ground: &mut Ground, folder: &Path, settings: Settings) -> Result<Self> {
        let shared = ground.small_folder("shared", SHARED_FOLDER_MIB)?;
        let mut seats = Vec::new();
        for node in Node::daemons() {
            let data = match node {
                Node::Etcd(_) => ground.small_folder(&node.name(), ETCD_FOLDER_MIB)?,
                Node::Agent(_) => ground.small_folder(&node.name(), AGENT_FOLDER_MIB)?,
                // Logs and large results lie where every leader finds them.
                Node::Controller(_) | Node::Client => shared.clone(),
            };
            seats.push(Mutex::new(Seat { daemon: None, data, is_wanted: false }));
        }
        fs::create_dir_all(folder.join("logs")).context("could not make the folder of the logs")?;
        let cast = Self { seats, folder: folder.to_path_buf(), settings };
        for node in Node::daemons() {
            cast.set_clock(node, "+0")?;
        }
        Ok(cast)
    }

    fn seat(&self, node: Node) -> Result<MutexGuard<'_, Seat>> {
        let seat = self.seats.get(node.at()).with_context(|| format!("{} is no daemon", node.name()))?;
        Ok(seat.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts one that does not run.
    pub(crate) fn start(&self, ground: &Ground, node: Node) -> Result<()> {
        let mut seat = self.seat(node)?;
        let mut command = self.command(ground, node, &seat.data)?;
        seat.is_wanted = true;
        if seat.daemon.is_none() {
            seat.daemon = Some(Daemon::start(&node.name(), &mut command, &self.folder.join("logs"))?);
        }
        Ok(())
    }

    /// SIGKILL; whatever it started is left alone.
    pub(crate) fn kill(&self, node: Node) -> Result<()> {
        let mut seat = self.seat(node)?;
        seat.is_wanted = false;
        seat.daemon.take().map_or(Ok(()), |mut daemon| daemon.kill9())
    }

    /// Sends a signal, if it runs.
    pub(crate) fn signal(&self, node: Node, signal: Signal) -> Result<()> {
        let seat = self.seat(node)?;
        // Somebody else may have killed it meanwhile; then there is nobody to signal.
        seat.daemon.as_ref().map_or(Ok(()), |daemon| daemon.signal(signal))
    }

    /// Where its data is.
    pub(crate) fn data(&self, node: Node) -> Result<PathBuf> {
        Ok(self.seat(node)?.data.clone())
    }

    /// Those that ended by themselves, and how; they are started again, as an init system would.
    pub(crate) fn restart_fallen(&self, ground: &Ground) -> Result<Vec<(Node, String)>> {
        let mut fallen = Vec::new();
        for node in Node::daemons() {
            let mut seat = self.seat(node)?;
            let ended = seat.daemon.as_mut().map(Daemon::ended).transpose()?.flatten();
            if let Some(status) = ended {
                seat.daemon = None;
                let is_wanted = seat.is_wanted;
                drop(seat);
                fallen.push((node, status.to_string()));
                if is_wanted {
                    self.start(ground, node)?;
                }
            }
        }
        Ok(fallen)
    }

    /// Moves a program's wall clock: `+3600`, `-0.5`.
    pub(crate) fn set_clock(&self, node: Node, offset: &str) -> Result<()> {
        let path = self.clock(node);
        // Never half written: the program reads it at any time.
        let new = path.with_extension("new");
        fs::write(&new, format!("{offset}\n")).with_context(|| format!("could not write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("could not write {}", path.display()))
    }

    fn clock(&self, node: Node) -> PathBuf {
        self.folder.join(format!("clock.{}", node.name()))
    }

    fn command(&self, ground: &Ground, node: Node, data: &Path) -> Result<Command> {
        let mut command = match node {
            Node::Etcd(n) => self.etcd(ground, n, data),
            Node::Controller(n) => self.controller(ground, n, data)?,
            Node::Agent(n) => self.agent(ground, n, data)?,
            Node::Client => anyhow::bail!("the client is no daemon"),
        };
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("MUSTER_") || name.starts_with("OTEL_") || name.starts_with("ETCD_") {
                command.env_remove(name.as_ref());
            }
        }
        command.env("NO_COLOR", "1").env_remove("RUST_BACKTRACE").current_dir(data);
        // What is broken on the way are plain streams.
        command.env("MUSTER_INSECURE", "1");
        if let Some(mutant) = &self.settings.mutant {
            command.env("MUSTER_MUTANT", mutant);
        }
        if let (Some(library), Node::Controller(_) | Node::Agent(_)) = (&self.settings.faketime, node) {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.clock(node));
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_CACHE_DURATION", "1");
        }
        Ok(command)
    }

    fn etcd(&self, ground: &Ground, n: usize, data: &Path) -> Command {
        let peers: Vec<_> = (0..ETCDS).map(|n| format!("etcd{n}=http://{}:2380", Node::Etcd(n).address())).collect();
        let (own, quota) = (Node::Etcd(n).address(), QUOTA_MIB << 20);
        let (client, peer) = (format!("http://{own}:2379"), format!("http://{own}:2380"));
        let mut command = ground.command(&Node::Etcd(n).name(), &self.settings.etcd);
        command.args(["--name", &Node::Etcd(n).name(), "--data-dir"]).arg(data.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(["--quota-backend-bytes", &quota.to_string(), "--log-level", "error"]);
        command
    }

    fn controller(&self, ground: &Ground, n: usize, data: &Path) -> Result<Command> {
        let config = self.folder.join(format!("ctrl{n}.toml"));
        let text = format!(
            "name = 'ctrl{n}'\nsession_ttl = '{SESSION_TTL_S}s'\nlease_ttl = '{LEASE_TTL_S}s'\n\
             lease_margin = '{LEASE_MARGIN_S}s'\nstore_budget = '{BUDGET_MIB} MiB'\nlosses_max = 1000\n\
             log_quota = '{LOGS_MIB} MiB'\n"
        );
        fs::write(&config, text).with_context(|| format!("could not write {}", config.display()))?;
        let store: Vec<_> =
            (0..ETCDS).map(|etcd| Wire::Store(n, etcd).begin()).map(|(ip, port)| format!("{ip}:{port}")).collect();
        let (ip, port) = Wire::Forward(n).begin();
        let mut command = ground.command(&Node::Controller(n).name(), &binaries::path("muster-controller")?);
        command.args(["--listen", "0.0.0.0:7717", "--advertise", &format!("http://{ip}:{port}")]);
        command.args(["--store", &format!("etcd://{}", store.join(",")), "--data"]).arg(data);
        command.arg("--config").arg(config);
        Ok(command)
    }

    fn agent(&self, ground: &Ground, n: usize, data: &Path) -> Result<Command> {
        let cpus = capacity(n);
        let mut command = ground.command(&Node::Agent(n).name(), &binaries::path("muster-agent")?);
        // Each begins with another controller, so that all three carry some.
        for controller in (0..CONTROLLERS).map(|k| (k + n) % CONTROLLERS) {
            let (ip, port) = Wire::Link(n, controller).begin();
            command.args(["--controller", &format!("http://{ip}:{port}")]);
        }
        command.args(["--name", &Node::Agent(n).name(), "--cpus", &format!("{}.{:03}", cpus / 1000, cpus % 1000)]);
        let config = self.folder.join(format!("agent{n}.toml"));
        let text = format!("log_limit = {LOG_LIMIT}\nlog_quota = '{AGENT_LOGS_MIB}MiB'\n");
        fs::write(&config, text).with_context(|| format!("could not write {}", config.display()))?;
        command.arg("--config").arg(config).arg("--data").arg(data.join("data"));
        Ok(command)
    }
}
