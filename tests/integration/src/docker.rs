//! A Docker of a test's own: its own daemon with its own containerd, storage and socket, all of which go with it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    daemon::Daemon,
    engine::Client,
    images,
    wait::{self, Look},
};

/// The client that Debian has; what else is called so may be anything.
const CLIENT: &str = "/usr/bin/docker";

/// See the module.
pub struct Docker {
    folder: PathBuf,
    daemon: Option<Daemon>,
}

impl Docker {
    /// In `folder`; or why there can be none here.
    pub fn make(folder: &Path) -> Result<Result<Self, String>> {
        if !nix::unistd::Uid::effective().is_root() {
            return Ok(Err("a Docker of its own needs root".to_owned()));
        }
        for program in ["dockerd", "containerd", "runc", "setpriv", "busybox"] {
            if images::find(program).is_none() {
                return Ok(Err(format!("{program} is not on the search path; `cargo xtask setup` installs it")));
            }
        }
        if !Path::new(CLIENT).is_file() {
            return Ok(Err(format!("there is no {CLIENT}; `cargo xtask setup` installs it")));
        }
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        if !Path::new("/sys/fs/cgroup/memory/cgroup.procs").is_file() && !controllers.contains("memory") {
            return Ok(Err("no cgroups are mounted here where Docker looks for them".to_owned()));
        }
        for name in ["bin", "config"] {
            fs::create_dir_all(folder.join(name))?;
        }
        symlink(CLIENT, folder.join("bin/docker"))?;
        fs::write(folder.join("daemon.json"), "{}")?;
        let mut docker = Self { folder: folder.to_owned(), daemon: None };
        docker.start()?;
        let archive = images::archive(folder)?.display().to_string();
        for (name, changes) in images::CHANGES {
            docker.run(&[&["import"], changes, &[&archive, name]].concat())?;
        }
        Ok(Ok(docker))
    }

    /// Starts the daemon, and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let dockerd = images::find("dockerd").context("no dockerd")?;
        // A test that is killed takes its daemon with it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(dockerd);
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]);
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--config-file", &at("daemon.json")]);
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
        command.args(["--host", &self.host()]);
        let _of_one_that_was_killed = fs::remove_file(self.folder.join("pid"));
        self.daemon = Some(Daemon::start("dockerd", &mut command, &self.folder)?);
        wait::until("the daemon to answer", || {
            let told = self.client().args(["version", "--format={{.Server.Version}}"]).output()?;
            let log = || self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
            Ok(if told.status.success() { Look::Done(()) } else { Look::NotYet(log()) })
        })
    }

    /// SIGKILL, now; containers live on, and nobody can be asked about them.
    pub fn kill9(&mut self) -> Result<()> {
        self.daemon.as_mut().context("the daemon does not run")?.kill9()
    }

    /// The daemon, to be sent signals.
    pub fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("the daemon does not run")
    }

    /// What whoever is to use it needs in its environment.
    pub fn env(&self) -> Vec<(String, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            ("PATH".to_owned(), format!("{}:{path}", self.folder.join("bin").display())),
            ("DOCKER_HOST".to_owned(), self.host()),
            ("DOCKER_CONFIG".to_owned(), self.folder.join("config").display().to_string()),
        ]
    }

    fn host(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    fn client(&self) -> Command {
        let mut command = Command::new(CLIENT);
        command.envs(self.env());
        command
    }

    /// Processes that know this folder: of a killed daemon, those that hold its containers.
    fn helpers(&self) -> Vec<i32> {
        let folder = self.folder.display().to_string();
        let is_ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"/usr/bin/containerd") && String::from_utf8_lossy(&line).contains(&folder)
        };
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }
}

impl Client for Docker {
    fn shows(&self, name: &str) -> String {
        format!("{{{{.Label {name:?}}}}}")
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let output = self.client().args(words).output().context("could not start docker")?;
        ensure!(output.status.success(), "docker {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        drop(self.daemon.take());
        for pid in self.helpers() {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        let mut ours: Vec<_> = points.filter(|point| point.starts_with(&self.folder)).collect();
        ours.reverse();
        for point in ours {
            let _gone = Command::new("umount").arg("-l").arg(point).output();
        }
    }
}
