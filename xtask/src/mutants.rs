//! Faults switched on one at a time, in a build that no release can be: the suite must turn red each time.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{
    step::{self, show},
    tree,
};

/// A fault that so many seeds do not find is not found.
const SEEDS: u64 = 3_000;

/// `cargo xtask mutants`.
pub(crate) fn command() -> Result<ExitCode> {
    Ok(if run()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether every fault was noticed.
pub(crate) fn run() -> Result<bool> {
    let target = tree::target().join("mutants");
    let mut build = tree::cargo();
    build.args(["build", "--quiet", "--locked", "-p", "muster-sim"]);
    build.env("RUSTFLAGS", "--cfg muster_mutants").env("CARGO_TARGET_DIR", &target);
    ensure!(step::quietly("build with faults", &mut build)?.ok, "the build with faults failed");
    let simulation = || Command::new(target.join("debug").join("muster-sim"));

    let mut unharmed = simulation();
    unharmed.args(["--hunt", "0..100"]);
    ensure!(step::quietly("without a fault", &mut unharmed)?.ok, "it is red without any fault");

    let listed = simulation().arg("--mutants").output().context("could not start the simulation")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.lines().next().is_some(), "the simulation names no faults");
    let mut survivors = Vec::new();
    for line in listed.lines() {
        let (name, breaks) = line.split_once(' ').unwrap_or((line, ""));
        let mut hunt = simulation();
        hunt.args(["--mutant", name, "--hunt", &format!("0..{SEEDS}")]);
        let hunted = hunt.stdin(Stdio::null()).output().context("could not start the simulation")?;
        let text = String::from_utf8_lossy(&hunted.stdout).into_owned();
        let found = text.lines().find(|line| line.starts_with("seed ")).map(|line| line.chars().take(110).collect());
        // 1: a violation was found; all else is no verdict.
        let found: Option<String> = found.filter(|_| hunted.status.code() == Some(1));
        show(&format!("{name:<22} {:<64} {}", breaks, found.as_deref().unwrap_or("SURVIVED")));
        if found.is_none() {
            survivors.push(name.to_owned());
        }
    }
    show(&format!("{} faults, {} survived {}", listed.lines().count(), survivors.len(), survivors.join(", ")));
    Ok(survivors.is_empty())
}
