//! Compiles agent and ctl for Windows, with what this machine has: rustup's target, or Debian's Rust with its own
//! library sources.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{setup, step, tree};

const TARGET: &str = "x86_64-pc-windows-gnu";
/// The C compiler and linker of that target.
const GCC: &str = "x86_64-w64-mingw32-gcc";
/// Debian's Rust is found by path: rustup's stands before it on the search path.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What Debian needs to compile for Windows.
pub(crate) const PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "gcc-mingw-w64-x86-64"];

/// How to compile for Windows here.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// The toolchain that runs us has the target.
    Rustup,
    /// Debian's toolchain compiles the standard library first.
    Debian,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rustup => "the toolchain has the target",
            Self::Debian => "Debian's Rust with its library sources",
        })
    }
}

/// Which way is open, or what is missing.
pub(crate) fn way() -> Result<Way, String> {
    if !tree::on_path(GCC) {
        return Err(format!("`{GCC}` is not on the search path"));
    }
    if sysroot("rustc").is_some_and(|root| root.join("lib/rustlib").join(TARGET).is_dir()) {
        return Ok(Way::Rustup);
    }
    let sources = |root: PathBuf| root.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file();
    if Path::new(DEBIAN_CARGO).is_file() && sysroot(DEBIAN_RUSTC).is_some_and(sources) {
        return Ok(Way::Debian);
    }
    Err(format!("neither `rustup target add {TARGET}` nor Debian's {} is installed", PACKAGES.join(" ")))
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let out = Command::new(rustc).args(["--print", "sysroot"]).output().ok().filter(|out| out.status.success())?;
    Some(PathBuf::from(String::from_utf8(out.stdout).ok()?.trim()))
}

/// `cargo xtask windows check`.
pub(crate) fn run() -> Result<ExitCode> {
    match setup::ensure().windows {
        Ok(way) => step::run("windows check", &mut check(way)?),
        Err(why) => bail!("cannot compile for Windows here: {why}"),
    }
}

/// The compiler call. Its own build folder: it shares nothing with the other builds and must not lock them out.
pub(crate) fn check(way: Way) -> Result<Command> {
    let mut command = match way {
        Way::Rustup => tree::cargo(),
        Way::Debian => debian()?,
    };
    command.args(["check", "--quiet", "--locked", "--target", TARGET, "-p", "muster-agent", "-p", "muster-ctl"]);
    command.arg("--target-dir").arg(tree::target().join("windows"));
    Ok(command)
}

fn debian() -> Result<Command> {
    let mut command = Command::new(DEBIAN_CARGO);
    command.current_dir(tree::root()).env("PATH", "/usr/bin:/bin").env("CARGO_HOME", cargo_home()?);
    // Set by the cargo that runs us, for its own compiler.
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    // `-Zbuild-std` is not for stable compilers; this one is stable and compiles its own, matching, library.
    command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std");
    Ok(command)
}

/// A cargo home of its own, so that another version's cargo never touches the person's; it reaches crates as theirs does.
fn cargo_home() -> Result<PathBuf> {
    let ours = tree::cache().join("windows-cargo");
    fs::create_dir_all(&ours).with_context(|| format!("could not make {}", ours.display()))?;
    let theirs = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    for name in ["config.toml", "credentials.toml"] {
        let (from, to) = (theirs.as_deref().map(|dir| dir.join(name)), ours.join(name));
        match from.filter(|from| from.is_file()) {
            Some(from) => drop(fs::copy(&from, &to).with_context(|| format!("could not copy {}", from.display()))?),
            None if to.exists() => {
                fs::remove_file(&to).with_context(|| format!("could not remove {}", to.display()))?
            }
            None => (),
        }
    }
    Ok(ours)
}
