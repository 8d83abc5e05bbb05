//! A test that cannot run here says so, and why; where nobody looks, that is a failure.

use std::{env, fs::OpenOptions, io::Write as _};

use anyhow::{Context, Result, ensure};

/// Notes that `test` could not run. `cargo xtask test` collects these and counts them as skipped.
pub fn skip(test: &str, why: &str) -> Result<()> {
    let in_ci = env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    ensure!(!in_ci, "{test} cannot run here: {why}");
    let Some(log) = env::var_os("MUSTER_SKIP_LOG") else {
        eprintln!("skipped: {test}: {why}");
        return Ok(());
    };
    let mut log = OpenOptions::new().append(true).create(true).open(log).context("could not open the skip log")?;
    writeln!(log, "{test}\t{why}").context("could not write the skip log")
}
