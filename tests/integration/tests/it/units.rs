//! The daemons as services: their units are sound and hardened, and a service manager hears how they are.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use muster_integration::{
    binaries,
    ctl::Ctl,
    daemon::Daemon,
    etcd::{self, Etcd},
    skip::skip,
    wait::{self, Look},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Exposure that `systemd-analyze security` may find at most, in tenths. The controller's is what a service with a network
/// cannot be without; the agent runs other people's programs as root.
const UNITS: [(&str, u32); 2] = [("muster-controller", 12), ("muster-agent", 80)];
/// Only newer ones know this; the others say so and go on without.
const NEWER: &str = "Unknown key 'DelegateSubgroup' in section [Service], ignoring.";

/// A unit whose program is the one under test.
fn unit(name: &str, folder: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(binaries::root().join(format!("deploy/systemd/{name}.service")))?;
    let (installed, ours) = (format!("/usr/bin/{name}"), binaries::path(name)?);
    ensure!(text.matches(&installed).count() == 1, "{name} does not start {installed}");
    let path = folder.join(format!("{name}.service"));
    fs::write(&path, text.replace(&installed, &ours.to_string_lossy()))?;
    Ok(path)
}

fn analyze(arguments: &[&str], unit: &Path) -> Result<(bool, String)> {
    let ran = Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_COLORS", "0").output()?;
    let said = [ran.stdout, ran.stderr].concat();
    Ok((ran.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

fn has_analyze() -> Result<(), String> {
    let found = Command::new("systemd-analyze").arg("--version").output();
    found.map(drop).map_err(|error| format!("systemd-analyze cannot be started: {error}"))
}

#[test]
fn the_units_are_understood_without_a_word_of_doubt() -> Result<()> {
    if let Err(why) = has_analyze() {
        return skip("units::the_units_are_understood_without_a_word_of_doubt", &why);
    }
    let folder = tempfile::tempdir()?;
    for (name, _) in UNITS {
        let (is_good, said) = analyze(&["verify", "--man=no"], &unit(name, folder.path())?)?;
        let doubts: Vec<_> = said.lines().filter(|line| !line.contains(NEWER)).collect();
        ensure!(is_good && doubts.is_empty(), "{name}: {}", doubts.join("\n"));
    }
    Ok(())
}

#[test]
fn the_units_expose_no_more_than_they_need() -> Result<()> {
    if let Err(why) = has_analyze() {
        return skip("units::the_units_expose_no_more_than_they_need", &why);
    }
    let folder = tempfile::tempdir()?;
    for (name, exposure) in UNITS {
        let threshold = format!("--threshold={exposure}");
        let (is_good, said) = analyze(&["security", "--offline=true", &threshold], &unit(name, folder.path())?)?;
        ensure!(is_good, "{name} is more exposed than {exposure}:\n{said}");
    }
    Ok(())
}

#[test]
fn an_agents_unit_leaves_what_an_engine_of_containers_needs() -> Result<()> {
    let text = fs::read_to_string(binaries::root().join("deploy/systemd/muster-agent.service"))?;
    let lines = text.lines().filter(|line| line.starts_with("CapabilityBoundingSet="));
    let taken: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    ensure!(!taken.is_empty(), "nothing is taken away");
    // To make and enter namespaces, mounts, users and cgroups, to kill, and to load a profile.
    for needed in ["SYS_ADMIN", "SETUID", "SETGID", "CHOWN", "KILL", "NET_ADMIN", "SYS_PTRACE", "MAC_ADMIN"] {
        ensure!(!taken.iter().any(|word| word.ends_with(&format!("CAP_{needed}"))), "CAP_{needed} is taken away");
    }
    Ok(())
}

/// A service manager that listens.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
    heard: Vec<String>,
}

impl Manager {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, folder, heard: Vec::new() })
    }

    /// A daemon of this manager's, which wants to hear from it every three seconds.
    fn start(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Daemon> {
        let mut command = Command::new(binaries::path(program)?);
        command.args(arguments).env("NO_COLOR", "1").env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.env("WATCHDOG_USEC", "3000000").env_remove("WATCHDOG_PID");
        Daemon::start(name, &mut command, self.folder.path())
    }

    fn controller(&self, arguments: &[&str]) -> Result<Daemon> {
        let data = self.path("controller");
        self.start(
            "controller",
            "muster-controller",
            &[&["--listen", "127.0.0.1:0", "--data", &data], arguments].concat(),
        )
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Everything that was said since the last time, until a word is that for which `is_it`.
    fn until(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut since = Vec::new();
        wait::until(&format!("the service manager to hear {what}"), || {
            let mut bytes = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut bytes) {
                let word = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
                self.heard.push(word.clone());
                since.push(word);
                if since.last().is_some_and(|word| is_it(word)) {
                    return Ok(Look::Done(()));
                }
            }
            Ok(Look::not_yet(&self.heard))
        })?;
        Ok(since)
    }

    fn hears(&mut self, word: &str) -> Result<Vec<String>> {
        self.until(word, |said| said == word)
    }

    fn hears_status(&mut self, part: &str) -> Result<Vec<String>> {
        self.until(part, |said| said.starts_with("STATUS=") && said.contains(part))
    }
}

#[test]
fn a_controller_is_ready_when_it_serves_says_that_it_leads_and_that_it_stops() -> Result<()> {
    let mut manager = Manager::new()?;
    let mut controller = manager.controller(&[])?;
    let before = manager.hears("READY=1")?;
    ensure!(!before.iter().any(|word| word.starts_with("WATCHDOG")), "{before:?}");
    let address = controller.address(0)?;
    Ctl::of(&address).json(&["status"])?;
    manager.hears_status("leads, term 1")?;
    for _ in 0..3 {
        manager.hears("WATCHDOG=1")?;
    }
    controller.signal(Signal::SIGTERM)?;
    manager.hears("STOPPING=1")?;
    controller.stop()
}

#[test]
fn a_controller_that_stands_by_is_ready_and_one_that_waits_for_etcd_is_not() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("units::a_controller_that_stands_by_is_ready_and_one_that_waits_for_etcd_is_not", &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let (mut first, mut second) = (Manager::new()?, Manager::new()?);
    let mut leads = first.controller(&["--store", &etcd.address()])?;
    first.hears("READY=1")?;
    first.hears_status("leads, term")?;
    let mut stands_by = second.controller(&["--store", &etcd.address()])?;
    second.hears("READY=1")?;
    second.hears_status(&format!("stands by; http://{} leads", leads.address(0)?))?;
    second.hears("WATCHDOG=1")?;
    leads.stop()?;
    second.hears_status("leads, term")?;
    stands_by.stop()?;

    let mut third = Manager::new()?;
    let mut waits = third.controller(&["--store", "etcd://127.0.0.1:1"])?;
    // As long as it takes: word comes that the start goes on, and none that it is over.
    let words = third.until("a wish for more time", |word| word.starts_with("EXTEND_TIMEOUT_USEC="))?;
    ensure!(!words.iter().any(|word| word == "READY=1" || word == "WATCHDOG=1"), "{words:?}");
    waits.stop()
}

#[test]
fn an_agent_is_ready_without_a_controller_and_says_when_it_has_one() -> Result<()> {
    let mut manager = Manager::new()?;
    // Nobody listens there yet.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let url = format!("http://{address}");
    let data = manager.path("agent");
    let mut agent = manager.start("agent", "muster-agent", &["--controller", &url, "--data", &data])?;
    manager.hears("READY=1")?;
    manager.hears_status("looks for a controller, 0 attempts here")?;
    manager.hears("WATCHDOG=1")?;
    let other = Manager::new()?;
    let store = other.path("controller");
    let mut controller = other.start("controller", "muster-controller", &["--listen", &address, "--data", &store])?;
    manager.hears_status("attached, 0 attempts here")?;
    let ctl = Ctl::of(&address);
    let file = other.folder.path().join("a.toml");
    fs::write(&file, "name = \"a\"\n[[tasks]]\nname = \"a\"\nrun = [\"sleep\", \"1000\"]\n")?;
    let job = ctl.submit(&file)?;
    manager.hears_status("attached, 1 attempt here")?;
    ctl.json(&["cancel", &job.to_string()])?;
    manager.hears_status("attached, 0 attempts here")?;
    agent.signal(Signal::SIGINT)?;
    let words = manager.hears_status("ends what runs and reports it")?;
    ensure!(words.contains(&"STOPPING=1".to_owned()), "{words:?}");
    ensure!(!words.iter().any(|word| word.starts_with("EXTEND_TIMEOUT")), "nothing is drained: {words:?}");
    agent.stop()?;
    controller.stop()
}

#[test]
fn an_agent_that_drains_when_it_is_stopped_asks_for_the_time_that_its_file_gives() -> Result<()> {
    let mut manager = Manager::new()?;
    let file = manager.path("agent.toml");
    fs::write(
        &file,
        format!("data = '{}'\ncontrollers = ['http://127.0.0.1:1']\ndrain = '10m'\n", manager.path("agent")),
    )?;
    let mut agent = manager.start("agent", "muster-agent", &["--config", &file])?;
    manager.hears("READY=1")?;
    agent.signal(Signal::SIGINT)?;
    manager.hears("STOPPING=1")?;
    manager.hears_status("takes no new work; what runs may go on for 600 s")?;
    manager.hears("EXTEND_TIMEOUT_USEC=720000000")?;
    agent.stop()
}

#[test]
fn an_agent_that_is_stopped_asks_for_the_longest_grace_of_what_runs() -> Result<()> {
    let (mut manager, other) = (Manager::new()?, Manager::new()?);
    let mut controller = other.controller(&[])?;
    let address = controller.address(0)?;
    let (ctl, file, config) = (Ctl::of(&address), other.path("a.toml"), manager.path("agent.toml"));
    // The second of them does not end by itself.
    let deaf = "trap '' TERM; echo begun; while :; do sleep 0.1; done";
    fs::write(
        &file,
        format!(
            "name = 'a'\n[[tasks]]\nname = 'short'\ngrace = '1s'\nrun = ['sleep', '1000']\n\
             [[tasks]]\nname = 'long'\ngrace = '10m'\nshell = \"{deaf}\"\n"
        ),
    )?;
    for (drain, asked) in [("0s", 720), ("5m", 1020)] {
        let data = manager.path("agent");
        let text = format!("data = '{data}'\ncpus = 4\ncontrollers = ['http://{address}']\ndrain = '{drain}'\n");
        fs::write(&config, text)?;
        let mut agent = manager.start("agent", "muster-agent", &["--config", &config])?;
        let job = ctl.submit(Path::new(&file))?;
        wait::until("the task to be deaf", || {
            let text = ctl.run(&["logs", &format!("{job}.long")])?.text();
            Ok(Look::when(text == "begun\n", text))
        })?;
        manager.hears_status("attached, 2 attempts here")?;
        agent.signal(Signal::SIGINT)?;
        manager.hears("STOPPING=1")?;
        manager.hears(&format!("EXTEND_TIMEOUT_USEC={asked}000000"))?;
        // Who asks again waits for nothing.
        agent.interrupt()?;
        ctl.run(&["cancel", &job.to_string()])?.expect(0)?;
    }
    controller.stop()
}

/// A disk of its own that can be made to hang: whoever writes to it waits.
struct HangingDisk {
    at: PathBuf,
    _folder: TempDir,
}

impl HangingDisk {
    fn mount() -> Result<Result<Self, String>> {
        let folder = tempfile::tempdir()?;
        let (image, at) = (folder.path().join("image"), folder.path().join("disk"));
        fs::create_dir(&at)?;
        fs::File::create(&image)?.set_len(32 << 20)?;
        let (image, place) = (image.to_string_lossy().into_owned(), at.to_string_lossy().into_owned());
        for command in [&["mkfs.ext4", "-q", &image][..], &["mount", "-o", "loop", &image, &place]] {
            let ran = Command::new(command[0]).args(&command[1..]).output();
            match ran {
                Ok(ran) if ran.status.success() => {}
                Ok(ran) => return Ok(Err(format!("{}: {}", command[0], String::from_utf8_lossy(&ran.stderr).trim()))),
                Err(error) => return Ok(Err(format!("{}: {error}", command[0]))),
            }
        }
        Ok(Ok(Self { at, _folder: folder }))
    }

    fn fsfreeze(&self, how: &str) -> Result<()> {
        let status = Command::new("fsfreeze").arg(how).arg(&self.at).status()?;
        ensure!(status.success(), "fsfreeze {how} failed");
        Ok(())
    }

    /// Until what comes back is dropped. That must be before anybody is waited for who writes there.
    fn hang(&self) -> Result<Hanging<'_>> {
        self.fsfreeze("--freeze")?;
        Ok(Hanging(self))
    }
}

/// A disk that hangs.
struct Hanging<'a>(&'a HangingDisk);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.fsfreeze("--unfreeze") {
            eprintln!("{error:#}");
        }
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.at).status());
    }
}

#[test]
fn an_agent_whose_loop_stands_still_does_not_say_that_it_lives() -> Result<()> {
    let disk = match HangingDisk::mount()? {
        Ok(disk) => disk,
        Err(why) => return skip("units::an_agent_whose_loop_stands_still_does_not_say_that_it_lives", &why),
    };
    let (mut manager, other) = (Manager::new()?, Manager::new()?);
    let mut controller = other.controller(&[])?;
    let address = controller.address(0)?;
    let data = disk.at.join("agent").to_string_lossy().into_owned();
    let url = format!("http://{address}");
    let mut agent = manager.start("agent", "muster-agent", &["--controller", &url, "--data", &data])?;
    manager.hears_status("attached, 0 attempts here")?;
    let hanging = disk.hang()?;
    let file = other.folder.path().join("a.toml");
    fs::write(&file, "name = \"a\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    // What it must remember before it begins, it cannot write.
    let job = Ctl::of(&address).submit(&file)?;
    manager.hears_status("its loop does not turn")?;
    let words = heard_meanwhile(&mut manager)?;
    ensure!(!words.iter().any(|word| word == "WATCHDOG=1"), "it said that it lives: {words:?}");
    drop(hanging);
    manager.hears("WATCHDOG=1")?;
    let done = Ctl::of(&address).finished(job, wait::LIMIT)?;
    ensure!(done["state"] == "succeeded", "{done}");
    agent.stop()?;
    controller.stop()
}

/// What is said while another daemon says four times that it lives: more than a second each.
fn heard_meanwhile(manager: &mut Manager) -> Result<Vec<String>> {
    let mut clock = Manager::new()?;
    let mut other = clock.controller(&[])?;
    for _ in 0..4 {
        clock.hears("WATCHDOG=1")?;
    }
    other.stop()?;
    let mut words = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(length) = manager.socket.recv(&mut bytes) {
        words.push(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned());
    }
    Ok(words)
}

#[test]
fn a_controller_whose_disk_hangs_lives_and_says_so() -> Result<()> {
    let disk = match HangingDisk::mount()? {
        Ok(disk) => disk,
        Err(why) => return skip("units::a_controller_whose_disk_hangs_lives_and_says_so", &why),
    };
    let mut manager = Manager::new()?;
    let data = disk.at.join("controller").to_string_lossy().into_owned();
    let arguments = ["--listen", "127.0.0.1:0", "--data", &data];
    let mut controller = manager.start("controller", "muster-controller", &arguments)?;
    let address = controller.address(0)?;
    manager.hears_status("leads, term 1")?;
    let file = manager.folder.path().join("a.toml");
    fs::write(&file, "name = \"a\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    let hanging = disk.hang()?;
    let (ctl, path) = (Ctl::of(&address), file.clone());
    let submitted = std::thread::spawn(move || ctl.submit(&path));
    for _ in 0..4 {
        manager.hears("WATCHDOG=1")?;
    }
    ensure!(!submitted.is_finished(), "it was accepted without being on the disk");
    drop(hanging);
    match submitted.join() {
        Ok(job) => ensure!(job? == 1, "another job"),
        Err(_) => bail!("the submission died"),
    }
    let text = controller.log();
    ensure!(!text.contains("does not answer"), "{text}");
    controller.stop().context("it ends in order")
}
