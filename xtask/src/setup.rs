//! What the tests need beyond a Rust toolchain and a C compiler: look, install what is missing, say what was done.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};

use crate::{etcd, package, step, tree, vm, windows};

/// The Python packages of the second gRPC client; a line of `pip install` each.
const PYTHON_PACKAGES: &str = include_str!("../../tests/integration/requirements.txt");

/// The library that moves the clocks of programs, where Debian puts it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The packages that the tests of containers need.
const CONTAINERS: &[&str] = &["podman", "crun", "busybox-static"];

/// Installs Docker, whose tests start a daemon of their own: none of the system's is started, now or when it boots. What was
/// there before stays as it is.
const DOCKER: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
new=
for unit in docker.service docker.socket containerd.service; do
    test -e /lib/systemd/system/$unit || new="$new $unit"
done
if test -e $policy; then mv $policy $policy.muster; fi
trap 'rm -f $policy; if test -e $policy.muster; then mv $policy.muster $policy; fi' EXIT
printf '#!/bin/sh\nexit 101\n' > $policy
chmod 755 $policy
apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends docker.io
for unit in $new; do
    rm -f /etc/systemd/system/*.wants/$unit
done
"#;

/// What of the needs is there.
pub(crate) struct Found {
    /// How to compile for Windows, or why that cannot be done here.
    pub(crate) windows: Result<windows::Way, String>,
    /// etcd and etcdctl, or why they are not there.
    pub(crate) etcd: Result<PathBuf, String>,
    /// A newer etcd of our own build, or why there is none.
    pub(crate) newer_etcd: Result<PathBuf, String>,
    /// What chaos needs: networks of their own and a library that moves clocks; or why they are not there.
    pub(crate) chaos: Result<(), String>,
    /// A Python with the packages of `tests/integration/requirements.txt`, or why there is none.
    pub(crate) python: Result<PathBuf, String>,
    /// What looks at the units of the services, or why it is not there.
    pub(crate) units: Result<(), String>,
    /// What runs containers, or why it is not there.
    pub(crate) containers: Result<(), String>,
    /// What makes Debian packages, or why it is not there.
    pub(crate) deb: Result<PathBuf, String>,
}

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<ExitCode> {
    let found = ensure();
    let mut code = ExitCode::SUCCESS;
    let windows = found.windows.map(|way| way.to_string());
    let python = found.python.map(|path| path.display().to_string());
    let etcd = found.etcd.map(|path| path.display().to_string());
    let newer = found.newer_etcd.map(|path| path.display().to_string());
    let chaos = found.chaos.map(|()| "iproute2, libfaketime".to_owned());
    let vm = vm::machine().map(|machine| machine.to_string());
    let units = found.units.map(|()| "systemd-analyze".to_owned());
    let containers = found.containers.map(|()| format!("{}, docker.io", CONTAINERS.join(", ")));
    let deb = found.deb.map(|path| path.display().to_string());
    for (what, state) in [
        ("windows build", windows),
        ("etcd", etcd),
        ("etcd 3.6", newer),
        ("chaos", chaos),
        ("virtual machine", vm),
        ("second grpc client", python),
        ("systemd units", units),
        ("containers", containers),
        ("debian packages", deb),
    ] {
        match state {
            Ok(how) => step::show(&format!("{what}: ready ({how})")),
            Err(why) => {
                step::show(&format!("{what}: missing: {why}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Installs what is missing and can be installed. Does nothing, quickly, when all is there.
pub(crate) fn ensure() -> Found {
    let windows = windows::way().or_else(|_| {
        install(windows::PACKAGES)?;
        windows::way()
    });
    let etcd = etcd().or_else(|_| {
        install(&["etcd-server", "etcd-client"])?;
        etcd()
    });
    let (newer_etcd, chaos, python) = (etcd::newer(), chaos(), python());
    Found { windows, etcd, newer_etcd, chaos, python, units: units(), containers: containers(), deb: packages() }
}

/// What the tests of the units need.
fn units() -> Result<(), String> {
    let is_there = || tree::on_path("systemd-analyze");
    if !is_there() {
        install(&["systemd"])?;
    }
    if is_there() { Ok(()) } else { Err("there is no systemd-analyze on the search path".to_owned()) }
}

/// What the tests of containers need: both engines, and what an image is made of.
fn containers() -> Result<(), String> {
    let is_there = || ["podman", "crun", "busybox"].iter().all(|program| tree::on_path(program));
    if !is_there() {
        install(CONTAINERS)?;
    }
    if !is_there() {
        return Err(format!("not all of {} is on the search path", CONTAINERS.join(", ")));
    }
    docker()
}

/// A Docker that nobody starts but the tests.
fn docker() -> Result<(), String> {
    let is_there = || ["/usr/bin/docker", "/usr/sbin/dockerd"].iter().all(|program| Path::new(program).is_file());
    if is_there() {
        return Ok(());
    }
    // What is simplest refreshes the lists, too, and finds out whether anything can be installed.
    install(&["runc"])?;
    let mut command = if is_root() { Command::new("sh") } else { Command::new("sudo") };
    if !is_root() {
        command.args(["-n", "sh"]);
    }
    let installed = step::quietly("install docker.io", command.args(["-c", DOCKER]).stdout(Stdio::null()));
    match installed {
        Ok(ended) if ended.ok && is_there() => Ok(()),
        _ => Err("docker.io could not be installed; see the output above".to_owned()),
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// What the tests of the packages need: what makes them, and what finds the libraries that they depend on.
fn packages() -> Result<PathBuf, String> {
    let is_there = || tree::on_path("dpkg-deb") && tree::on_path("dpkg-shlibdeps");
    if !is_there() {
        install(&["dpkg-dev"])?;
    }
    if is_there() {
        package::deb()
    } else {
        Err("there is no dpkg-deb or dpkg-shlibdeps on the search path".to_owned())
    }
}

/// What chaos needs beside etcd.
pub(crate) fn chaos() -> Result<(), String> {
    let is_there = || tree::on_path("ip") && Path::new(FAKETIME).is_file();
    if is_there() {
        return Ok(());
    }
    install(&["iproute2", "libfaketime"])?;
    if is_there() { Ok(()) } else { Err(format!("`ip` or {FAKETIME} is not there")) }
}

fn etcd() -> Result<PathBuf, String> {
    let there = tree::on_path("etcd") && tree::on_path("etcdctl");
    if there { Ok("etcd".into()) } else { Err("etcd and etcdctl are not on the search path".to_owned()) }
}

/// Installs Debian packages. The lists are refreshed first: an image's are older than the archive.
fn install(packages: &[&str]) -> Result<(), String> {
    let by_hand = format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !tree::on_path("apt-get") {
        return Err(format!("there is no apt-get to install {} with", packages.join(" ")));
    }
    let root = is_root();
    let sudo = tree::on_path("sudo")
        && Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !root && !sudo {
        return Err(format!("installing needs root; run `sudo sh -c '{by_hand}'`"));
    }
    let apt = |arguments: &[&str]| {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.args(["-n", "apt-get"]);
        }
        // A machine that updates itself may hold the lock for a while.
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        command
    };
    let name = format!("install {}", packages.join(" "));
    let updated = step::quietly("apt-get update", &mut apt(&["update"]));
    let mut install = apt(&["install", "-y", "--no-install-recommends"]);
    let installed = step::quietly(&name, install.args(packages).stdout(Stdio::null()));
    match (updated, installed) {
        (Ok(_), Ok(ended)) if ended.ok => Ok(()),
        _ => Err(format!("`{by_hand}` failed; see its output above")),
    }
}

/// The Python of our own environment, made on first use and again whenever its packages change.
fn python() -> Result<PathBuf, String> {
    let home = tree::cache().join("python");
    let python = home.join("bin/python");
    let stamp = home.join("muster-packages");
    if python.is_file() && fs::read_to_string(&stamp).is_ok_and(|have| have == PYTHON_PACKAGES) {
        return Ok(python);
    }
    if !tree::on_path("python3") {
        return Err("there is no python3 on the search path".to_owned());
    }
    let made = (|| {
        fs::create_dir_all(&home).with_context(|| format!("could not make {}", home.display()))?;
        let venv = step::quietly(
            "make a Python environment",
            Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home),
        )?;
        let requirements = tree::root().join("tests/integration/requirements.txt");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(requirements);
        let packages = step::quietly("install its packages", &mut pip)?;
        anyhow::ensure!(venv.ok && packages.ok, "python3 -m venv or pip failed; see their output above");
        // Last: a half-made environment has no stamp and is made again.
        fs::write(&stamp, PYTHON_PACKAGES).with_context(|| format!("could not write {}", stamp.display()))
    })();
    made.map(|()| python).map_err(|error| format!("{error:#}"))
}
