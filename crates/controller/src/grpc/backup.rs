//! Taking the installation with you: the bytes of a backup, and the move to a shared store.

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use muster_common::proto::v1::{self, backup_server::Backup};
use muster_core::{audit::Note, event::Event};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};

use crate::{
    backup,
    grpc::{
        Parts,
        guard::caller,
        status::{of_engine, of_field, stopping},
    },
};

/// Parts that wait for a slow reader.
const PARTS: usize = 16;

/// A wish that this installation move to etcd, for whoever can do that.
#[derive(Debug)]
pub struct Promotion {
    /// Where to.
    pub to: String,
    /// What became of it: why nothing changed, or where it is now.
    pub reply: oneshot::Sender<Result<v1::PromoteReply, Refused>>,
}

/// Why it did not move.
#[derive(Debug)]
pub struct Refused {
    /// In words for people.
    pub why: String,
    /// Whether trying again could help without a person.
    pub may_pass: bool,
}

/// See `Backup` in `backup.proto`.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    pub(super) parts: Parts,
    pub(super) tracker: TaskTracker,
    pub(super) cancel: CancellationToken,
}

#[tonic::async_trait]
impl Backup for Copies {
    type TakeStream = BoxStream<'static, Result<v1::TakePart, Status>>;

    async fn take(&self, request: Request<v1::TakeRequest>) -> Result<Response<Self::TakeStream>, Status> {
        let caller = caller(&request)?;
        let with_objects = request.get_ref().with_objects;
        // Whoever has a copy has every record: that somebody took one is on record before its first byte leaves.
        let taken = Note::done(&caller, "backup", "", if with_objects { "with logs" } else { "" });
        self.parts.handle.ask(Event::Note(taken)).await.map_err(of_engine)?;
        let (sender, receiver) = mpsc::channel::<Bytes>(PARTS);
        let (done, outcome) = oneshot::channel();
        let (parts, cancel) = (self.parts.clone(), self.cancel.clone());
        // A task of its own: a reader that goes away must not leave the store half read.
        self.tracker.spawn(async move {
            let objects = with_objects.then_some(&parts.logs);
            let sent = cancel.run_until_cancelled(parts.copies.send(parts.clock, objects, &sender)).await;
            drop(done.send(sent.unwrap_or(Err(backup::Error::Gone))));
        });
        let state = (receiver, Some(outcome), self.cancel.clone());
        let parts = stream::unfold(state, |(mut receiver, mut outcome, cancel)| async move {
            if let Some(data) = receiver.recv().await {
                return Some((Ok(v1::TakePart { data }), (receiver, outcome, cancel)));
            }
            // The bytes have ended: as they should, or with a word why not.
            let failed = match outcome.take()?.await {
                Ok(Ok(())) => return None,
                _ if cancel.is_cancelled() => stopping(),
                Ok(Err(error)) => of_backup(&error),
                Err(_) => Status::internal("the copying ended without a word"),
            };
            Some((Err(failed), (receiver, outcome, cancel)))
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn promote(&self, request: Request<v1::PromoteRequest>) -> Result<Response<v1::PromoteReply>, Status> {
        // Where it goes is recorded, and told to whoever asks why it did not: a password must not be.
        if request.get_ref().to.contains('@') {
            let text = "an address of etcd holds no user and no password; `etcd_user` and `etcd_password_file` in the \
                        controller's configuration do";
            return Err(of_field("to", text));
        }
        let Some(promotions) = &self.parts.promotions else {
            return Err(Status::failed_precondition(
                "only a muster-controller with a store of its own can move to etcd; this one is in etcd already, or runs \
                 inside `ctl dev`",
            ));
        };
        let caller = caller(&request)?;
        let (reply, answer) = oneshot::channel();
        let to = request.into_inner().to;
        // Before the copy, so that the record moves, too.
        let asked = Note::done(&caller, "promote", &to, "asked for");
        self.parts.handle.ask(Event::Note(asked)).await.map_err(of_engine)?;
        let promotion = Promotion { to, reply };
        promotions.try_send(promotion).map_err(|_| Status::failed_precondition("it is moving already"))?;
        match answer.await {
            Ok(Ok(moved)) => Ok(Response::new(moved)),
            Ok(Err(Refused { why, may_pass: true })) => Err(Status::unavailable(why)),
            Ok(Err(Refused { why, may_pass: false })) => Err(Status::failed_precondition(why)),
            Err(_) => {
                Err(Status::unavailable("the controller ended before it was decided; start it again, and it says"))
            }
        }
    }
}

fn of_backup(error: &backup::Error) -> Status {
    tracing::warn!(%error, source = ?std::error::Error::source(error), "a backup was not finished");
    Status::unavailable(format!("the backup was not finished: {error}; take it again"))
}
