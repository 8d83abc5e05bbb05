//! What can happen with a daemon alone that makes containers: it dies, its client dies, it is asked for one that nobody wants
//! any more. Ends are told truly, and nothing of them runs on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    binaries,
    images::IMAGE,
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::yard::{Kind, Yard, end, processes, seconds, task};

/// Waits for a container that runs `sleep WORD`; returns the process in it, and the client's.
fn running(word: &str) -> Result<(u32, u32)> {
    wait::until("the container to run", || {
        let found = processes(word);
        let line = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let inside = found.iter().find(|pid| line(pid).starts_with(b"sleep\0"));
        let client = found.iter().find(|pid| line(pid).starts_with(b"docker\0"));
        Ok(match inside.zip(client) {
            Some((inside, client)) => Look::Done((*inside, *client)),
            None => Look::not_yet(found),
        })
    })
}

fn kill9(pid: u32) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("could not kill it")
}

/// Whoever stands in one of these cgroups or below.
fn anybody(folders: &[PathBuf]) -> Vec<String> {
    fn below(folder: &Path, found: &mut Vec<String>) {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        // A keeper's threads wait in the cgroups of the next attempts.
        let others = text.lines().filter(|pid| !program(pid).ends_with("muster-agent"));
        found.extend(others.map(|pid| format!("{pid} in {}", folder.display())));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            below(&entry.path(), found);
        }
    }
    let mut found = Vec::new();
    folders.iter().for_each(|folder| below(folder, &mut found));
    found
}

/// Ends the test's Muster, which leaves no cgroup behind in any tree.
fn finish(yard: Yard) -> Result<()> {
    let cgroups = yard.cgroups();
    let least = if Path::new("/sys/fs/cgroup/memory").is_dir() { 5 } else { 1 };
    ensure!(cgroups.len() >= least, "not all trees are known: {cgroups:?}");
    yard.system.finish()?;
    wait::until("all cgroups to be gone", || {
        let left: Vec<_> = cgroups.iter().filter(|folder| folder.exists()).collect();
        Ok(Look::when(left.is_empty(), (&left, anybody(&cgroups))))
    })
}

#[test]
fn a_docker_that_dies_under_a_container_loses_it_and_nothing_of_it_runs_on() -> Result<()> {
    let test = "a_docker_that_dies_under_a_container_loses_it_and_nothing_of_it_runs_on";
    let Some(mut yard) = Yard::open(test, Kind::Docker)? else { return Ok(()) };
    let sleep = seconds();
    let tasks = format!("[[tasks]]\nname = 'a'\nimage = '{IMAGE}'\non_lost = 'fail'\nrun = ['sleep', '{sleep}']\n");
    let job = yard.system.submit("a.toml", &format!("name = 'a'\n{tasks}"))?;
    running(&sleep)?;
    yard.engine.docker()?.kill9()?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "it did not fail");
    let found = processes(&sleep);
    ensure!(found.is_empty(), "its end was told, and it lives: {found:?}");
    let tasks = yard.tasks(job)?;
    let (kind, why) = end(task(&tasks, "a")?);
    ensure!(kind == "lost" && why.contains("Docker cannot tell of its container, which was ended"), "{kind}: {why}");
    yard.engine.docker()?.start()?;
    let (_, tasks) = yard.run("next", &format!("[[tasks]]\nname = 'b'\nimage = '{IMAGE}'\nrun = ['true']\n"))?;
    ensure!(end(task(&tasks, "b")?).0 == "succeeded", "{tasks:?}");
    finish(yard)
}

#[test]
fn a_docker_client_that_is_killed_loses_its_container_which_does_not_run_on() -> Result<()> {
    let test = "a_docker_client_that_is_killed_loses_its_container_which_does_not_run_on";
    let Some(yard) = Yard::open(test, Kind::Docker)? else { return Ok(()) };
    let sleep = seconds();
    let tasks = format!("[[tasks]]\nname = 'a'\nimage = '{IMAGE}'\non_lost = 'fail'\nrun = ['sleep', '{sleep}']\n");
    let job = yard.system.submit("a.toml", &format!("name = 'a'\n{tasks}"))?;
    let (_, client) = running(&sleep)?;
    kill9(client)?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "it did not fail");
    let found = processes(&sleep);
    ensure!(found.is_empty(), "its end was told, and it lives: {found:?}");
    let tasks = yard.tasks(job)?;
    let (kind, why) = end(task(&tasks, "a")?);
    ensure!(kind == "lost" && why.contains("killed by signal 9 while its container ran"), "{kind}: {why}");
    yard.is_clean()?;
    finish(yard)
}

#[test]
fn a_container_whose_docker_client_is_killed_is_dead_before_a_daemon_that_hangs_answers() -> Result<()> {
    let test = "a_container_whose_docker_client_is_killed_is_dead_before_a_daemon_that_hangs_answers";
    let Some(mut yard) = Yard::open(test, Kind::Docker)? else { return Ok(()) };
    let sleep = seconds();
    let tasks = format!("[[tasks]]\nname = 'a'\nimage = '{IMAGE}'\non_lost = 'fail'\nrun = ['sleep', '{sleep}']\n");
    let job = yard.system.submit("a.toml", &format!("name = 'a'\n{tasks}"))?;
    let (_, client) = running(&sleep)?;
    yard.engine.docker()?.daemon()?.freeze()?;
    kill9(client)?;
    // It is waited for longer.
    let dead = wait::within(Duration::from_secs(18), "the container to be dead", || {
        let found = processes(&sleep);
        Ok(Look::when(found.is_empty(), found))
    });
    yard.engine.docker()?.daemon()?.signal(Signal::SIGCONT)?;
    dead?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "it did not fail");
    let tasks = yard.tasks(job)?;
    let (kind, why) = end(task(&tasks, "a")?);
    ensure!(kind == "lost" && why.contains("killed by signal 9 while its container ran"), "{kind}: {why}");
    yard.is_clean()?;
    finish(yard)
}

#[test]
fn a_container_that_is_cancelled_while_docker_makes_it_never_runs_later() -> Result<()> {
    let test = "a_container_that_is_cancelled_while_docker_makes_it_never_runs_later";
    let Some(yard) = Yard::open(test, Kind::Docker)? else { return Ok(()) };
    let sleep = seconds();
    let tasks =
        format!("[[tasks]]\nname = 'a'\nimage = '{IMAGE}'\narray = 4\ngrace = '0s'\nrun = ['sleep', '{sleep}']\n");
    let job = yard.system.submit("a.toml", &format!("name = 'a'\n{tasks}"))?;
    // The clients are there; whether the daemon has heard of them is up to chance.
    wait::until("a client to start", || {
        let found = processes(&sleep);
        Ok(Look::when(!found.is_empty(), found))
    })?;
    yard.system.ctl().run(&["cancel", &job.to_string()])?.expect(0)?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "cancelled", "it is not cancelled");
    let (found, members) = (processes(&sleep), anybody(&yard.cgroups()));
    ensure!(found.is_empty() && members.is_empty(), "they are cancelled, and run: {found:?}, {members:?}");
    yard.is_clean()?;
    let found = processes(&sleep);
    ensure!(found.is_empty(), "one started later: {found:?}");
    finish(yard)
}

#[test]
fn a_fork_bomb_in_a_docker_container_stays_within_its_limit_and_is_dead_after_a_kill() -> Result<()> {
    let test = "a_fork_bomb_in_a_docker_container_stays_within_its_limit_and_is_dead_after_a_kill";
    let Some(yard) = Yard::open(test, Kind::Docker)? else { return Ok(()) };
    // A shell ends where it may not fork: this one begins anew whenever it ends, and so the bomb goes on.
    let bomb = r#"trap "" TERM; trap "exec sh -c \"\$BOMB\"" EXIT; while :; do sleep 52115211 & done"#;
    let tasks = format!(
        "[[tasks]]\nname = 'bomb'\nimage = '{IMAGE}'\npids = 30\ngrace = '0s'\nenv = {{ BOMB = '{bomb}' }}\n\
         shell = 'exec sh -c \"$BOMB\" 2>/dev/null'\n"
    );
    let job = yard.system.submit("bomb.toml", &format!("name = 'bomb'\n{tasks}"))?;
    let pids = |folder: &PathBuf| folder.join("pids.max").exists().then(|| folder.clone());
    let folder = yard.cgroups().iter().find_map(pids).context("no tree counts processes")?;
    // The task's 30, with Docker's own in the attempt's cgroup.
    wait::until("the bomb to fill its cgroup", || {
        let found = anybody(std::slice::from_ref(&folder)).len();
        ensure!(found <= 30 + 48, "{found} processes");
        Ok(Look::when(found > 25, found))
    })?;
    yard.system.ctl().run(&["cancel", &job.to_string()])?.expect(0)?;
    wait::until("all of it to be dead", || {
        let found = anybody(&yard.cgroups());
        Ok(Look::when(found.is_empty(), found))
    })?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "cancelled", "it is not cancelled");
    yard.is_clean()?;
    finish(yard)
}

#[test]
fn docker_is_taken_where_there_is_no_podman_and_one_of_another_machine_is_refused() -> Result<()> {
    let test = "docker_is_taken_where_there_is_no_podman_and_one_of_another_machine_is_refused";
    let Some(mut yard) = Yard::open(test, Kind::Docker)? else { return Ok(()) };
    let docker = yard.engine.docker()?;
    let env = docker.env();
    let folder = tempfile::tempdir()?;
    let agent = |engine: &str, host: Option<&str>| -> Result<String> {
        let config = folder.path().join("agent.toml");
        fs::write(&config, format!("[containers]\nengine = '{engine}'\n"))?;
        let mut command = Command::new(binaries::path("muster-agent")?);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        // Docker alone is there.
        command.env("PATH", env[0].1.split(':').next().unwrap_or_default()).env("NO_COLOR", "1");
        command.envs(host.map(|host| ("DOCKER_HOST", host)));
        let log = fs::File::create(folder.path().join("log"))?;
        command.arg("--config").arg(config).args(["--controller", "http://127.0.0.1:1", "--name", "x"]);
        command.arg("--data").arg(folder.path().join("data")).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn()?;
        let said = wait::until("the agent to say what it does", || {
            let said = fs::read_to_string(folder.path().join("log"))?;
            let is_there = said.contains("the agent starts") || child.try_wait()?.is_some();
            Ok(if is_there { Look::Done(said) } else { Look::NotYet(said) })
        });
        let _ended_by_itself = kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT);
        child.wait()?;
        said
    };
    let said = agent("auto", None)?;
    ensure!(said.contains("containers are run by docker"), "{said}");
    let said = agent("docker", Some("tcp://127.0.0.1:1"))?;
    ensure!(said.contains("containers would run out of our hands") && !said.contains("the agent starts"), "{said}");
    let said = agent("docker", Some("unix:///nowhere/docker.sock"))?;
    ensure!(said.contains("Cannot connect to the Docker daemon") && !said.contains("the agent starts"), "{said}");
    let said = agent("podman", None)?;
    ensure!(said.contains("there is no `podman` in the agent's PATH"), "{said}");
    finish(yard)
}
