//! `cargo xtask test`: everything that can run here, one closing line, and a reason for all that did not run.

use std::{
    env, fs,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    chaos, mutants,
    setup::{self, Found},
    sim, step,
    tally::Tally,
    tree, vm, windows,
};

/// `cargo xtask test`.
pub(crate) fn run() -> Result<ExitCode> {
    let mut tally = Tally::default();
    let found = setup::ensure();
    // Tests and the binaries they start, by one call: cargo then resolves features once and compiles nothing twice.
    let build =
        step::quietly("build", tree::cargo().args(["build", "--quiet", "--workspace", "--all-targets", "--locked"]))?;
    if build.ok {
        run_tests(&mut tally, &found)?;
        run_newer_etcd(&mut tally, &found)?;
        vm::check(&mut tally)?;
        one_check(&mut tally, "simulation", &mut sim::seeds_of_the_tests());
        let verdict = mutants::run();
        if let Err(error) = &verdict {
            eprintln!("    {error:#}");
        }
        tally.step("mutants", verdict.is_ok_and(|verdict| verdict));
        run_chaos(&mut tally, &found);
    } else {
        tally.step("build", false);
    }
    match found.windows {
        Ok(way) => one_check(&mut tally, "windows check", &mut windows::check(way)?),
        Err(why) => tally.skip("windows check", &why),
    }
    Ok(close(&tally))
}

/// Unit, property, documentation, tidy and process tests of the whole workspace.
fn run_tests(tally: &mut Tally, found: &Found) -> Result<()> {
    let log = tree::target().join("skipped-tests");
    fs::write(&log, "").with_context(|| format!("could not write {}", log.display()))?;
    let mut command = tree::cargo();
    command.args(["test", "--workspace", "--no-fail-fast", "--locked"]).stdout(Stdio::piped());
    command.env("MUSTER_SKIP_LOG", &log).env("MUSTER_BIN_DIR", tree::target().join("debug"));
    // A cluster that the developer happens to use is none of the tests' business.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env_remove("MUSTER_CONTROLLER").env_remove("MUSTER_LOG");
    match &found.python {
        Ok(python) => command.env("MUSTER_PYTHON", python),
        Err(why) => command.env("MUSTER_NO_PYTHON", why),
    };
    if let Err(why) = &found.units {
        command.env("MUSTER_NO_UNITS", why);
    }
    match &found.deb {
        Ok(deb) => command.env("MUSTER_CARGO_DEB", deb),
        Err(why) => command.env("MUSTER_NO_CARGO_DEB", why),
    };
    let ended = step::watched("tests", &mut command, |line| tally.libtest_line(line))?;
    tally.skip_log(&fs::read_to_string(&log).with_context(|| format!("could not read {}", log.display()))?);
    if !ended.ok && !tally.has_failures() {
        tally.step("tests (a test program ended before it could say which test failed)", false);
    }
    Ok(())
}

/// The store's tests once more, against the newer etcd.
fn run_newer_etcd(tally: &mut Tally, found: &Found) -> Result<()> {
    let etcd = match &found.newer_etcd {
        Ok(etcd) => etcd,
        Err(why) => {
            tally.skip("store on etcd 3.6", why);
            return Ok(());
        }
    };
    let mut command = tree::cargo();
    command.args(["test", "--quiet", "--workspace", "--locked", "--test", "it", "--", "etcd_store"]);
    command.env("MUSTER_BIN_DIR", tree::target().join("debug")).env("MUSTER_ETCD", etcd);
    one_check(tally, "store on etcd 3.6", &mut command);
    Ok(())
}

/// Two minutes of it, with a seed that stays the same.
fn run_chaos(tally: &mut Tally, found: &Found) {
    if let Err(why) = &found.chaos {
        return tally.skip("chaos", why);
    }
    match chaos::check() {
        Ok(Ok(is_good)) => tally.step("chaos", is_good),
        Ok(Err(why)) => tally.skip("chaos", &why),
        Err(error) => {
            eprintln!("    {error:#}");
            tally.step("chaos", false);
        }
    }
}

/// A program whose end is one verdict. One that cannot be started has failed; the rest still runs.
fn one_check(tally: &mut Tally, name: &str, command: &mut Command) {
    let ended = step::quietly(name, command);
    if let Err(error) = &ended {
        eprintln!("    {error:#}");
    }
    tally.step(name, ended.is_ok_and(|ended| ended.ok));
}

fn close(tally: &Tally) -> ExitCode {
    tally.details().iter().for_each(|line| step::show(line));
    step::show(&tally.to_string());
    let good = tally.is_good(tree::in_ci());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
