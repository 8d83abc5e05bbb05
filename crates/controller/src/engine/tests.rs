//! The order of things, seen from outside: what is answered, sent and shown, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::poll;
use muster_common::clock::Clock;
use muster_core::{
    cluster::Config,
    event::{Answer, Event, Report, Submission, Target, What},
    id::{AgentId, JobId, SessionId, TaskId, Term, Token},
    record::{Key, Offer},
    resources::Request,
    spec::{JobSpec, TaskSpec},
    state::{End, JobState, State},
    time::Timestamp,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::{Outgoing, Sessions},
    engine::{self, Ended, Error, Handle},
    store::{
        Batch, Loaded, Outcome, Records, Store,
        memory::{Fate, Memory},
    },
    view::View,
};

const LIMIT: Duration = Duration::from_secs(20);

struct Rig {
    handle: Handle,
    sessions: Sessions,
    view: View,
    store: Memory,
    cancel: CancellationToken,
    task: JoinHandle<Ended>,
}

struct Agent {
    id: AgentId,
    session: SessionId,
    outgoing: mpsc::Receiver<Outgoing>,
}

impl Rig {
    async fn start(store: Memory) -> Self {
        Self::on(Arc::new(store.clone()), store).await
    }

    /// On a store that keeps what it has in `memory`.
    async fn on(store: Arc<dyn Store>, memory: Memory) -> Self {
        let (forget, _forgotten) = mpsc::channel(8);
        let (sessions, view, cancel) = (Sessions::new(forget), View::default(), CancellationToken::new());
        let parts = engine::Parts {
            store,
            sessions: sessions.clone(),
            view: view.clone(),
            clock: Clock::system(),
            config: Config::default(),
            heartbeat: Duration::from_secs(3),
        };
        let (handle, engine) = engine::start(parts).await.expect("the store loads");
        let task = tokio::spawn(engine.run(cancel.clone()));
        Self { handle, sessions, view, store: memory, cancel, task }
    }

    async fn attach(&self) -> Agent {
        let (session, outgoing) = self.sessions.open();
        let offer = Offer {
            name: "north".to_owned(),
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            capacity: Request { cpu_milli: 64_000, memory: 1 << 36, ..Request::default() },
            ..Offer::default()
        };
        let event = Event::Attach { uid: "uid-1".into(), offer, session, holding: Vec::new() };
        let Ok(Answer::Attached { agent: id, .. }) = self.handle.ask(event).await else { panic!("not attached") };
        Agent { id, session, outgoing }
    }

    async fn submit(&self, key: &str) -> Result<Answer, Error> {
        self.handle.ask(submission(key)).await
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::task::yield_now().await;
            }
        };
        let waited = timeout(LIMIT, wait).await;
        assert!(waited.is_ok(), "never: {what}; {} commits, view {:?}", self.store.commits(), self.view.load());
    }

    async fn ended(self) -> Ended {
        timeout(LIMIT, self.task).await.expect("the engine ends").expect("the engine does not panic")
    }
}

impl Agent {
    async fn next(&mut self) -> Option<Outgoing> {
        timeout(LIMIT, self.outgoing.recv()).await.expect("something is sent")
    }

    async fn leases(&mut self) -> Vec<muster_core::event::Lease> {
        match self.next().await {
            Some(Outgoing::Leases(leases)) => leases,
            other => panic!("{other:?} instead of leases"),
        }
    }

    fn ended(&self, seq: u64, token: Token, task: TaskId) -> Event {
        let (started, ended) = (Timestamp(1), Timestamp(2));
        let what = What::Ended { end: End::Succeeded, why: None, started, ended, result: None, usage: None };
        Event::Report { agent: self.id, session: self.session, report: Report { seq, token, task, what } }
    }
}

fn submission(key: &str) -> Event {
    with_task(key, TaskSpec { name: "only".to_owned(), ..TaskSpec::default() })
}

fn with_task(key: &str, task: TaskSpec) -> Event {
    let spec = JobSpec {
        name: "census".to_owned(),
        queue: muster_core::spec::DEFAULT_QUEUE.to_owned(),
        tasks: vec![Arc::new(task)],
        ..JobSpec::default()
    };
    Event::Submit(Submission { spec: Arc::new(spec), key: key.into(), by: "test".into(), trace_parent: "".into() })
}

fn submitted(job: u64) -> impl Fn(Result<Answer, Error>) -> Option<bool> {
    move |answer| match answer {
        Ok(Answer::Submitted { job: found, duplicate, .. }) if found == JobId(job) => Some(duplicate),
        _ => None,
    }
}

fn is_unavailable(answer: &Result<Answer, Error>) -> bool {
    matches!(answer, Err(Error::Unavailable(_)))
}

#[tokio::test]
async fn a_submission_is_answered_and_shown_only_when_it_is_committed() {
    let (store, slow) = (Memory::default(), Arc::new(Notify::new()));
    store.script([Fate::Slow(Arc::clone(&slow))]);
    let rig = Rig::start(store).await;
    let mut answer = Box::pin(rig.submit(""));
    assert!(poll!(answer.as_mut()).is_pending());
    rig.until("a commit begins", |rig| rig.store.commits() == 1).await;
    assert!(poll!(answer.as_mut()).is_pending(), "it is not durable");
    assert!(rig.view.load().jobs.is_empty(), "it is not durable");
    slow.notify_one();
    assert_eq!(submitted(1)(answer.await), Some(false));
    assert!(rig.view.load().job(JobId(1)).is_some(), "whoever was answered can see it");
    assert!(rig.store.get(&Key::Job(JobId(1))).is_some());
}

#[tokio::test]
async fn a_lease_leaves_with_the_one_commit_that_carries_job_and_lease() {
    let store = Memory::default();
    let rig = Rig::start(store).await;
    let mut agent = rig.attach().await;
    let before = rig.store.commits();
    let slow = Arc::new(Notify::new());
    rig.store.script([Fate::Slow(Arc::clone(&slow))]);
    let mut answer = Box::pin(rig.submit(""));
    assert!(poll!(answer.as_mut()).is_pending());
    rig.until("a commit begins", |rig| rig.store.commits() == before + 1).await;
    assert!(agent.outgoing.try_recv().is_err(), "C1: nothing leaves before it is durable");
    slow.notify_one();
    assert_eq!(submitted(1)(answer.await), Some(false));
    let leases = agent.leases().await;
    assert_eq!(leases.len(), 1);
    assert_eq!((leases[0].task, leases[0].attempt), (TaskId::new(JobId(1), 0), 1));
    assert_eq!(rig.store.commits(), before + 1, "spec and lease are one commit");
    let job = rig.view.load().job(JobId(1)).cloned().expect("it is shown");
    assert_eq!(job.state_of(0), Some(State::Running));
}

#[tokio::test]
async fn a_heartbeat_and_a_question_are_answered_while_a_commit_is_under_way() {
    let rig = Rig::start(Memory::default()).await;
    let mut agent = rig.attach().await;
    let slow = Arc::new(Notify::new());
    rig.store.script([Fate::Slow(Arc::clone(&slow))]);
    let mut answer = Box::pin(rig.submit(""));
    assert!(poll!(answer.as_mut()).is_pending());
    rig.until("a commit begins", |rig| rig.store.commits() == 2).await;
    let beat = Event::Heartbeat { agent: agent.id, session: agent.session, stamp: 77 };
    rig.handle.tell(beat).await.expect("it runs");
    assert_eq!(agent.next().await, Some(Outgoing::HeartbeatAck(77)));
    assert_eq!(rig.handle.agents().await.expect("it runs").len(), 1);
    assert!(poll!(answer.as_mut()).is_pending(), "the disk is still slow");
    slow.notify_one();
    assert_eq!(submitted(1)(answer.await), Some(false));
}

#[tokio::test]
async fn what_comes_during_a_commit_goes_out_as_one_more() {
    let rig = Rig::start(Memory::default()).await;
    let slow = Arc::new(Notify::new());
    rig.store.script([Fate::Slow(Arc::clone(&slow))]);
    let first = rig.submit("");
    let rest = async {
        rig.until("a commit begins", |rig| rig.store.commits() == 1).await;
        let mut all = futures::future::join_all((0..50).map(|_| rig.submit("")).map(Box::pin));
        assert!(poll!(&mut all).is_pending());
        // This answer comes after all of those events.
        rig.handle.agents().await.expect("it runs");
        slow.notify_one();
        all.await
    };
    let (first, rest) = tokio::join!(first, rest);
    assert!(first.is_ok() && rest.iter().all(Result::is_ok));
    assert_eq!(rig.view.load().jobs.len(), 51);
    assert_eq!(rig.store.commits(), 2);
}

#[tokio::test]
async fn a_repeated_submission_is_told_of_the_first_one_when_that_is_committed() {
    let rig = Rig::start(Memory::default()).await;
    let slow = Arc::new(Notify::new());
    rig.store.script([Fate::Slow(Arc::clone(&slow))]);
    let mut first = Box::pin(rig.submit("k"));
    assert!(poll!(first.as_mut()).is_pending());
    rig.until("a commit begins", |rig| rig.store.commits() == 1).await;
    let mut second = Box::pin(rig.submit("k"));
    assert!(poll!(second.as_mut()).is_pending());
    rig.handle.queues().await.expect("it runs");
    assert!(poll!(second.as_mut()).is_pending(), "what it would be told of is not durable");
    slow.notify_one();
    assert_eq!(submitted(1)(first.await), Some(false));
    assert_eq!(submitted(1)(second.await), Some(true));
    assert_eq!(rig.store.commits(), 1, "a repetition changes nothing");
}

#[tokio::test]
async fn after_an_unknown_outcome_all_is_loaded_again_and_a_repeated_submission_finds_out() {
    for (fate, was_applied) in [(Fate::UnknownApplied, true), (Fate::UnknownNotApplied, false)] {
        let rig = Rig::start(Memory::default()).await;
        let mut agent = rig.attach().await;
        let term = rig.handle.term();
        rig.store.script([fate.clone()]);
        let answer = rig.submit("k").await;
        assert!(is_unavailable(&answer), "{fate:?}: {answer:?}");
        assert_eq!(agent.next().await, Some(Outgoing::Disconnect), "C3: agents must come back");
        assert_eq!(agent.next().await, None);
        assert_eq!(submitted(1)(rig.submit("k").await), Some(was_applied), "{fate:?}");
        assert!(rig.handle.term() > term, "a new term fences the commit of which nobody knows");
        let mut agent = rig.attach().await;
        assert_eq!(agent.leases().await.len(), 1, "{fate:?}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_loaded_at_once_is_tried_again() {
    let rig = Rig::start(Memory::default()).await;
    rig.store.fail_loads(2);
    rig.store.script([Fate::UnknownNotApplied]);
    assert!(is_unavailable(&rig.submit("k").await));
    assert_eq!(submitted(1)(rig.submit("k").await), Some(false));
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_store_that_stays_away_are_told_why_and_it_may_come_back_at_any_time() {
    let rig = Rig::start(Memory::default()).await;
    assert_eq!(submitted(1)(rig.submit("before").await), Some(false));
    rig.store.fail_loads(u32::MAX);
    rig.store.script([Fate::UnknownNotApplied]);
    assert!(is_unavailable(&rig.submit("k").await));
    for _ in 0..100 {
        let answer = rig.submit("k").await;
        let text = answer.as_ref().map_or_else(ToString::to_string, |_| String::new());
        assert!(
            is_unavailable(&answer) && text.contains("store is away") && text.contains("a test said so"),
            "{answer:?}"
        );
        assert_eq!(rig.view.load().jobs.len(), 1, "what was committed is shown");
    }
    rig.store.fail_loads(0);
    let pause = Duration::from_secs(6);
    tokio::time::advance(pause).await;
    rig.until("it is back", |rig| rig.handle.term().0 > 1).await;
    assert_eq!(submitted(2)(rig.submit("k").await), Some(false));
}

#[tokio::test]
async fn a_fenced_commit_refuses_all_that_waits_and_ends_the_engine() {
    let rig = Rig::start(Memory::default()).await;
    let mut agent = rig.attach().await;
    rig.store.script([Fate::Fenced]);
    assert!(is_unavailable(&rig.submit("").await));
    assert_eq!(agent.next().await, Some(Outgoing::Disconnect));
    assert!(rig.view.load().jobs.is_empty());
    let handle = rig.handle.clone();
    assert!(matches!(rig.ended().await, Ended::Fenced));
    assert!(is_unavailable(&handle.ask(submission("")).await));
}

#[tokio::test]
async fn a_controller_whose_store_was_taken_over_steps_down_at_its_next_commit() {
    let store = Memory::default();
    let old = Rig::start(store.clone()).await;
    let new = Rig::start(store).await;
    assert!(is_unavailable(&old.submit("").await), "C2");
    assert!(matches!(old.ended().await, Ended::Fenced));
    assert_eq!(submitted(1)(new.submit("").await), Some(false));
}

#[tokio::test]
async fn a_clean_stop_commits_all_that_was_decided() {
    let rig = Rig::start(Memory::default()).await;
    let slow = Arc::new(Notify::new());
    rig.store.script([Fate::Slow(Arc::clone(&slow))]);
    let (mut first, mut second) = (Box::pin(rig.submit("")), Box::pin(rig.submit("")));
    assert!(poll!(first.as_mut()).is_pending());
    rig.until("a commit begins", |rig| rig.store.commits() == 1).await;
    assert!(poll!(second.as_mut()).is_pending());
    rig.handle.queues().await.expect("it runs");
    rig.cancel.cancel();
    slow.notify_one();
    assert_eq!(submitted(1)(first.await), Some(false));
    assert_eq!(submitted(2)(second.await), Some(false));
    assert!(is_unavailable(&rig.submit("").await));
    assert_eq!(rig.store.commits(), 2);
    assert!(matches!(rig.ended().await, Ended::Stopped));
}

#[tokio::test]
async fn a_report_is_acknowledged_when_it_is_durable_and_the_finished_job_is_shown() {
    let rig = Rig::start(Memory::default()).await;
    let mut agent = rig.attach().await;
    rig.submit("").await.expect("it is accepted");
    let lease = agent.leases().await.remove(0);
    let (before, slow) = (rig.store.commits(), Arc::new(Notify::new()));
    rig.store.script([Fate::Slow(Arc::clone(&slow))]);
    rig.handle.tell_all(vec![agent.ended(1, lease.token, lease.task)]).await.expect("it runs");
    rig.until("a commit begins", |rig| rig.store.commits() == before + 1).await;
    assert!(agent.outgoing.try_recv().is_err(), "K1: it is not durable");
    slow.notify_one();
    assert_eq!(agent.next().await, Some(Outgoing::Acknowledge(1)));
    let job = rig.view.load().job(JobId(1)).cloned().expect("it is shown");
    assert_eq!(job.summary.state, JobState::Succeeded);
    assert_eq!(job.state_of(0), Some(State::Succeeded));
}

#[tokio::test]
async fn counts_that_time_alone_changes_are_shown_without_a_commit() {
    let rig = Rig::start(Memory::default()).await;
    let start_at = Some(Clock::system().wall().after(Duration::from_millis(150)));
    let task = TaskSpec { name: "later".to_owned(), start_at, ..TaskSpec::default() };
    rig.handle.ask(with_task("", task)).await.expect("it is accepted");
    let commits = rig.store.commits();
    let state = |rig: &Rig| rig.view.load().job(JobId(1)).and_then(|job| job.state_of(0));
    rig.until("it is queued", |rig| state(rig) == Some(State::Queued)).await;
    assert_eq!(rig.store.commits(), commits);
}

#[tokio::test]
async fn a_refusal_says_why_and_changes_nothing() {
    let rig = Rig::start(Memory::default()).await;
    let cancel =
        Event::Cancel { target: Target::Job(JobId(9)), by: "test".into(), reason: "".into(), teardown_too: false };
    assert!(matches!(rig.handle.ask(cancel).await, Err(Error::Refused(_))));
    assert!(matches!(rig.handle.explain(Target::Job(JobId(9))).await, Err(Error::Refused(_))));
    assert_eq!(rig.store.commits(), 0);
}

#[tokio::test]
async fn a_restart_finds_all_that_was_committed() {
    let store = Memory::default();
    let rig = Rig::start(store.clone()).await;
    for key in ["a", "b", "c"] {
        rig.submit(key).await.expect("it is accepted");
    }
    rig.cancel.cancel();
    assert!(matches!(rig.ended().await, Ended::Stopped));
    let rig = Rig::start(store).await;
    let snapshot = rig.view.load();
    assert_eq!(snapshot.named("census").collect::<Vec<_>>(), [JobId(3), JobId(2), JobId(1)]);
    assert_eq!(snapshot.job(JobId(2)).map(|job| job.summary.state), Some(JobState::Queued));
    assert_eq!(submitted(2)(rig.submit("b").await), Some(true));
}

/// A store on which the engine's own thread can be made to wait.
struct Holding {
    memory: Memory,
    holds_up: AtomicBool,
}

#[async_trait]
impl Store for Holding {
    async fn load(&self) -> Result<Loaded, crate::store::Error> {
        self.memory.load().await
    }

    async fn commit(&self, term: Term, batch: Batch) -> Outcome {
        self.memory.commit(term, batch).await
    }

    async fn snapshot(&self) -> Result<Records, crate::store::Error> {
        self.memory.snapshot().await
    }

    fn holds(&self) -> bool {
        while self.holds_up.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        true
    }

    async fn close(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stands_still_does_not_say_that_it_turns() {
    let memory = Memory::default();
    let store = Arc::new(Holding { memory: memory.clone(), holds_up: AtomicBool::new(false) });
    let rig = Rig::on(Arc::clone(&store) as Arc<dyn Store>, memory).await;
    assert_eq!(rig.handle.turns().await, Ok(()));
    store.holds_up.store(true, Ordering::SeqCst);
    // The turn that was under way may still answer; none after it does.
    let mut answered = 0;
    while timeout(Duration::from_millis(200), rig.handle.turns()).await.is_ok() {
        answered += 1;
        assert!(answered < 3, "it answers while it stands still");
    }
    store.holds_up.store(false, Ordering::SeqCst);
    assert_eq!(timeout(LIMIT, rig.handle.turns()).await, Ok(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn an_engine_whose_store_is_away_turns() {
    let rig = Rig::start(Memory::default()).await;
    rig.store.fail_loads(u32::MAX);
    rig.store.script([Fate::UnknownNotApplied]);
    assert!(is_unavailable(&rig.submit("k").await));
    for _ in 0..100 {
        assert_eq!(timeout(Duration::from_secs(5), rig.handle.turns()).await, Ok(Ok(())));
    }
}
