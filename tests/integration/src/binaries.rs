//! The binaries under test: given by the caller, or built once, of the same profile as this test program.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, ensure};

/// The folder of this tree.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// The path of one binary: `ctl`, `muster-controller`, `muster-agent`.
pub fn path(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder().map_err(|error| format!("{error:#}"))).as_ref();
    let path = folder.map_err(|error| anyhow!("no binaries to test: {error}"))?.join(name);
    ensure!(path.is_file(), "{} is not there; `cargo build --workspace --bins` makes it", path.display());
    Ok(path)
}

/// `MUSTER_BIN_DIR` when the caller built them; otherwise they are built now, so that no test runs yesterday's.
fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("MUSTER_BIN_DIR") {
        return Ok(folder.into());
    }
    let program = env::current_exe().context("could not find this program")?;
    // target/<profile>/deps/<program>
    let folder = program.ancestors().nth(2).context("this program stands outside a build folder")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--quiet", "--workspace", "--bins"]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.output().context("could not start cargo")?;
    ensure!(built.status.success(), "cargo build failed:\n{}", String::from_utf8_lossy(&built.stderr));
    Ok(folder.to_path_buf())
}
