//! Tasks per second: of processes, against a bare loop and against HyperQueue; of empty tasks.

use anyhow::Result;

use crate::{
    aid,
    figure::{Figures, Target, median},
    muster::{Muster, array},
};

const PROCESSES: u32 = 10_000;
const EMPTY: u32 = 100_000;
/// Both sides of a ratio are measured this often, in turn: the machine's mood hits both.
const ROUNDS: usize = 3;

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["processes", "processes-vs-bare", "processes-vs-hyperqueue"]) {
        let outcome = processes(figures).await;
        figures.outcome("processes-vs-bare", outcome);
    }
    if figures.wants(&["empty-tasks"]) {
        let outcome = empty(figures).await;
        figures.outcome("empty-tasks", outcome);
    }
}

async fn processes(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    // The first tasks of an agent touch what later ones find warm.
    muster.rate(array("warm", Some("/bin/true"), 500), 500).await?;
    let (mut bare, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let limit = aid::bare_spawns(PROCESSES)?;
        let rate = muster.rate(array("true", Some("/bin/true"), PROCESSES), PROCESSES).await?;
        bare.push(limit);
        ours.push(rate);
        ratios.push(rate / limit);
    }
    let rate = median(&mut ours);
    figures.add("bare-spawn-loop", median(&mut bare), "1/s", Target::None);
    figures.add("processes", rate, "1/s", Target::None);
    figures.add("processes-vs-bare", median(&mut ratios), "x", Target::AtLeast(0.75));
    if figures.wants(&["processes-vs-hyperqueue"]) {
        let peer = aid::hyperqueue(PROCESSES).map(|peer| {
            figures.add("hyperqueue", peer, "1/s", Target::None);
            figures.add("processes-vs-hyperqueue", rate / peer, "x", Target::AtLeast(2.0));
        });
        figures.outcome("processes-vs-hyperqueue", peer);
    }
    Ok(())
}

async fn empty(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    muster.rate(array("warm", None, 10_000), 10_000).await?;
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(muster.rate(array("empty", None, EMPTY), EMPTY).await?);
    }
    figures.add("empty-tasks", median(&mut rates), "1/s", Target::AtLeast(20_000.0));
    Ok(())
}
