//! A whole Muster for one test: controller and agent as separate processes, over real sockets, in a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{binaries, ctl::Ctl, daemon::Daemon, wait, wait::Look};

/// What a test may want different.
#[derive(Clone)]
pub struct Options {
    /// How long an agent may be silent.
    pub lease_ttl: Duration,
    /// How many processors the agent says it has.
    pub cpus: u32,
    /// Where the controller keeps its state; a folder of the test when none.
    pub store: Option<PathBuf>,
    /// Where the agent keeps its own; a folder of the test when none.
    pub spool: Option<PathBuf>,
    /// A store that several controllers share, `etcd://…`; one of its own when none.
    pub shared: Option<String>,
    /// The agent's configuration file; then that says how many processors it has. None when empty.
    pub agent: String,
    /// More environment for both daemons and for ctl.
    pub env: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        let (agent, env) = (String::new(), Vec::new());
        let lease_ttl = Duration::from_secs(15);
        Self { lease_ttl, cpus: 4, store: None, spool: None, shared: None, agent, env }
    }
}

/// How often a test may meet a machine that stands still just when a lease ends.
const TRIES: usize = 3;

/// What a safe says that had to end everything, also what may go on alone: its keeper had not ended the rest in time.
const LATE: &str = "did not end attempts when their leases did";

/// A running controller and agent.
pub struct System {
    // Dropped in this order: the agent ends its tasks while the controller still listens.
    agent: Option<Daemon>,
    controller: Option<Daemon>,
    address: String,
    options: Options,
    folder: TempDir,
}

impl System {
    /// Starts both and waits until the agent is connected.
    pub fn start(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-it-").tempdir().context("could not make a folder")?;
        let mut system = Self { agent: None, controller: None, address: "127.0.0.1:0".to_owned(), options, folder };
        system.start_controller()?;
        system.start_agent()?;
        Ok(system)
    }

    /// Starts one, does `test` with it, and finishes it. All is begun anew when it failed and a safe had to end everything: on a
    /// machine that stood still that is right, and says nothing of what a test of work that goes on alone asks.
    pub fn unless_late(options: &Options, test: impl Fn(&mut Self) -> Result<()>) -> Result<()> {
        for _ in 1..TRIES {
            let mut system = Self::start(options.clone())?;
            match test(&mut system) {
                Err(error) if system.was_late() => eprintln!("begun anew, since a lease's end was late: {error:#}"),
                outcome => return outcome.and_then(|()| system.finish()),
            }
        }
        let mut system = Self::start(options.clone())?;
        test(&mut system).and_then(|()| system.finish())
    }

    /// Whether an agent of this folder says that its safe had to end everything.
    pub fn was_late(&self) -> bool {
        let logs = fs::read_dir(self.folder()).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs = logs.filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.any(|path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).contains(LATE))
    }

    /// With nothing special.
    pub fn plain() -> Result<Self> {
        Self::start(Options::default())
    }

    /// The folder of this test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the controller listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `ctl` for this controller.
    pub fn ctl(&self) -> Ctl {
        self.options.env.iter().fold(Ctl::of(&self.address), |ctl, (key, value)| ctl.env(key, value))
    }

    /// The controller.
    pub fn controller(&mut self) -> Result<&mut Daemon> {
        self.controller.as_mut().context("the controller does not run")
    }

    /// The agent.
    pub fn agent(&mut self) -> Result<&mut Daemon> {
        self.agent.as_mut().context("the agent does not run")
    }

    /// Writes a file into the folder of this test and returns its path.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a job file and submits it.
    pub fn submit(&self, name: &str, text: &str) -> Result<u64> {
        self.ctl().submit(&self.file(name, text)?)
    }

    /// Starts the controller; a second time at the same address, which agents and people know.
    pub fn start_controller(&mut self) -> Result<()> {
        let data = self.options.store.clone().unwrap_or_else(|| self.folder().join("controller"));
        let mut command = Command::new(binaries::path("muster-controller")?);
        let ttl_ms = self.options.lease_ttl.as_millis();
        let text = format!("lease_ttl = '{ttl_ms}ms'\nlease_margin = '1s'\nsession_ttl = '5s'\n");
        let config = self.file("controller.toml", &text)?;
        command.args(["--listen", &self.address]).arg("--config").arg(config);
        command.arg("--data").arg(data);
        if let Some(shared) = &self.options.shared {
            command.args(["--store", shared]);
        }
        let from = self.controller.take().map_or(0, |old| old.log().len());
        let mut controller = Daemon::start("controller", self.quiet(&mut command), self.folder())?;
        self.address = controller.address(from)?;
        self.controller = Some(controller);
        Ok(())
    }

    /// Where the controller keeps its state from its next start on: a folder, or a store that several share.
    pub fn keep_in(&mut self, store: Option<PathBuf>, shared: Option<String>) {
        (self.options.store, self.options.shared) = (store, shared);
    }

    /// Agents started from here on are told this by their configuration file.
    pub fn configure_agent(&mut self, text: &str) {
        text.clone_into(&mut self.options.agent);
    }

    /// Daemons started from here on have these variables, whatever was said before.
    pub fn set_variables(&mut self, variables: &[(String, String)]) {
        self.options.env = variables.to_vec();
    }

    /// Starts the agent on its folder, and waits until the controller knows it as connected.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = Command::new(binaries::path("muster-agent")?);
        command.args(["--controller", &format!("http://{}", self.address), "--name", "worker"]);
        if self.options.agent.is_empty() {
            command.args(["--cpus", &self.options.cpus.to_string()]);
        } else {
            command.arg("--config").arg(self.file("agent.toml", &self.options.agent)?);
        }
        let data = self.options.spool.clone().unwrap_or_else(|| self.folder().join("agent"));
        command.arg("--data").arg(data);
        self.agent = None;
        let agent = Daemon::start("agent", self.quiet(&mut command), self.folder())?;
        self.agent = Some(agent);
        self.agent_connected()
    }

    /// Waits until the controller says that the agent is connected.
    pub fn agent_connected(&self) -> Result<()> {
        wait::until("the agent to be connected", || {
            // Nobody may lead yet.
            let ran = self.ctl().run(&["agents", "-o", "json"])?;
            let reply: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
            let agents = reply["agents"].as_array().cloned().unwrap_or_default();
            Ok(Look::when(agents.iter().any(|agent| agent["state"] == "connected"), ran.to_string()))
        })
    }

    /// Stops both in order, and fails when one did not stop cleanly or logged an error.
    pub fn finish(mut self) -> Result<()> {
        for daemon in [self.agent.take(), self.controller.take()].into_iter().flatten() {
            let mut daemon = daemon;
            daemon.stop()?;
            daemon.expect_no_errors()?;
        }
        Ok(())
    }

    /// Only what this test sets may decide what a daemon does.
    fn quiet<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("MUSTER_") || name.starts_with("OTEL_") || name == "RUST_BACKTRACE" {
                command.env_remove(name.as_ref());
            }
        }
        command.env("NO_COLOR", "1").envs(self.options.env.iter().map(|(key, value)| (key, value)));
        command.current_dir(self.folder())
    }
}
