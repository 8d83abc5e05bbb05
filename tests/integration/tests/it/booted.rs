//! The services under a real systemd: booted in namespaces of its own over a copy of this machine, with journal and control groups.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use muster_integration::{
    binaries,
    skip::skip,
    wait::{self, Look},
};
use serde_json::Value;
use tempfile::TempDir;

/// Over the machine as it is; nothing that is written stays. In namespaces of its own, of which the last command is process 1.
const BOOT: &str = r#"
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$HOME/upper,workdir=$HOME/work" "$HOME/root"
cd "$HOME/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . mnt
cd /
umount -l /mnt
ip link set lo up
systemd-sysusers muster-controller.conf
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=muster-test /lib/systemd/systemd --system --unit=muster-test.target --log-target=console --show-status=no
"#;
const TARGET: &str = "[Unit]\nAllowIsolate=yes\nWants=systemd-journald.service\n";
/// Short work, and enough of it for two restarts.
const JOB: &str = r#"
name = "many"
[[tasks]]
name = "a"
array = "0-199"
cpus = 0.1
shell = "sleep 1; echo $MUSTER_INDEX"
"#;
/// Nobody can start it, and the journal of its agent has it by its job.
const NO_PROGRAM: &str = "name = 'none'\n[[tasks]]\nname = 'a'\nrun = ['/no/such/program']\n";
/// Work that nobody may disturb: it waits for a file and ends with a code of its own.
const LONG: &str = r#"
name = "long"
[[tasks]]
name = "a"
array = "0-2"
cpus = 0.1
on_lost = "fail"
shell = "echo begun; until test -e /run/gate.$MUSTER_JOB; do sleep 0.1; done; echo over; exit $MUSTER_INDEX"
"#;
/// Where keepers stand whose agent is not in a leaf.
const SCOPES: &str = "muster-agent-keeper-*.scope";
/// So that the test need not wait for long.
const IMPATIENT: &str = "[Service]\nWatchdogSec=3\n";

/// A systemd that runs, until this is dropped.
struct Booted {
    child: Child,
    /// Its process 1, as it is known out here.
    init: u32,
    cgroup: PathBuf,
    folder: TempDir,
}

/// Where control groups of version 2 are, if there are any.
fn unified() -> Option<&'static Path> {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|root| root.join("cgroup.controllers").is_file() && root.join("cgroup.procs").is_file())
}

impl Booted {
    /// A new one with the units and programs under test, or why there can be none.
    fn start() -> Result<Result<Self, String>> {
        let Some(root) = unified() else { return Ok(Err("there are no control groups of version 2".to_owned())) };
        if !Path::new("/lib/systemd/systemd").is_file() {
            return Ok(Err("there is no systemd to boot".to_owned()));
        }
        let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
        furnish(folder.path())?;
        let cgroup = root.join(format!("muster-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&cgroup) {
            return Ok(Err(format!("no control group can be made in {}: {error}", root.display())));
        }
        let log = fs::File::create(folder.path().join("boot.log"))?;
        let mut command = Command::new("/bin/sh");
        command.args(["-eu", "-c"]).arg(format!(
            "echo $$ >{}/cgroup.procs; exec unshare --mount --pid --net --cgroup --ipc --uts --fork --kill-child /bin/sh -eu -c \"$BOOT\"",
            cgroup.display()
        ));
        command.env("BOOT", BOOT).env("HOME", folder.path()).process_group(0);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.context("could not start unshare")?;
        let mut booted = Self { child, init: 0, cgroup, folder };
        let came = wait::until("systemd to answer", || {
            if let Some(status) = booted.child.try_wait()? {
                return Ok(Look::Done(Err(format!("systemd ended ({status}): {}", booted.log()))));
            }
            booted.init = only_child(booted.child.id()).unwrap_or(0);
            let ran = booted.run(&["systemctl", "is-active", "muster-test.target"]);
            Ok(if ran.is_ok() { Look::Done(Ok(())) } else { Look::not_yet(booted.log()) })
        })?;
        Ok(came.map(|()| booted))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("boot.log")).unwrap_or_default()
    }

    /// A command in there, its output, and an error unless it ends well.
    fn run(&self, words: &[&str]) -> Result<String> {
        ensure!(self.init > 0, "it has not come up");
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--mount",
            "--pid",
            "--net",
            "--cgroup",
            "--ipc",
            "--uts",
            "--",
        ]);
        command.args(words).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        let ran = command.output().context("could not start nsenter")?;
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        ensure!(ran.status.success(), "{words:?} ({}):\n{out}\n{err}", ran.status);
        Ok(out.into_owned())
    }

    fn ctl(&self, words: &[&str]) -> Result<Value> {
        let said = self.run(&[&["ctl", "-o", "json"], words].concat())?;
        serde_json::from_str(&said).with_context(|| format!("ctl {words:?} printed no JSON:\n{said}"))
    }

    /// What systemd says of a unit.
    fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.run(&["systemctl", "show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    fn until_status(&self, unit: &str, part: &str) -> Result<()> {
        wait::until(&format!("{unit} to be `{part}`"), || {
            let status = self.property(unit, "StatusText")?;
            Ok(Look::when(status.contains(part), (status, self.run(&["journalctl", "-n", "40", "--no-pager"]))))
        })
    }

    /// The journal's records of a unit that match.
    fn records(&self, unit: &str, matches: &[&str]) -> Result<Vec<Value>> {
        let said = self.run(&[&["journalctl", "-q", "-o", "json", "-u", unit], matches].concat())?;
        said.lines().map(|line| serde_json::from_str(line).context("the journal printed no JSON")).collect()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Its process 1 dies with it, and with that everybody in there.
        drop(self.child.kill().and_then(|()| self.child.wait()));
        let gone = wait::until("its control groups to be empty", || {
            remove_groups(&self.cgroup);
            Ok(Look::when(!self.cgroup.exists(), &self.cgroup))
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
    }
}

/// Deepest first: one with others in it cannot be removed.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// Puts in place what a package would.
fn furnish(folder: &Path) -> Result<()> {
    let upper = folder.join("upper");
    for part in ["work", "root", "upper/usr/bin", "upper/etc/muster", "upper/usr/lib/sysusers.d"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let units = upper.join("etc/systemd/system");
    for name in ["muster-controller", "muster-agent"] {
        fs::create_dir_all(units.join(format!("{name}.service.d")))?;
    }
    fs::write(units.join("muster-test.target"), TARGET)?;
    fs::write(upper.join("etc/muster/job.toml"), JOB)?;
    fs::write(upper.join("etc/muster/long.toml"), LONG)?;
    fs::write(upper.join("etc/muster/none.toml"), NO_PROGRAM)?;
    fs::write(units.join("muster-agent.service.d/test.conf"), IMPATIENT)?;
    let deploy = binaries::root().join("deploy");
    let copies = [
        ("systemd/muster-controller.service", "etc/systemd/system/muster-controller.service"),
        ("systemd/muster-agent.service", "etc/systemd/system/muster-agent.service"),
        ("sysusers.d/muster-controller.conf", "usr/lib/sysusers.d/muster-controller.conf"),
        ("etc/controller.toml", "etc/muster/controller.toml"),
        ("etc/agent.toml", "etc/muster/agent.toml"),
    ];
    for (from, to) in copies {
        fs::copy(deploy.join(from), upper.join(to)).with_context(|| format!("could not copy {from}"))?;
    }
    for program in ["muster-controller", "muster-agent", "ctl"] {
        fs::copy(binaries::path(program)?, upper.join("usr/bin").join(program))?;
    }
    Ok(())
}

fn only_child(pid: u32) -> Option<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
}

#[test]
fn the_services_run_under_systemd_and_an_agent_is_restarted_under_load() -> Result<()> {
    let booted = match Booted::start()? {
        Ok(booted) => booted,
        Err(why) => return skip("booted::the_services_run_under_systemd_and_an_agent_is_restarted_under_load", &why),
    };
    // Both return when they are ready.
    booted.run(&["systemctl", "start", "muster-controller", "muster-agent"]).with_context(|| booted.log())?;
    ensure!(
        booted.property("muster-controller", "StatusText")?.contains("leads, term"),
        "it is ready and does not lead"
    );
    booted.until_status("muster-agent", "attached, 0 attempts here")?;
    ensure!(
        booted.run(&["stat", "--format", "%U %a", "/var/lib/muster"])?.trim() == "muster 700",
        "whose is its folder?"
    );

    let long = submit_long(&booted)?;
    let job = booted.ctl(&["submit", "/etc/muster/job.toml"])?["job"].to_string();
    let tasks = || Ok::<_, anyhow::Error>(booted.ctl(&["show", &job])?["job"]["tasks"].clone());
    for restarts in 1..=2 {
        wait::until("work to be under way", || {
            let tasks = tasks()?;
            Ok(Look::when(tasks["succeeded"].as_u64() >= Some(20 * restarts), tasks))
        })?;
        ensure!(tasks()?["succeeded"].as_u64() < Some(200), "it was over before the restart");
        booted.run(&["systemctl", "restart", "muster-agent"])?;
        stands_aside(&booted)?;
    }
    wait::until("the job to be over", || {
        let tasks = tasks()?;
        Ok(Look::when(tasks["succeeded"] == 200, tasks))
    })?;

    let more = attempts(&booted, &job)?.into_iter().filter(|attempts| attempts.len() != 1).count();
    ensure!(more == 0, "{more} tasks were tried again");

    watched(&booted)?;
    booted.run(&["touch", &format!("/run/gate.{long}")])?;
    wait::until("undisturbed work to be over", || {
        let attempts = attempts(&booted, &long)?;
        let codes: Vec<_> = attempts.iter().map(|attempts| attempts[0]["end"]["exit_code"].clone()).collect();
        ensure!(attempts.iter().all(|attempts| attempts.len() == 1), "{attempts:?}");
        Ok(Look::when(codes == [0, 1, 2], codes))
    })?;
    wait::until("its whole output", || {
        let said = booted.run(&["ctl", "logs", &format!("{long}.a[1]")])?;
        Ok(Look::when(said.lines().eq(["begun", "over"]), said))
    })?;
    journalled(&booted, &job)?;
    ended(&booted)?;
    booted.run(&["systemctl", "stop", "muster-controller"])?;
    for unit in ["muster-agent", "muster-controller"] {
        let state = [booted.property(unit, "ActiveState")?, booted.property(unit, "Result")?];
        ensure!(state == ["inactive", "success"], "{unit}: {state:?}");
    }
    Ok(())
}

/// Such a job, when all of it runs.
fn submit_long(booted: &Booted) -> Result<String> {
    let job = booted.ctl(&["submit", "/etc/muster/long.toml"])?["job"].to_string();
    wait::until("long work to run", || {
        let attempts = attempts(booted, &job)?;
        let begun = attempts.iter().filter(|attempts| attempts.iter().any(|one| one["started_at"].is_string())).count();
        Ok(Look::when(begun == 3, attempts))
    })?;
    Ok(job)
}

/// Those of each task of a job.
fn attempts(booted: &Booted, job: &str) -> Result<Vec<Vec<Value>>> {
    let shown = booted.ctl(&["show", job, "--tasks"])?;
    let tasks = shown["tasks"].as_array().with_context(|| format!("no tasks in {shown}"))?;
    Ok(tasks.iter().map(|task| task["attempts"].as_array().cloned().unwrap_or_default()).collect())
}

/// The agent is in a control group beside those of its tasks, or its keeper is elsewhere.
fn stands_aside(booted: &Booted) -> Result<()> {
    let pid = booted.property("muster-agent", "MainPID")?;
    let groups = booted.run(&["cat", &format!("/proc/{pid}/cgroup")])?;
    let is_leaf = groups.lines().any(|line| line.starts_with("0::") && line.ends_with("muster-agent.service/agent"));
    let scopes = booted.run(&["systemctl", "list-units", "--plain", "--no-legend", SCOPES])?;
    ensure!(is_leaf || scopes.contains("running"), "agent: {groups}keeper: {scopes}");
    Ok(())
}

/// A stop ends what runs, says so, and leaves nobody.
fn ended(booted: &Booted) -> Result<()> {
    let long = submit_long(booted)?;
    booted.run(&["systemctl", "stop", "muster-agent"])?;
    for attempts in attempts(booted, &long)? {
        let reason = &attempts[0]["end"]["reason"];
        ensure!(*reason == "the agent was stopped", "{attempts:?}");
    }
    let left = booted.run(&["sh", "-c", "ps -A -o pid= -o args= | grep '[m]uster-agent ' || true"])?;
    ensure!(left.is_empty(), "processes are left: {left}");
    let group = "/sys/fs/cgroup/system.slice/muster-agent.service";
    let left = booted.run(&["sh", "-c", &format!("find {group} -type d 2>/dev/null || true")])?;
    ensure!(left.is_empty(), "control groups are left: {left}");
    wait::until("scopes to be gone", || {
        let scopes = booted.run(&["systemctl", "list-units", "--plain", "--no-legend", SCOPES])?;
        Ok(Look::when(scopes.is_empty(), scopes))
    })?;
    Ok(())
}

/// One that stands still is ended and started again.
fn watched(booted: &Booted) -> Result<()> {
    let before = booted.property("muster-agent", "MainPID")?;
    booted.run(&["kill", "-STOP", &before])?;
    wait::until("systemd to start another agent", || {
        let now = booted.property("muster-agent", "MainPID")?;
        let state = booted.property("muster-agent", "ActiveState")?;
        Ok(Look::when(now != before && now != "0" && state == "active", (now, state)))
    })?;
    booted.until_status("muster-agent", "attached, 3 attempts here")
}

/// Logs are records with fields of their own.
fn journalled(booted: &Booted, job: &str) -> Result<()> {
    let records = booted.records("muster-agent", &["TARGET=muster_agent::app"])?;
    let Some(start) = records.iter().find(|record| is_start(record)) else { bail!("no start in {records:#?}") };
    let text = start["MESSAGE"].as_str().unwrap_or_default();
    // No time and no level of its own.
    ensure!(text.starts_with("the agent starts name=") && start["PRIORITY"] == "6", "{start}");
    ensure!(start["MUSTER_UID"].is_string(), "{start}");
    let attached = booted.records("muster-agent", &["AGENT=1"])?;
    ensure!(
        attached.iter().any(|record| record["MESSAGE"].as_str().is_some_and(|text| text.starts_with("attached"))),
        "{attached:#?}"
    );
    let none = booted.ctl(&["submit", "/etc/muster/none.toml"])?["job"].to_string();
    wait::until("the journal to have what could not be started", || {
        let about = [format!("JOB={none}"), format!("TASK={none}.0"), "ATTEMPT=1".to_owned()];
        let found = booted.records("muster-agent", &about.each_ref().map(String::as_str))?;
        let is_it = |record: &Value| {
            let text = record["MESSAGE"].as_str().unwrap_or_default();
            text.starts_with("an attempt could not be started") && record["PRIORITY"] == "6"
        };
        Ok(Look::when(found.iter().any(is_it), found))
    })?;
    let errors = [
        booted.records("muster-agent", &["-p", "err", "_COMM=muster-agent"])?,
        booted.records("muster-controller", &["-p", "err", "_COMM=muster-controlle"])?,
    ];
    ensure!(errors.iter().all(Vec::is_empty), "job {job}: {errors:#?}");
    Ok(())
}

fn is_start(record: &Value) -> bool {
    record["MESSAGE"].as_str().is_some_and(|text| text.starts_with("the agent starts"))
}
