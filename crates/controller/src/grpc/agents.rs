//! The service that agents use.

use futures::{StreamExt as _, stream::BoxStream};
use muster_common::proto::v1::{self, agent_link_server::AgentLink};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::grpc::{Parts, bulk, control, exec, guard::caller, inputs, machine::Speaker};

/// Messages that wait for an agent's connection to take them.
const ROOM: usize = 16;

/// See `AgentLink` in `agent.proto`.
#[derive(Clone, Debug)]
pub(super) struct Agents {
    pub(super) parts: Parts,
    pub(super) calls: exec::Calls,
    pub(super) tracker: TaskTracker,
    pub(super) cancel: CancellationToken,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// The way back over one call. When nobody listens any more, sending fails.
pub(super) type Back<T> = mpsc::Sender<Result<T, Status>>;

impl Agents {
    /// Answers a call at once with a stream that `work` fills: a client may wait for the answer's head before it
    /// sends anything. A stop, or the end of the call, ends the work.
    fn answer<T, W>(&self, work: impl FnOnce(Back<T>) -> W) -> Response<Answers<T>>
    where
        T: Send + 'static,
        W: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (back, answers) = mpsc::channel(ROOM);
        // In a box, for each future that holds another has room for it twice.
        let (work, cancel) = (Box::pin(work(back.clone())), self.cancel.clone());
        self.tracker.spawn(async move {
            let result = match cancel.run_until_cancelled(work).await {
                Some(result) => result,
                None => Err(super::status::stopping()),
            };
            if let Err(status) = result {
                // With no room for a last word, the end of the stream says enough.
                let _ = back.try_send(Err(status));
            }
        });
        Response::new(ReceiverStream::new(answers).boxed())
    }
}

#[tonic::async_trait]
impl AgentLink for Agents {
    type ControlStream = Answers<v1::AgentDown>;
    type LogsStream = Answers<v1::LogDown>;
    type InputsStream = Answers<v1::InputsPart>;
    type ExecStream = Answers<v1::ExecDown>;

    async fn control(&self, request: Request<Streaming<v1::AgentUp>>) -> Result<Response<Self::ControlStream>, Status> {
        let caller = caller(&request)?;
        let speaker = Speaker::of(&self.parts, &request)?;
        let (parts, up) = (self.parts.clone(), request.into_inner());
        Ok(self.answer(|back| control::run(parts, speaker, caller, up, back)))
    }

    async fn logs(&self, request: Request<Streaming<v1::LogUp>>) -> Result<Response<Self::LogsStream>, Status> {
        caller(&request)?;
        let speaker = Speaker::of(&self.parts, &request)?;
        let (parts, up) = (self.parts.clone(), request.into_inner());
        Ok(self.answer(|back| async move { speaker.clone().allowed(bulk::logs(parts, speaker, up, back)).await }))
    }

    async fn inputs(&self, request: Request<v1::InputsRequest>) -> Result<Response<Self::InputsStream>, Status> {
        caller(&request)?;
        let speaker = Speaker::of(&self.parts, &request)?;
        let plan = inputs::plan(&self.parts, &speaker, request.get_ref())?;
        let parts = self.parts.clone();
        Ok(self.answer(|back| async move { speaker.allowed(inputs::send(parts, plan, back)).await }))
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecUp>>) -> Result<Response<Self::ExecStream>, Status> {
        caller(&request)?;
        let speaker = Speaker::of(&self.parts, &request)?;
        let (parts, calls, up) = (self.parts.clone(), self.calls.clone(), request.into_inner());
        Ok(self
            .answer(|back| async move { speaker.clone().allowed(exec::serve(parts, calls, speaker, up, back)).await }))
    }

    async fn put_result(
        &self,
        request: Request<Streaming<v1::ResultPart>>,
    ) -> Result<Response<v1::ResultKept>, Status> {
        caller(&request)?;
        let speaker = Speaker::of(&self.parts, &request)?;
        let kept = speaker.allowed(bulk::put_result(&self.parts, &speaker, request.into_inner()));
        match self.cancel.run_until_cancelled(kept).await {
            Some(kept) => kept.map(Response::new),
            None => Err(super::status::stopping()),
        }
    }
}
