//! The same controller on etcd: how fast, how many changes share a transaction, and how soon another leads.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_common::{clock::Clock, proto::v1};
use muster_controller::{
    etcd::{Access, Etcd as Client},
    leader::Candidate,
    store::{
        Batch, Outcome, Store as _,
        etcd::{EtcdStore, Fence},
    },
};
use muster_core::record::{Key, Piece, Queue};
use muster_integration::etcd::Etcd;

use crate::{
    figure::{Figures, Target, median},
    muster::{Muster, array, connect},
};

const EMPTY: u32 = 50_000;
const ROUNDS: usize = 3;
/// Of what is changed by them: a record of about the size of a task's.
const NAME: &str =
    "a-queue-whose-name-is-long-enough-to-make-its-record-about-as-large-as-that-of-one-task-that-was-leased-once";
/// Transactions of one change each that the ratio is against.
const SINGLE: u64 = 1_000;
/// Unfinished jobs that a new leader loads.
const JOBS: u32 = 100_000;
/// Jobs that are handed in at one time, while the store is filled.
const AT_ONCE: u32 = 256;
/// A crashed leader is replaced this often.
const CRASHES: usize = 10;
/// Each task is leased, and ends.
const CHANGES: f64 = 2.0;

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["etcd-empty-tasks", "etcd-changes-per-transaction", "etcd-vs-single-transactions"]) {
        let outcome = throughput(figures).await;
        figures.outcome("etcd-empty-tasks", outcome);
    }
    if figures.wants(&["etcd-load", "etcd-handover-p50", "etcd-handover-p99"]) {
        let outcome = takeover(figures).await;
        figures.outcome("etcd-load", outcome);
    }
}

fn start_etcd(folder: &std::path::Path) -> Result<Etcd> {
    Etcd::start(folder, 1, &["--quota-backend-bytes", "8589934592"])
}

async fn throughput(figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let etcd = start_etcd(folder.path())?;
    let mut muster = Muster::start_on(Some(etcd.address())).await?;
    muster.rate(array("warm", None, 5_000), 5_000).await?;
    let (mut rates, mut shares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let single = single_transactions(&etcd.address()).await?;
        let before = commits(&etcd)?;
        let rate = muster.rate(array("empty", None, EMPTY), EMPTY).await?;
        let made = (commits(&etcd)? - before).max(1.0);
        rates.push(rate);
        shares.push(f64::from(EMPTY) * CHANGES / made);
        ratios.push(rate * CHANGES / single);
    }
    figures.add("etcd-empty-tasks", median(&mut rates), "1/s", Target::AtLeast(8_000.0));
    figures.add("etcd-changes-per-transaction", median(&mut shares), "", Target::AtLeast(100.0));
    figures.add("etcd-vs-single-transactions", median(&mut ratios), "x", Target::AtLeast(20.0));
    Ok(())
}

/// How many transactions the leader has made: each writes the head.
fn commits(etcd: &Etcd) -> Result<f64> {
    let text = etcd.ctl(&["get", "/muster/v1/head", "--write-out", "json"])?;
    let reply: serde_json::Value = serde_json::from_str(&text)?;
    reply["kvs"][0]["version"].as_f64().context("there is no head")
}

/// Fenced transactions of one put each, one after another, per second.
async fn single_transactions(address: &str) -> Result<f64> {
    let client = Arc::new(Client::new(format!("{address}/single").parse()?, &Access::default()));
    let ttl = Duration::from_secs(60);
    let candidate = Candidate::new(Arc::clone(&client), Clock::system(), "http://single".into(), "single".into(), ttl);
    let leadership = candidate.campaign().await?;
    let fence =
        Fence { key: leadership.key.clone(), revision: leadership.revision, authority: leadership.authority.clone() };
    let store = EtcdStore::new(client, fence, u64::MAX);
    let term = store.load().await?.term;
    let began = Instant::now();
    for n in 0..SINGLE {
        let queue = Queue { name: NAME.to_owned(), max_running: Some(n), max_waiting: None, paused: false };
        let puts = vec![(Key::Queue(NAME.into()), Piece::Queue(Arc::new(queue)))];
        let outcome = store.commit(term, Batch { puts, deletes: Vec::new() }).await;
        ensure!(outcome == Outcome::Committed, "{outcome:?}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let rate = SINGLE as f64 / began.elapsed().as_secs_f64();
    leadership.resign().await;
    Ok(rate)
}

async fn takeover(figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let etcd = start_etcd(folder.path())?;
    let mut muster = Muster::start_on(Some(etcd.address())).await?;
    let mut handovers = Vec::new();
    for _ in 0..CRASHES {
        muster.system.controller()?.kill9()?;
        let crashed = Instant::now();
        // What a standby does: it is there already, and waits for the session to end.
        muster.system.start_controller()?;
        muster.client = connect(muster.system.address()).await?;
        let job = loop {
            match muster.submit(array("probe", None, 1)).await {
                Ok(job) => break job,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        muster.succeeded(job, 1).await?;
        handovers.push(crashed.elapsed().as_secs_f64());
    }
    handovers.sort_by(f64::total_cmp);
    figures.add("etcd-handover-p50", handovers[handovers.len() / 2], "s", Target::None);
    let worst = handovers.last().copied().unwrap_or_default();
    figures.add("etcd-handover-worst", worst, "s", Target::AtMost(6.5));

    fill(&mut muster).await?;
    muster.system.controller()?.stop()?;
    let from = muster.system.controller()?.log().len();
    muster.system.start_controller()?;
    let took = muster_integration::wait::until("a leader", || {
        let log = muster.system.controller()?.log();
        let stamp = |what: &str| log.get(from..)?.lines().find(|line| line.contains(what)).and_then(stamp_of);
        Ok(match (stamp("elected"), stamp("this controller leads")) {
            (Some(elected), Some(leads)) => muster_integration::wait::Look::Done(leads - elected),
            _ => muster_integration::wait::Look::not_yet(log.lines().next_back().unwrap_or_default()),
        })
    })?;
    figures.add("etcd-load", took, "s", Target::AtMost(2.0));
    Ok(())
}

/// Hands in jobs that wait for ever.
async fn fill(muster: &mut Muster) -> Result<()> {
    let mut left = JOBS;
    while left > 0 {
        let now = left.min(AT_ONCE);
        let calls = (0..now).map(|_| {
            let mut client = muster.client.clone();
            let mut spec = array("waits", Some("/bin/true"), 1);
            spec.tasks.iter_mut().for_each(|task| {
                task.request = Some(v1::Request { cpu_milli: 1_000_000_000, ..Default::default() });
            });
            let request = v1::SubmitRequest { spec: Some(spec), by: "bench".to_owned(), ..Default::default() };
            tokio::spawn(async move { client.submit(request).await.map(drop) })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await?.context("submit")?;
        }
        left -= now;
    }
    Ok(())
}

/// Seconds of the day of a log line: `2026-11-21T09:40:00.123456Z …`.
fn stamp_of(line: &str) -> Option<f64> {
    let clock = line.split('T').nth(1)?.split('Z').next()?;
    let mut parts = clock.split(':').map(str::parse::<f64>);
    Some(parts.next()?.ok()? * 3600.0 + parts.next()?.ok()? * 60.0 + parts.next()?.ok()?)
}
