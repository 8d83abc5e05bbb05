//! One array of a million tasks: what it costs to take, to hold, to serve from, to list, and to come back with.

use std::time::Instant;

use anyhow::{Context, Result};
use muster_integration::probe;

use crate::{
    aid,
    figure::{Figures, Target, median},
    muster::{Muster, array, connect},
};

const TASKS: u32 = 1_000_000;
/// How many tasks each side of the throughput ratio runs in one round.
const SAMPLE: u32 = 5_000;
/// The short queue that a million is compared with.
const SHORT: u32 = 1_000;
const ROUNDS: usize = 3;
const LISTS: usize = 20;
/// Before everything that has no priority of its own.
const URGENT: i32 = 1_000;

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    let names = ["million-accept", "million-memory", "million-throughput", "million-restart", "million-list"];
    if figures.wants(&names) {
        let outcome = million(figures).await;
        figures.outcome("million", outcome);
    }
}

async fn million(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    muster.rate(array("warm", Some("/bin/true"), 500), 500).await?;
    let idle = probe::resident(muster.system.controller()?.pid())?;
    let mut short = Vec::new();
    let mut long = Vec::new();
    let mut accepted = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..ROUNDS {
        short.push(short_queue(&mut muster).await?);
        let began = Instant::now();
        let job = muster.submit(array("million", Some("/bin/true"), TASKS)).await?;
        accepted.push(began.elapsed().as_secs_f64());
        long.push(rate_of_a_part(&mut muster, job).await?);
        memory.push(megabytes(probe::resident(muster.system.controller()?.pid())?.saturating_sub(idle)));
        muster.cancel(job).await?;
    }
    let (short, long) = (median(&mut short), median(&mut long));
    figures.add("million-accept", median(&mut accepted), "s", Target::AtMost(1.0));
    figures.add("million-memory", memory[0], "MB", Target::AtMost(150.0));
    figures.add("short-queue-throughput", short, "1/s", Target::None);
    figures.add("million-throughput", long / short, "x", Target::AtLeast(0.95));
    drop(muster);
    holding(figures).await
}

/// Tasks per second of jobs of a thousand, one handed in before the other is done, so that the queue never runs dry.
async fn short_queue(muster: &mut Muster) -> Result<f64> {
    let mut ahead = muster.submit(array("short", Some("/bin/true"), SHORT)).await?;
    let began = Instant::now();
    let mut ended = began;
    for _ in 0..SAMPLE / SHORT {
        let next = muster.submit(array("short", Some("/bin/true"), SHORT)).await?;
        ended = muster.succeeded(ahead, u64::from(SHORT)).await?.1;
        ahead = next;
    }
    muster.succeeded(ahead, u64::from(SHORT)).await?;
    Ok(f64::from(SAMPLE) / (ended - began).as_secs_f64())
}

/// Tasks per second of a part of a job, from when it is under way.
async fn rate_of_a_part(muster: &mut Muster, job: u64) -> Result<f64> {
    let (first, began) = muster.succeeded(job, u64::from(SHORT)).await?;
    let (last, ended) = muster.succeeded(job, first + u64::from(SAMPLE)).await?;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let tasks = (last - first) as f64;
    Ok(tasks / (ended - began).as_secs_f64())
}

/// What a system with a million waiting tasks answers, and how it comes back from a kill.
async fn holding(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    let job = muster.submit(array("million", Some("/bin/true"), TASKS)).await?;
    muster.succeeded(job, 1_000).await?;
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let mut command = muster.system.ctl().command(&["list"])?;
        let began = Instant::now();
        aid::said(&mut command)?;
        lists.push(began.elapsed().as_secs_f64() * 1e3);
    }
    muster.system.controller()?.kill9()?;
    let began = Instant::now();
    muster.system.start_controller()?;
    muster.client = connect(muster.system.address()).await.context("after the restart")?;
    // Reports that the agent kept prove nothing; a job that nobody has seen before does.
    let mut probe = array("after", Some("/bin/true"), 1);
    probe.tasks.iter_mut().for_each(|task| task.priority = URGENT);
    let probe = muster.submit(probe).await?;
    let (_, scheduling) = muster.succeeded(probe, 1).await?;
    figures.add("million-restart", (scheduling - began).as_secs_f64(), "s", Target::AtMost(3.0));
    figures.add("million-list", median(&mut lists), "ms", Target::AtMost(30.0));
    muster.cancel(job).await
}

#[expect(clippy::cast_precision_loss, reason = "megabytes of one process")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
