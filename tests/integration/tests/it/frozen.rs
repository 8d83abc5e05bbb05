//! An agent that is frozen past its leases: what it ran is dead before anybody else may run it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    system::{Options, System},
    wait::{self, Look},
};
use nix::sys::signal::Signal;

/// Whether a process is over; its parent, which would collect it, may be frozen.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

#[test]
fn what_a_frozen_agent_ran_is_dead_when_its_lease_is_over() -> Result<()> {
    let mut system = System::start(Options { lease_ttl: Duration::from_secs(2), ..Options::default() })?;
    let pid = system.folder().join("pid");
    let shell = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600", pid.display());
    let job = system.submit(
        "a.toml",
        &format!("name = \"a\"\n[[tasks]]\nname = \"a\"\non_lost = \"fail\"\nshell = \"{shell}\"\n"),
    )?;
    let pid: u32 = wait::until("the task to say its number", || {
        let said = fs::read_to_string(&pid).unwrap_or_default();
        Ok(said.trim().parse().map_or_else(Look::not_yet, Look::Done))
    })?;
    system.agent()?.freeze()?;
    // Nobody but the guard can end it: the agent stays frozen until it is dead.
    wait::until("the task to be dead", || Ok(Look::when(is_dead(pid), pid)))?;
    system.agent()?.signal(Signal::SIGCONT)?;
    let done = system.ctl().finished(job, wait::LIMIT)?;
    ensure!(done["state"] == "failed", "{done}");
    let shown = system.ctl().json(&["show", &job.to_string(), "--tasks"])?;
    let attempts = shown["tasks"][0]["attempts"].as_array().context("attempts")?;
    ensure!(attempts.len() == 1 && attempts[0]["end"]["kind"] == "lost", "{shown}");
    // It works on as before.
    system.agent_connected()?;
    let next = system.submit("b.toml", "name = \"b\"\n[[tasks]]\nname = \"b\"\nrun = [\"true\"]\n")?;
    ensure!(system.ctl().finished(next, wait::LIMIT)?["state"] == "succeeded", "the agent takes new work");
    system.finish()
}
