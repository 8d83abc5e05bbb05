//! What controller and agent cost while nothing is to be done.

use std::time::{Duration, Instant};

use anyhow::Result;
use muster_integration::probe;

use crate::{
    figure::{Figures, Target},
    muster::{Muster, array},
};

const SPAN: Duration = Duration::from_secs(20);

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["idle-cpu"]) {
        let outcome = idle(figures).await;
        figures.outcome("idle-cpu", outcome);
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
