//! A real `exec` with real processes, a supervisor's ears, and a controller that keeps logs in memory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use muster_agent::{
    cgroup::Enforce,
    exec::{Config, Exec, ExecEvent, Inputs, Links, Order, Results, Rules, TransferError, guard},
    logs::{self, Spools, Uplink, Wire},
};
use muster_common::{clock::Clock, proto::v1};
use muster_core::{
    id::{AgentId, JobId, TaskId, Token},
    record::TaskResult,
    spec::{Command, TaskSpec},
    state::End,
    time::{Mono, Timestamp},
    usage::Usage,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes nearly as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    pub(crate) exec: Exec,
    pub(crate) events: mpsc::Receiver<ExecEvent>,
    pub(crate) spools: Spools,
    pub(crate) controller: Controller,
    next: u64,
    _folder: Option<tempfile::TempDir>,
    stop: CancellationToken,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub(crate) struct Over {
    pub(crate) token: Token,
    pub(crate) end: End,
    pub(crate) why: String,
    pub(crate) started: Timestamp,
    pub(crate) ended: Timestamp,
    pub(crate) result: Option<TaskResult>,
    pub(crate) usage: Option<Usage>,
}

pub(crate) fn argv(words: &[&str]) -> TaskSpec {
    let command = Command::Argv(words.iter().map(ToString::to_string).collect());
    TaskSpec { name: "t".into(), command, ..TaskSpec::default() }
}

pub(crate) fn shell(text: &str) -> TaskSpec {
    TaskSpec { name: "t".into(), command: Command::Shell(text.into()), ..TaskSpec::default() }
}

pub(crate) fn order(token: u64, spec: TaskSpec) -> Order {
    Order {
        token: Token(token),
        task: TaskId::new(JobId(5), 7),
        attempt: 2,
        spec: Arc::new(spec),
        group: 1,
        job_name: "census".into(),
        queue: "default".into(),
        trace_parent: "00-aa-bb-01".into(),
        element: None,
        has_inputs: false,
    }
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut bench = Self::at(folder.path(), None, |_| {}).await;
        bench._folder = Some(folder);
        bench
    }

    pub(crate) async fn with_logs(change: impl FnOnce(&mut logs::Config)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut bench = Self::at(folder.path(), None, change).await;
        bench._folder = Some(folder);
        bench
    }

    /// With cgroups demanded, or not used.
    pub(crate) async fn enforcing(enforce: Enforce) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut bench = Self::made(folder.path(), (enforce, Rules::default()), None, |_| {}).await;
        bench._folder = Some(folder);
        bench
    }

    /// With no cgroups, in a folder that may have been another's.
    pub(crate) async fn bare_at(dir: &Path) -> Self {
        Self::made(dir, (Enforce::Off, Rules::default()), None, |_| {}).await
    }

    /// Where tasks may run as others, in a folder that those can reach.
    pub(crate) async fn with_rules(rules: Rules) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
        let mut bench = Self::made(&folder.path().join("agent"), (Enforce::Auto, rules), None, |_| {}).await;
        bench._folder = Some(folder);
        bench
    }

    pub(crate) async fn at(dir: &Path, guard: Option<guard::Program>, change: impl FnOnce(&mut logs::Config)) -> Self {
        Self::made(dir, (Enforce::Auto, Rules::default()), guard, change).await
    }

    async fn made(
        dir: &Path,
        (enforce, rules): (Enforce, Rules),
        guard: Option<guard::Program>,
        change: impl FnOnce(&mut logs::Config),
    ) -> Self {
        let mut config = logs::Config::new(dir.to_owned());
        change(&mut config);
        let spools = Spools::open(&config).expect("spools open");
        let controller = Controller::default();
        let stop = CancellationToken::new();
        tokio::spawn(spools.clone().ship(controller.clone(), stop.clone()));
        let links = Links {
            inputs: Arc::new(controller.clone()),
            results: Arc::new(controller.clone()),
            spools: spools.clone(),
        };
        let config = Config {
            data_dir: dir.to_owned(),
            agent: "web-1".into(),
            clock: Clock::system(),
            path: None,
            enforce,
            rules,
            containers: None,
            guard,
            estate: None,
        };
        let (exec, events) = Exec::new(config, links).await.expect("exec starts");
        Self { dir: dir.to_owned(), exec, events, spools, controller, next: 1, _folder: None, stop }
    }

    pub(crate) fn start(&mut self, spec: TaskSpec) -> Token {
        self.start_order(|token| order(token, spec))
    }

    pub(crate) fn start_order(&mut self, make: impl FnOnce(u64) -> Order) -> Token {
        let token = self.next;
        self.next += 1;
        self.exec.start(Arc::new(make(token)));
        Token(token)
    }

    /// Offers one for an hour, and returns its token.
    pub(crate) fn offer(&mut self, spec: TaskSpec) -> Token {
        self.offer_until(spec, Clock::system().mono().after(Duration::from_secs(3600)))
    }

    pub(crate) fn offer_until(&mut self, spec: TaskSpec, until: Mono) -> Token {
        let token = self.next;
        self.next += 1;
        self.exec.offer(Arc::new(order(token, spec)), until);
        Token(token)
    }

    pub(crate) async fn event(&mut self) -> ExecEvent {
        tokio::time::timeout(LIMIT, self.events.recv()).await.expect("an event in time").expect("exec lives")
    }

    pub(crate) async fn over(&mut self) -> Over {
        loop {
            if let ExecEvent::Ended { token, end, why, started, ended, result, usage, next: _ } = self.event().await {
                let why = why.as_deref().unwrap_or_default().to_owned();
                return Over { token, end, why, started, ended, result, usage };
            }
        }
    }

    /// Runs one attempt to its end.
    pub(crate) async fn run(&mut self, spec: TaskSpec) -> Over {
        let token = self.start(spec);
        let over = self.over().await;
        assert_eq!(over.token, token);
        over
    }

    /// Waits until the controller has all output.
    pub(crate) async fn drained(&self) {
        tokio::time::timeout(LIMIT, self.spools.drained()).await.expect("all output is shipped in time");
    }

    /// Runs one attempt and returns how it ended and what it wrote to stdout and stderr.
    pub(crate) async fn output(&mut self, spec: TaskSpec) -> (Over, String, String) {
        let over = self.run(spec).await;
        self.drained().await;
        let log = self.controller.log(over.token);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&log.stdout), text(&log.stderr));
        (over, out, err)
    }

    /// Waits until `path` has something in it.
    pub(crate) async fn appears(&self, path: &Path) -> String {
        wait_for(&format!("{} to be written", path.display()), || {
            std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
        })
        .await
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits for a condition, looking often.
pub(crate) async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    match tokio::time::timeout(LIMIT, waiting).await {
        Ok(found) => found,
        Err(_) => panic!("waited too long for {what}"),
    }
}

/// Whether a process lives; a zombie does not.
pub(crate) fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

/// What one attempt wrote, as far as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) frames: u64,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// (stderr?, offset, bytes, reason)
    pub(crate) cuts: Vec<(bool, u64, u64, String)>,
    pub(crate) last: bool,
    pub(crate) times: Vec<u64>,
    lane: [u64; 2],
}

/// Keeps and acknowledges all.
#[derive(Clone)]
pub(crate) struct Controller {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) changed: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) logs: BTreeMap<u64, Log>,
    pub(crate) stored: BTreeMap<u64, Vec<u8>>,
    /// When the last result came.
    pub(crate) stored_at: Timestamp,
    pub(crate) inputs: Option<String>,
    /// Streams are broken after so many messages.
    pub(crate) break_after: Option<usize>,
    /// The next message breaks its stream.
    pub(crate) break_next: bool,
    /// Acknowledge receipt only.
    pub(crate) keep_nothing: bool,
    /// Acknowledge nothing at all.
    pub(crate) silent: bool,
    pub(crate) streams: usize,
}

impl Default for Controller {
    fn default() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl Controller {
    pub(crate) fn log(&self, token: Token) -> Log {
        self.state.lock().expect("not poisoned").logs.get(&token.0).cloned().unwrap_or_default()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("not poisoned"));
    }

    fn take(&self, up: v1::LogUp) -> v1::LogDown {
        let mut state = self.state.lock().expect("not poisoned");
        let (keep_nothing, silent) = (state.keep_nothing, state.silent);
        let mut acks = Vec::new();
        for batch in up.batches {
            let log = state.logs.entry(batch.token).or_default();
            log.take(&batch);
            let kept = if keep_nothing { 0 } else { log.frames };
            acks.push(v1::LogAck { token: batch.token, received: log.frames, kept });
        }
        drop(state);
        self.changed.send_modify(|version| *version += 1);
        v1::LogDown { acks: if silent { Vec::new() } else { acks } }
    }
}

impl Log {
    fn take(&mut self, batch: &v1::LogBatch) {
        assert!(batch.first <= self.frames, "a gap: {} after {}", batch.first, self.frames);
        for (number, frame) in (batch.first..).zip(&batch.frames) {
            if number < self.frames {
                continue;
            }
            self.frames += 1;
            let is_stderr = frame.stream() == v1::Stream::Stderr;
            let lane = &mut self.lane[usize::from(is_stderr)];
            assert_eq!(frame.offset, *lane, "offsets are contiguous");
            assert!(frame.data.len() <= 64 * 1024);
            *lane += frame.data.len() as u64 + frame.cut_bytes;
            self.times.push(frame.at_us);
            if frame.cut_bytes > 0 {
                self.cuts.push((is_stderr, frame.offset, frame.cut_bytes, frame.cut_reason.clone()));
            } else if is_stderr {
                self.stderr.extend_from_slice(&frame.data);
            } else {
                self.stdout.extend_from_slice(&frame.data);
            }
        }
        self.last |= batch.last;
    }
}

impl Uplink for Controller {
    fn open(&self) -> BoxFuture<'_, Result<Wire, String>> {
        async {
            let (up, inbox) = mpsc::channel(4);
            let limit = {
                let mut state = self.state.lock().expect("not poisoned");
                state.streams += 1;
                state.break_after.unwrap_or(usize::MAX)
            };
            let this = self.clone();
            let state = Arc::clone(&self.state);
            let is_good = move |_: &v1::LogUp| {
                let breaks = std::mem::take(&mut state.lock().expect("not poisoned").break_next);
                std::future::ready(!breaks)
            };
            let inbox = tokio_stream::wrappers::ReceiverStream::new(inbox);
            let down = inbox.take(limit).take_while(is_good).map(move |up| this.take(up));
            Ok(Wire { agent: AgentId(3), up, down: down.boxed() })
        }
        .boxed()
    }
}

impl Inputs for Controller {
    fn fetch<'a>(&'a self, _order: &'a Order, to: &'a Path) -> BoxFuture<'a, Result<(), TransferError>> {
        async move {
            let inputs = self.state.lock().expect("not poisoned").inputs.clone();
            match inputs {
                Some(text) => std::fs::write(to, text).map_err(|error| TransferError(error.to_string())),
                None => Err(TransferError("the controller is away".into())),
            }
        }
        .boxed()
    }
}

impl Results for Controller {
    fn put<'a>(&'a self, token: Token, _task: TaskId, from: &'a Path) -> BoxFuture<'a, Result<u64, TransferError>> {
        async move {
            self.set(|state| state.stored_at = Clock::system().wall());
            let bytes = std::fs::read(from).map_err(|error| TransferError(error.to_string()))?;
            let len = bytes.len() as u64;
            self.state.lock().expect("not poisoned").stored.insert(token.0, bytes);
            Ok(len)
        }
        .boxed()
    }
}
