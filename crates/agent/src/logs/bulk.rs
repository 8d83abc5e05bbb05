//! The transfers over gRPC: log streams, inputs and large results. The only file of `logs` that names tonic.

use std::{fs::OpenOptions, io::SeekFrom, path::Path, sync::Arc, time::Duration};

use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use muster_common::proto::v1::{self, agent_link_client::AgentLinkClient};
use muster_core::id::{AgentId, TaskId, Token};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

use super::{Uplink, Wire};
use crate::exec::{Inputs, Order, Results, TransferError, os};
use crate::link::Credential;

/// Messages to the controller that may wait in the stream.
const IN_FLIGHT: usize = 16;
/// Of a result, sent at a time.
const PART: usize = 256 * 1024;
/// A stream that is not open by then is given up and tried again.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// For one result or one set of inputs; then the attempt is told of it.
const TRANSFER_LIMIT: Duration = Duration::from_secs(120);

/// The second connection of the agent, made by `link`.
pub trait Bulk: Send + Sync + 'static {
    /// Waits until the agent is attached; then the channel and the agent's number.
    fn attached(&self) -> BoxFuture<'_, (Channel, AgentId)>;

    /// The same with a connection of its own: for what nobody may read for as long as he likes. All calls of a connection
    /// share what may be under way on it unread, so that a few of these would stop the others.
    fn apart(&self) -> BoxFuture<'_, (Channel, AgentId)>;
}

/// Transfers over the channel that `link` gives.
#[derive(Clone)]
pub struct Grpc {
    bulk: Arc<dyn Bulk>,
    credential: Credential,
}

impl Grpc {
    /// Over this connection, with what controllers ask for.
    pub fn new(bulk: Arc<dyn Bulk>, credential: Credential) -> Self {
        Self { bulk, credential }
    }

    async fn client(&self) -> (AgentLinkClient<InterceptedService<Channel, Credential>>, AgentId) {
        self.over(self.bulk.attached().await)
    }

    fn over(
        &self,
        (channel, agent): (Channel, AgentId),
    ) -> (AgentLinkClient<InterceptedService<Channel, Credential>>, AgentId) {
        (AgentLinkClient::with_interceptor(channel, self.credential.clone()), agent)
    }

    async fn fetch_once(&self, order: &Order, to: &Path) -> Result<(), TransferError> {
        let (mut client, agent) = self.client().await;
        let request = v1::InputsRequest {
            agent: agent.0,
            token: order.token.0,
            job: order.task.job.0,
            group: order.group,
            task: Some(order.task.index),
        };
        let mut parts = client.inputs(request).await.map_err(refused)?.into_inner();
        let file = tokio::fs::OpenOptions::from(private()).open(to).await;
        let mut file = file.map_err(|error| unwritable(to, &error))?;
        while let Some(part) = parts.message().await.map_err(refused)? {
            file.write_all(&part.data).await.map_err(|error| unwritable(to, &error))?;
        }
        file.flush().await.map_err(|error| unwritable(to, &error))
    }

    async fn put_once(&self, token: Token, task: TaskId, from: &Path) -> Result<u64, TransferError> {
        let (mut client, agent) = self.client().await;
        let file = tokio::fs::File::open(from).await.map_err(|error| unwritable(from, &error))?;
        let first =
            v1::ResultPart { agent: agent.0, token: token.0, job: task.job.0, task: task.index, data: Vec::new() };
        let kept = client.put_result(parts(file, first)).await.map_err(refused)?;
        Ok(kept.into_inner().bytes)
    }
}

impl Grpc {
    /// The stream of a command that somebody runs beside an attempt; what goes up comes from `inbox`, at whose other end
    /// is `up`. Cancel safe.
    pub(crate) async fn exec(
        &self,
        id: u64,
        up: &mpsc::Sender<v1::ExecUp>,
        inbox: ReceiverStream<v1::ExecUp>,
    ) -> Result<BoxStream<'static, v1::ExecDown>, String> {
        let (mut client, agent) = self.over(self.bulk.apart().await);
        let hello = v1::exec_up::Message::Hello(v1::ExecHello { agent: agent.0, id });
        let _there_is_room = up.try_send(v1::ExecUp { message: Some(hello) });
        match client.exec(inbox).await {
            Ok(down) => Ok(readable(down.into_inner())),
            Err(status) => Err(refused(status).0),
        }
    }
}

/// What comes down, until the stream breaks or ends.
fn readable<T: Send + 'static>(down: Streaming<T>) -> BoxStream<'static, T> {
    down.take_while(|message| futures::future::ready(message.is_ok()))
        .filter_map(|message| futures::future::ready(message.ok()))
        .boxed()
}

/// The file in messages that all say whose it is. A file that cannot be read on ends early: the
/// count that comes back tells.
fn parts(file: tokio::fs::File, first: v1::ResultPart) -> impl stream::Stream<Item = v1::ResultPart> + Send {
    stream::unfold((file, 0u64), move |(mut file, at)| {
        let head = first.clone();
        async move {
            let mut data = Vec::with_capacity(PART);
            file.seek(SeekFrom::Start(at)).await.ok()?;
            let read = (&mut file).take(PART as u64).read_to_end(&mut data).await.ok()?;
            (read > 0).then(|| (v1::ResultPart { data, ..head }, (file, at + read as u64)))
        }
    })
}

/// They are other tasks' results: for whoever runs the one that asks, who is given the file, and for nobody else.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    os::for_us_alone(options.create(true).write(true).truncate(true));
    options
}

fn refused(status: Status) -> TransferError {
    TransferError(format!("the controller answered {:?}: {}", status.code(), status.message()))
}

fn unwritable(path: &Path, error: &std::io::Error) -> TransferError {
    TransferError(format!("{} cannot be used: {error}", path.display()))
}

async fn limited<T>(work: impl Future<Output = Result<T, TransferError>>) -> Result<T, TransferError> {
    match tokio::time::timeout(TRANSFER_LIMIT, work).await {
        Ok(done) => done,
        Err(_) => Err(TransferError(format!("not done within {} s", TRANSFER_LIMIT.as_secs()))),
    }
}

impl Inputs for Grpc {
    fn fetch<'a>(&'a self, order: &'a Order, to: &'a Path) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(limited(self.fetch_once(order, to)))
    }
}

impl Results for Grpc {
    fn put<'a>(&'a self, token: Token, task: TaskId, from: &'a Path) -> BoxFuture<'a, Result<u64, TransferError>> {
        Box::pin(limited(self.put_once(token, task, from)))
    }
}

impl Uplink for Grpc {
    fn open(&self) -> BoxFuture<'_, Result<Wire, String>> {
        Box::pin(async {
            let (mut client, agent) = self.client().await;
            let (up, inbox) = mpsc::channel(IN_FLIGHT);
            // Says who we are before there is anything to ship: a controller may answer only then.
            let _there_is_room = up.try_send(v1::LogUp { agent: agent.0, batches: Vec::new() });
            let answer = tokio::time::timeout(OPEN_LIMIT, client.logs(ReceiverStream::new(inbox))).await;
            let down = match answer {
                Ok(Ok(down)) => down.into_inner(),
                Ok(Err(status)) => return Err(refused(status).0),
                Err(_) => return Err(format!("no answer within {} s", OPEN_LIMIT.as_secs())),
            };
            Ok(Wire { agent, up, down: readable(down) })
        })
    }
}
