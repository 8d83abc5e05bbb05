//! Full disks. The controller's: submissions are refused with a reason; the agent's: work goes on. Nothing is lost, and room heals.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{heirs::all_run, keeper::keeper_of};

/// A file system of 16 MiB, unmounted when dropped.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    /// Takes all the room that is left; giving the file up gives it back.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filler");
        let mut file = File::create(&path)?;
        loop {
            match file.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(path),
                Err(error) => return Err(error).context("could not fill the disk"),
            }
        }
    }

    /// Or why it cannot be made here.
    pub(crate) fn mount(at: &Path) -> Result<Result<Self, String>> {
        fs::create_dir_all(at)?;
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "muster-test"]).arg(at).output();
        let output = output.context("could not start mount")?;
        let why = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(if output.status.success() { Ok(Self(at.to_path_buf())) } else { Err(why()) })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that is being killed may still hold a file.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_is_a_clear_refusal_and_costs_nothing_that_was_accepted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = match SmallDisk::mount(&folder.path().join("small"))? {
        Ok(disk) => disk,
        Err(why) => return skip("disk::a_full_disk_is_a_clear_refusal_and_costs_nothing_that_was_accepted", &why),
    };
    let options = Options { store: Some(disk.0.join("store")), ..Options::default() };
    let mut system = System::start(options)?;
    let accepted = system.submit("small.toml", "name = \"small\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    system.ctl().finished(accepted, wait::LIMIT)?;

    // Large specs, until one does not fit.
    let task =
        |n: u32| format!("[[tasks]]\nname = \"t{n}\"\nrun = [\"true\"]\nenv = {{ X = \"{}\" }}\n", "x".repeat(100_000));
    let large = format!("name = \"large\"\n{}", (0..4).map(task).collect::<String>());
    let file = system.file("large.toml", &large)?;
    let path = file.to_string_lossy().into_owned();
    let mut stored = vec![accepted];
    let refused = loop {
        ensure!(stored.len() < 200, "80 MB fit on a disk of 16 MiB");
        let ran = system.ctl().run(&["submit", &path, "-o", "json"])?;
        if ran.code != 0 {
            break ran;
        }
        let reply: serde_json::Value = serde_json::from_slice(&ran.stdout)?;
        stored.push(reply["job"].as_u64().context("a job number")?);
    };
    ensure!(matches!(refused.code, 4 | 5 | 8), "an odd exit code:\n{refused}");
    ensure!(!refused.stderr.contains("panicked"), "it panicked:\n{refused}");

    // What is known can still be looked at, and no answer takes for ever.
    let ran = system.ctl().run(&["show", &accepted.to_string()])?.expect(0)?;
    ensure!(ran.text().contains("succeeded"), "{ran}");
    let again = system.ctl().run(&["submit", &path])?;
    ensure!(matches!(again.code, 4 | 5), "an odd exit code:\n{again}");
    ensure!(again.stderr.contains("away"), "it does not say why:\n{again}");

    // Room heals it by itself.
    let status = Command::new("mount").args(["-o", "remount,size=64m"]).arg(&disk.0).status()?;
    ensure!(status.success(), "could not enlarge the disk");
    let healed = wait::until("a submission to be taken again", || {
        let ran = system.ctl().run(&["submit", &path, "-o", "json"])?;
        let reply: Option<serde_json::Value> = serde_json::from_slice(&ran.stdout).ok();
        let job = reply.as_ref().and_then(|reply| reply["job"].as_u64());
        Ok(job.map_or_else(|| Look::not_yet(ran.to_string()), Look::Done))
    })?;
    stored.push(healed);
    system.controller()?.kill9()?;
    system.start_controller()?;
    system.agent_connected()?;
    for job in stored {
        let finished = system.ctl().finished(job, wait::LIMIT)?;
        ensure!(finished["state"] == "succeeded", "job {job}: {finished}");
    }
    drop(system);
    drop(disk);
    Ok(())
}

/// Tasks whose ends need more room than the journal's last page has left.
const MANY: usize = 100;

#[test]
fn an_agents_full_disk_costs_no_report_once_there_is_room_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = match SmallDisk::mount(&folder.path().join("small"))? {
        Ok(disk) => disk,
        Err(why) => return skip("disk::an_agents_full_disk_costs_no_report_once_there_is_room_again", &why),
    };
    let mut system = System::start(Options { spool: Some(disk.0.join("agent")), ..Options::default() })?;
    // Each task waits for a line of its own; the pipe is open for both sides, so that nobody waits for the other.
    let gate = folder.path().join("gate");
    ensure!(Command::new("mkfifo").arg(&gate).status()?.success(), "could not make a pipe");
    let mut opened = File::options().read(true).write(true).open(&gate)?;
    let task = format!("array = \"0-{}\"\ncpus = 0.01\nshell = \"read line <{}\"\n", MANY - 1, gate.display());
    let job = system.submit("many.toml", &format!("name = \"many\"\n[[tasks]]\nname = \"a\"\n{task}"))?;
    all_run(&system.ctl(), job, MANY)?;

    // They end where nobody takes their reports and the disk has no room for them.
    let filler = disk.fill()?;
    system.controller()?.kill9()?;
    opened.write_all(&[b'\n'; MANY])?;
    said(&mut system, "the journal cannot be written")?;
    fs::remove_file(filler)?;
    said(&mut system, "the journal can be written again and is complete")?;
    system.agent()?.kill9()?;
    system.start_controller()?;
    system.start_agent()?;

    let finished = system.ctl().finished(job, wait::LIMIT)?;
    ensure!(finished["tasks"]["succeeded"] == MANY, "{finished}");
    let shown = system.ctl().json(&["show", &job.to_string(), "--tasks"])?;
    let tasks = shown["tasks"].as_array().context("tasks")?;
    let again = tasks.iter().find(|task| task["attempts"].as_array().is_none_or(|attempts| attempts.len() != 1));
    ensure!(again.is_none(), "its report was lost: {again:?}");
    system.finish()
}

/// An agent on a full disk, with tasks that run until a line for each of them comes.
struct Full {
    system: System,
    disk: SmallDisk,
    filler: PathBuf,
    gate: File,
    job: u64,
    _folder: tempfile::TempDir,
}

const FEW: usize = 5;

impl Full {
    /// Or why there is no disk.
    fn begin() -> Result<Result<Self, String>> {
        let folder = tempfile::tempdir()?;
        let disk = match SmallDisk::mount(&folder.path().join("small"))? {
            Ok(disk) => disk,
            Err(why) => return Ok(Err(why)),
        };
        let system = System::start(Options { spool: Some(disk.0.join("agent")), ..Options::default() })?;
        let gate = folder.path().join("gate");
        ensure!(Command::new("mkfifo").arg(&gate).status()?.success(), "could not make a pipe");
        let opened = File::options().read(true).write(true).open(&gate)?;
        let task = format!("array = \"1-{FEW}\"\ncpus = 0.01\nshell = \"read line <{}\"\n", gate.display());
        let job = system.submit("few.toml", &format!("name = \"few\"\n[[tasks]]\nname = \"a\"\n{task}"))?;
        all_run(&system.ctl(), job, FEW)?;
        let filler = disk.fill()?;
        Ok(Ok(Self { system, disk, filler, gate: opened, job, _folder: folder }))
    }

    /// All tasks ended well, at the first attempt.
    fn end(mut self) -> Result<()> {
        fs::remove_file(&self.filler)?;
        self.gate.write_all(&[b'\n'; FEW])?;
        let ctl = self.system.ctl();
        let finished = ctl.finished(self.job, wait::LIMIT)?;
        let shown = ctl.json(&["show", &self.job.to_string(), "--tasks"])?;
        ensure!(finished["tasks"]["succeeded"] == FEW, "{shown}");
        let tasks = shown["tasks"].as_array().context("tasks")?;
        let again = tasks.iter().find(|task| task["attempts"].as_array().is_none_or(|attempts| attempts.len() != 1));
        ensure!(again.is_none(), "it did not go on: {again:?}");
        self.system.finish()?;
        drop(self.disk);
        Ok(())
    }
}

#[test]
fn a_keeper_that_is_killed_on_a_full_disk_has_an_heir() -> Result<()> {
    let full = match Full::begin()? {
        Ok(full) => full,
        Err(why) => return skip("disk::a_keeper_that_is_killed_on_a_full_disk_has_an_heir", &why),
    };
    let data = full.disk.0.join("agent");
    let first = keeper_of(&data)?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    wait::until("another keeper", || {
        let now = keeper_of(&data)?;
        Ok(Look::when(now != first, now))
    })?;
    full.end()
}

#[test]
fn an_agent_that_starts_on_a_full_disk_goes_on_with_what_runs() -> Result<()> {
    let mut full = match Full::begin()? {
        Ok(full) => full,
        Err(why) => return skip("disk::an_agent_that_starts_on_a_full_disk_goes_on_with_what_runs", &why),
    };
    for _ in 0..2 {
        full.system.agent()?.kill9()?;
        full.system.start_agent()?;
    }
    said(&mut full.system, "the journal cannot be begun anew")?;
    fs::write(&full.filler, "")?;
    said(&mut full.system, "the journal can be written again and is complete")?;
    full.end()
}

/// Waits until the agent's log says something.
fn said(system: &mut System, words: &str) -> Result<()> {
    wait::until(&format!("the agent to say `{words}`"), || {
        let log = system.agent()?.log();
        Ok(Look::when(log.contains(words), log))
    })
}
