//! What the tree must look like before anybody runs it.

use std::process::ExitCode;

use anyhow::Result;

use crate::{step, tree};

/// Everything in this file; every part runs, whatever the ones before it found.
pub(crate) fn all() -> Result<ExitCode> {
    let mut worst = ExitCode::SUCCESS;
    for part in [|| fmt(true), clippy, docs, tidy] {
        let code = part()?;
        if code != ExitCode::SUCCESS {
            worst = code;
        }
    }
    Ok(worst)
}

/// Formats the tree, or says what is not formatted.
pub(crate) fn fmt(check: bool) -> Result<ExitCode> {
    let mut command = tree::cargo();
    command.args(["fmt", "--all"]);
    if check {
        command.arg("--check");
    }
    step::run("fmt", &mut command)
}

/// Clippy, warnings denied.
pub(crate) fn clippy() -> Result<ExitCode> {
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step::run("clippy", tree::cargo().args(arguments))
}

/// The documentation, warnings denied: a broken link is a broken promise.
pub(crate) fn docs() -> Result<ExitCode> {
    let arguments = ["doc", "--quiet", "--workspace", "--no-deps", "--locked"];
    step::run("docs", tree::cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The rules about the tree itself. `--workspace` keeps cargo's features, and so its builds, the same as the tests'.
pub(crate) fn tidy() -> Result<ExitCode> {
    let arguments = ["test", "--quiet", "--workspace", "--locked", "--test", "it", "tidy"];
    step::run("tidy", tree::cargo().args(arguments))
}
