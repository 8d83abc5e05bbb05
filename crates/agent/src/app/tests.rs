//! The loop, the journal and the link against a scripted controller, over real gRPC and a real disk.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_common::{
    clock::Clock,
    proto::v1::{self, agent_down::Message as Down, agent_up::Message as UpMessage, report::What},
};
use muster_core::{
    id::Token,
    record::Offer,
    resources::Request,
    spec::{Command, TaskSpec},
    state::End,
    time::{Mono, Timestamp},
};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Pulse,
    processes::Processes,
    run::{Agent, Sources, Stop},
};
use crate::{
    exec::{ExecEvent, KillReason, Order, ProcessIdentity, Swept},
    journal::Journal,
    link::{
        Address, Link,
        kit::{Controller, Stream, soon, welcome},
    },
    supervisor::{self, Input, Memory, Supervisor},
};

const TERM: u64 = 5;

/// Attempts that do what the test says.
struct Script {
    started: mpsc::Sender<Arc<Order>>,
    killed: mpsc::Sender<(Token, KillReason)>,
    offers: Mutex<Vec<Arc<Order>>>,
    exec: mpsc::Sender<ExecEvent>,
    settled: watch::Sender<bool>,
}

impl Script {
    fn take_offer(&self, token: Token) -> Option<Arc<Order>> {
        let mut offers = self.offers.lock().expect("nobody panicked");
        let at = offers.iter().position(|order| order.token == token)?;
        Some(offers.remove(at))
    }
}

impl Processes for Script {
    fn start(&self, order: Arc<Order>) {
        self.started.try_send(order).expect("the test looks");
    }

    fn kill(&self, token: Token, reason: KillReason, _grace: Duration) {
        self.killed.try_send((token, reason)).expect("the test looks");
    }

    // Nothing begins by itself here: an offer is an order that waits.
    fn offer(&self, order: Arc<Order>, _until: Mono) {
        self.offers.lock().expect("nobody panicked").push(order);
    }

    fn claim(&self, token: Token) {
        self.take_offer(token).into_iter().for_each(|order| self.start(order));
    }

    fn withdraw(&self, token: Token) {
        if self.take_offer(token).is_some() {
            self.exec.try_send(ExecEvent::Withdrawn { token }).expect("the test looks");
        }
    }
    fn hold(&self, _renewed: Option<(Mono, Duration)>) {}

    fn settled(&self) {
        self.settled.send_replace(true);
    }
}

/// An agent of four processors with scripted attempts, in a real data folder.
struct World {
    started: mpsc::Receiver<Arc<Order>>,
    killed: mpsc::Receiver<(Token, KillReason)>,
    exec: mpsc::Sender<ExecEvent>,
    settled: watch::Receiver<bool>,
    stops: mpsc::Sender<Stop>,
    stop: CancellationToken,
    done: JoinHandle<()>,
}

impl World {
    /// Everything that is left is swept as dead.
    fn start(folder: &Path, addresses: &[&str]) -> Self {
        Self::watched(folder, addresses, Pulse::default())
    }

    fn watched(folder: &Path, addresses: &[&str], pulse: Pulse) -> Self {
        let clock = Clock::system();
        let (mut journal, memory) = Journal::open(folder).expect("a journal");
        let capacity = Request { cpu_milli: 4000, ..Request::default() };
        // Nothing happens here because time passed, but what a test says.
        let never = Duration::from_secs(3600);
        let config = supervisor::Config { announce_after: never, hold: never, ..supervisor::Config::new(capacity) };
        let mut supervisor = Supervisor::new(config, memory);
        let dead = supervisor.leftovers().iter().map(|leftover| (leftover.token, Swept::Dead)).collect();
        super::restore(clock, &mut supervisor, &mut journal, vec![Input::Swept(dead)], &mut Vec::new());
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let (link, link_events, _bulk) = Link::new(addresses, None);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        link.start(&tracker, &stop);
        let (started_in, started) = mpsc::channel(10_000);
        let (killed_in, killed) = mpsc::channel(100);
        let (exec, exec_events) = mpsc::channel(10_000);
        let (stops, stop_requests) = mpsc::channel(2);
        let (settled_in, settled) = watch::channel(false);
        let offers = Mutex::default();
        let script = Script { started: started_in, killed: killed_in, offers, exec: exec.clone(), settled: settled_in };
        let me = (Arc::from("uid-1"), Offer { name: "worker".to_owned(), ..Offer::default() });
        let agent = Agent::new(clock, me, supervisor, journal, script).watched(pulse);
        let sources =
            Sources { link: link_events, exec: exec_events, stops: stop_requests, machine: mpsc::channel(1).1 };
        let done = tokio::spawn(async move {
            drop(agent.run(sources).await.up);
        });
        Self { started, killed, exec, settled, stops, stop, done }
    }

    async fn started(&mut self) -> Arc<Order> {
        let order = soon("an attempt to start", self.started.recv()).await.expect("the agent runs");
        let identity = ProcessIdentity { boot: "b".into(), pid: 1, start: 2, group: 3 };
        self.tell(ExecEvent::Started { token: order.token, at: Timestamp(1), identity }).await;
        order
    }

    async fn killed(&mut self) -> (Token, KillReason) {
        soon("an attempt to be ended", self.killed.recv()).await.expect("the agent runs")
    }

    async fn tell(&self, event: ExecEvent) {
        self.exec.send(event).await.expect("the agent runs");
    }

    async fn end(&self, token: Token, end: End) {
        let (started, ended) = (Timestamp(1), Timestamp(2));
        self.tell(ExecEvent::Ended { token, end, why: None, started, ended, result: None, usage: None, next: None })
            .await;
    }

    /// Dies as by `kill -9`: nothing more is written or said.
    async fn kill(self) {
        self.done.abort();
        self.stop.cancel();
        let _cancelled = self.done.await;
    }
}

fn process() -> TaskSpec {
    let request = Request { cpu_milli: 1000, ..Request::default() };
    TaskSpec { name: "t".to_owned(), command: Command::Argv(vec!["true".to_owned()]), request, ..TaskSpec::default() }
}

fn remembered(folder: &Path) -> Memory {
    Journal::open(folder).expect("a journal").1
}

fn ended(report: &v1::Report) -> (u64, u64, v1::EndKind, String) {
    match &report.what {
        Some(What::Ended(v1::Ended { end: Some(end), .. })) => {
            (report.seq, report.token, end.kind(), end.reason.clone())
        }
        other => panic!("an end, not {other:?}"),
    }
}

async fn begin() -> (TempDir, Controller, World, Stream) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut controller = Controller::start().await;
    let world = World::start(folder.path(), &[&controller.address]);
    let stream = controller.welcome(TERM).await;
    (folder, controller, world, stream)
}

#[tokio::test]
async fn a_lease_runs_is_reported_and_forgotten_when_that_is_acknowledged() {
    let (folder, controller, mut world, mut stream) = begin().await;
    assert_eq!(
        (&*stream.hello.uid, stream.hello.holding.len(), stream.hello.protocol),
        ("uid-1", 0, muster_common::proto::PROTOCOL)
    );
    stream.lease(TERM, &process(), [41]).await;
    let order = world.started().await;
    assert_eq!((order.token, &*order.job_name), (Token(41), "job"));
    world.end(order.token, End::Exit(3)).await;
    let report = stream.report(TERM).await;
    assert_eq!(ended(&report), (1, 41, v1::EndKind::Exit, String::new()));
    stream.ack(1).await;
    world.stops.send(Stop::End).await.expect("it runs");
    assert!(matches!(stream.next().await, Some(UpMessage::Goodbye(_))));
    soon("the agent's end", world.done).await.expect("cleanly");
    let memory = remembered(folder.path());
    assert_eq!((memory.leases.len(), memory.reports.len(), memory.next_seq), (0, 0, 2));
    controller.stop().await;
}

#[tokio::test]
async fn a_controller_of_the_protocol_before_hears_of_a_full_scratch_folder_in_words_that_it_knows() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut controller = Controller::start().await;
    let mut world = World::start(folder.path(), &[&controller.address]);
    let older = muster_common::proto::OLDEST_PROTOCOL;
    for (protocol, kind, code) in [(older, v1::EndKind::Signal, 9), (older + 1, v1::EndKind::ScratchFull, 0)] {
        let mut stream = controller.accept().await;
        let Down::Welcome(greeting) = welcome(TERM, 15_000, &[]) else { panic!("a welcome") };
        stream.send(Down::Welcome(v1::Welcome { protocol, ..greeting })).await;
        if protocol == older {
            stream.lease(TERM, &process(), [41]).await;
            world.started().await;
            let (token, why) = (Token(41), Some("2 GiB lay there".into()));
            let (started, ended) = (Timestamp(1), Timestamp(2));
            let (end, result, usage, next) = (End::ScratchFull, None, None, None);
            world.tell(ExecEvent::Ended { token, end, why, started, ended, result, usage, next }).await;
        }
        // The journal keeps what it was: the next controller, which knows the word, is told by it.
        let What::Ended(v1::Ended { end: Some(end), .. }) = stream.report(TERM).await.what.expect("something") else {
            panic!("an end");
        };
        assert_eq!((end.kind(), end.code, &*end.reason), (kind, code, "2 GiB lay there"));
    }
}

#[tokio::test]
async fn thousands_of_reports_go_in_a_few_messages_and_in_order() {
    let (_folder, _controller, _world, mut stream) = begin().await;
    let empty = TaskSpec { name: "t".to_owned(), ..TaskSpec::default() };
    stream.lease(TERM, &empty, 1..=5000).await;
    for seq in 1..=5000 {
        let report = stream.report(TERM).await;
        assert_eq!((report.seq, report.token), (seq, seq));
    }
    assert!(stream.report_messages < 50, "{} messages", stream.report_messages);
}

#[tokio::test]
async fn reports_without_an_acknowledgement_are_held_and_sent_again_in_order() {
    let (_folder, mut controller, mut world, mut stream) = begin().await;
    stream.lease(TERM, &process(), [1, 2, 3]).await;
    for _ in 0..3 {
        world.started().await;
    }
    world.end(Token(2), End::Succeeded).await;
    assert_eq!(stream.report(TERM).await.token, 2);
    drop(stream);
    let again = controller.accept().await;
    assert_eq!(again.hello.holding, [1, 2, 3]);
    assert_eq!(again.hello.term, TERM);
    world.end(Token(1), End::Succeeded).await;
    again.send(welcome(TERM, 15_000, &[])).await;
    let mut again = again;
    let (first, second) = (again.report(TERM).await, again.report(TERM).await);
    assert_eq!([(first.seq, first.token), (second.seq, second.token)], [(1, 2), (2, 1)]);
}

#[tokio::test]
async fn what_the_controller_no_longer_knows_is_ended_in_silence() {
    let (_folder, mut controller, mut world, stream) = begin().await;
    stream.lease(TERM, &process(), [1, 2]).await;
    world.started().await;
    world.started().await;
    drop(stream);
    let mut again = controller.accept().await;
    again.send(welcome(TERM, 15_000, &[1])).await;
    assert_eq!(world.killed().await, (Token(1), KillReason::Dropped));
    world.end(Token(1), End::Lost).await;
    world.end(Token(2), End::Succeeded).await;
    assert_eq!(again.report(TERM).await.token, 2, "nothing is said of 1");
}

#[tokio::test]
async fn a_controller_of_a_lower_term_is_left_and_its_leases_do_not_run() {
    let (folder, mut controller, mut world, stream) = begin().await;
    stream.lease(TERM - 1, &process(), [9]).await;
    stream.ended().await;
    let old = controller.accept().await;
    old.send(welcome(TERM - 1, 15_000, &[])).await;
    old.lease(TERM - 1, &process(), [10]).await;
    old.ended().await;
    let newer = controller.welcome(TERM + 1).await;
    newer.lease(TERM + 1, &process(), [11]).await;
    assert_eq!(world.started().await.token, Token(11));
    world.kill().await;
    assert_eq!(remembered(folder.path()).term.0, TERM + 1);
}

#[tokio::test]
async fn an_attempt_whose_lease_is_not_renewed_is_ended_and_reported_lost_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut controller = Controller::start().await;
    let mut world = World::start(folder.path(), &[&controller.address]);
    let stream = controller.accept().await;
    stream.send(welcome(TERM, 300, &[])).await;
    stream.lease(TERM, &process(), [1]).await;
    world.started().await;
    // The controller reads and says nothing more, and takes nobody in.
    assert_eq!(world.killed().await, (Token(1), KillReason::LeaseExpired));
    world.end(Token(1), End::Lost).await;
    drop(stream);
    loop {
        let mut stream = controller.accept().await;
        if stream.hello.holding.is_empty() {
            continue;
        }
        stream.send(welcome(TERM, 15_000, &[])).await;
        if let Some(UpMessage::Reports(v1::Reports { reports })) = stream.next().await {
            assert!(reports.iter().any(|report| matches!(&report.what, Some(What::Ended(_)))), "{reports:?}");
            return;
        }
    }
}

#[tokio::test]
async fn a_stop_of_the_controller_ends_the_attempt() {
    let (_folder, _controller, mut world, mut stream) = begin().await;
    stream.lease(TERM, &process(), [1]).await;
    world.started().await;
    stream.send(Down::Stop(v1::Stop { token: 1, term: TERM })).await;
    assert_eq!(world.killed().await, (Token(1), KillReason::Cancelled));
    world.end(Token(1), End::Cancelled).await;
    assert_eq!(ended(&stream.report(TERM).await).2, v1::EndKind::Cancelled);
}

#[tokio::test]
async fn a_stopping_agent_ends_its_attempts_reports_them_and_says_goodbye() {
    let (_folder, _controller, mut world, mut stream) = begin().await;
    stream.lease(TERM, &process(), 1..=5).await;
    for _ in 0..4 {
        world.started().await;
    }
    world.stops.send(Stop::End).await.expect("it runs");
    let killed: BTreeSet<_> = [world.killed().await, world.killed().await, world.killed().await, world.killed().await]
        .map(|(token, reason)| (token.0, reason == KillReason::Shutdown))
        .into();
    assert_eq!(killed, BTreeSet::from([(1, true), (2, true), (3, true), (4, true)]));
    let returned = stream.report(TERM).await;
    assert!(returned.token == 5 && matches!(returned.what, Some(What::Returned(_))), "{returned:?}");
    for token in 1..=4 {
        world.end(Token(token), End::Lost).await;
    }
    for seq in 2..=5 {
        assert_eq!(stream.report(TERM).await.seq, seq);
    }
    assert!(stream.draining, "it says at once that it takes nothing new");
    stream.ack(5).await;
    assert!(matches!(stream.next().await, Some(UpMessage::Goodbye(_))));
    soon("the agent's end", world.done).await.expect("cleanly");
    stream.ended().await;
}

#[tokio::test]
async fn an_agent_that_was_killed_reports_what_it_held_as_lost_and_resends_the_rest() {
    let (folder, mut controller, mut world, mut stream) = begin().await;
    stream.lease(TERM, &process(), [1, 2]).await;
    world.started().await;
    world.started().await;
    world.end(Token(1), End::Succeeded).await;
    assert_eq!(stream.report(TERM).await.seq, 1, "journaled before it was sent");
    world.kill().await;
    drop(stream);
    let _again = World::start(folder.path(), &[&controller.address]);
    let mut stream = controller.welcome(TERM).await;
    assert_eq!(stream.hello.holding, [1, 2]);
    assert_eq!(ended(&stream.report(TERM).await), (1, 1, v1::EndKind::Succeeded, String::new()));
    let lost = ended(&stream.report(TERM).await);
    assert_eq!(lost, (2, 2, v1::EndKind::Lost, "the agent restarted".to_owned()));
}

#[tokio::test]
async fn the_next_controller_is_tried_when_one_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let gone = Controller::start().await;
    let nobody = gone.address.clone();
    gone.stop().await;
    let mut controller = Controller::start().await;
    let mut world = World::start(folder.path(), &[&nobody, &controller.address]);
    let stream = controller.welcome(TERM).await;
    stream.send_nothing_known().await;
    stream.lease(TERM, &process(), [1]).await;
    assert_eq!(world.started().await.token, Token(1), "a message of a newer controller does no harm");
}

#[tokio::test]
async fn a_watched_loop_turns_though_nothing_happens_and_says_how_it_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let every = Duration::from_millis(5);
    let pulse = Pulse::new(Some(every));
    let mut controller = Controller::start().await;
    let mut world = World::watched(folder.path(), &[&controller.address], pulse.clone());
    let mut seen = 0;
    let mut says = async |status: &str| {
        soon(status, async {
            // Each look finds another turn, or the next one does.
            let mut turned = 0;
            while turned < 20 {
                let look = pulse.look(&mut seen);
                turned += usize::from(look.turns && look.status == status);
                tokio::time::sleep(every).await;
            }
        })
        .await;
    };
    says("looks for a controller, 0 attempts here").await;
    let stream = controller.welcome(TERM).await;
    stream.lease(TERM, &process(), [1]).await;
    assert_eq!(world.started().await.token, Token(1));
    says("attached, 1 attempt here").await;
    world.kill().await;
    soon("its stillness to be told", async {
        while !pulse.look(&mut seen).status.ends_with("its loop does not turn") {
            tokio::time::sleep(every).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_journal_that_could_not_be_begun_is_settled_when_it_can_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(Journal::open(folder.path()).expect("a journal"));
    // In the way of the next segment.
    let draft = folder.path().join("journal-00000002.draft");
    std::fs::create_dir(&draft).expect("nobody else is there");
    let mut controller = Controller::start().await;
    let mut world = World::start(folder.path(), &[&controller.address]);
    let mut stream = controller.welcome(TERM).await;
    stream.lease(TERM, &process(), [41]).await;
    let order = world.started().await;
    assert!(!*world.settled.borrow(), "nothing can be written");
    std::fs::remove_dir(&draft).expect("it is empty");
    soon("it to be settled", world.settled.wait_for(|is_settled| *is_settled)).await.expect("it runs");
    assert_eq!(remembered(folder.path()).leases.len(), 1);
    world.end(order.token, End::Exit(0)).await;
    assert_eq!(ended(&stream.report(TERM).await).1, 41);
    world.kill().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_agent_runs_real_processes_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut controller = Controller::start().await;
    let mut config = super::Config { data_dir: folder.path().join("agent"), ..super::Config::default() };
    config.controllers = vec![controller.address.clone()];
    config.machine.cpu_milli = Some(4000);
    let running = super::start(config.clone()).await.expect("it starts");
    let taken = super::start(config).await.expect_err("one agent a folder").to_string();
    assert!(taken.contains("another agent"), "{taken}");
    let mut stream = controller.welcome(TERM).await;
    let capacity = stream.hello.offer.as_ref().and_then(|offer| offer.capacity.as_ref());
    assert_eq!(capacity.map(|capacity| capacity.cpu_milli), Some(4000));
    let shell = |text: &str| TaskSpec { command: Command::Shell(text.to_owned()), ..process() };
    stream.lease(TERM, &shell("echo out; exit 7"), [1]).await;
    let end = loop {
        let report = stream.report(TERM).await;
        if matches!(report.what, Some(What::Ended(_))) {
            break ended(&report);
        }
    };
    assert_eq!((end.1, end.2), (1, v1::EndKind::Exit));
    stream.lease(TERM, &shell("sleep 1000"), [2]).await;
    assert!(matches!(stream.report(TERM).await.what, Some(What::Started(_))), "it lasts");
    running.request_stop();
    let report = stream.report(TERM).await;
    let lost = ended(&report);
    assert_eq!((lost.1, lost.2, &*lost.3), (2, v1::EndKind::Lost, "the agent was stopped"));
    stream.ack(report.seq).await;
    assert!(matches!(stream.next().await, Some(UpMessage::Goodbye(_))));
    drop(stream);
    soon("the agent's end", running.stop()).await;
}
