//! `cargo xtask package`: the Debian packages, by cargo-deb.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};

use crate::{step, tree};

/// The packages, as cargo calls them and as Debian does.
const PACKAGES: [&str; 3] = ["muster-controller", "muster-agent", "muster-ctl"];
/// What the shells call their own files, and where the manifest of `ctl` looks for them.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "ctl.bash"), ("zsh", "_ctl"), ("fish", "ctl.fish")];
/// The one that was tried.
const VERSION: &str = "3.8.0";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The profile whose programs are packed; `dev` is what tests use
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Pack what is built already
    #[arg(long)]
    no_build: bool,
    /// Where the packages go
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let deb = deb().map_err(|why| anyhow::anyhow!("cargo-deb is not there: {why}"))?;
    let built = tree::target().join(if args.profile == "dev" { "debug" } else { args.profile.as_str() });
    if !args.no_build {
        let mut build = tree::cargo();
        build.args(["build", "--locked", "--workspace", "--bins", "--profile", &args.profile]);
        ensure!(step::quietly("build", &mut build)?.ok, "the build failed");
    }
    completions(&built)?;
    let out = args.out.clone().unwrap_or_else(|| tree::target().join("debian"));
    fs::create_dir_all(&out).with_context(|| format!("could not make {}", out.display()))?;
    for package in PACKAGES {
        let mut pack = Command::new(&deb);
        // It strips, or packs the names of functions into packages of their own, only when it builds.
        pack.current_dir(tree::root()).args(["--no-build", "--locked", "--no-strip", "--no-dbgsym", "-p", package]);
        pack.args(["--profile", &args.profile, "--output"]).arg(&out);
        if args.profile == "dev" {
            pack.arg("--fast");
        }
        ensure!(step::quietly(&format!("pack {package}"), &mut pack)?.ok, "cargo-deb failed; see its output above");
    }
    step::show(&format!("packages are in {}", out.display()));
    Ok(ExitCode::SUCCESS)
}

/// What shells complete of `ctl`, by the `ctl` that is packed.
fn completions(built: &Path) -> Result<()> {
    let folder = tree::root().join("target/package");
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    for (shell, name) in COMPLETIONS {
        let ctl = built.join("ctl");
        let made = Command::new(&ctl).args(["completions", shell]).output();
        let made = made.with_context(|| format!("could not start {}; build it first", ctl.display()))?;
        ensure!(made.status.success(), "{} made no completions for {shell}", ctl.display());
        fs::write(folder.join(name), made.stdout).with_context(|| format!("could not write {name}"))?;
    }
    Ok(())
}

/// The program, installed on first use.
pub(crate) fn deb() -> Result<PathBuf, String> {
    let home = tree::cache().join("tools");
    let program = home.join("bin/cargo-deb");
    if program.is_file() {
        return Ok(program);
    }
    let mut install = tree::cargo();
    install.args(["install", "--quiet", "--locked", "--version", VERSION, "cargo-deb", "--root"]).arg(&home);
    match step::quietly("install cargo-deb", &mut install) {
        Ok(ended) if ended.ok && program.is_file() => Ok(program),
        Ok(_) => Err(format!("`cargo install cargo-deb --version {VERSION}` failed; see its output above")),
        Err(error) => Err(format!("{error:#}")),
    }
}
