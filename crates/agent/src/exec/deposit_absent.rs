//! Where there is no safe, nothing is put into one.

use futures::future::BoxFuture;
use muster_core::id::TaskId;

use super::{
    ExecEvent,
    attempt::Attempt,
    ending::Stage,
    os::{Input, Leader, Running, Sluice, Status},
};

/// There is none.
pub(super) enum Deposit {}

impl Deposit {
    pub(super) fn make(_attempt: &Attempt, _running: &Running) -> Option<Self> {
        None
    }

    pub(super) fn is_adopted(&self) -> bool {
        match *self {}
    }

    pub(super) fn is_unknown(&self, _leader: &Leader) -> bool {
        match *self {}
    }

    pub(super) fn way(&self) -> Option<std::sync::Arc<Sluice>> {
        match *self {}
    }

    pub(super) fn feed(&self, _stdin: Input) -> BoxFuture<'static, ()> {
        match *self {}
    }

    pub(super) fn stage(&self, _stage: Stage) {
        match *self {}
    }

    pub(super) fn ended(&self, _event: &ExecEvent, _task: TaskId) {
        match *self {}
    }

    pub(super) async fn reap(&self, _leader: &mut Leader) -> Option<Status> {
        match *self {}
    }
}
