//! Where there is no safe, nothing is put into one.

use futures::future::BoxFuture;
use muster_core::id::TaskId;

use super::{
    ExecEvent,
    attempt::Attempt,
    ending::Stage,
    os::{Input, Leader, Running, Sluice, Status},
};
use crate::safe::Safe;

/// See the other side.
pub(super) struct Deposit(Safe);

impl Deposit {
    pub(super) fn make(_attempt: &Attempt, _running: &Running) -> Option<Self> {
        None
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.0.never()
    }

    pub(super) fn way(&self) -> Option<std::sync::Arc<Sluice>> {
        self.0.never()
    }

    pub(super) fn feed(&self, _stdin: Input) -> BoxFuture<'static, ()> {
        self.0.never()
    }

    pub(super) fn stage(&self, _stage: Stage) {
        self.0.never()
    }

    pub(super) fn ended(&self, _event: &ExecEvent, _task: TaskId) {
        self.0.never()
    }

    pub(super) async fn reap(&self, _leader: &mut Leader) -> Option<Status> {
        self.0.never()
    }
}
