//! Makes a program of an order: what is run, where, with which environment, or why it cannot be.

use std::path::{Path, PathBuf};

use muster_core::spec;

use super::{Order, confined::shown, env, os};

/// Bytes; who has as much lacks none of its own while it is started.
const STARTING_MAX: u64 = 64 << 20;

/// All that starting takes.
pub(crate) struct Launch {
    pub(crate) program: os::Program,
    cwd: PathBuf,
    /// Whether stdin is given.
    pub(crate) feeds: bool,
    /// As whom, in words; none: as the agent.
    who: Option<String>,
}

/// What `order` starts. `scratch` is where, if its spec names no folder. `Err` is for people.
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
    let mut program = match &order.spec.command {
        spec::Command::Empty => return Err("the task has no command".into()),
        spec::Command::Shell(text) => os::shell(text),
        spec::Command::Argv(argv) => {
            os::find_program(argv, base.path(order), &cwd).map_err(|why| without_folder(&cwd).unwrap_or(why))?
        }
    };
    base.apply(&mut program, order, files)?;
    program.folder(&cwd);
    let who = files.who.and_then(os::Who::name).map(str::to_owned);
    Ok(Launch { program, cwd, who, feeds: order.spec.stdin.as_ref().is_some_and(|stdin| !stdin.is_empty()) })
}

impl Launch {
    /// Of a program that is made already, for a task of `spec`.
    pub(crate) fn of(program: os::Program, cwd: PathBuf, spec: &spec::TaskSpec) -> Self {
        Self { program, cwd, who: None, feeds: spec.stdin.as_ref().is_some_and(|stdin| !stdin.is_empty()) }
    }

    /// Where it works.
    pub(crate) fn folder(&self) -> &Path {
        &self.cwd
    }

    /// Why it could not be started with so much `memory` (0: without a limit), in words for the person who wrote the job.
    pub(crate) fn explain(&self, error: &os::Unstarted, memory: u64) -> String {
        let mut why = without_folder(&self.cwd).unwrap_or_else(|| os::explain(&self.program, &self.cwd, error));
        if (1..STARTING_MAX).contains(&memory) && os::wants_memory(error) {
            why += &format!("; or its own `memory` of {} is too little to start it: ask for more", shown(memory));
        }
        match &self.who {
            Some(who) => format!("{why} (as user `{who}`)"),
            None => why,
        }
    }
}

fn without_folder(cwd: &Path) -> Option<String> {
    match std::fs::metadata(cwd) {
        Ok(folder) if folder.is_dir() => None,
        Ok(_) => Some(format!("the working directory {} is a file, not a folder", cwd.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("the working directory {} does not exist on this agent", cwd.display()))
        }
        // Whoever tries to enter it says why not.
        Err(_) => None,
    }
}
