//! The Debian packages: made of the programs under test, looked into, installed over a copy of this machine, removed and purged.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{binaries, skip::skip};
use tempfile::TempDir;

const NAMES: [&str; 3] = ["muster-agent", "muster-controller", "muster-ctl"];

/// Why no packages can be made here; none: they can.
fn missing() -> Option<String> {
    if std::env::var_os("MUSTER_CARGO_DEB").is_some() {
        return None;
    }
    let why = std::env::var("MUSTER_NO_CARGO_DEB");
    Some(why.unwrap_or_else(|_| "MUSTER_CARGO_DEB is not set; `cargo xtask test` sets it".to_owned()))
}

fn said(command: &mut Command) -> Result<String> {
    let ran = command.output().with_context(|| format!("could not start {:?}", command.get_program()))?;
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.status.success(), "{command:?} failed:\n{out}\n{err}");
    Ok(format!("{out}{err}"))
}

/// All packages in a folder of their own, by their names.
fn packed() -> Result<(TempDir, BTreeMap<&'static str, PathBuf>)> {
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let out = folder.path().to_string_lossy().into_owned();
    let mut pack = Command::new(binaries::path("xtask")?);
    said(pack.args(["package", "--profile", "dev", "--no-build", "--out", &out]).current_dir(binaries::root()))?;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder.path())? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = NAMES.iter().find(|name| file.starts_with(&format!("{name}_"))).context(file)?;
        found.insert(*name, path);
    }
    ensure!(found.len() == NAMES.len(), "{found:?}");
    Ok((folder, found))
}

fn dpkg_deb(what: &str, package: &Path) -> Result<String> {
    said(Command::new("dpkg-deb").arg(what).arg(package))
}

/// Modes and owners of what is in a package, by path.
fn contents(package: &Path) -> Result<BTreeMap<String, String>> {
    let listed = dpkg_deb("--contents", package)?;
    let files = listed.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (mode, owner, path) = (words.first()?, words.get(1)?, words.get(5)?);
        (!mode.starts_with('d')).then(|| (path.trim_start_matches('.').to_owned(), format!("{mode} {owner}")))
    });
    Ok(files.collect())
}

/// A script of a package; nothing if it has none.
fn script(package: &Path, name: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    said(Command::new("dpkg-deb").arg("--control").arg(package).arg(folder.path()))?;
    Ok(fs::read_to_string(folder.path().join(name)).unwrap_or_default())
}

/// How the script stands that does something only when a condition is met: whether a word is in it at all.
fn invokes(script: &str, word: &str) -> bool {
    script.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(word))
}

/// They hold what they should, and an upgrade stops nothing that runs work.
fn look_into(packages: &BTreeMap<&str, PathBuf>) -> Result<()> {
    for (name, package) in packages {
        let fields = dpkg_deb("--field", package)?;
        let version = format!("Version: {}-1", env!("CARGO_PKG_VERSION"));
        for field in [&format!("Package: {name}"), &version, "Section: admin", "Maintainer: ", "Depends: libc6"] {
            ensure!(fields.lines().any(|line| line.starts_with(field)), "{field} is not in\n{fields}");
        }
        let all = contents(package)?;
        ensure!(all.contains_key(&format!("/usr/share/doc/{name}/copyright")), "{name}: {all:?}");
        ensure!(all.values().all(|about| about.ends_with("0/0")), "{name}: {all:?}");
    }
    let programs = "-rwxr-xr-x 0/0";
    let files = "-rw-r--r-- 0/0";
    let expected = [
        ("muster-agent", "/usr/bin/muster-agent", programs),
        ("muster-agent", "/usr/lib/systemd/system/muster-agent.service", files),
        // A token to join with may stand in it.
        ("muster-agent", "/etc/muster/agent.toml", "-rw------- 0/0"),
        ("muster-controller", "/usr/bin/muster-controller", programs),
        ("muster-controller", "/usr/lib/systemd/system/muster-controller.service", files),
        ("muster-controller", "/usr/lib/sysusers.d/muster-controller.conf", files),
        ("muster-controller", "/etc/muster/controller.toml", files),
        ("muster-ctl", "/usr/bin/ctl", programs),
        ("muster-ctl", "/usr/share/bash-completion/completions/ctl", files),
        ("muster-ctl", "/usr/share/zsh/vendor-completions/_ctl", files),
        ("muster-ctl", "/usr/share/fish/vendor_completions.d/ctl.fish", files),
    ];
    for (name, path, about) in expected {
        let all = contents(&packages[name])?;
        let found = all.get(path).or_else(|| all.get(path.strip_prefix("/usr").unwrap_or(path)));
        ensure!(found.is_some_and(|found| found == about), "{name}: {path} is {found:?} in {all:#?}");
    }
    for (name, file) in [("muster-agent", "agent"), ("muster-controller", "controller")] {
        let conffiles = script(&packages[name], "conffiles")?;
        ensure!(conffiles.trim() == format!("/etc/muster/{file}.toml"), "{name}: {conffiles}");
    }
    let agent = &packages["muster-agent"];
    let scripts = [script(agent, "preinst")?, script(agent, "postinst")?];
    // A restart leaves work alone; a stop ends it.
    ensure!(invokes(&scripts[1], "deb-systemd-invoke") && scripts[1].contains("restart"), "{}", scripts[1]);
    let found = scripts.iter().find(|script| invokes(script, " stop"));
    ensure!(found.is_none(), "an upgrade stops it: {found:?}");
    let removal = script(agent, "prerm")?;
    ensure!(invokes(&removal, "stop") && removal.contains("= remove"), "only a removal stops it:\n{removal}");
    let controller = script(&packages["muster-controller"], "postinst")?;
    ensure!(invokes(&controller, "deb-systemd-invoke") && invokes(&controller, "systemd-sysusers"), "{controller}");
    Ok(())
}

/// Installs, looks, removes and purges on a copy of this machine that nobody sees: an overlay in mounts of its own.
const TRIAL: &str = r#"
mount -t overlay overlay -o "lowerdir=/,upperdir=$HOME/upper,workdir=$HOME/work" "$HOME/root"
mount -t proc proc "$HOME/root/proc"
mount -t tmpfs tmpfs "$HOME/root/run"
mkdir "$HOME/root/packages"
mount --bind "$HOME/packages" "$HOME/root/packages"
exec chroot "$HOME/root" /bin/sh -eu <<'END'
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
dpkg -i /packages/*.deb
muster-agent --version
muster-controller --version
ctl --version
getent passwd muster
echo '# ours' >>/etc/muster/agent.toml
dpkg -i /packages/muster-agent_*.deb
grep -q '# ours' /etc/muster/agent.toml
mkdir /var/lib/muster /var/lib/muster-agent
dpkg -r muster-agent muster-controller muster-ctl
test ! -e /usr/bin/muster-agent
test ! -e /usr/bin/ctl
test -e /etc/muster/agent.toml
dpkg -P muster-agent muster-controller muster-ctl
test ! -e /etc/muster/agent.toml
test ! -e /etc/muster/controller.toml
test -d /var/lib/muster
test -d /var/lib/muster-agent
echo 'all is as it was'
END
"#;

// One test: to pack takes long.
#[test]
fn the_packages_hold_what_they_should_and_leave_only_what_people_own() -> Result<()> {
    let name = "packages::the_packages_hold_what_they_should_and_leave_only_what_people_own";
    if let Some(why) = missing() {
        return skip(name, &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    for part in ["upper", "work", "root", "packages"] {
        fs::create_dir(folder.path().join(part))?;
    }
    let trial = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "/bin/sh", "-eu", "-c"]).env("HOME", folder.path());
        command
    };
    let overlay = r#"mount -t overlay overlay -o "lowerdir=/,upperdir=$HOME/upper,workdir=$HOME/work" "$HOME/root""#;
    if let Err(why) = said(trial().arg(overlay)) {
        return skip(name, &format!("no copy of this machine can be made: {why:#}"));
    }
    let (_packed, packages) = packed()?;
    look_into(&packages)?;
    for package in packages.values() {
        let to = folder.path().join("packages").join(package.file_name().context("a package is a file")?);
        fs::copy(package, to)?;
    }
    let told = said(trial().arg(TRIAL))?;
    for part in ["muster-agent 0.", "muster-controller 0.", "ctl 0.", "muster:x:", "all is as it was"] {
        ensure!(told.contains(part), "`{part}` is not in\n{told}");
    }
    for left in ["/var/lib/muster;", "/var/lib/muster-agent stays"] {
        ensure!(told.contains(left), "it does not say what is left:\n{told}");
    }
    Ok(())
}
