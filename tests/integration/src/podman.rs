//! A Podman of a test's own: its own storage, its own locks, and images that are made here of a static busybox.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};

use crate::{engine::Client, images};

/// crun refuses machines that have a controller in the tree of version 2 beside those of version 1: it is shown no tree
/// of version 2. No machine that systemd manages is like this.
const WITHOUT_V2: &str = "#!/bin/sh
exec unshare --mount /bin/sh -c 'mount --make-rprivate /sys/fs/cgroup && umount /sys/fs/cgroup/unified && exec \
                          /usr/bin/crun \"$@\"' crun \"$@\"
";

/// See the module.
pub struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// In `folder`; or why there can be none here.
    pub fn make(folder: &Path) -> Result<Result<Self, String>> {
        if !nix::unistd::Uid::effective().is_root() {
            return Ok(Err("a Podman of its own needs root".to_owned()));
        }
        for program in ["podman", "crun", "busybox"] {
            if images::find(program).is_none() {
                return Ok(Err(format!("{program} is not on the search path; `cargo xtask setup` installs it")));
            }
        }
        let podman = Self { folder: folder.to_owned() };
        podman.configure().context("could not configure a Podman")?;
        let archive = images::archive(folder)?.display().to_string();
        for (name, changes) in images::CHANGES {
            podman.run(&[&["import", "--quiet"], changes, &[&archive, name]].concat())?;
        }
        Ok(Ok(podman))
    }

    /// What whoever is to use it needs in its environment.
    pub fn env(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            ("PATH".to_owned(), format!("{}:{path}", at("bin"))),
            ("CONTAINERS_CONF".to_owned(), at("containers.conf")),
            ("CONTAINERS_STORAGE_CONF".to_owned(), at("storage.conf")),
        ]
    }

    /// From now on who looks for a Podman finds one that is of no use; who has found this one may go on with it.
    pub fn hide(&self) -> Result<()> {
        let folder = self.folder.join("bin");
        fs::create_dir_all(&folder)?;
        let program = folder.join("podman");
        fs::write(&program, "#!/bin/sh\necho 'no use' >&2\nexit 1\n")?;
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).context("could not hide Podman")
    }

    fn configure(&self) -> Result<()> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        fs::create_dir_all(&self.folder)?;
        let storage =
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n", at("store"), at("run"));
        fs::write(self.folder.join("storage.conf"), storage)?;
        let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
        let crun = if controllers.trim().is_empty() {
            String::new()
        } else {
            fs::write(self.folder.join("crun"), WITHOUT_V2)?;
            fs::set_permissions(self.folder.join("crun"), fs::Permissions::from_mode(0o755))?;
            format!("[engine.runtimes]\ncrun = [{:?}]\n", at("crun"))
        };
        let engine = format!(
            "[engine]\nruntime = \"crun\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n\
             tmp_dir = {:?}\n{crun}",
            at("tmp")
        );
        fs::write(self.folder.join("containers.conf"), engine)?;
        Ok(())
    }
}

impl Client for Podman {
    fn shows(&self, name: &str) -> String {
        format!("{{{{index .Labels {name:?}}}}}")
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(images::find("podman").context("no podman")?);
        command.args(words).envs(self.env());
        let output = command.output().context("could not start podman")?;
        ensure!(output.status.success(), "podman {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }
}
