//! A Podman of a test's own: its own storage, its own locks, and images that are made here of a static busybox.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};

/// The image that every test has.
pub const IMAGE: &str = "localhost/muster-test:1";
/// One that has a program of its own, which is not what a task asks for.
pub const ENTRY_IMAGE: &str = "localhost/muster-entry:1";

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
            if !on_path(program) {
                return Ok(Err(format!("{program} is not on the search path; `cargo xtask setup` installs it")));
            }
        }
        let podman = Self { folder: folder.to_owned() };
        podman.configure().context("could not configure a Podman")?;
        podman.import(IMAGE, &[])?;
        podman.import(ENTRY_IMAGE, &["--change", "ENTRYPOINT [\"/bin/echo\", \"entry\"]"])?;
        Ok(Ok(podman))
    }

    /// What whoever is to use it needs in its environment.
    pub fn env(&self) -> Vec<(String, String)> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        vec![
            ("CONTAINERS_CONF".to_owned(), at("containers.conf")),
            ("CONTAINERS_STORAGE_CONF".to_owned(), at("storage.conf")),
        ]
    }

    /// All containers that it knows, running or not.
    pub fn containers(&self) -> Result<Vec<String>> {
        let output = self.run(&["ps", "--all", "--format", "{{.Names}} {{.Status}}"])?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// The values that its containers have of one label.
    pub fn labels(&self, name: &str) -> Result<Vec<String>> {
        let output = self.run(&["ps", "--all", "--format", &format!("{{{{index .Labels {name:?}}}}}")])?;
        let mut values: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        values.sort();
        values.dedup();
        Ok(values)
    }

    /// Makes a container that never runs.
    pub fn create(&self, name: &str, label: &str) -> Result<()> {
        self.run(&["create", "--network=none", "--name", name, "--label", label, IMAGE, "true"]).map(|_| ())
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

    fn import(&self, name: &str, changes: &[&str]) -> Result<()> {
        let root = self.folder.join("root");
        if !root.exists() {
            for folder in ["bin", "tmp", "etc", "work"] {
                fs::create_dir_all(root.join(folder))?;
            }
            let path = std::env::var_os("PATH").unwrap_or_default();
            let busybox = std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|file| file.is_file());
            fs::copy(busybox.context("no busybox")?, root.join("bin/busybox"))?;
            for applet in ["sh", "sleep", "echo", "cat", "env", "ls", "pwd", "head", "tail", "true", "touch", "mv"] {
                symlink("busybox", root.join("bin").join(applet))?;
            }
        }
        let archive = self.folder.join("root.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").output()?;
        ensure!(packed.status.success(), "tar failed: {}", String::from_utf8_lossy(&packed.stderr));
        let archive = archive.display().to_string();
        let common = ["import", "--quiet", "--change", "ENV PATH=/bin", "--change", "WORKDIR /work"];
        self.run(&[&common[..], changes, &[&archive, name]].concat())?;
        Ok(())
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new("podman");
        command.args(words).envs(self.env());
        let output = command.output().context("could not start podman")?;
        ensure!(output.status.success(), "podman {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
