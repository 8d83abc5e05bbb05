//! Where the terminal is none of Unix: commands beside tasks get none.

use muster_common::proto::v1;
use tokio::sync::mpsc;

use crate::{error::Error, exit::Exit};

/// There is none.
pub(super) enum Screen {}

/// There is none.
pub(super) struct Taken;

impl Screen {
    pub(super) fn of(_has_keys: bool) -> Result<Self, Error> {
        Err(Error::new(Exit::USAGE, "`--tty` hands on a terminal of Unix, and this ctl runs on another system")
            .next("run it on Linux, or leave out `--tty`"))
    }

    pub(super) fn describe(&self) -> v1::Terminal {
        match *self {}
    }

    pub(super) fn take(&self) -> Result<Option<Taken>, Error> {
        match *self {}
    }

    pub(super) async fn until_left(&self, _requests: mpsc::Sender<v1::ExecRequest>) -> Error {
        match *self {}
    }
}
