//! The ground a run stands on: a network of its own for every process, folders that can be full, and nothing of it
//! left behind, also by a run that was killed.
//!
//! One network is the hub: it holds a bridge and the far end of every cable. So the machine's own network sees nothing
//! of all this, and all is gone with the hub.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What every name of ours begins with; the number of the process follows.
const PREFIX: &str = "muster-chaos-";
/// The network of the bridge and of the proxies.
pub(crate) const HUB: &str = "hub";
/// Where the proxies listen.
pub(crate) const HUB_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Networks and folders of one run. Dropped, they are gone.
pub(crate) struct Ground {
    own: String,
    folder: PathBuf,
    nodes: Vec<String>,
    mounts: Vec<PathBuf>,
}

/// Why this cannot be done here; none: it can.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("networks of their own need root".to_owned());
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    let made = ip(&["netns", "add", &probe]).and_then(|()| ip(&["netns", "delete", &probe]));
    made.err().map(|error| format!("no network of its own can be made: {error:#}"))
}

impl Ground {
    /// The hub, and a network with a cable to it for each of `nodes`; all processes' folders are under `folder`.
    pub(crate) fn make(folder: &Path, nodes: &[(String, Ipv4Addr)]) -> Result<Self> {
        sweep()?;
        let own = format!("{PREFIX}{}-", std::process::id());
        let mut ground = Self { own, folder: folder.to_path_buf(), nodes: Vec::new(), mounts: Vec::new() };
        ground.add(HUB)?;
        let hub = ground.name(HUB);
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "address", "add", &format!("{HUB_ADDRESS}/16"), "dev", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for (node, address) in nodes {
            ground.add(node)?;
            let own = ground.name(node);
            ip(&["-n", &hub, "link", "add", node, "type", "veth", "peer", "name", "cable", "netns", &own])?;
            ip(&["-n", &hub, "link", "set", node, "master", "bridge", "up"])?;
            ip(&["-n", &own, "address", "add", &format!("{address}/16"), "dev", "cable"])?;
            ip(&["-n", &own, "link", "set", "cable", "up"])?;
        }
        Ok(ground)
    }

    fn add(&mut self, node: &str) -> Result<()> {
        let name = self.name(node);
        ip(&["netns", "add", &name])?;
        self.nodes.push(node.to_owned());
        ip(&["-n", &name, "link", "set", "lo", "up"])
    }

    fn name(&self, node: &str) -> String {
        format!("{}{node}", self.own)
    }

    /// A folder of limited size, which can be filled without harm to anything else.
    pub(crate) fn small_folder(&mut self, name: &str, mib: u32) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), &format!("{}tmpfs", self.own)]).arg(&path);
        done(&mut mount)?;
        self.mounts.push(path.clone());
        Ok(path)
    }

    /// A command that will run in the network of `node`.
    pub(crate) fn command(&self, node: &str, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name(node))).arg("--").arg(program);
        command
    }

    /// SIGKILL for the process in the network of `node` whose first argument is `word`; of several, the one that `pick`
    /// says. Which it was.
    pub(crate) fn kill_one(&self, node: &str, word: &str, pick: usize) -> Result<Option<i32>> {
        let is_it = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(word.as_bytes()) && lives(*pid)
        };
        let found: Vec<i32> = pids(&self.name(node))?.into_iter().filter(is_it).collect();
        let pid = found.get(pick % found.len().max(1)).copied();
        if let Some(pid) = pid {
            let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(pid)
    }

    /// Does `work` in the network of `node`; threads that it starts are there, too.
    pub(crate) fn inside<T: Send>(&self, node: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name(node));
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let network = fs::File::open(&path).with_context(|| format!("could not open {path}"))?;
                setns(&network, CloneFlags::CLONE_NEWNET).with_context(|| format!("could not enter {path}"))?;
                work()
            });
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread in the network of {node} died")))
        })
    }

    /// Pulls the cable of a node, or puts it back.
    pub(crate) fn cable(&self, node: &str, is_in: bool) -> Result<()> {
        ip(&["-n", &self.name(HUB), "link", "set", node, if is_in { "up" } else { "down" }])
    }

    /// Kills all that runs in the network of a node, as if its machine had lost its power.
    pub(crate) fn crash(&self, node: &str) -> Result<()> {
        crash(&self.name(node))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for node in self.nodes.iter().rev() {
            let name = self.name(node);
            let gone = crash(&name).and_then(|()| ip(&["netns", "delete", &name]));
            complain(gone);
        }
        for mount in self.mounts.iter().rev() {
            complain(done(Command::new("umount").arg("--lazy").arg(mount)));
        }
    }
}

fn complain(outcome: Result<()>) {
    if let Err(error) = outcome {
        eprintln!("chaos: could not clear up: {error:#}");
    }
}

/// Where a node's program listens.
pub(crate) fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

/// Removes what runs left that are not alive any more.
fn sweep() -> Result<()> {
    let listed = Command::new("ip").args(["netns", "list"]).output().context("could not start ip")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| owner(name).is_some_and(|pid| !is_a_run(pid))) {
        crash(name)?;
        ip(&["netns", "delete", name])?;
    }
    let mounts = fs::read_to_string("/proc/mounts").context("could not read /proc/mounts")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(what), Some(path)) = (words.next(), words.next()) else { continue };
        if owner(what).is_some_and(|pid| !is_a_run(pid)) {
            done(Command::new("umount").args(["--lazy", path]))?;
        }
    }
    Ok(())
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// One that was killed and that nobody has collected yet keeps its name, and is none.
fn is_a_run(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == "muster-chaos" && i32::try_from(pid).is_ok_and(lives)
}

/// All processes of a network; dead ones that nobody has collected yet are listed, too.
fn pids(name: &str) -> Result<Vec<i32>> {
    let listed = Command::new("ip").args(["netns", "pids", name]).output().context("could not start ip")?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Kills all processes of a network, until none is left.
fn crash(name: &str) -> Result<()> {
    const LOOKS: u32 = 200;
    for _ in 0..LOOKS {
        let pids: Vec<i32> = pids(name)?.into_iter().filter(|pid| lives(*pid)).collect();
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            let _gone_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::park_timeout(std::time::Duration::from_millis(5));
    }
    Err(anyhow!("processes in {name} outlive SIGKILL"))
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn ip(arguments: &[&str]) -> Result<()> {
    done(Command::new("ip").args(arguments))
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("could not start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", said.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner("muster-chaos-41-hub"), Some(41));
        assert_eq!(owner("muster-chaos-41-tmpfs"), Some(41));
        assert_eq!(owner("muster-chaos-x-hub"), None);
        assert_eq!(owner("default"), None);
    }

    #[test]
    fn a_killed_process_that_nobody_collected_does_not_live() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep is there");
        let pid = i32::try_from(child.id()).expect("a process number");
        assert!(lives(pid));
        child.kill().expect("it is ours");
        let dead = muster_integration::wait::until("the kernel to see it dead", || {
            Ok(muster_integration::wait::Look::when(!lives(pid), pid))
        });
        child.wait().expect("it is ours");
        dead.expect("a zombie does not live");
    }

    #[test]
    fn a_process_of_another_name_is_no_run() {
        assert!(!is_a_run(1), "init is no run of ours");
        assert!(!is_a_run(u32::MAX));
    }
}
