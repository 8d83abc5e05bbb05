//! Small programs that the bench compiles or installs on the fly.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};

const HYPERQUEUE: &str = "hyperqueue==0.27.0";

/// How many tasks run at once, here and everywhere else in a run.
pub(crate) fn parallel() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Compiles one of our C files into `folder`.
fn compile(name: &str, source: &str, folder: &Path) -> Result<PathBuf> {
    let (file, program) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&file, source).with_context(|| format!("could not write {}", file.display()))?;
    said(Command::new("cc").arg("-O2").arg("-o").arg(&program).arg(&file))?;
    Ok(program)
}

/// The task that writes when it ran.
pub(crate) fn stamp(folder: &Path) -> Result<PathBuf> {
    compile("stamp", include_str!("aid/stamp.c"), folder)
}

/// The task that writes much.
pub(crate) fn flood(folder: &Path) -> Result<PathBuf> {
    compile("flood", include_str!("aid/flood.c"), folder)
}

/// `/bin/true` per second by a bare `posix_spawn` and `waitpid`.
pub(crate) fn bare_spawns(count: u32) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let program = compile("spawn", include_str!("aid/spawn.c"), folder.path())?;
    let arguments = [count.to_string(), parallel().to_string(), "/bin/true".to_owned()];
    last_number(&said(Command::new(program).args(arguments))?)
}

/// `/bin/true` per second by HyperQueue: its `hq` where present, else its Python package.
pub(crate) fn hyperqueue(count: u32) -> Result<f64> {
    let python = hyperqueue_python()?;
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(python);
    command.arg("-c").arg(include_str!("aid/hyperqueue.py")).args([count.to_string(), parallel().to_string()]);
    last_number(&said(command.current_dir(folder.path()))?)
}

/// A Python that has HyperQueue, in an environment of its own that outlives the run.
fn hyperqueue_python() -> Result<PathBuf> {
    let cache = env::var_os("MUSTER_CACHE").context("MUSTER_CACHE is not set; run `cargo xtask bench`")?;
    let home = Path::new(&cache).join("hyperqueue");
    let (python, stamp) = (home.join("bin/python"), home.join("muster-packages"));
    if !fs::read_to_string(&stamp).is_ok_and(|have| have == HYPERQUEUE) {
        said(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
        said(Command::new(&python).args(["-m", "pip", "install", "--quiet", HYPERQUEUE]))?;
        fs::write(&stamp, HYPERQUEUE)?;
    }
    Ok(python)
}

/// Runs a program to its end, which must be good.
pub(crate) fn said(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("could not start {:?}", command.get_program()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "{:?} ended with {}: {last}", command.get_program(), output.status);
    Ok(output)
}

fn last_number(output: &Output) -> Result<f64> {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.split_whitespace().last().unwrap_or_default();
    last.parse().with_context(|| format!("{last:?} is no number"))
}
