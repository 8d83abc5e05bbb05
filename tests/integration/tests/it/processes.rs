//! What becomes of a task's processes: all of them end, and it is said only when they are dead.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::{self, Ctl},
    daemon::Daemon,
    system::System,
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A task whose grandchild holds a lock and would outlive every polite signal.
fn stubborn(lock: &Path, key: &str) -> String {
    let lock = lock.display();
    format!(
        r#"
name = "stubborn"
[[tasks]]
name = "a"
grace = "200ms"
{key}
shell = '''exec 9>>{lock}; flock 9; sh -c "trap '' TERM; echo up >>{lock}; while :; do sleep 1000; done" & wait'''
"#
    )
}

/// Whether any process still holds the lock.
fn is_held(lock: &Path) -> Result<bool> {
    let file = File::open(lock).context("could not open the lock")?;
    let status = Command::new("flock").args(["-n", "0"]).stdin(Stdio::from(file)).status();
    Ok(!status.context("could not start flock")?.success())
}

fn until_up(lock: &Path) -> Result<()> {
    wait::until("the grandchild to be up", || {
        let said = fs::read_to_string(lock).unwrap_or_default();
        Ok(Look::when(said.contains("up"), said))
    })
}

#[test]
fn a_cancelled_task_is_final_only_when_its_whole_tree_is_dead() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let lock = system.folder().join("lock");
    let job = system.submit("stubborn.toml", &stubborn(&lock, ""))?;
    until_up(&lock)?;
    ensure!(is_held(&lock)?, "the lock does not work");
    ctl.json(&["cancel", &job.to_string()])?;
    ctl.finished(job, wait::LIMIT)?;
    ensure!(!is_held(&lock)?, "the job is cancelled, and a process of it lives");
    system.finish()
}

#[test]
fn a_task_past_its_time_limit_ends_as_timeout_with_its_whole_tree() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let lock = system.folder().join("lock");
    // Its time may be over before it makes one.
    File::create(&lock)?;
    let job = system.submit("stubborn.toml", &stubborn(&lock, "timeout = \"1s\""))?;
    let finished = ctl.finished(job, wait::LIMIT)?;
    ensure!(finished["state"] == "failed", "{finished}");
    ensure!(!is_held(&lock)?, "the task is over, and a process of it lives");
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    ensure!(shown["tasks"][0]["attempts"][0]["end"]["kind"] == "timeout", "{shown}");
    system.finish()
}

#[test]
fn an_agent_that_is_interrupted_takes_its_processes_with_it() -> Result<()> {
    let mut system = System::plain()?;
    let lock = system.folder().join("lock");
    system.submit("stubborn.toml", &stubborn(&lock, ""))?;
    until_up(&lock)?;
    system.agent()?.interrupt()?;
    ensure!(!is_held(&lock)?, "the agent is gone, and a process of its task lives");
    Ok(())
}

#[test]
fn a_task_sees_its_own_words_and_nothing_of_the_agents() -> Result<()> {
    let system = System::plain()?;
    let file = "name = \"words\"\n[[tasks]]\nname = \"a\"\nshell = \"env; cat\"\nenv = { MINE = \"yes\" }\n";
    let job = system.submit("words.toml", file)?;
    // `cat` ends at once: nobody's standard input is passed on.
    ensure!(system.ctl().finished(job, wait::LIMIT)?["state"] == "succeeded", "the task did not succeed");
    let said = wait::until("the output", || {
        let text = system.ctl().run(&["logs", &format!("{job}.a")])?.expect(0)?.text();
        Ok(if text.contains("MINE=") { Look::Done(text) } else { Look::NotYet(text) })
    })?;
    for line in ["MINE=yes", &format!("MUSTER_JOB={job}"), "MUSTER_TASK=0", "MUSTER_TASK_NAME=a", "MUSTER_ATTEMPT=1"] {
        ensure!(said.lines().any(|said| said == line), "{line} is missing:\n{said}");
    }
    for word in ["CARGO", "RUST_", "MUSTER_SKIP_LOG"] {
        ensure!(!said.contains(word), "{word} of the agent's environment is passed on:\n{said}");
    }
    system.finish()
}

#[test]
fn an_interrupted_run_cancels_its_job_and_leaves_nothing_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lock = folder.path().join("lock");
    let file = folder.path().join("job.toml");
    fs::write(&file, stubborn(&lock, ""))?;
    let mut command = Ctl::alone().command(&["run", &file.to_string_lossy()])?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    until_up(&lock)?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT).context("could not interrupt ctl")?;
    let ran = ctl::finish(child, &[], wait::LIMIT)?.expect(130)?;
    ensure!(!is_held(&lock)?, "ctl is gone, and a process of its job lives:\n{ran}");
    Ok(())
}

#[test]
fn a_dev_system_with_a_folder_keeps_its_jobs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let start = || -> Result<(Daemon, Ctl)> {
        let mut command =
            Ctl::alone().command(&["dev", "--listen", "127.0.0.1:0", "--data", &data.to_string_lossy()])?;
        let from = fs::read(folder.path().join("dev.log")).map_or(0, |log| log.len());
        let mut dev = Daemon::start("dev", &mut command, folder.path())?;
        let ctl = Ctl::of(&dev.address(from)?);
        Ok((dev, ctl))
    };
    let file = folder.path().join("job.toml");
    fs::write(&file, "name = \"kept\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    let (mut dev, ctl) = start()?;
    let job = ctl.submit(&file)?;
    let before = ctl.finished(job, wait::LIMIT)?;
    dev.stop()?;
    let (mut dev, ctl) = start()?;
    let after = ctl.json(&["show", &job.to_string()])?;
    ensure!(after["job"] == before, "before: {before}\nafter: {after}");
    dev.stop()
}

#[test]
fn a_repeated_submission_with_its_key_is_the_first_job() -> Result<()> {
    let mut system = System::plain()?;
    let path = system.file("job.toml", "name = \"once\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    let path = path.to_string_lossy().into_owned();
    let submit = |system: &System| system.ctl().json(&["submit", "--key", "nightly-7", &path]);
    let first = submit(&system)?;
    system.controller()?.kill9()?;
    system.start_controller()?;
    let second = submit(&system)?;
    ensure!(first["duplicate"] == false && second["duplicate"] == true, "{first} {second}");
    ensure!(first["job"] == second["job"], "{first} {second}");
    system.finish()
}

#[test]
fn the_log_of_an_agent_names_the_job_of_what_could_not_be_started_and_is_silent_about_the_rest() -> Result<()> {
    let mut system = System::plain()?;
    let ctl = system.ctl();
    let well = system.submit("well.toml", "name = 'well'\n[[tasks]]\nname = 'a'\nrun = ['true']\n")?;
    ctl.finished(well, wait::LIMIT)?;
    let ill = system.submit("ill.toml", "name = 'ill'\n[[tasks]]\nname = 'a'\nrun = ['/no/such/program']\n")?;
    ctl.finished(ill, wait::LIMIT)?;
    let log = system.agent()?.log();
    let about = format!("an attempt could not be started job={ill} task={ill}.0 attempt=1 token=");
    ensure!(log.matches(&about).count() == 1, "{about}:\n{log}");
    ensure!(!log.contains(&format!("job={well} ")), "a plain end is told:\n{log}");
    system.finish()
}
