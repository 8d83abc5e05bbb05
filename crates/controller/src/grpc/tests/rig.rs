//! A controller behind its doors, and an agent made of calls.

use std::{sync::Arc, time::Duration};

use muster_common::{
    clock::Clock,
    proto::{
        OLDEST_PROTOCOL,
        v1::{
            self, agent_down::Message as Down, agent_link_client::AgentLinkClient, agent_up::Message as Up,
            muster_client::MusterClient,
        },
    },
    wire,
};
use muster_core::{
    access::Enforcement,
    cluster::Config,
    spec::{JobSpec, TaskSpec},
};
use object_store::memory::InMemory;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::{
    dispatch::Sessions,
    engine,
    grpc::{self, Parts},
    logs::{self, LogStore},
    store::memory::Memory,
    view::View,
};

pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A controller behind its doors.
pub(super) struct Rig {
    pub(super) parts: Parts,
    pub(super) channel: Channel,
    pub(super) people: MusterClient<Channel>,
    cancel: CancellationToken,
    services: grpc::Services,
    server: JoinHandle<Result<(), grpc::Error>>,
}

/// Runs a test on real threads, within a limit.
pub(super) fn run(test: impl AsyncFnOnce(Rig)) {
    run_with(Enforcement::default(), Memory::default(), test);
}

/// The same, with tokens or without, on this store.
pub(super) fn run_with(enforcement: Enforcement, store: Memory, test: impl AsyncFnOnce(Rig)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { within(async { test(Rig::start_with(enforcement, store).await).await }).await });
}

pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.expect("ends in time")
}

impl Rig {
    async fn start_with(enforcement: Enforcement, store: Memory) -> Self {
        let (forget, mut forgotten) = mpsc::channel(8);
        let (sessions, view, clock) = (Sessions::new(forget), View::default(), Clock::system());
        let cancel = CancellationToken::new();
        let memory = Arc::new(store);
        let copies = crate::backup::Source::new(memory.clone(), "memory".to_owned());
        let parts = engine::Parts {
            store: memory,
            sessions: sessions.clone(),
            view: view.clone(),
            clock,
            config: Config::default(),
            heartbeat: Duration::from_secs(3),
        };
        let (handle, engine) = engine::start(parts).await.expect("the store loads");
        tokio::spawn(engine.run(cancel.clone()));
        tokio::spawn(async move { while forgotten.recv().await.is_some() {} });
        let logs = LogStore::open(Arc::new(InMemory::new()), logs::Config::default(), clock).await.unwrap();
        tokio::spawn(logs.clone().run(cancel.clone()));
        let store = "memory".to_owned();
        let gauge = Arc::new(|| v1::StoreView { about: "memory".to_owned(), bytes: 7, ..v1::StoreView::default() });
        let members =
            tokio::sync::watch::channel(vec![v1::MemberView { name: "a".to_owned(), ..Default::default() }]).1;
        let (own, promotions, loads, twins) = (None, None, grpc::Loads::default(), grpc::Twins::default());
        let parts = Parts {
            handle,
            sessions,
            view,
            logs,
            clock,
            store,
            gauge,
            members,
            own,
            copies,
            promotions,
            enforcement,
            loads,
            twins,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let door = grpc::Door::closed("it starts");
        let services = grpc::Services::open(&door, parts.clone()).unwrap();
        let server = tokio::spawn(grpc::serve(listener, door, None, cancel.clone()));
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Self { parts, people: MusterClient::new(channel.clone()), channel, cancel, services, server }
    }

    /// Stops the doors, which must end by themselves.
    pub(super) async fn stop(self) {
        self.services.end().await;
        self.cancel.cancel();
        self.server.await.unwrap().unwrap();
    }

    pub(super) async fn submit(&mut self, spec: &JobSpec) -> u64 {
        let spec = Some(wire::spec::job_to_proto(spec));
        let request = v1::SubmitRequest { spec, by: "ann".to_owned(), ..v1::SubmitRequest::default() };
        self.people.submit(request).await.unwrap().into_inner().job
    }

    pub(super) async fn agent(&self) -> Agent {
        self.try_agent(hello()).await.unwrap()
    }

    pub(super) async fn try_agent(&self, hello: v1::Hello) -> Result<Agent, Status> {
        self.try_agent_as(hello, Bearer(None)).await
    }

    pub(super) async fn try_agent_as(&self, hello: v1::Hello, bearer: Bearer) -> Result<Agent, Status> {
        let mut client = AgentLinkClient::with_interceptor(self.channel.clone(), bearer);
        let (up, messages) = mpsc::channel(64);
        up.send(v1::AgentUp { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut down = client.control(ReceiverStream::new(messages)).await?.into_inner();
        let first = within(down.message()).await?.and_then(|down| down.message);
        let Some(Down::Welcome(welcome)) = first else { panic!("no welcome: {first:?}") };
        Ok(Agent { client, up, down, welcome, seq: 0, specs: Vec::new(), ready: Vec::new() })
    }
}

/// A client's token.
#[derive(Clone)]
pub(super) struct Bearer(pub(super) Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let header = format!("Bearer {token}").parse().expect("a token is ASCII");
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

pub(super) fn hello() -> v1::Hello {
    let capacity = Some(v1::Request { cpu_milli: 64_000, memory_bytes: 1 << 36, ..v1::Request::default() });
    let offer = v1::Offer {
        name: "north".to_owned(),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        capacity,
        ..v1::Offer::default()
    };
    v1::Hello { uid: "uid-1".to_owned(), offer: Some(offer), protocol: OLDEST_PROTOCOL, ..v1::Hello::default() }
}

/// An agent made of calls: it runs nothing and reports what the test says.
pub(super) struct Agent {
    pub(super) client: AgentLinkClient<InterceptedService<Channel, Bearer>>,
    pub(super) up: mpsc::Sender<v1::AgentUp>,
    pub(super) down: Streaming<v1::AgentDown>,
    pub(super) welcome: v1::Welcome,
    seq: u64,
    /// What was leased and not taken, and the specs of the newest leases.
    ready: Vec<v1::Lease>,
    pub(super) specs: Vec<v1::LeaseSpec>,
}

impl Agent {
    pub(super) fn id(&self) -> u64 {
        self.welcome.agent
    }

    pub(super) async fn tell(&self, message: Up) {
        self.up.send(v1::AgentUp { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Result<Option<Down>, Status> {
        Ok(within(self.down.message()).await?.and_then(|down| down.message))
    }

    /// The next lease, whatever else comes before it.
    pub(super) async fn lease(&mut self) -> v1::Lease {
        while self.ready.is_empty() {
            let message = self.next().await.unwrap().expect("the connection holds");
            if let Down::Leases(leases) = message {
                (self.ready, self.specs) = (leases.leases, leases.specs);
                self.ready.reverse();
            }
        }
        self.ready.pop().unwrap()
    }

    /// Reports that attempts ended, in one message; returns when all is durable.
    pub(super) async fn end(&mut self, ended: &[(&v1::Lease, v1::End, Option<&str>)]) {
        let mut reports = Vec::new();
        for (lease, end, result) in ended {
            self.seq += 1;
            let result = result.map(|json| v1::ResultPayload { json: json.as_bytes().to_vec(), stored_bytes: 0 });
            reports.push(self.ended(lease, end.clone(), result));
        }
        self.tell(Up::Reports(v1::Reports { reports })).await;
        self.acknowledged().await;
    }

    pub(super) async fn end_stored(&mut self, lease: &v1::Lease, stored_bytes: u64) {
        self.seq += 1;
        let result = v1::ResultPayload { json: Vec::new(), stored_bytes };
        let report = self.ended(lease, succeeded(), Some(result));
        self.tell(Up::Reports(v1::Reports { reports: vec![report] })).await;
        self.acknowledged().await;
    }

    /// The attempt ended, long ago by this machine's clock, and had written something, or not, or does not say.
    pub(super) async fn end_saying(&mut self, lease: &v1::Lease, end: v1::End, has_output: Option<bool>) {
        self.seq += 1;
        let mut report = self.ended(lease, end, None);
        if let Some(v1::report::What::Ended(ended)) = &mut report.what {
            (ended.started_us, ended.ended_us) = (1, 2);
            ended.usage = Some(v1::Usage { has_output, ..v1::Usage::default() });
        }
        self.tell(Up::Reports(v1::Reports { reports: vec![report] })).await;
        self.acknowledged().await;
    }

    fn ended(&self, lease: &v1::Lease, end: v1::End, result: Option<v1::ResultPayload>) -> v1::Report {
        let now = Clock::system().wall().0;
        let took = u64::from(lease.task + 1) * 1000;
        let ended = v1::Ended { end: Some(end), started_us: now, ended_us: now + took, result, usage: None };
        v1::Report {
            seq: self.seq,
            token: lease.token,
            job: lease.job,
            task: lease.task,
            what: Some(v1::report::What::Ended(ended)),
        }
    }

    async fn acknowledged(&mut self) {
        loop {
            match self.next().await.unwrap().expect("the connection holds") {
                Down::ReportsAck(ack) if ack.up_to == self.seq => return,
                Down::Leases(leases) => {
                    self.specs = leases.specs;
                    self.ready.splice(0..0, leases.leases.into_iter().rev());
                }
                _ => {}
            }
        }
    }

    /// A log stream over which batches go up; answers come down.
    pub(super) async fn log_stream(&self) -> (mpsc::Sender<v1::LogUp>, Streaming<v1::LogDown>) {
        let (up, messages) = mpsc::channel(16);
        let mut client = self.client.clone();
        let down = client.logs(ReceiverStream::new(messages)).await.unwrap().into_inner();
        (up, down)
    }
}

pub(super) fn succeeded() -> v1::End {
    v1::End { kind: v1::EndKind::Succeeded.into(), ..v1::End::default() }
}

pub(super) fn failed(code: i32) -> v1::End {
    v1::End { kind: v1::EndKind::Exit.into(), code, ..v1::End::default() }
}

/// A job of these tasks, whose command is nothing.
pub(super) fn job(name: &str, tasks: Vec<TaskSpec>) -> JobSpec {
    let tasks = tasks.into_iter().map(Arc::new).collect();
    JobSpec { name: name.to_owned(), queue: "default".to_owned(), tasks, ..JobSpec::default() }
}

pub(super) fn task(name: &str) -> TaskSpec {
    TaskSpec { name: name.to_owned(), ..TaskSpec::default() }
}

pub(super) fn selector(text: impl ToString) -> Option<v1::Selector> {
    Some(v1::Selector { text: text.to_string() })
}

/// A batch of an attempt's output.
pub(super) fn batch(lease: &v1::Lease, first: u64, texts: &[&str], last: bool) -> v1::LogBatch {
    let frames = texts.iter().map(|text| v1::LogFrame { data: text.as_bytes().to_vec().into(), ..Default::default() });
    let frames = frames.collect();
    let v1::Lease { token, job, task, attempt, .. } = *lease;
    v1::LogBatch { token, job, task, attempt, first, frames, last }
}
