//! A Muster service that answers from a script and remembers what it was asked; and the ctl binary against it.

use std::{
    fs,
    pin::Pin,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_common::proto::{
    OLDEST_PROTOCOL, PROTOCOL,
    v1::{
        self,
        muster_server::{Muster, MusterServer},
    },
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// 2026-09-21T14:13:20Z.
pub(crate) const T0: u64 = 1_790_000_000_000_000;

/// What the service answers; a test changes what it cares about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// In every call.
    pub(crate) refuse: Option<Status>,
    pub(crate) jobs: Vec<v1::JobSummary>,
    pub(crate) tasks: Vec<v1::TaskView>,
    pub(crate) logs: Vec<v1::LogsReply>,
    pub(crate) result: Option<Vec<u8>>,
    pub(crate) queues: Vec<v1::QueueView>,
    pub(crate) warnings: Vec<String>,
    /// How many watches end before the job does.
    pub(crate) broken_watches: usize,
    /// Watches never end.
    pub(crate) endless: bool,
    /// The oldest and the newest protocol of the controller; none: those of this build.
    pub(crate) protocols: Option<(u32, u32)>,
    pub(crate) agents: Vec<v1::AgentView>,
}

/// What the service was asked.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) submits: Vec<v1::SubmitRequest>,
    pub(crate) cancels: Vec<v1::CancelRequest>,
    pub(crate) retries: Vec<v1::RetryRequest>,
    pub(crate) lists: Vec<v1::ListJobsRequest>,
    pub(crate) logs: Vec<v1::LogsRequest>,
    pub(crate) queues: Vec<v1::QueueRecord>,
    pub(crate) watches: usize,
    pub(crate) tended: Vec<v1::TendAgentsRequest>,
}

#[derive(Clone)]
struct Service {
    script: Arc<Script>,
    asked: Arc<Mutex<Asked>>,
}

/// A running service.
pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<Mutex<Asked>>,
    // Ends the service when the test does.
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    /// Serves `script` on a port that is free.
    pub(crate) fn start(script: Script) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let asked = Arc::<Mutex<Asked>>::default();
        let service = Service { script: Arc::new(script), asked: Arc::clone(&asked) };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(MusterServer::new(service));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { url, asked, _runtime: runtime }
    }

    /// What it was asked until now.
    pub(crate) fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap()
    }

    /// Runs ctl against it.
    pub(crate) fn ctl(&self, args: &[&str]) -> Ran {
        ran(ctl(args).env("MUSTER_CONTROLLER", &self.url))
    }
}

/// What ctl said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// ctl that knows of no controller.
#[expect(clippy::disallowed_methods, reason = "the test drives the real binary")]
pub(crate) fn ctl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctl"));
    command.args(args).env_remove("MUSTER_CONTROLLER").env_remove("MUSTER_LOG").stdin(Stdio::null());
    command.env("XDG_CONFIG_HOME", "/nonexistent").env("APPDATA", "/nonexistent").env("USER", "ada");
    command
}

/// Runs it to its end.
pub(crate) fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: status.code(), out: text(&stdout), err: text(&stderr) }
}

/// A job file with this text, and its path.
pub(crate) fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("job.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

/// Waits until `is_true`, at most 20 seconds.
pub(crate) fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_true() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not become true in 20 s");
}

/// A finished or running job.
pub(crate) fn job(id: u64, state: v1::JobState) -> v1::JobSummary {
    use v1::JobState as State;
    let mut tally = v1::Tally::default();
    match state {
        State::Succeeded => tally.succeeded = 1,
        State::Failed => tally.failed = 1,
        State::Cancelled => tally.cancelled = 1,
        _ => tally.running = 1,
    }
    let finished_us = if tally.running == 0 { T0 + 3_000_000 } else { 0 };
    v1::JobSummary {
        id,
        name: "census".into(),
        queue: "default".into(),
        state: state as i32,
        tally: Some(tally),
        submitted_us: T0,
        started_us: T0 + 1_000_000,
        finished_us,
        ..Default::default()
    }
}

/// A task that ended.
pub(crate) fn task(job: u64, index: u32, name: &str, kind: v1::EndKind, code: i32) -> v1::TaskView {
    let end = v1::End { kind: kind as i32, code, reason: String::new() };
    let attempt = v1::Attempt {
        number: 1,
        agent: 1,
        leased_us: T0,
        started_us: T0 + 1_000_000,
        ended_us: T0 + 3_000_000,
        end: Some(end),
        ..Default::default()
    };
    let good = kind == v1::EndKind::Succeeded;
    let state = if good { v1::TaskState::Succeeded } else { v1::TaskState::Failed };
    let task = v1::Task { state: state as i32, attempt: Some(attempt), ..Default::default() };
    v1::TaskView { job, index, name: name.into(), task: Some(task), ..Default::default() }
}

impl Service {
    fn open(&self) -> Result<(), Status> {
        self.begin().map(drop)
    }

    fn begin(&self) -> Result<std::sync::MutexGuard<'_, Asked>, Status> {
        match &self.script.refuse {
            Some(status) => Err(status.clone()),
            None => Ok(self.asked.lock().unwrap()),
        }
    }

    fn find(&self, selector: Option<v1::Selector>) -> Result<v1::JobSummary, Status> {
        let text = selector.unwrap_or_default().text;
        let name = text.split('.').next().unwrap_or_default();
        let found = self.script.jobs.iter().find(|job| job.id.to_string() == name || job.name == name);
        found.cloned().ok_or_else(|| Status::not_found(format!("there is no job {name}")))
    }
}

impl Service {
    fn info(&self) -> v1::InfoReply {
        let (oldest_protocol, protocol) = self.script.protocols.unwrap_or((OLDEST_PROTOCOL, PROTOCOL));
        let (version, store) = ("9.9.9".to_owned(), "scripted".to_owned());
        v1::InfoReply { version, term: 3, store, protocol, oldest_protocol, ..Default::default() }
    }
}

#[tonic::async_trait]
impl Muster for Service {
    async fn info(&self, _request: Request<v1::InfoRequest>) -> Answer<v1::InfoReply> {
        self.open()?;
        Ok(Response::new(self.info()))
    }

    async fn status(&self, _request: Request<v1::StatusRequest>) -> Answer<v1::StatusReply> {
        self.open()?;
        let member = |name: &str, leads| v1::MemberView {
            name: name.into(),
            address: format!("http://{name}:7717"),
            leads,
            since_us: 1_790_000_000_000_000,
            release: "9.9.9".into(),
        };
        let info = self.info();
        let store = v1::StoreView {
            about: "etcd://a:2379".into(),
            bytes: 3 << 20,
            limit: 1 << 30,
            latency_us: 1_250,
            problems: vec!["etcd member 1f: it has no room".into()],
        };
        let members = vec![member("a", true), member("b", false)];
        Ok(Response::new(v1::StatusReply { info: Some(info), members, store: Some(store) }))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Answer<v1::SubmitReply> {
        self.begin()?.submits.push(request.into_inner());
        let job = self.script.jobs.first().map_or(17, |job| job.id);
        Ok(Response::new(v1::SubmitReply { job, duplicate: false, warnings: self.script.warnings.clone() }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Answer<v1::ListJobsReply> {
        let request = request.into_inner();
        self.begin()?.lists.push(request.clone());
        let from: usize = request.page_token.parse().unwrap_or(0);
        let size = usize::try_from(request.page_size).unwrap();
        let jobs: Vec<_> = self.script.jobs.iter().skip(from).take(size).cloned().collect();
        let next = from + jobs.len();
        let next_page_token = if next < self.script.jobs.len() { next.to_string() } else { String::new() };
        Ok(Response::new(v1::ListJobsReply { jobs, next_page_token }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Answer<v1::GetJobReply> {
        self.open()?;
        let selector = request.into_inner().selector;
        let is_part = selector.as_ref().is_some_and(|selector| selector.text.contains('.'));
        let summary = Some(self.find(selector)?);
        let tasks = is_part.then_some(v1::TaskRange { first: 0, count: 1 });
        Ok(Response::new(v1::GetJobReply { summary, tasks, ..Default::default() }))
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Answer<v1::ListTasksReply> {
        self.open()?;
        let request = request.into_inner();
        let name = request.selector.clone().unwrap_or_default().text;
        let job = self.find(request.selector)?;
        let group = name.split_once('.').map(|(_, group)| group.to_owned());
        let size = usize::try_from(request.page_size).unwrap();
        let state = |task: &v1::TaskView| match task.task.as_ref().map(v1::Task::state) {
            Some(v1::TaskState::Succeeded) => "succeeded",
            Some(v1::TaskState::Failed) => "failed",
            _ => "running",
        };
        let wanted = |task: &&v1::TaskView| {
            task.job == job.id
                && group.as_ref().is_none_or(|group| task.name == *group || task.index.to_string() == *group)
                && (request.states.is_empty() || request.states.iter().any(|word| word == state(task)))
        };
        let tasks = self.script.tasks.iter().filter(wanted).take(size).cloned().collect();
        Ok(Response::new(v1::ListTasksReply { tasks, ..Default::default() }))
    }

    type ExecStream = Streamed<v1::ExecReply>;

    /// Says what it was asked to run, on both streams, and ends with a code.
    async fn exec(&self, request: Request<tonic::Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        self.open()?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(v1::exec_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("the start comes first"));
        };
        self.find(start.selector)?;
        let mut said = start.command.join(" ").into_bytes();
        while let Some(v1::exec_request::Message::Stdin(piece)) = requests.message().await?.and_then(|m| m.message) {
            said.extend(piece);
        }
        let reply = |message| Ok(v1::ExecReply { message: Some(message) });
        let output = |stream: v1::Stream, data: &[u8]| {
            let output = v1::ExecOutput { stream: stream.into(), data: data.to_vec() };
            reply(v1::exec_reply::Message::Output(output))
        };
        let kind = if said.starts_with(b"missing") { v1::EndKind::NotStarted } else { v1::EndKind::Exit };
        let end = v1::End { kind: kind.into(), code: 7, reason: "why not".to_owned() };
        let last = reply(v1::exec_reply::Message::End(v1::ExecEnd { end: Some(end) }));
        let replies = [output(v1::Stream::Stdout, &said), output(v1::Stream::Stderr, b"oh"), last];
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    type ExecTerminalStream = Streamed<v1::ExecReply>;

    /// As a controller that is older than this call.
    async fn exec_terminal(
        &self,
        _request: Request<tonic::Streaming<v1::ExecRequest>>,
    ) -> Answer<Self::ExecTerminalStream> {
        Err(Status::unimplemented("there is no call /muster.v1.Muster/ExecTerminal, or nobody may use it"))
    }

    type WatchJobStream = Streamed<v1::JobSummary>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        let watches = {
            let mut asked = self.begin()?;
            asked.watches += 1;
            asked.watches
        };
        let last = self.find(request.into_inner().selector)?;
        let first = job(last.id, v1::JobState::Running);
        if watches <= self.script.broken_watches {
            let parts = [Ok(first), Err(Status::unavailable("the controller stops"))];
            return Ok(Response::new(Box::pin(tokio_stream::iter(parts))));
        }
        let stream = tokio_stream::iter([Ok(first)]);
        if self.script.endless {
            return Ok(Response::new(Box::pin(stream.chain(tokio_stream::pending()))));
        }
        Ok(Response::new(Box::pin(stream.chain(tokio_stream::iter([Ok(last)])))))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Answer<v1::CancelReply> {
        let request = request.into_inner();
        self.begin()?.cancels.push(request.clone());
        let job = self.find(request.selector)?.id;
        Ok(Response::new(v1::CancelReply { job, tasks: 1, already_final: 0 }))
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Answer<v1::RetryReply> {
        let request = request.into_inner();
        self.begin()?.retries.push(request.clone());
        let job = self.find(request.selector)?.id;
        Ok(Response::new(v1::RetryReply { job, tasks: 2 }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Answer<v1::ExplainReply> {
        self.open()?;
        self.find(request.into_inner().selector)?;
        Ok(Response::new(v1::ExplainReply::default()))
    }

    async fn stats(&self, _request: Request<v1::StatsRequest>) -> Answer<v1::StatsReply> {
        self.open()?;
        Ok(Response::new(v1::StatsReply { jobs: 3, ..Default::default() }))
    }

    type GetResultStream = Streamed<v1::ResultChunk>;

    async fn get_result(&self, request: Request<v1::GetResultRequest>) -> Answer<Self::GetResultStream> {
        self.open()?;
        let text = request.into_inner().selector.unwrap_or_default().text;
        let Some(bytes) = &self.script.result else {
            return Err(Status::not_found(format!("task {text} has no result")));
        };
        let parts: Vec<_> = bytes.chunks(5).map(|part| Ok(v1::ResultChunk { data: part.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    type LogsStream = Streamed<v1::LogsReply>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        self.begin()?.logs.push(request.clone());
        self.find(request.selector)?;
        let parts: Vec<_> = self.script.logs.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    type SearchLogsStream = Streamed<v1::SearchLogsReply>;

    async fn search_logs(&self, _request: Request<v1::SearchLogsRequest>) -> Answer<Self::SearchLogsStream> {
        self.open()?;
        let totals = Some(v1::SearchTotals::default());
        let last = v1::SearchLogsReply { totals, ..v1::SearchLogsReply::default() };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(last)]))))
    }

    async fn list_agents(&self, _request: Request<v1::ListAgentsRequest>) -> Answer<v1::ListAgentsReply> {
        self.open()?;
        Ok(Response::new(v1::ListAgentsReply { agents: self.script.agents.clone(), ..Default::default() }))
    }

    async fn tend_agents(&self, request: Request<v1::TendAgentsRequest>) -> Answer<v1::TendAgentsReply> {
        let request = request.into_inner();
        self.begin()?.tended.push(request.clone());
        let mut same = request.names;
        let changed = if same.is_empty() { vec!["by-label".to_owned()] } else { vec![same.remove(0)] };
        Ok(Response::new(v1::TendAgentsReply { changed, same }))
    }

    async fn list_queues(&self, _request: Request<v1::ListQueuesRequest>) -> Answer<v1::ListQueuesReply> {
        self.open()?;
        Ok(Response::new(v1::ListQueuesReply { queues: self.script.queues.clone() }))
    }

    async fn set_queue(&self, request: Request<v1::SetQueueRequest>) -> Answer<v1::SetQueueReply> {
        self.begin()?.queues.extend(request.into_inner().queue);
        Ok(Response::new(v1::SetQueueReply {}))
    }
}
