//! The simulation: many seeds at once, or one seed with a readable trace.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{step, tree};

/// How many seeds the test command explores.
const TEST_SEEDS: u64 = 3_000;

/// Which seeds.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The seed; alone, it is replayed with a readable trace
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds to explore, counted from --seed
    #[arg(long)]
    seeds: Option<u64>,
}

/// `cargo xtask sim`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut command = tree::cargo();
    command.args(["run", "--quiet", "--locked", "-p", "muster-sim", "--"]);
    match args.seeds {
        None => command.args(["--seed", &args.seed.to_string()]),
        Some(count) => command.args(["--seeds", &range(args.seed, count)]),
    };
    step::run("sim", &mut command)
}

/// The seeds of the test command, by the binary that was just built.
pub(crate) fn seeds_of_the_tests() -> Command {
    let mut command = Command::new(tree::target().join("debug").join("muster-sim"));
    command.current_dir(tree::root()).args(["--seeds", &range(0, TEST_SEEDS)]);
    command
}

fn range(first: u64, count: u64) -> String {
    format!("{first}..{}", first.saturating_add(count))
}
