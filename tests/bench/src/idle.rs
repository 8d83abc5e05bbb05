//! What controller and agent cost while nothing is to be done, or nothing but to wait.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use muster_integration::{
    probe,
    system::Options,
    wait::{self, Look},
};

use crate::{
    figure::{Figures, Target},
    muster::{Muster, array, count, program},
};

const SPAN: Duration = Duration::from_secs(20);
/// Tasks that sleep.
const WAITING: u32 = 500;

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["idle-cpu"]) {
        let outcome = idle(figures).await;
        figures.outcome("idle-cpu", outcome);
    }
    if figures.wants(&["idle-agent", "idle-keeper", "idle-safe", "idle-task"]) {
        let outcome = agent(figures).await;
        figures.outcome("idle-agent", outcome);
    }
}

async fn idle(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    // A system that has worked: what it left running counts.
    muster.rate(array("before", Some("/bin/true"), 1_000), 1_000).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pids = [muster.system.controller()?.pid(), muster.system.agent()?.pid()];
    let used = || -> Result<Duration> { pids.iter().map(|pid| probe::cpu(*pid)).sum() };
    let (before, began) = (used()?, Instant::now());
    tokio::time::sleep(SPAN).await;
    let share = (used()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    figures.add("idle-cpu", share * 100.0, "%", Target::AtMost(0.5));
    Ok(())
}

/// An agent that has worked and waits: alone, and with tasks that wait.
#[expect(clippy::cast_precision_loss, reason = "sizes in megabytes and kilobytes")]
async fn agent(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start_with(Options { cpus: WAITING, ..Options::default() }).await?;
    muster.rate(array("before", Some("/bin/true"), 1_000), 1_000).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let agent = muster.system.agent()?.pid();
    let keeper = probe::descendant(agent, "keeper").context("the agent has no keeper")?;
    let safe = probe::descendant(agent, "safe").context("the keeper has no safe")?;
    let used = || -> Result<Duration> { [agent, keeper, safe].iter().map(|pid| probe::cpu(*pid)).sum() };
    let (before, began) = (used()?, Instant::now());
    tokio::time::sleep(SPAN).await;
    let share = (used()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    figures.add("idle-agent-cpu", share * 100.0, "%", Target::AtMost(0.2));
    for (name, pid) in [("agent", agent), ("keeper", keeper), ("safe", safe)] {
        let (all, own) = (probe::resident(pid)? as f64 / 1e6, probe::resident_own(pid)? as f64 / 1e6);
        figures.add(&format!("idle-{name}-memory"), all, "MB", Target::AtMost(15.0));
        figures.add(&format!("idle-{name}-own-memory"), own, "MB", Target::None);
    }
    let own = || -> Result<u64> { [agent, keeper, safe].iter().map(|pid| probe::resident_own(*pid)).sum() };
    let before = own()?;
    let job = muster.submit(count(program("wait", vec!["sleep".into(), "1000".into()]), WAITING)).await?;
    wait::until("all tasks to run", || {
        let shown = muster.system.ctl().json(&["show", &job.to_string()])?;
        Ok(Look::when(shown["job"]["tasks"]["running"] == WAITING, "they do not"))
    })?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let each = own()?.saturating_sub(before) as f64 / f64::from(WAITING);
    figures.add("idle-task", each / 1e3, "kB", Target::AtMost(100.0));
    muster.cancel(job).await
}
