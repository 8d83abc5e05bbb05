//! What a task writes: how late a follower sees it, and what a gigabyte of it costs the daemons.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use muster_common::proto::v1;
use muster_integration::probe;

use crate::{
    figure::{Figures, Target, share},
    muster::{Muster, shell},
};

const LINES: usize = 200;
/// Each line is the time at which it was written, a moment after the one before it was.
const STAMPS: &str = "i=0; while test $i -lt 200; do date +%s%N; sleep 0.02; i=$((i+1)); done";
const GIGABYTE: u64 = 1_000_000_000;
/// How long a line may take at most.
const LIMIT: Duration = Duration::from_secs(60);

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["logs-follow-p50", "logs-follow-p99"]) {
        let outcome = follow(figures).await;
        figures.outcome("logs-follow", outcome);
    }
    if figures.wants(&["gigabyte-rate", "gigabyte-controller", "gigabyte-agent"]) {
        let outcome = gigabyte(figures).await;
        figures.outcome("gigabyte", outcome);
    }
}

async fn follow(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    let job = muster.submit(shell("stamps", STAMPS)).await?;
    let selector = Some(v1::Selector { text: job.to_string() });
    let request = v1::LogsRequest { selector, follow: true, ..Default::default() };
    let mut stream = muster.client.logs(request).await.context("logs")?.into_inner();
    let mut late_ms = Vec::new();
    let mut text = Vec::new();
    while let Some(reply) = tokio::time::timeout(LIMIT, stream.message()).await.context("no more output")?? {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        reply.frames.iter().for_each(|frame| text.extend_from_slice(&frame.data));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let written: u128 = String::from_utf8(line)?.trim().parse().context("a line is a time")?;
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of one run")]
            late_ms.push(now.saturating_sub(written) as f64 / 1e6);
        }
    }
    if late_ms.len() != LINES {
        bail!("{} lines came of {LINES}", late_ms.len());
    }
    figures.add("logs-follow-p50", share(&mut late_ms, 0.5), "ms", Target::None);
    figures.add("logs-follow-p99", share(&mut late_ms, 0.99), "ms", Target::AtMost(100.0));
    Ok(())
}

async fn gigabyte(figures: &mut Figures) -> Result<()> {
    let mut muster = Muster::start().await?;
    let pids = [muster.system.controller()?.pid(), muster.system.agent()?.pid()];
    let before = [probe::resident(pids[0])?, probe::resident(pids[1])?];
    let began = std::time::Instant::now();
    let job = muster.submit(shell("much", &format!("yes 0123456789 | head -c {GIGABYTE}"))).await?;
    let (_, ended) = muster.succeeded(job, 1).await?;
    let seconds = (ended - began).as_secs_f64();
    figures.add("gigabyte-rate", 1_000.0 / seconds, "MB/s", Target::AtLeast(100.0));
    for ((pid, before), name) in pids.into_iter().zip(before).zip(["gigabyte-controller", "gigabyte-agent"]) {
        let growth = probe::resident_peak(pid)?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        figures.add(name, growth as f64 / 1e6, "MB", Target::AtMost(200.0));
    }
    Ok(())
}
