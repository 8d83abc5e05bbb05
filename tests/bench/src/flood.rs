//! Many tasks that write much at once: whether heartbeats still come through, and what it costs the daemons in memory.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_integration::{probe, system::Options};

use crate::{
    aid,
    figure::{Figures, Target, share},
    muster::{Muster, count, program},
};

const TASKS: u32 = 200;
/// Of each, in a second: together more than two processors can carry.
const BYTES: u64 = 10_000_000;
const SECONDS: u32 = 60;
/// A fifth of it lies between two heartbeats.
const LEASE_TTL: Duration = Duration::from_secs(1);
/// What an agent says of each heartbeat that was answered.
const ANSWERED: &str = "a heartbeat was answered took_us=";

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["flood-heartbeat", "flood-agent", "flood-keeper", "flood-controller"]) {
        let outcome = flood(figures).await;
        figures.outcome("flood", outcome);
    }
}

async fn flood(figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let flood = aid::flood(folder.path())?;
    let env = vec![("MUSTER_LOG".to_owned(), "info,muster_agent::app=debug".to_owned())];
    let options = Options { cpus: TASKS, lease_ttl: LEASE_TTL, env, ..Options::default() };
    let mut muster = Muster::start_with(options).await?;
    let agent = muster.system.agent()?.pid();
    let arguments = [flood.to_string_lossy().into_owned(), BYTES.to_string(), SECONDS.to_string()];
    let before = muster.system.agent()?.log().len();
    let job = muster.submit(count(program("flood", arguments.to_vec()), TASKS)).await?;
    muster.succeeded(job, u64::from(TASKS)).await?;
    let log = muster.system.agent()?.log();
    let said = log.get(before..).unwrap_or_default();
    let took = |line: &str| -> Option<f64> { line.split_once(ANSWERED)?.1.split_whitespace().next()?.parse().ok() };
    let mut took_ms: Vec<f64> = said.lines().filter_map(took).map(|us| us / 1e3).collect();
    ensure!(took_ms.len() > 100, "only {} heartbeats were answered in {SECONDS} s", took_ms.len());
    figures.add("flood-heartbeat-p50", share(&mut took_ms, 0.5), "ms", Target::None);
    figures.add("flood-heartbeat-p99.9", share(&mut took_ms, 0.999), "ms", Target::AtMost(200.0));
    let keeper = probe::descendant(agent, "keeper").context("the agent has no keeper")?;
    let controller = muster.system.controller()?.pid();
    for (name, pid, target) in [
        ("flood-agent", agent, Target::AtMost(67.1)),
        ("flood-keeper", keeper, Target::AtMost(67.1)),
        ("flood-controller", controller, Target::AtMost(268.4)),
    ] {
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        figures.add(name, probe::resident_peak(pid)? as f64 / 1e6, "MB", target);
    }
    Ok(())
}
