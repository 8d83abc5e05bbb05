//! Commands that people run beside attempts: each has a stream of its own to the controller.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream::BoxStream};
use muster_common::{
    proto::v1::{self, exec_up::Message},
    wire::work::end_to_proto,
};
use muster_core::{spec::TaskSpec, state::End};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    containers::{Engine, Visitor},
    exec::{
        ProcessIdentity, Rules,
        beside::{self, Asked, Beside, Fed},
    },
    link::down::size,
    logs::{Grpc, Stream},
    supervisor::Visit,
};

/// Commands at one time.
const AT_ONCE: usize = 32;
/// Messages that wait in each direction.
const ROOM: usize = 8;
/// For the stream to be opened.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// All that go on; cheap to clone.
#[derive(Clone)]
pub(crate) struct Visits {
    grpc: Grpc,
    engine: Option<Arc<Engine>>,
    rules: Rules,
    turns: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Visits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Visits").finish_non_exhaustive()
    }
}

impl Visits {
    /// Commands that go on until `stop`.
    pub(crate) fn new(
        grpc: Grpc,
        (engine, rules): (Option<Arc<Engine>>, Rules),
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { grpc, engine, rules, turns: Arc::new(Semaphore::new(AT_ONCE)), tracker, stop }
    }

    /// Runs a command beside `process`; none: there is no such process here.
    pub(crate) fn begin(&self, visit: Arc<Visit>, process: Option<(ProcessIdentity, Arc<TaskSpec>)>) {
        let this = self.clone();
        self.tracker.spawn(async move {
            if let Some(Err(error)) = this.stop.run_until_cancelled(this.serve(&visit, process)).await {
                warn!(token = %visit.token, error, "a command beside an attempt could not be told of");
            }
        });
    }

    async fn serve(&self, visit: &Visit, process: Option<(ProcessIdentity, Arc<TaskSpec>)>) -> Result<(), String> {
        let (up, inbox) = mpsc::channel(ROOM);
        let opened = timeout(OPEN_LIMIT, self.grpc.exec(visit.id, &up, ReceiverStream::new(inbox))).await;
        let mut down = opened.map_err(|_| format!("no answer within {} s", OPEN_LIMIT.as_secs()))??;
        let turn = self.turns.try_acquire();
        let end = match (process, &turn) {
            (None, _) => Err("the task does not run on its agent any more, or its process is not started yet".into()),
            (_, Err(_)) => Err(format!("{AT_ONCE} commands run on its agent, which is as many as may")),
            (Some((process, spec)), Ok(_)) => {
                info!(token = %visit.token, command = ?visit.asked.command, "a command runs beside an attempt");
                let beside = Beside { process, run_as: spec.run_as.clone(), rules: self.rules.clone() };
                let is_contained = spec.container.is_some();
                if is_contained && visit.asked.terminal.is_some() {
                    // Typed before the engine listens for single keys, it would come in there as a zero byte.
                    down = down.map(|message| v1::ExecDown { stdin_end: false, ..message }).boxed();
                }
                // In a container it does not end with what is started for it here.
                let visitor = is_contained
                    .then(|| Visitor::new(visit.asked.terminal.is_some(), self.tracker.clone(), self.stop.clone()));
                let (end, is_left) = match asked(self.engine.as_deref(), visit, visitor.as_ref()) {
                    Ok(asked) => run(beside, asked, &mut down, &up).await,
                    Err(why) => (Err(why), false),
                };
                if !is_left && let Some(visitor) = visitor {
                    visitor.ended();
                }
                end
            }
        };
        let (end, why) = match end {
            Ok(end) => (end, None),
            Err(why) => (End::NotStarted, Some(why)),
        };
        let end = v1::ExecEnd { end: Some(end_to_proto(end, why.as_deref())) };
        // Who does not listen any more needs no last word; who reads slowly has the time that he takes.
        let _nobody_listens = up.send(v1::ExecUp { message: Some(Message::End(end)) }).await;
        drop(up);
        // Whoever drops the answer ends the whole call, and with it what was not sent yet.
        while down.next().await.is_some() {}
        Ok(())
    }
}

/// What is started beside the process of the attempt: in its container, if it is in one, and nowhere else then. What was
/// meant for a container would be anybody's on the machine, as the user that its engine has. The engine is on the terminal,
/// and makes another one in there.
fn asked(engine: Option<&Engine>, visit: &Visit, contained: Option<&Visitor>) -> Result<Asked, String> {
    match (contained, engine) {
        (None, _) => Ok(visit.asked.clone()),
        (Some(visitor), Some(engine)) => {
            let terminal = visit.asked.terminal.clone();
            Ok(Asked { command: engine.exec(visit.token, &visit.asked, visitor.mark()), terminal })
        }
        (Some(_), None) => Err("the task runs in a container, and its agent found no engine for containers when it started \
                             (its log says why), so that nothing can be run in there; start the agent anew when it is there"
            .into()),
    }
}

/// How it ended, and whether its caller left before.
async fn run(
    beside: Beside,
    asked: Asked,
    down: &mut BoxStream<'static, v1::ExecDown>,
    up: &mpsc::Sender<v1::ExecUp>,
) -> (Result<End, String>, bool) {
    let is_left = AtomicBool::new(false);
    let (feed, fed) = mpsc::channel(ROOM);
    let (said, output) = mpsc::channel(ROOM);
    let read = async {
        // The end of the stream, however it ends, closes the channel.
        while let Some(message) = down.next().await {
            let pieces = [
                (!message.stdin.is_empty()).then_some(Fed::Bytes(message.stdin)),
                message.stdin_end.then_some(Fed::End),
                message.resized.map(|changed| Fed::Size(size(changed))),
            ];
            for piece in pieces.into_iter().flatten() {
                if feed.send(piece).await.is_err() {
                    return;
                }
            }
        }
        is_left.store(true, Ordering::Relaxed);
        drop(feed);
    };
    // Its end closes the channel, and with that whoever reads nothing is asked to end, too.
    let write = async {
        let mut output = output;
        loop {
            let said = tokio::select! {
                said = output.recv() => said,
                // Who reads and writes nothing would not be noticed otherwise.
                () = up.closed() => {
                    is_left.store(true, Ordering::Relaxed);
                    return;
                }
            };
            let Some((stream, data)) = said else { return };
            let stream = match stream {
                Stream::Stdout => v1::Stream::Stdout,
                Stream::Stderr => v1::Stream::Stderr,
            };
            let message = Message::Output(v1::ExecOutput { stream: stream.into(), data });
            if up.send(v1::ExecUp { message: Some(message) }).await.is_err() {
                is_left.store(true, Ordering::Relaxed);
                return;
            }
        }
    };
    let work = async {
        let (end, ()) = tokio::join!(beside::run(beside, asked, fed, said), write);
        end
    };
    let end = tokio::select! {
        end = work => end,
        () = async { read.await; std::future::pending().await } => Err(String::new()),
    };
    (end, is_left.into_inner())
}

#[cfg(all(test, unix))]
mod tests {
    use futures::stream;
    use muster_core::{id::Token, run_as::RunAs};

    use super::*;
    use crate::{
        containers::{Kind, Settings},
        exec::os::boot,
    };

    /// This very process, as any other.
    fn ourselves() -> ProcessIdentity {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("it is there");
        let start = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok());
        let pid = std::process::id();
        ProcessIdentity { boot: boot(), pid, start: start.expect("a number"), group: pid }
    }

    #[test]
    fn what_is_meant_for_a_container_is_never_run_beside_it() {
        let plain = Asked { command: vec!["sh".into(), "-c".into(), "id".into()], terminal: None };
        let visit = Visit { id: 1, token: Token(7), asked: plain.clone() };
        let engine = Engine::scripted(Kind::Podman, Settings::default(), "owner", &[]);
        assert_eq!(asked(None, &visit, None), Ok(plain.clone()));
        assert_eq!(asked(Some(&engine), &visit, None), Ok(plain));
        let visitor = Visitor::new(false, TaskTracker::new(), CancellationToken::new());
        let inside = asked(Some(&engine), &visit, Some(&visitor)).expect("there is an engine").command;
        let mark = format!("--env={}", visitor.mark());
        assert_eq!(inside[1..], ["exec", "--interactive", &mark, "muster-owner-7", "sh", "-c", "id"]);
        let why = asked(None, &visit, Some(&visitor)).expect_err("it is refused");
        visitor.ended();
        assert!(why.contains("found no engine for containers"), "{why}");
    }

    #[tokio::test]
    async fn a_command_that_neither_reads_nor_writes_is_asked_to_end_when_its_caller_is_gone() {
        let large = v1::ExecDown { stdin: vec![0; 64 << 10], ..v1::ExecDown::default() };
        let mut down = stream::iter(vec![large; 100]).chain(stream::pending()).boxed();
        let (up, inbox) = mpsc::channel(1);
        let beside = Beside { process: ourselves(), run_as: RunAs::default(), rules: Rules::default() };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pid");
        let text = format!(
            "trap 'exit 9' TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.05; done",
            file.display()
        );
        let asked = Asked { command: ["/bin/sh".into(), "-c".into(), text].to_vec(), terminal: None };
        let leaves = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(inbox);
        };
        let both = async { tokio::join!(run(beside, asked, &mut down, &up), leaves) };
        let (end, ()) = timeout(Duration::from_secs(60), both).await.expect("it ends");
        assert_eq!(end, (Ok(End::Exit(9)), true));
        let pid = std::fs::read_to_string(file).expect("written");
        let stat = format!("/proc/{}/stat", pid.trim());
        let lives = || std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
        let ends = async {
            while lives() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(60), ends).await.expect("it is killed");
    }
}
