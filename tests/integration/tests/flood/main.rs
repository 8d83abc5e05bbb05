//! Many tasks that write more than anybody can carry away: the agent is still heard of, and nobody's memory grows with it. A program
//! of its own, so that no other test runs beside it. Also run on version 2 of cgroups (`cargo xtask vm`).
#![cfg(target_os = "linux")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    probe,
    system::{Options, System},
    wait::{self, Look},
};

const TASKS: usize = 200;
/// Seconds in which five heartbeats are sent.
const LEASE_TTL: u64 = 2;
/// How many heartbeats in a row are to be answered in time; fewer where each takes longer.
const ROUND: usize = 75;
const ROUND_EMULATED: usize = 15;
/// Microseconds.
const IN_TIME: u64 = 200_000;
/// How often the machine itself may stand still: it must be good in one round of these.
const ROUNDS: usize = 3;
/// Bytes of memory of its own that each of the daemons may have. `cargo xtask bench` counts the program's file as well, which is
/// several times as large where it is not optimised.
const AGENT: u64 = 64 << 20;
const CONTROLLER: u64 = 256 << 20;
/// What an agent says of each heartbeat that was answered.
const ANSWERED: &str = "a heartbeat was answered took_us=";

/// Tasks that write as fast as they are read: ten megabytes a second and more each, if there were processors for it.
fn flood() -> String {
    let line = "0123456789".repeat(8);
    format!(
        "name = \"flood\"\n[[tasks]]\nname = \"flood\"\narray = {TASKS}\ncpus = 0.1\nmemory = \"8MiB\"\n\
         on_lost = \"fail\"\nshell = \"exec yes {line}\"\n"
    )
}

/// Microseconds that each heartbeat took of which an agent's log tells.
fn answered(log: &str) -> Vec<u64> {
    let took = |line: &str| line.split_once(ANSWERED)?.1.split_whitespace().next()?.parse().ok();
    log.lines().filter_map(took).collect()
}

/// The daemons, and the most memory that each was seen to have.
struct Daemons([(&'static str, u32, u64, u64); 3]);

impl Daemons {
    fn of(system: &mut System) -> Result<Self> {
        let agent = system.agent()?.pid();
        let keeper = probe::descendant(agent, "keeper").context("the agent has no keeper")?;
        let controller = system.controller()?.pid();
        Ok(Self([("agent", agent, AGENT, 0), ("keeper", keeper, AGENT, 0), ("controller", controller, CONTROLLER, 0)]))
    }

    fn look(&mut self) -> Result<()> {
        for (_, pid, _, most) in &mut self.0 {
            *most = probe::resident_own(*pid)?.max(*most);
        }
        Ok(())
    }
}

/// Waits for rounds of heartbeats until all of one were answered in time; else returns the slowest of each.
fn heard(system: &mut System, daemons: &mut Daemons) -> Result<Result<(), Vec<u64>>> {
    let mut slowest = Vec::new();
    let enough = if wait::is_emulated() { ROUND_EMULATED } else { ROUND };
    for _ in 0..ROUNDS {
        let before = answered(&system.agent()?.log()).len();
        let round = wait::within(wait::LIMIT * 5, "a round of heartbeats", || {
            daemons.look()?;
            let all = answered(&system.agent()?.log());
            let new = all.get(before..).unwrap_or_default();
            Ok(if new.len() >= enough { Look::Done(new.to_vec()) } else { Look::not_yet(new.len()) })
        })?;
        match round.into_iter().max() {
            Some(slow) if slow >= wait::slower(IN_TIME) => slowest.push(slow),
            _ => return Ok(Ok(())),
        }
    }
    Ok(Err(slowest))
}

#[test]
fn heartbeats_come_through_a_flood_of_output_and_no_daemons_memory_grows_with_it() -> Result<()> {
    let lease_ttl = Duration::from_secs(wait::slower(LEASE_TTL));
    let env = vec![("MUSTER_LOG".to_owned(), "info,muster_agent::app=debug".to_owned())];
    let mut system = System::start(Options { cpus: 20, lease_ttl, env, ..Options::default() })?;
    let ctl = system.ctl();
    let job = system.submit("flood.toml", &flood())?;
    wait::within(wait::LIMIT * 2, "all tasks to run", || {
        let shown = ctl.json(&["show", &job.to_string()])?;
        Ok(Look::when(shown["job"]["tasks"]["running"] == TASKS, shown["job"]["tasks"].clone()))
    })?;
    let mut daemons = Daemons::of(&mut system)?;
    let heard = heard(&mut system, &mut daemons)?;
    ctl.run(&["cancel", &job.to_string()])?.expect(0)?;
    ctl.finished(job, wait::LIMIT * 2)?;

    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    for task in shown["tasks"].as_array().context("tasks")? {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(
            attempts.len() == 1 && attempts[0]["end"]["kind"] == "cancelled",
            "it did not run all the time: {task}"
        );
    }
    for n in [0, TASKS / 2, TASKS - 1] {
        let last = ctl.json(&["logs", &format!("{job}.{n}"), "--tail", "1"])?;
        let frames = last["frames"].as_array().context("frames")?;
        ensure!(!frames.is_empty(), "nothing of task {n} was read: {last}");
    }
    for (who, _, limit, most) in daemons.0 {
        ensure!(most < limit, "the {who} had {most} bytes, and {limit} is what it may have");
    }
    if let Err(slowest) = heard {
        anyhow::bail!("heartbeats took up to {slowest:?} us, and {} is what they may take", wait::slower(IN_TIME));
    }
    system.agent()?.expect_no_errors()?;
    system.finish()
}
