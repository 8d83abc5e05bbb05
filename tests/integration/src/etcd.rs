//! A real etcd under test: one member, or several, on ports of the loopback.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    certificates::Authority,
    daemon::Daemon,
    wait::{self, Look},
};

/// The name under which it is looked for on the search path, unless `MUSTER_ETCD` names another.
const PROGRAM: &str = "etcd";
const CONTROL: &str = "etcdctl";

/// One member.
pub struct Member {
    /// Its process; it may be killed and started again.
    pub daemon: Option<Daemon>,
    name: String,
    client: u16,
    peer: u16,
    folder: PathBuf,
    arguments: Vec<String>,
}

/// A cluster of members; dropped, it ends.
pub struct Etcd {
    /// Its members.
    pub members: Vec<Member>,
    /// Flags of `etcdctl` where it speaks TLS.
    tls: Vec<String>,
}

/// Why there is no etcd here; none: there is one.
pub fn missing() -> Option<String> {
    let found = Command::new(program()).arg("--version").output().is_ok_and(|out| out.status.success());
    (!found).then(|| format!("`{PROGRAM}` is not installed; `cargo xtask setup` installs it"))
}

fn program() -> String {
    std::env::var("MUSTER_ETCD").unwrap_or_else(|_| PROGRAM.to_owned())
}

/// The `etcdctl` beside the etcd under test, or the one of the search path.
fn control() -> PathBuf {
    let beside = Path::new(&program()).parent().map(|folder| folder.join(CONTROL)).filter(|path| path.is_file());
    beside.unwrap_or_else(|| CONTROL.into())
}

/// A port that was free a moment ago.
fn port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port of the loopback is free")?;
    Ok(listener.local_addr()?.port())
}

impl Etcd {
    /// Starts so many members under `folder`, with these arguments more; returns when they answer.
    pub fn start(folder: &Path, members: usize, arguments: &[&str]) -> Result<Self> {
        Self::start_with(folder, members, arguments, Vec::new())
    }

    /// One member that speaks TLS, and only to those whom `authority` has signed.
    pub fn start_tls(folder: &Path, authority: &Authority) -> Result<Self> {
        let (server, own) = (authority.sign("etcd")?, authority.sign("etcdctl")?);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (certificate, key, ca) = (text(&server.certificate), text(&server.key), text(&authority.certificate()));
        let arguments =
            ["--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
        let tls = ["--cacert", &ca, "--cert", &text(&own.certificate), "--key", &text(&own.key)].map(str::to_owned);
        Self::start_with(folder, 1, &arguments, tls.to_vec())
    }

    fn start_with(folder: &Path, members: usize, arguments: &[&str], tls: Vec<String>) -> Result<Self> {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let members = (0..members).map(|n| {
            let name = format!("etcd{n}");
            let folder = folder.join(&name);
            fs::create_dir_all(&folder)?;
            Ok(Member { daemon: None, name, client: port()?, peer: port()?, folder, arguments: arguments.clone() })
        });
        let mut etcd = Self { members: members.collect::<Result<_>>()?, tls };
        for n in 0..etcd.members.len() {
            etcd.start_member(n)?;
        }
        etcd.answers()?;
        Ok(etcd)
    }

    /// Starts one member, for the first time or again on what it has.
    pub fn start_member(&mut self, n: usize) -> Result<()> {
        let cluster: Vec<_> =
            self.members.iter().map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer)).collect();
        let scheme = self.scheme();
        let member = self.members.get_mut(n).context("no such member")?;
        let (client, peer) =
            (format!("{scheme}://127.0.0.1:{}", member.client), format!("http://127.0.0.1:{}", member.peer));
        let mut command = Command::new(program());
        command.args(["--name", &member.name, "--data-dir"]).arg(member.folder.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]).args(&member.arguments);
        member.daemon = None;
        member.daemon = Some(Daemon::start(&member.name, &mut command, &member.folder)?);
        Ok(())
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_empty() { "http" } else { "https" }
    }

    /// For controllers: `etcd://…`.
    pub fn address(&self) -> String {
        let hosts: Vec<_> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.client)).collect();
        format!("{}://{}", if self.tls.is_empty() { "etcd" } else { "etcds" }, hosts.join(","))
    }

    /// Where one member listens to clients.
    pub fn client_address(&self, n: usize) -> Result<std::net::SocketAddr> {
        let member = self.members.get(n).context("no such member")?;
        Ok((Ipv4Addr::LOCALHOST, member.client).into())
    }

    /// Runs `etcdctl`; its standard output.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let hosts: Vec<_> =
            self.members.iter().map(|member| format!("{}://127.0.0.1:{}", self.scheme(), member.client)).collect();
        let mut command = Command::new(control());
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &hosts.join(","), "--command-timeout", "60s"])
            .args(&self.tls);
        let output = command.args(arguments).output().context("could not start etcdctl")?;
        anyhow::ensure!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until it takes writes.
    pub fn answers(&self) -> Result<()> {
        wait::until("etcd to answer", || {
            Ok(match self.ctl(&["put", "ready", "1"]) {
                Ok(_) => Look::Done(()),
                Err(error) => Look::not_yet(error),
            })
        })
    }
}
