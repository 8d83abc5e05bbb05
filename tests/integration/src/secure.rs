//! A Muster that speaks TLS: a controller with its own authority, agents that joined, and a `ctl` that trusts it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result};
use muster_common::tls::{self, Dial, Shown, Trust};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{
    binaries,
    ctl::Ctl,
    daemon::Daemon,
    wait::{self, Look},
};

/// A controller and its agents, each in a folder of its own.
pub struct Secure {
    // Dropped in this order.
    /// Agents by name, in the order in which they came.
    pub agents: Vec<(String, Daemon)>,
    /// The controller.
    pub controller: Option<Daemon>,
    address: String,
    settings: String,
    folder: TempDir,
}

impl Secure {
    /// A controller with these settings under `[tls]`, and no agent.
    pub fn start(tls: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
        // No test of these asks for the end of a lease, and work is to outlive restarts.
        let settings = format!("lease_ttl = '30s'\nlease_margin = '1s'\n[tls]\n{tls}\n");
        let mut secure =
            Self { agents: Vec::new(), controller: None, address: "127.0.0.1:0".to_owned(), settings, folder };
        secure.start_controller()?;
        Ok(secure)
    }

    /// Starts the controller; a second time at the same address.
    pub fn start_controller(&mut self) -> Result<()> {
        let config = self.file("controller.toml", &self.settings)?;
        let mut command = Command::new(binaries::path("muster-controller")?);
        command.args(["--listen", &self.address]).arg("--config").arg(config);
        command.arg("--data").arg(self.data());
        let from = self.controller.take().map_or(0, |old| old.log().len());
        let mut controller = Daemon::start("controller", quiet(&mut command, self.folder()), self.folder())?;
        self.address = controller.address(from)?;
        self.controller = Some(controller);
        Ok(())
    }

    /// The folder of this test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The controller's data folder.
    pub fn data(&self) -> PathBuf {
        self.folder().join("controller")
    }

    /// The certificate of its authority.
    pub fn ca(&self) -> PathBuf {
        self.data().join("ca.pem")
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All that the controller said.
    pub fn log(&self) -> String {
        self.controller.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// `ctl` that trusts it.
    pub fn ctl(&self) -> Ctl {
        let ca = self.ca().to_string_lossy().into_owned();
        Ctl::alone().env("MUSTER_CONTROLLER", &format!("https://{}", self.address)).env("MUSTER_CA", &ca)
    }

    /// Writes a file into the folder of this test and returns its path.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    /// A new join token, with these arguments more.
    pub fn token(&self, arguments: &[&str]) -> Result<String> {
        let made = self.ctl().json(&[&["admin", "join-token"], arguments].concat())?;
        Ok(made["token"].as_str().context("no token is shown")?.to_owned())
    }

    /// The folder of an agent.
    pub fn agent_data(&self, name: &str) -> PathBuf {
        self.folder().join(format!("agent-{name}"))
    }

    /// An agent that is not started, with its folder; it joins with `token` if it has no certificate.
    pub fn agent_command(&self, name: &str, token: Option<&str>) -> Result<Command> {
        let mut command = Command::new(binaries::path("muster-agent")?);
        command.args(["--controller", &format!("https://{}", self.address), "--name", name, "--cpus", "4", "--data"]);
        command.arg(self.agent_data(name));
        quiet(&mut command, self.folder());
        if let Some(token) = token {
            command.env("MUSTER_JOIN", token);
        }
        Ok(command)
    }

    /// Starts an agent that joins, and waits until it is connected.
    pub fn join(&mut self, name: &str) -> Result<()> {
        let token = self.token(&[])?;
        let daemon =
            Daemon::start(&format!("agent-{name}"), &mut self.agent_command(name, Some(&token))?, self.folder())?;
        self.agents.push((name.to_owned(), daemon));
        self.agent_is(name, "connected")
    }

    /// One of its agents.
    pub fn agent(&mut self, name: &str) -> Result<&mut Daemon> {
        let found = self.agents.iter_mut().find(|(known, _)| known == name);
        found.map(|(_, daemon)| daemon).with_context(|| format!("there is no agent {name}"))
    }

    /// Waits until the controller says so of an agent.
    pub fn agent_is(&self, name: &str, state: &str) -> Result<()> {
        wait::until(&format!("agent {name} to be {state}"), || {
            let reply = self.ctl().json(&["agents"])?;
            let agents = reply["agents"].as_array().cloned().unwrap_or_default();
            Ok(Look::when(agents.iter().any(|agent| agent["name"] == name && agent["state"] == state), reply))
        })
    }

    /// Runs a small job to its end: nothing is disturbed.
    pub fn works(&self) -> Result<()> {
        let ran = self.ctl().run(&["run", "--", "sh", "-c", "echo it works"])?.expect(0)?;
        anyhow::ensure!(ran.text().contains("it works"), "the job said something else:\n{ran}");
        Ok(())
    }

    /// Stops all, and fails when one did not stop cleanly or logged an error.
    pub fn finish(mut self) -> Result<()> {
        let agents = self.agents.drain(..).map(|(_, agent)| agent);
        for mut daemon in agents.chain(self.controller.take()).collect::<Vec<_>>() {
            if daemon.ended()?.is_none() {
                daemon.stop()?;
            }
            daemon.expect_no_errors()?;
        }
        Ok(())
    }
}

/// Only what this test sets may decide what a daemon does.
pub fn quiet<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("MUSTER_") || name.starts_with("OTEL_") || name == "RUST_BACKTRACE" {
            command.env_remove(name.as_ref());
        }
    }
    command.env("NO_COLOR", "1").current_dir(folder)
}

/// A certificate and its key.
#[derive(Debug)]
pub struct Shows {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Shows {
    /// What an agent keeps in its folder, as a thief reads it.
    pub fn stolen(folder: &Path) -> Result<Self> {
        let text = fs::read(folder.join("identity.pem")).context("there is nothing to steal")?;
        let key = PrivateKeyDer::from_pem_slice(&text)?;
        Ok(Self { certificate: CertificateDer::from_pem_slice(&text)?, key })
    }
}

/// A connection to `address` that trusts the authority in `ca` and shows `own`.
pub async fn channel(address: &str, ca: &Path, own: Option<&Shows>) -> Result<Channel> {
    let shown = Arc::new(Shown::default());
    if let Some(own) = own {
        shown.set(vec![own.certificate.clone()], own.key.clone_key())?;
    }
    let trust = Trust::Authority(tls::certificates(ca, "the authority")?);
    let config = tls::client(&trust, Some(shown))?;
    let dial = Dial::new(vec![address.to_owned()], Some(Arc::new(config)));
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect_with_connector(dial).await?)
}
