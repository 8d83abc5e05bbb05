//! `muster-chaos`: a whole cluster as real processes in networks of their own, faults from a seed, and a checker that
//! knows nothing of the product. `cargo xtask chaos` is its door.
#![cfg(unix)]

mod cast;
mod checker;
mod dice;
mod ground;
mod herd;
mod nemesis;
mod now;
mod plan;
mod report;
mod run;
mod stage;
mod store;
mod task;
mod watch;
mod wires;
mod work;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{report::Report, stage::Stop};

/// Exit code of a run that cannot be made here; its reason is on standard output.
const SKIPPED: u8 = 75;
/// What unoptimised programs on two processors can bear beside all the others.
const HERD: usize = 200;
/// Where Debian puts the library that moves clocks.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Breaks a cluster of real processes and checks what it promised.
#[derive(Parser)]
#[command(name = "muster-chaos")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    chaos: Chaos,
}

#[derive(clap::Args)]
struct Chaos {
    /// How long it lasts, all together
    #[arg(long, default_value_t = 2)]
    minutes: u64,
    /// Decides the schedule and the work; a random one if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    /// Keep what was written, also of a good run
    #[arg(long)]
    keep: bool,
    /// How many agents lose their leader at one time when all else is over; 0 leaves that out
    #[arg(long, default_value_t = HERD)]
    herd: usize,
    /// The etcd to use
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,
    /// Switch one fault of the product on, in programs that were built with faults
    #[arg(long)]
    mutant: Option<String>,
}

#[derive(Subcommand)]
enum Role {
    /// What the cluster runs
    #[command(hide = true)]
    Task(task::Args),
    /// Many agents that take no work
    #[command(hide = true)]
    Herd(herd::Args),
    /// Check again what a run wrote
    Check { folder: PathBuf },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match args.role {
        Some(Role::Task(task)) => task::run(&task),
        Some(Role::Herd(herd)) => herd::run(&herd),
        Some(Role::Check { folder }) => check(&folder),
        None => chaos(args.chaos),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("muster-chaos: {error:#}");
        ExitCode::from(2)
    })
}

fn chaos(args: Chaos) -> Result<ExitCode> {
    if let Some(why) = ground::missing() {
        show(&why);
        return Ok(ExitCode::from(SKIPPED));
    }
    let stop = Arc::new(Stop::default());
    until_asked(Arc::clone(&stop))?;
    let seed = args.seed.unwrap_or_else(|| now::us() ^ u64::from(std::process::id()) << 32);
    let folder = run::folder()?;
    let faketime = Some(PathBuf::from(FAKETIME)).filter(|path| path.is_file());
    let settings = cast::Settings { etcd: args.etcd, mutant: args.mutant, faketime };
    let order = run::Order { minutes: args.minutes, seed, herd: args.herd, is_quiet: args.json, settings };
    let outcome =
        run::run(order, &folder, &stop).with_context(|| format!("what was written is in {}", folder.display()))?;
    if stop.is_asked() {
        // Half a run proves nothing: much of its work had no time to end.
        anyhow::bail!("interrupted, nothing was judged; what was written is in {}", folder.display());
    }
    let report = Report { seed, outcome };
    let is_good = report.outcome.verdict.violations.is_empty();
    fs::write(folder.join("report.json"), report.json().to_string()).context("could not write the report")?;
    if is_good && !args.keep {
        fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))?;
    } else {
        eprintln!("logs, witness, schedule: {}", folder.display());
    }
    show(&if args.json { report.json().to_string() } else { report.to_string() });
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(folder: &Path) -> Result<ExitCode> {
    let verdict = checker::check(&checker::History::read(folder)?);
    verdict.violations.iter().for_each(|violation| show(&violation.to_string()));
    show(&format!("{} jobs checked, {} violations", verdict.jobs, verdict.violations.len()));
    Ok(if verdict.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ctrl-C and SIGTERM end the run in order: nothing is left behind.
fn until_asked(stop: Arc<Stop>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    thread::spawn(move || {
        let asked = runtime.block_on(muster_common::shutdown::signal());
        eprintln!("chaos: {asked}; clearing up");
        stop.ask();
    });
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what a developer asked for goes to standard output")]
fn show(line: &str) {
    println!("{line}");
}
