//! A cluster with its store and its agents as a test sees them: every step checked, every effect kept.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_core::{
    cluster::{Cluster, Config, check::check},
    event::{Answer, Effect, Event, Lease, Refusal, Report, Submission, Target, What, Which},
    id::{AgentId, JobId, SessionId, TaskId, Token},
    record::{Key, Offer, Piece, TaskResult},
    resources::Request,
    spec::{Array, Command, JobSpec, TaskSpec},
    state::{End, State},
    time::{Mono, Now, Timestamp},
};

pub(crate) struct Kit {
    pub(crate) cluster: Cluster,
    pub(crate) now: Now,
    pub(crate) effects: Vec<Effect>,
    pub(crate) store: BTreeMap<Key, Piece>,
    pub(crate) config: Config,
    sessions: u64,
    seq: u64,
}

pub(crate) fn cpus(n: u64) -> Request {
    Request { cpu_milli: n * 1000, ..Request::default() }
}

/// A task of one processor.
pub(crate) fn task(name: &str) -> TaskSpec {
    let command = Command::Argv(vec!["true".to_owned()]);
    TaskSpec { name: name.to_owned(), command, request: cpus(1), ..TaskSpec::default() }
}

pub(crate) fn array(name: &str, count: u32) -> TaskSpec {
    TaskSpec { array: Some(Array::Range { first: 0, count, step: 1 }), ..task(name) }
}

pub(crate) fn job(tasks: impl IntoIterator<Item = TaskSpec>) -> JobSpec {
    JobSpec {
        name: "test".to_owned(),
        queue: "default".to_owned(),
        tasks: tasks.into_iter().map(Arc::new).collect(),
        ..JobSpec::default()
    }
}

impl Kit {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Now { wall: Timestamp(1_000_000_000), mono: Mono(1_000_000) };
        let cluster = Cluster::new(config.clone());
        Self { cluster, now, effects: Vec::new(), store: BTreeMap::new(), config, sessions: 0, seq: 0 }
    }

    pub(crate) fn try_event(&mut self, event: Event) -> Result<Answer, Refusal> {
        let (step, answer) = self.cluster.handle(self.now, event);
        for key in step.changes {
            match self.cluster.piece(&key) {
                Some(piece) => self.store.insert(key, piece),
                None => self.store.remove(&key),
            };
        }
        self.effects.extend(step.effects);
        assert_eq!(check(&self.cluster, self.now), Vec::<String>::new());
        answer
    }

    pub(crate) fn event(&mut self, event: Event) -> Answer {
        self.try_event(event).expect("the event is accepted")
    }

    pub(crate) fn pass(&mut self, duration: Duration) {
        self.now.wall = self.now.wall.after(duration);
        self.now.mono = self.now.mono.after(duration);
        self.event(Event::Tick);
    }

    pub(crate) fn submission(spec: JobSpec) -> Submission {
        Submission { spec: Arc::new(spec), key: Arc::from(""), by: Arc::from("me"), trace_parent: Arc::from("") }
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> JobId {
        match self.event(Event::Submit(Self::submission(spec))) {
            Answer::Submitted { job, .. } => job,
            other => panic!("a submission is answered with {other:?}"),
        }
    }

    pub(crate) fn attach(&mut self, uid: &str, capacity: Request, holding: &[Token]) -> (Host, Vec<Token>) {
        self.try_attach(uid, capacity, holding).expect("it is taken in")
    }

    pub(crate) fn try_attach(
        &mut self,
        uid: &str,
        capacity: Request,
        holding: &[Token],
    ) -> Result<(Host, Vec<Token>), Refusal> {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let offer = Offer { name: uid.to_owned(), os: "linux".to_owned(), capacity, ..Offer::default() };
        let event = Event::Attach { uid: Arc::from(uid), offer, session, holding: holding.to_vec() };
        match self.try_event(event)? {
            Answer::Attached { agent, drop } => Ok((Host { agent, session }, drop)),
            other => panic!("an attachment is answered with {other:?}"),
        }
    }

    pub(crate) fn host(&mut self, n: u64) -> Host {
        self.attach("one", cpus(n), &[]).0
    }

    /// A round, and the leases that it gave.
    pub(crate) fn round(&mut self) -> Vec<Lease> {
        self.event(Event::Round);
        self.leases()
    }

    pub(crate) fn leases(&mut self) -> Vec<Lease> {
        let (leases, rest) =
            std::mem::take(&mut self.effects).into_iter().partition(|effect| matches!(effect, Effect::Lease { .. }));
        self.effects = rest;
        leases
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Lease { lease, .. } => Some(lease),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn report(&mut self, host: Host, token: Token, task: TaskId, what: What) -> Result<Answer, Refusal> {
        self.seq += 1;
        let report = Report { seq: self.seq, token, task, what };
        self.try_event(Event::Report { agent: host.agent, session: host.session, report })
    }

    pub(crate) fn end(&mut self, host: Host, lease: &Lease, end: End) {
        self.end_with(host, lease, end, None);
    }

    pub(crate) fn end_with(&mut self, host: Host, lease: &Lease, end: End, result: Option<TaskResult>) {
        let what =
            What::Ended { end, why: None, started: self.now.wall, ended: self.now.wall.after(MS), result, usage: None };
        self.report(host, lease.token, lease.task, what).expect("the report is taken");
    }

    pub(crate) fn state(&self, job: JobId, index: u32) -> State {
        let explanation = self.cluster.explain(self.now, Target::Tasks { job, first: index, count: 1 });
        explanation.expect("the task exists").answers[0].state
    }

    pub(crate) fn codes(&self, job: JobId, index: u32) -> Vec<&'static str> {
        let explanation = self.cluster.explain(self.now, Target::Tasks { job, first: index, count: 1 });
        explanation.expect("the task exists").answers[0].reasons.iter().map(|reason| reason.code).collect()
    }

    pub(crate) fn states(&self, job: JobId) -> Vec<State> {
        let total = self.cluster.summary(job).expect("the job exists").tally.total();
        (0..total).map(|index| self.state(job, index)).collect()
    }

    pub(crate) fn job_state(&self, job: JobId) -> &'static str {
        self.cluster.summary(job).expect("the job exists").state.as_str()
    }

    pub(crate) fn cancel(&mut self, target: Target) -> Answer {
        self.event(Event::Cancel { target, by: Arc::from("me"), reason: Arc::from("why not"), teardown_too: false })
    }

    pub(crate) fn retry(&mut self, job: JobId, which: Which) -> Answer {
        self.event(Event::Retry { target: Target::Job(job), which })
    }

    /// The controller dies and another takes up what was committed.
    pub(crate) fn restart(&mut self) {
        let pieces: Vec<_> = self.store.clone().into_iter().collect();
        let (cluster, step) = Cluster::recover(self.config.clone(), pieces, self.now).expect("the store is whole");
        assert_eq!(step.effects, Vec::new());
        self.cluster = cluster;
        self.effects.clear();
        assert_eq!(check(&self.cluster, self.now), Vec::<String>::new());
    }

    /// Leases and ends everything that can run, in order, until nothing is left. Returns task indices.
    pub(crate) fn run_all(&mut self, host: Host) -> Vec<u32> {
        let mut order = Vec::new();
        loop {
            let leases = self.round();
            if leases.is_empty() {
                return order;
            }
            for lease in leases {
                order.push(lease.task.index);
                self.end(host, &lease, End::Succeeded);
            }
        }
    }
}

pub(crate) const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) agent: AgentId,
    pub(crate) session: SessionId,
}
