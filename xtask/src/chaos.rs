//! Chaos: a cluster of real processes, faults from a seed, an outside checker. The door to `tests/chaos`.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};

use crate::{etcd, setup, step, tree};

/// What the test command plays.
const TEST_MINUTES: u64 = 2;
const TEST_SEED: u64 = 7;
/// Exit code of `muster-chaos` where it cannot run.
pub(crate) const SKIPPED: i32 = 75;

/// Which run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long one run lasts, all together
    #[arg(long, default_value_t = TEST_MINUTES)]
    minutes: u64,
    /// Decides the schedule of faults and the work; a random one if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    /// Keep logs, witness and schedule, also of a good run
    #[arg(long)]
    keep: bool,
    /// How many agents lose their leader at one time when all else is over [default: 200]
    #[arg(long)]
    herd: Option<usize>,
    /// Which etcd: 3.4 (the distribution's), 3.6 (our own build), or a path
    #[arg(long, default_value = "3.4")]
    etcd: String,
    /// Break one rule of the product on purpose, in a build that no release can be: the run must turn red
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
}

/// `cargo xtask chaos`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let ground = setup::chaos();
    if let Err(why) = &ground {
        eprintln!("    {why}");
    }
    let (target, build) = build(args.mutant.is_some());
    let mut build = build;
    ensure!(step::quietly("build", &mut build)?.ok, "the build failed");
    let mut command = program(&target);
    command.args(["--minutes", &args.minutes.to_string(), "--etcd"]).arg(etcd::program(&args.etcd)?);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(herd) = args.herd {
        command.args(["--herd", &herd.to_string()]);
    }
    let flags = [("--json", args.json), ("--keep", args.keep)];
    command.args(flags.iter().filter(|(_, is_on)| *is_on).map(|(flag, _)| flag));
    if let Some(mutant) = &args.mutant {
        command.args(["--mutant", mutant]);
    }
    step::run("chaos", &mut command)
}

/// The run of the test command, by the binaries that were just built.
pub(crate) fn of_the_tests() -> Command {
    let mut command = program(&tree::target().join("debug"));
    command.args(["--minutes", &TEST_MINUTES.to_string(), "--seed", &TEST_SEED.to_string()]);
    command
}

fn program(target: &std::path::Path) -> Command {
    let mut command = Command::new(target.join("muster-chaos"));
    command.current_dir(tree::root()).env("MUSTER_BIN_DIR", target);
    command
}

/// Where the binaries will be, and what makes them. `--workspace` keeps cargo's features the same as the tests'.
fn build(with_faults: bool) -> (PathBuf, Command) {
    let mut build = tree::cargo();
    build.args(["build", "--quiet", "--locked", "--workspace", "--bins"]);
    let target = if with_faults { tree::target().join("mutants") } else { tree::target() };
    if with_faults {
        build.env("RUSTFLAGS", "--cfg muster_mutants");
    }
    build.env("CARGO_TARGET_DIR", &target);
    (target.join("debug"), build)
}

/// One line of why it could not run: the last that it said.
pub(crate) fn reason(said: &str) -> String {
    said.lines().last().unwrap_or("it did not say why").to_owned()
}

/// Runs it as the test command does; `Ok(Err(why))` where it cannot run.
pub(crate) fn check() -> Result<Result<bool, String>> {
    let mut said = String::new();
    let mut command = of_the_tests();
    command.stdout(std::process::Stdio::piped());
    let ended = step::watched("chaos", &mut command, |line| {
        said.push_str(line);
        said.push('\n');
    })
    .context("muster-chaos")?;
    Ok(if ended.code == Some(SKIPPED) { Err(reason(&said)) } else { Ok(ended.ok) })
}
