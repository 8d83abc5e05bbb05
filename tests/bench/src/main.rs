//! Measures the figures we promise, on real daemons. `cargo xtask bench` builds and runs it.

mod agents;
mod aid;
mod cluster;
mod cold;
mod figure;
mod flood;
mod handover;
mod idle;
mod latency;
mod million;
mod muster;
mod output;
mod rates;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::figure::Figures;

/// Measures the figures we promise. Every ratio is of one run on one machine.
#[derive(Parser)]
struct Args {
    /// One JSON object per figure in place of the table
    #[arg(long)]
    json: bool,
    /// Also time the first command of the README from a fresh clone
    #[arg(long)]
    cold: bool,
    /// Which store: `embedded`, or `etcd`, one real member on this machine
    #[arg(long, value_enum, default_value = "embedded")]
    store: StoreKind,
    /// Only figures whose name contains this
    #[arg(long)]
    only: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StoreKind {
    Embedded,
    Etcd,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(std::env::var_os("MUSTER_BIN_DIR").is_some(), "MUSTER_BIN_DIR is not set; run `cargo xtask bench`");
    let runtime = tokio::runtime::Runtime::new()?;
    let mut figures = Figures::new(args.json, args.only);
    runtime.block_on(async {
        if args.store == StoreKind::Etcd {
            cluster::measure(&mut figures).await;
            handover::measure(&mut figures).await;
            return agents::measure(&mut figures).await;
        }
        rates::measure(&mut figures).await;
        latency::measure(&mut figures).await;
        output::measure(&mut figures).await;
        idle::measure(&mut figures).await;
        flood::measure(&mut figures).await;
        million::measure(&mut figures).await;
    });
    if args.cold {
        cold::measure(&mut figures);
    }
    figures.close();
    Ok(ExitCode::SUCCESS)
}
