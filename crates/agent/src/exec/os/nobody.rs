//! Windows: every task runs as the agent does.

use std::{
    convert::Infallible,
    ffi::OsStr,
    fs::{Metadata, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
};

use muster_core::{id::Token, run_as::RunAs};

use super::{Leader, Output, Ways};
use crate::{
    exec::{
        Rules,
        beside::{Asked, Beside, Size},
    },
    logs::Stream,
};

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

/// Nobody is asked for by name.
pub(crate) fn is_user(_name: &str) -> bool {
    true
}

/// Of containers, of which there are none here.
pub(crate) struct Marked;

impl Marked {
    pub(crate) fn new(_variable: &str, _is_on_terminal: bool) -> Self {
        Self
    }

    pub(crate) fn ask(&mut self) -> usize {
        0
    }

    pub(crate) fn kill(&mut self) -> usize {
        0
    }
}

/// See the other side.
#[expect(dead_code, reason = "nothing is read by it here")]
pub(crate) struct Mark {
    pub(crate) token: Token,
    pub(crate) stream: Stream,
    pub(crate) offset: u64,
}

/// There is none: what is read of tasks is lost with its reader.
#[derive(Debug)]
pub(crate) enum Sluice {}

/// There is none.
pub(crate) enum Inside {}

impl Sluice {
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Inside> {
        match **self {}
    }
}

impl Inside {
    pub(crate) fn poll_take(
        &self,
        _pipe: &Output,
        _context: &mut Context<'_>,
        _mark: Mark,
        _room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match *self {}
    }
}

/// The agent's folder is its user's alone already.
pub(crate) fn close_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// It is already, in such a folder.
pub(crate) fn for_us_alone(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

/// It is closed already, in such a folder.
pub(crate) fn close_file(_path: &Path) -> io::Result<()> {
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

/// There is none.
pub(crate) struct Joined(Infallible);

impl Joined {
    pub(crate) fn watch(self) -> io::Result<(Leader, Ways)> {
        match self.0 {}
    }
}

/// There is none.
pub(crate) enum Pty {}

impl Pty {
    pub(crate) async fn read(&self, _into: &mut Vec<u8>) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) async fn write(&self, _bytes: &[u8]) -> io::Result<()> {
        match *self {}
    }

    pub(crate) async fn write_end(&self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn resize(&self, _size: Size) -> io::Result<()> {
        match *self {}
    }
}

/// Nobody has built it.
pub(crate) fn join(_beside: &Beside, _asked: &Asked) -> Result<Joined, String> {
    Err("commands in running tasks can be run on Linux only, with a terminal or without".into())
}

/// Told with the task that asks for it.
pub(crate) fn missing_rights() -> Option<String> {
    None
}
