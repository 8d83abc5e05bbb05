//! A leader that is stopped cleanly: how soon work is leased by the one that stood by.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use muster_common::proto::v1::muster_client::MusterClient;
use muster_integration::{binaries, daemon::Daemon, etcd::Etcd};
use nix::sys::signal::Signal;
use tonic::transport::Channel;

use crate::{
    figure::{Figures, Target, median},
    muster::{array, connect, member, submit, succeeded},
};

/// A leader is stopped this often, each of two in turn.
const STOPS: usize = 10;
/// Long enough that waiting for it cannot be taken for a hand-over.
const SESSION_TTL: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(60);

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["etcd-clean-handover-p50", "etcd-clean-handover-worst"]) {
        let outcome = handovers(figures).await;
        figures.outcome("etcd-clean-handover", outcome);
    }
}

async fn handovers(figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let start = |n, listen| member(folder.path(), &etcd, n, SESSION_TTL, listen);
    let mut controllers = [start(0, None)?, start(1, None)?];
    let addresses: Vec<_> = controllers.iter_mut().map(|controller| controller.address(0)).collect::<Result<_>>()?;
    let _agent = agent(folder.path(), &addresses)?;
    let mut clients = Vec::new();
    for address in &addresses {
        clients.push(connect(address).await?);
    }
    probe(&mut clients[0]).await?;

    let mut took = Vec::new();
    for stop in 0..STOPS {
        let (leader, standby) = (stop % 2, (stop + 1) % 2);
        controllers[leader].signal(Signal::SIGTERM)?;
        let told = Instant::now();
        probe(&mut clients[standby]).await?;
        took.push(told.elapsed().as_secs_f64());
        controllers[leader].stop()?;
        controllers[leader] = start(leader, Some(&addresses[leader]))?;
        clients[leader] = connect(&addresses[leader]).await?;
        // Answered by the other one: it stands by.
        probe(&mut clients[leader]).await?;
    }
    figures.add("etcd-clean-handover-p50", median(&mut took), "s", Target::None);
    let worst = took.iter().copied().fold(0.0, f64::max);
    figures.add("etcd-clean-handover-worst", worst, "s", Target::AtMost(1.0));
    Ok(())
}

/// Hands in one empty task and sees its end; whoever refuses is asked again, as every client of ours does.
async fn probe(client: &mut MusterClient<Channel>) -> Result<()> {
    let began = Instant::now();
    loop {
        let done = match submit(client, array("probe", None, 1)).await {
            Ok(job) => succeeded(client, job, 1).await.map(drop),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => return Ok(()),
            Err(error) => ensure!(began.elapsed() < LIMIT, "nobody takes work: {error:#}"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn agent(folder: &Path, addresses: &[String]) -> Result<Daemon> {
    let mut command = Command::new(binaries::path("muster-agent")?);
    command.arg("--data").arg(folder.join("agent"));
    for address in addresses {
        command.args(["--controller", &format!("http://{address}")]);
    }
    Daemon::start("agent", &mut command, folder)
}
