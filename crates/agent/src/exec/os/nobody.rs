//! Windows: every task runs as the agent does.

use std::{
    convert::Infallible,
    ffi::OsStr,
    fs::Metadata,
    io,
    path::{Path, PathBuf},
};

use muster_core::run_as::RunAs;

use super::Fresh;
use crate::exec::{ProcessIdentity, Rules};

/// Nobody else.
pub(crate) struct Who(Infallible);

impl Who {
    /// As whom a task runs. `Err` is for people.
    pub(crate) fn of(run_as: &RunAs, rules: &Rules) -> Result<Option<Self>, String> {
        match run_as.is_default() && rules.user.is_none() {
            true => Ok(None),
            false => Err("on Windows every task runs as the agent does: leave `run_as` out, or ask for Linux by \
                          `requires = { os = \"linux\" }`"
                .into()),
        }
    }

    pub(crate) fn is_other(&self) -> bool {
        match self.0 {}
    }

    pub(crate) fn name(&self) -> Option<&str> {
        match self.0 {}
    }

    pub(crate) fn variables(&self) -> Vec<(&'static str, &OsStr)> {
        match self.0 {}
    }

    pub(crate) fn give(&self, _path: &Path) -> io::Result<()> {
        match self.0 {}
    }
}

/// What is read of tasks is lost with its reader here.
#[derive(Debug)]
pub(crate) struct Sluice(Infallible);

impl Sluice {
    pub(crate) fn enter(self: &std::sync::Arc<Self>) -> Option<Infallible> {
        match self.0 {}
    }
}

/// The agent's folder is its user's alone already.
pub(crate) fn close_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// There are none.
pub(crate) fn is_others(_file: &Metadata) -> bool {
    false
}

/// There are no other users to let in.
pub(crate) fn open_way(_data_dir: &Path, _way: &[&PathBuf]) -> io::Result<()> {
    Ok(())
}

/// Nobody has built it.
pub(crate) fn join(_beside: &ProcessIdentity, _command: &[String]) -> Result<Fresh, String> {
    Err("commands in running tasks can be run on Linux only".into())
}

/// Told with the task that asks for it.
pub(crate) fn missing_rights() -> Option<String> {
    None
}
