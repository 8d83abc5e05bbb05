//! `cargo xtask bench`: builds what is measured with optimisation, then hands over to `tests/bench`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{step, tree};

/// Passed on to the bench as they are.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object per figure in place of the table
    #[arg(long)]
    json: bool,
    /// Also time the first command of the README from a fresh clone
    #[arg(long)]
    cold: bool,
    /// Which store: `embedded`, or `etcd`, one real member on this machine
    #[arg(long)]
    store: Option<String>,
    /// Only figures whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let packages = ["muster-controller", "muster-agent", "muster-ctl", "muster-bench"];
    let mut build = tree::cargo();
    build.args(["build", "--release", "--quiet", "--locked", "--bins"]);
    packages.iter().for_each(|package| {
        build.args(["-p", package]);
    });
    if !step::quietly("build", &mut build)?.ok {
        return Ok(ExitCode::FAILURE);
    }
    let mut bench = std::process::Command::new(tree::target().join("release").join("muster-bench"));
    bench.current_dir(tree::root()).env("MUSTER_CACHE", tree::cache());
    bench.env("MUSTER_BIN_DIR", tree::target().join("release"));
    for (flag, wanted) in [("--json", args.json), ("--cold", args.cold)] {
        if wanted {
            bench.arg(flag);
        }
    }
    if let Some(store) = &args.store {
        bench.args(["--store", store]);
    }
    if let Some(only) = &args.only {
        bench.args(["--only", only]);
    }
    step::run("bench", &mut bench)
}
