//! The service that people use: each call finds what is meant and asks who knows.

use std::sync::Arc;

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use muster_common::proto::v1::{self, muster_server::Muster};
use muster_core::time::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::grpc::{
    Parts, exec, fleet, follow, guard::caller, installation, jobs, orders, result, search, stats, status::stopping,
    tasks,
};

/// See `Muster` in `muster.proto`.
#[derive(Clone, Debug)]
pub(super) struct People {
    pub(super) parts: Parts,
    pub(super) started: Timestamp,
    /// Turns of those who look through many logs.
    pub(super) searches: Arc<Semaphore>,
    pub(super) calls: exec::Calls,
    pub(super) tracker: TaskTracker,
    pub(super) cancel: CancellationToken,
}

/// Replies that wait for a person to read them.
const ROOM: usize = 16;

/// A stream that a stop ends with a word.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

impl People {
    fn until_stop<T: Send + 'static>(
        &self,
        answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<Answers<T>> {
        // Three states: open, one last word, ended.
        let state = Some((answers.boxed(), self.cancel.clone()));
        let answers = stream::unfold(state, |state| async move {
            let (mut answers, cancel) = state?;
            tokio::select! {
                biased;
                next = answers.next() => next.map(|next| (next, Some((answers, cancel)))),
                () = cancel.cancelled() => Some((Err(stopping()), None)),
            }
        });
        Response::new(answers.boxed())
    }

    /// A command in a task that runs, until it ended or its caller did.
    fn command(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
        ways: exec::Ways,
    ) -> Result<Response<Answers<v1::ExecReply>>, Status> {
        let caller = caller(&request)?;
        let (parts, calls, requests) = (self.parts.clone(), self.calls.clone(), request.into_inner());
        let (back, replies) = mpsc::channel(ROOM);
        let last = back.clone();
        let asked = exec::ask(parts, calls, caller, (requests, ways), back);
        let work = self.cancel.clone().run_until_cancelled_owned(asked);
        self.tracker.spawn(async move {
            if let Err(status) = work.await.unwrap_or_else(|| Err(stopping())) {
                let _nobody_reads = last.try_send(Err(status));
            }
        });
        Ok(self.until_stop(ReceiverStream::new(replies)))
    }
}

#[tonic::async_trait]
impl Muster for People {
    type WatchJobStream = Answers<v1::JobSummary>;
    type GetResultStream = Answers<v1::ResultChunk>;
    type LogsStream = Answers<v1::LogsReply>;
    type SearchLogsStream = Answers<v1::SearchLogsReply>;
    type ExecStream = Answers<v1::ExecReply>;
    type ExecTerminalStream = Answers<v1::ExecReply>;

    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoReply>, Status> {
        caller(&request)?;
        Ok(Response::new(installation::info(&self.parts, self.started.0)))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        caller(&request)?;
        Ok(Response::new(installation::status(&self.parts, self.started.0)))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitReply>, Status> {
        let caller = caller(&request)?;
        jobs::submit(&self.parts, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsReply>, Status> {
        let caller = caller(&request)?;
        jobs::list(&self.parts.view.load(), &caller.reach, request.get_ref()).map(Response::new)
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobReply>, Status> {
        let caller = caller(&request)?;
        jobs::get(&self.parts.view.load(), &caller.reach, request.into_inner()).map(Response::new)
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksReply>, Status> {
        let caller = caller(&request)?;
        tasks::list(self.parts.view.load(), &caller.reach, request.into_inner()).await.map(Response::new)
    }

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = caller(&request)?;
        Ok(self.until_stop(jobs::watch(self.parts.view.clone(), &caller.reach, request.into_inner())?))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        let caller = caller(&request)?;
        orders::cancel(&self.parts, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::RetryReply>, Status> {
        let caller = caller(&request)?;
        orders::retry(&self.parts, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        let caller = caller(&request)?;
        orders::explain(&self.parts, &caller.reach, request.into_inner()).await.map(Response::new)
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsReply>, Status> {
        let caller = caller(&request)?;
        stats::stats(self.parts.view.load(), &caller.reach, request.into_inner()).await.map(Response::new)
    }

    async fn get_result(
        &self,
        request: Request<v1::GetResultRequest>,
    ) -> Result<Response<Self::GetResultStream>, Status> {
        let caller = caller(&request)?;
        Ok(self.until_stop(result::get(&self.parts, &caller.reach, request.into_inner()).await?))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let caller = caller(&request)?;
        Ok(self.until_stop(follow::logs(self.parts.clone(), &caller.reach, request.into_inner()).await?))
    }

    async fn search_logs(
        &self,
        request: Request<v1::SearchLogsRequest>,
    ) -> Result<Response<Self::SearchLogsStream>, Status> {
        let caller = caller(&request)?;
        let found = search::search(self.parts.clone(), &caller.reach, &self.searches, request.into_inner())?;
        Ok(self.until_stop(found))
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        self.command(request, exec::Ways::Pipes)
    }

    async fn exec_terminal(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecTerminalStream>, Status> {
        self.command(request, exec::Ways::Terminal)
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsReply>, Status> {
        caller(&request)?;
        fleet::agents(&self.parts, request.into_inner()).await.map(Response::new)
    }

    async fn list_queues(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesReply>, Status> {
        fleet::queues(&self.parts, &caller(&request)?.reach).await.map(Response::new)
    }

    async fn tend_agents(
        &self,
        request: Request<v1::TendAgentsRequest>,
    ) -> Result<Response<v1::TendAgentsReply>, Status> {
        let caller = caller(&request)?;
        fleet::tend(&self.parts, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn set_queue(&self, request: Request<v1::SetQueueRequest>) -> Result<Response<v1::SetQueueReply>, Status> {
        let caller = caller(&request)?;
        fleet::set_queue(&self.parts, &caller, request.into_inner()).await.map(Response::new)
    }
}
