//! The first command of the README, from a fresh clone with nothing built; sources are fetched before.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result};
use muster_integration::binaries;

use crate::{
    aid::said,
    figure::{Figures, Target},
};

/// All figures of this file.
pub(crate) fn measure(figures: &mut Figures) {
    if figures.wants(&["cold-first-command"]) {
        let outcome = cold(figures);
        figures.outcome("cold-first-command", outcome);
    }
}

fn cold(figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clone = folder.path().join("muster");
    said(Command::new("git").args(["clone", "--quiet"]).arg(binaries::root()).arg(&clone))?;
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        // What cargo tells the programs it runs is for them, not for another cargo.
        command.env_remove("CARGO_TARGET_DIR").env_remove("MUSTER_BIN_DIR").current_dir(&clone).args(arguments);
        command
    };
    said(&mut cargo(&["fetch", "--quiet", "--locked"])).context("fetching sources")?;
    let began = Instant::now();
    said(&mut cargo(&["run", "--quiet", "--release", "--bin", "ctl", "--", "run", "examples/census.toml"]))?;
    figures.add("cold-first-command", began.elapsed().as_secs_f64(), "s", Target::AtMost(240.0));
    Ok(())
}
