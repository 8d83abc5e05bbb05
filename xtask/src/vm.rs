//! `cargo xtask vm`: what an agent promises, tested once more on a real kernel with cgroups of version 2 that this command boots:
//! limits, containers, tasks whose keeper and agent are killed, a full disk, a clock that jumps, a flood of output.
//!
//! Debian's cloud kernel, our test programs and daemons and this machine's engines of containers with what they need in
//! memory, and an empty disk for what is about disks. The machine's console is our input, and libtest's lines there are the results.

mod archive;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{step, tally::Tally, tree};

use self::archive::Archive;

/// What Debian has of it.
const PACKAGES: &[&str] = &["qemu-system-x86", "linux-image-cloud-amd64", "busybox-static"];
/// Names the file of another kernel to boot, with the same built in: cgroups of later ones do more.
const KERNEL: &str = "MUSTER_VM_KERNEL";
/// Seconds from power-on to the last word; it takes about nine minutes where processors are emulated.
const LIMIT_S: &str = "1800";
/// The last word: then the exit code of the tests.
const LAST: &str = "tests ended with ";
/// Before each line of the machine's skip log: libtest counted a pass.
const SKIPPED: &str = "skipped here: ";
/// Of its memory; most of it is promised to two hundred tasks and never touched.
const MEMORY_MIB: &str = "6144";
/// Bytes of its disk, of which little is ever written.
const DISK: u64 = 256 << 20;
/// Its kernel's last word when a processor of it got nowhere for a minute (`softlockup_panic`).
const HUNG: &str = "Kernel panic - not syncing: softlockup";
/// How often that may be.
const HANGS: usize = 2;
/// What its kernel is told. No other clock than the processor's can be read in a reasonable time where it is emulated.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 psi=1 tsc=reliable clocksource=tsc mitigations=off \
    softlockup_panic=1 watchdog_thresh=30";
/// What runs there, and whether it is a test program, whose file has a number behind its name.
const PROGRAMS: [(&str, bool); 6] = [
    ("exec", true),
    ("it", true),
    ("flood", true),
    ("ctl", false),
    ("muster-controller", false),
    ("muster-agent", false),
];
/// Said when the machine goes down.
const CLEAN: &str = "cgroups left: []";

/// The first program in the machine, and the one that runs the tests there.
const INIT: &str = include_str!("vm/init.sh");
const TESTS: &str = include_str!("vm/tests.sh");
/// What runs containers there and turns clocks, where this machine has it; `cargo xtask setup` installs it.
const HELPERS: [&str; 10] = [
    "/usr/bin/podman",
    "/usr/bin/conmon",
    "/usr/bin/crun",
    "/usr/bin/docker",
    "/usr/sbin/dockerd",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/sbin/runc",
    "/usr/bin/setpriv",
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
];
/// Podman takes no image without it, not even one that is made there.
const POLICY: &str = r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#;

/// Where the parts are.
pub(crate) struct Machine {
    root: PathBuf,
    kernel: PathBuf,
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kernel.display())
    }
}

/// The machine's parts, fetched on first use; or why they are not there.
pub(crate) fn machine() -> Result<Machine, String> {
    let root = tree::cache().join("vm");
    if found(&root).is_none() {
        fetch(&root).map_err(|error| format!("{error:#}"))?;
    }
    let machine = found(&root).ok_or_else(|| format!("{} do not hold what they should", PACKAGES.join(", ")))?;
    match std::env::var_os(KERNEL) {
        Some(kernel) => Ok(Machine { kernel: kernel.into(), ..machine }),
        None => Ok(machine),
    }
}

fn found(root: &Path) -> Option<Machine> {
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    let boot = fs::read_dir(root.join("boot")).ok()?.flatten().map(|entry| entry.path());
    let kernel = boot.filter(is_kernel).max()?;
    let parts = ["usr/bin/qemu-system-x86_64", "bin/busybox", "stamp"];
    parts.iter().all(|part| root.join(part).is_file()).then(|| Machine { root: root.to_owned(), kernel })
}

/// Downloads the packages and unpacks them beside the system, which stays as it is.
fn fetch(root: &Path) -> Result<()> {
    for program in ["apt-get", "dpkg"] {
        ensure!(tree::on_path(program), "there is no {program} to fetch {} with", PACKAGES.join(", "));
    }
    let debs = root.join("debs");
    fs::create_dir_all(debs.join("partial")).with_context(|| format!("could not make {}", debs.display()))?;
    // Its lists may be older than the archive. A user who may not refresh them may still be lucky.
    let _refreshed = step::quietly("apt-get update", Command::new("apt-get").args(["-qq", "update"]));
    let mut download = Command::new("apt-get");
    download.args(["-qq", "-y", "-o", "Debug::NoLocking=true", "-o"]);
    download.arg(format!("Dir::Cache::archives={}", debs.display()));
    // Also what is installed here.
    download.args(["--download-only", "--reinstall", "--no-install-recommends", "install"]).args(PACKAGES);
    ensure!(
        step::quietly("fetch a virtual machine", &mut download)?.ok,
        "apt-get could not fetch {}",
        PACKAGES.join(", ")
    );
    for entry in fs::read_dir(&debs)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            let unpacked = Command::new("dpkg").arg("-x").arg(entry.path()).arg(root).status()?;
            ensure!(unpacked.success(), "dpkg could not unpack {}", entry.path().display());
        }
    }
    fs::remove_dir_all(&debs)?;
    // Last: what is half made has no stamp and is made again.
    fs::write(root.join("stamp"), PACKAGES.join("\n")).context("could not write a stamp")
}

/// `cargo xtask vm`.
pub(crate) fn run() -> Result<std::process::ExitCode> {
    let mut tally = Tally::default();
    check(&mut tally)?;
    tally.details().iter().for_each(|line| step::show(line));
    step::show(&tally.to_string());
    Ok(if tally.is_good(tree::in_ci()) { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE })
}

/// Boots it and takes its results into `tally`.
pub(crate) fn check(tally: &mut Tally) -> Result<()> {
    let name = "an agent on cgroup v2";
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        tally.skip(name, "the virtual machine is for Linux on x86_64");
        return Ok(());
    }
    let machine = match machine() {
        Ok(machine) => machine,
        Err(why) => {
            tally.skip(name, &why);
            return Ok(());
        }
    };
    let programs = build()?;
    let memory = tree::target().join("vm-memory.cpio");
    write_memory(&memory, &machine, &programs)?;
    let disk = tree::target().join("vm-disk.raw");
    let (mut said, mut hung) = (Vec::new(), 0);
    let ended = loop {
        // A new one each time, with holes for all that is not written.
        let made = fs::File::create(&disk).and_then(|file| file.set_len(DISK));
        made.with_context(|| format!("could not make {}", disk.display()))?;
        said.clear();
        let ended = step::watched(name, &mut boot(&machine, &memory, &disk), |line| {
            said.push(line.trim_end_matches('\r').trim_end().to_owned());
        })?;
        // An emulator can lose what one processor says to the other, and then both wait for ever.
        if hung == HANGS || !said.iter().any(|line| line.contains(HUNG)) {
            break ended;
        }
        hung += 1;
        step::show("    the emulated machine hung, and is booted anew");
    };
    said.iter().for_each(|line| hear(line, tally));
    let results = said.iter().filter(|line| line.starts_with("test ") && line.contains(" ... ")).count();
    let is_clean = said.iter().any(|line| line == CLEAN);
    let last = said.iter().find_map(|line| line.strip_prefix(LAST));
    let is_good = ended.ok && is_clean && results > 0 && last == Some("0");
    if !is_good {
        step::show(&format!(
            "    the machine's tests ended with {last:?} after {results} results; nothing left: {is_clean}"
        ));
    }
    tally.step(name, is_good);
    Ok(())
}

/// Takes one line of the machine's console, if it is about a test.
fn hear(line: &str, tally: &mut Tally) {
    match line.strip_prefix(SKIPPED) {
        Some(skipped) => tally.skip_log(skipped),
        None => tally.libtest_line(line),
    }
}

/// Builds [`PROGRAMS`], as all that `cargo xtask test` runs is built: features are those of the whole tree. Returns their
/// names there, and where they are.
fn build() -> Result<Vec<(&'static str, PathBuf)>> {
    let mut command = tree::cargo();
    command.args(["build", "--quiet", "--locked", "--workspace", "--bins"]);
    command.args(PROGRAMS.iter().filter(|(_, is_test)| *is_test).flat_map(|(name, _)| ["--test", name]));
    command.args(["--message-format", "json"]).stdout(Stdio::piped());
    let output = command.output().context("could not build the tests")?;
    ensure!(output.status.success(), "could not build the tests: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    // One line for each artifact, of which some can be run.
    let built = text.lines().filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next());
    let built: Vec<&Path> = built.map(Path::new).collect();
    let find = |(name, is_test): &(&'static str, bool)| {
        let is_it = |path: &&&Path| {
            let stem = path.file_name().unwrap_or_default().to_string_lossy();
            if *is_test { stem.starts_with(&format!("{name}-")) } else { *stem == **name }
        };
        let path = built.iter().find(is_it).with_context(|| format!("cargo did not say where {name} is"))?;
        Ok((*name, path.to_path_buf()))
    };
    PROGRAMS.iter().map(find).collect()
}

fn write_memory(to: &Path, machine: &Machine, programs: &[(&str, PathBuf)]) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "new", "proc", "sys", "tmp", "var/lib", "var/tmp", "run"] {
        archive.folder(folder);
    }
    archive.program("init", INIT.as_bytes());
    archive.program("bin/tests", TESTS.as_bytes());
    archive.program("etc/containers/policy.json", POLICY.as_bytes());
    archive.program("bin/busybox", &read(&machine.root.join("bin/busybox"))?);
    let mut needed = BTreeSet::new();
    for (name, path) in programs {
        // Without what a debugger needs it is a tenth as large, and the machine's memory is small.
        let small = to.with_extension(name);
        let strip = Command::new("strip").arg("-o").arg(&small).arg(path).status();
        let program = if strip.is_ok_and(|status| status.success()) { &small } else { path };
        let is_test = PROGRAMS.contains(&(name, true));
        let name = if is_test { format!("bin/{name}-tests") } else { format!("bin/{name}") };
        archive.program(&name, &read(program)?);
        needed.extend(libraries(path)?);
    }
    for helper in HELPERS.map(Path::new).into_iter().filter(|helper| helper.is_file()) {
        archive.program(helper.to_string_lossy().trim_start_matches('/'), &read(helper)?);
        needed.extend(libraries(helper)?);
    }
    for library in needed {
        archive.program(library.to_string_lossy().trim_start_matches('/'), &read(&library)?);
    }
    fs::write(to, archive.finish()).with_context(|| format!("could not write {}", to.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

/// The shared libraries of a program, by their whole paths, its loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("could not run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

fn boot(machine: &Machine, memory: &Path, disk: &Path) -> Command {
    let root = &machine.root;
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT_S]).arg(root.join("usr/bin/qemu-system-x86_64"));
    // Emulated: a machine that tests run on is often a virtual one itself, without the means for another.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY_MIB]);
    command.arg("-kernel").arg(&machine.kernel).arg("-initrd").arg(memory);
    command.args(["-append", KERNEL_LINE]);
    // Its kernel knows this kind of disk without modules.
    command.arg("-drive").arg(format!("file={},format=raw,if=none,id=disk", disk.display()));
    command.args(["-device", "nvme,drive=disk,serial=disk"]);
    command.args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
    for share in ["qemu", "seabios"] {
        command.arg("-L").arg(root.join("usr/share").join(share));
    }
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| root.join(dir).display().to_string());
    command.env("LD_LIBRARY_PATH", libraries.join(":")).stdout(Stdio::piped());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_is_listened_for() {
        assert!(TESTS.contains(&format!("{LAST}$(")) && TESTS.contains(CLEAN.trim_end_matches(']')));
        assert!(TESTS.contains(&format!("sed 's/^/{SKIPPED}/' \"$MUSTER_SKIP_LOG\"")));
    }

    #[test]
    fn a_test_that_could_not_run_in_the_machine_is_no_pass() {
        let mut tally = Tally::default();
        for line in ["test containers::a ... ok", "test containers::b ... ok", "skipped here: containers::b\tno Podman"]
        {
            hear(line, &mut tally);
        }
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(tally.details(), ["skipped: containers::b: no Podman"]);
    }
}
