//! Makes a command of an order: what is run, where, with which environment, or why it cannot be.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use muster_core::spec;

use super::{Order, env, os};

/// All that starting takes.
pub(crate) struct Launch {
    pub(crate) command: Command,
    /// Whether stdin is given.
    pub(crate) feeds: bool,
}

/// Builds the command of `order`. `scratch` is where it runs if its spec names no folder. `Err` is for people.
pub(crate) fn prepare(
    order: &Order,
    base: &env::Base,
    files: &env::Files<'_>,
    scratch: &Path,
) -> Result<Launch, String> {
    let cwd = match &order.spec.cwd {
        Some(cwd) => PathBuf::from(cwd),
        None => scratch.to_owned(),
    };
    if cwd.is_relative() {
        return Err(format!("the working directory `{}` is relative: name it from the root", cwd.display()));
    }
    let mut command = match &order.spec.command {
        spec::Command::Empty => return Err("the task has no command".into()),
        spec::Command::Shell(text) => os::shell(text),
        spec::Command::Argv(argv) => {
            os::find_program(argv, base.path(order), &cwd).map_err(|why| without_folder(&cwd).unwrap_or(why))?
        }
    };
    base.apply(&mut command, order, files)?;
    command.current_dir(&cwd);
    Ok(Launch { command, feeds: order.spec.stdin.as_ref().is_some_and(|stdin| !stdin.is_empty()) })
}

/// Why the command could not be started, in words for the person who wrote the job.
pub(crate) fn explain(command: &Command, error: &std::io::Error) -> String {
    let cwd = command.get_current_dir().unwrap_or(Path::new("/"));
    if let Some(why) = without_folder(cwd) {
        return why;
    }
    if error.kind() == std::io::ErrorKind::InvalidInput {
        return "the command has a zero byte in an argument, which no program can be given".into();
    }
    os::explain(command.get_program(), cwd, error)
}

fn without_folder(cwd: &Path) -> Option<String> {
    match std::fs::metadata(cwd) {
        Ok(folder) if folder.is_dir() => None,
        Ok(_) => Some(format!("the working directory {} is a file, not a folder", cwd.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("the working directory {} does not exist on this agent", cwd.display()))
        }
        Err(error) => Some(format!("the working directory {} cannot be used: {error}", cwd.display())),
    }
}
