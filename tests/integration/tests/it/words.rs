//! What an agent says to the keeper that comes after another one: of leases, the newest word.

use std::{
    fs::{self, File},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    system::{Options, System},
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    keeper::{keeper, parent},
    leases::{beats, is_dead},
};

fn with_leases_of(seconds: u64) -> Options {
    let env = vec![("MUSTER_LOG".to_owned(), "info,muster_agent::app=debug".to_owned())];
    Options { lease_ttl: Duration::from_secs(seconds), env, ..Options::default() }
}

/// SIGKILL to the keeper, and to its safe first, so that nobody goes on with its work.
fn kill_both(keeper: i32) -> Result<()> {
    for pid in [parent(keeper)?, keeper] {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    Ok(())
}

/// As many with as much as is said in two messages.
const LARGE: usize = 8;

/// A job of [`LARGE`] tasks with specs that share nothing; each says its number in `<name>.<n>.pid` and waits for a gate.
fn large(system: &System, name: &str) -> Result<u64> {
    let at = system.folder().join(name).display().to_string();
    let padding = "x".repeat(900_000);
    let one = |n: usize| {
        let shell = format!("echo $$ >>{at}.{n}.pid; until test -e {at}.gate; do sleep 0.05; done");
        format!(
            "[[tasks]]\nname = \"t{n}\"\ncpus = 0.01\non_lost = \"fail\"\nstdin = \"{n} {padding}\"\nshell = '''{shell}'''\n"
        )
    };
    let text = format!("name = \"{name}\"\n{}", (0..LARGE).map(one).collect::<String>());
    system.submit(&format!("{name}.toml"), &text)
}

/// Each of its tasks was tried once and ended like that.
fn ended_once(system: &System, job: u64, kind: &str) -> Result<()> {
    system.ctl().finished(job, wait::LIMIT)?;
    let shown = system.ctl().json(&["show", &job.to_string(), "--tasks"])?;
    for task in shown["tasks"].as_array().context("tasks")? {
        let tries = task["attempts"].as_array().context("attempts")?;
        ensure!(tries.len() == 1 && tries[0]["end"]["kind"] == kind, "{}", task["attempts"]);
    }
    Ok(())
}

#[test]
fn what_waited_for_a_keeper_for_longer_than_a_lease_lives_as_long_as_the_newest_one() -> Result<()> {
    let mut system = System::start(with_leases_of(6))?;
    let lock = system.folder().join("agent/run/keeper.lock");
    let first = keeper(&system)?;
    // It sees that its keeper is gone when nobody can be another one yet.
    system.agent()?.freeze()?;
    kill_both(first)?;
    let lock = File::open(lock)?;
    lock.lock()?;
    // Before any word of leases, and between some.
    let early = large(&system, "early")?;
    system.agent()?.signal(Signal::SIGCONT)?;
    beats(&mut system, 2)?;
    let late = large(&system, "late")?;
    // A fifth of a lease each: the first words have long been over then, and the newest has not.
    beats(&mut system, 7)?;
    drop(lock);
    for name in ["early", "late"] {
        for n in 0..LARGE {
            let pid = system.folder().join(format!("{name}.{n}.pid"));
            wait::until("all to begin", || Ok(Look::when(pid.exists(), (name, n))))?;
        }
    }
    fs::write(system.folder().join("early.gate"), "")?;
    ended_once(&system, early, "succeeded")?;
    // Nothing outlives the newest one either.
    system.agent()?.freeze()?;
    for n in 0..LARGE {
        wait::until("all to be dead", || Ok(Look::when(is_dead(&system, &format!("late.{n}"))?, n)))?;
    }
    system.agent()?.signal(Signal::SIGCONT)?;
    ended_once(&system, late, "lost")?;
    system.finish()
}
