//! A controller that does what a test says, over real gRPC: it plays `AgentLink` and decides nothing.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use muster_common::{
    proto::v1::{
        self,
        agent_down::Message as Down,
        agent_link_server::{AgentLink, AgentLinkServer},
        agent_up::Message as Up,
    },
    wire::spec::task_to_proto,
};
use muster_core::spec::TaskSpec;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Nothing that a test waits for takes longer on any machine that works.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for what must come.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match timeout(LIMIT, wait).await {
        Ok(came) => came,
        Err(_) => panic!("waited {LIMIT:?} for {what}"),
    }
}

/// A controller on a port of its own.
pub(crate) struct Controller {
    /// `http://127.0.0.1:port`
    pub(crate) address: String,
    streams: mpsc::Receiver<Stream>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// One stream of an agent, after its hello.
pub(crate) struct Stream {
    pub(crate) hello: v1::Hello,
    /// `Reports` messages that came so far.
    pub(crate) report_messages: usize,
    up: Streaming<v1::AgentUp>,
    down: mpsc::Sender<Result<v1::AgentDown, Status>>,
    reports: VecDeque<v1::Report>,
    pub(crate) draining: bool,
}

struct Door {
    streams: mpsc::Sender<Stream>,
}

#[tonic::async_trait]
impl AgentLink for Door {
    type ControlStream = ReceiverStream<Result<v1::AgentDown, Status>>;
    type LogsStream = ReceiverStream<Result<v1::LogDown, Status>>;
    type InputsStream = ReceiverStream<Result<v1::InputsPart, Status>>;
    type ExecStream = ReceiverStream<Result<v1::ExecDown, Status>>;

    async fn control(&self, request: Request<Streaming<v1::AgentUp>>) -> Result<Response<Self::ControlStream>, Status> {
        let mut up = request.into_inner();
        let Some(v1::AgentUp { message: Some(Up::Hello(hello)) }) = up.message().await? else {
            return Err(Status::invalid_argument("the first message is a hello"));
        };
        let (down, receiver) = mpsc::channel(64);
        let stream = Stream { hello, report_messages: 0, up, down, reports: VecDeque::new(), draining: false };
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn logs(&self, request: Request<Streaming<v1::LogUp>>) -> Result<Response<Self::LogsStream>, Status> {
        let (down, receiver) = mpsc::channel(64);
        let mut up = request.into_inner();
        // Keeps everything at once.
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                let ack = |batch: &v1::LogBatch| {
                    let after = batch.first + u64::try_from(batch.frames.len()).unwrap_or(u64::MAX);
                    v1::LogAck { token: batch.token, received: after, kept: after }
                };
                let acks = message.batches.iter().map(ack).collect();
                if down.send(Ok(v1::LogDown { acks })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn inputs(&self, _: Request<v1::InputsRequest>) -> Result<Response<Self::InputsStream>, Status> {
        Err(Status::unimplemented("no test asks for inputs"))
    }

    async fn exec(&self, _: Request<Streaming<v1::ExecUp>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("no test runs a command"))
    }

    async fn put_result(&self, _: Request<Streaming<v1::ResultPart>>) -> Result<Response<v1::ResultKept>, Status> {
        Err(Status::unimplemented("no test has a large result"))
    }
}

impl Controller {
    /// On a free port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, streams) = mpsc::channel(16);
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let server = Server::builder().add_service(AgentLinkServer::new(Door { streams: sender }));
        let stopped = stop.clone().cancelled_owned();
        tracker.spawn(async move {
            tokio::select! {
                served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served.expect("it serves"),
                () = stopped => {}
            }
        });
        Self { address, streams, stop, tracker }
    }

    /// The next stream.
    pub(crate) async fn accept(&mut self) -> Stream {
        soon("an agent's hello", self.streams.recv()).await.expect("the server runs")
    }

    /// The next stream, taken in.
    pub(crate) async fn welcome(&mut self, term: u64) -> Stream {
        let stream = self.accept().await;
        stream.send(welcome(term, 15_000, &[])).await;
        stream
    }

    /// Ends the server.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        soon("the controller's end", self.tracker.wait()).await;
    }
}

impl Stream {
    pub(crate) async fn send(&self, message: Down) {
        let message = v1::AgentDown { message: Some(message) };
        soon("room in the stream", self.down.send(Ok(message))).await.expect("the agent listens");
    }

    pub(crate) async fn send_nothing_known(&self) {
        self.down.send(Ok(v1::AgentDown { message: None })).await.expect("the agent listens");
    }

    /// Leases of one entry that runs `command`, with these tokens.
    pub(crate) async fn lease(&self, term: u64, spec: &TaskSpec, tokens: impl IntoIterator<Item = u64>) {
        let shared =
            v1::LeaseSpec { job: 1, job_name: "job".into(), task: Some(task_to_proto(spec)), ..Default::default() };
        let lease = |token| v1::Lease {
            token,
            job: 1,
            task: u32::try_from(token).expect("small"),
            attempt: 1,
            ..Default::default()
        };
        let leases = tokens.into_iter().map(lease).collect();
        self.send(Down::Leases(v1::Leases { term, specs: vec![shared], leases })).await;
    }

    pub(crate) async fn ack(&self, up_to: u64) {
        self.send(Down::ReportsAck(v1::ReportsAck { up_to })).await;
    }

    /// The next message; none: the agent ended the stream.
    pub(crate) async fn next(&mut self) -> Option<Up> {
        loop {
            let next = soon("a message of the agent", self.up.message()).await;
            match next.ok().flatten().and_then(|message| message.message) {
                Some(Up::Draining(_)) => self.draining = true,
                next => return next,
            }
        }
    }

    /// The next report; heartbeats are answered on the way.
    pub(crate) async fn report(&mut self, term: u64) -> v1::Report {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return report;
            }
            match self.next().await {
                Some(Up::Reports(message)) => {
                    self.report_messages += 1;
                    self.reports.extend(message.reports);
                }
                Some(Up::Heartbeat(v1::Heartbeat { stamp_us, .. })) => {
                    self.send(Down::HeartbeatAck(v1::HeartbeatAck { stamp_us, term })).await;
                }
                other => panic!("a report, not {other:?}"),
            }
        }
    }

    /// Waits until the agent has ended the stream.
    pub(crate) async fn ended(mut self) {
        while self.next().await.is_some() {}
    }
}

/// A welcome.
pub(crate) fn welcome(term: u64, lease_ttl_ms: u64, drop: &[u64]) -> Down {
    let heartbeat_ms = lease_ttl_ms / 5;
    Down::Welcome(v1::Welcome {
        agent: 3,
        session: 8,
        term,
        protocol: muster_common::proto::PROTOCOL,
        lease_ttl_ms,
        heartbeat_ms,
        drop: drop.to_vec(),
    })
}
