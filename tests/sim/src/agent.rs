//! An agent as the daemon is: the real supervisor, a journal that survives it, processes that outlive it
//! for a moment, and a stream that may break at any time.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use muster_agent::{
    exec::{Alive, ExecEvent, KillReason, Order, ProcessIdentity},
    supervisor::{Action, Config, Entry, Memory, Remembered, Supervisor},
};
use muster_core::{
    event::{Report, What},
    id::{SessionId, TaskId, Token},
    resources::Request,
    state::End,
    time::{Mono, Timestamp},
};

use crate::clocks::Clock;

/// A keeper gives a daemon so long to end what it should; less than a controller's margin.
const FENCE: Duration = Duration::from_millis(200);

/// A process that runs.
#[derive(Clone, Debug)]
pub struct Process {
    /// What it runs.
    pub order: Arc<Order>,
    /// When it started.
    pub started: Timestamp,
    /// Why it is being killed, if it is.
    pub killed: Option<KillReason>,
}

/// One machine.
#[derive(Debug)]
pub struct Agent {
    /// Stable over its lives.
    pub uid: Arc<str>,
    /// What it offers.
    pub capacity: Request,
    /// Its machine's.
    pub(crate) clock: Clock,
    /// The daemon; none: it is dead.
    pub daemon: Option<Supervisor>,
    /// Counts its lives, so that what was meant for one does not reach the next.
    pub life: u64,
    /// Its stream.
    pub session: Option<SessionId>,
    /// When the daemon does nothing until then: it was stopped by a signal.
    pub paused_until: u64,
    /// When nothing reaches it until then, over whatever stream: a partition.
    pub cut_until: u64,
    /// What its journal gives back.
    pub journal: Memory,
    /// Its processes.
    pub processes: BTreeMap<Token, Process>,
    /// What its keeper knows of the last renewal, when the daemon died and the keeper did not; none: both are dead, or
    /// neither.
    pub kept: Option<Option<(Mono, Duration)>>,
    /// Ends that the keeper saw and no daemon has written down.
    pub ends: Vec<(Arc<Order>, ExecEvent)>,
    /// What may begin by itself where an attempt ended, and until when.
    pub offers: VecDeque<(Arc<Order>, Mono)>,
}

impl Agent {
    /// A machine whose daemon is not started yet.
    pub(crate) fn new(number: usize, capacity: Request, clock: Clock) -> Self {
        Self {
            uid: Arc::from(format!("agent-{number}")),
            capacity,
            clock,
            daemon: None,
            life: 0,
            session: None,
            paused_until: 0,
            cut_until: 0,
            journal: Memory::default(),
            processes: BTreeMap::new(),
            kept: None,
            ends: Vec::new(),
            offers: VecDeque::new(),
        }
    }

    /// Starts the daemon with what its journal remembers.
    pub fn start(&mut self) {
        self.life += 1;
        self.daemon = Some(Supervisor::new(Config::new(self.capacity.clone()), self.journal.clone()));
    }

    /// The daemon dies where it stands.
    pub fn crash(&mut self) {
        self.life += 1;
        self.daemon = None;
        self.session = None;
        self.offers.clear();
    }

    /// What a keeper has for the next daemon.
    pub fn alive(&self) -> Vec<Alive> {
        let runs = self.processes.values().map(|process| {
            let identity = ProcessIdentity { boot: Arc::from("boot"), pid: 1, start: process.order.token.0, group: 1 };
            Alive { order: Arc::clone(&process.order), process: Some((process.started, identity)) }
        });
        runs.chain(self.ends.iter().map(|(order, _)| Alive { order: Arc::clone(order), process: None })).collect()
    }

    /// Attempts that the keeper must end now, for nobody renewed their leases (A1).
    pub fn late(&self, now: Mono) -> Vec<Token> {
        let Some((from, ttl)) = self.kept.flatten() else { return Vec::new() };
        let is_late = |process: &&Process| {
            process.killed.is_none() && from.after(process.order.spec.goes_on_for(ttl)).after(FENCE) <= now
        };
        self.processes.values().filter(is_late).map(|process| process.order.token).collect()
    }

    /// Takes an offer out that was not begun.
    pub fn take_offer(&mut self, token: Token) -> Option<Arc<Order>> {
        let at = self.offers.iter().position(|(order, _)| order.token == token)?;
        self.offers.remove(at).map(|(order, _)| order)
    }

    /// The oldest offer, if it may begin `now` in the place of `ended`.
    pub fn next_in_place(&mut self, ended: &Order, now: Mono) -> Option<Arc<Order>> {
        let fits = |(next, until): &(Arc<Order>, Mono)| *until > now && next.spec.request == ended.spec.request;
        if self.offers.front().is_some_and(fits) { self.offers.pop_front().map(|(order, _)| order) } else { None }
    }

    /// What running processes take together.
    pub fn taken(&self) -> Request {
        let mut taken = Request::default();
        self.processes.values().for_each(|process| taken.give(&process.order.spec.request));
        taken
    }

    /// Writes one fact into the journal.
    pub fn remember(&mut self, entry: &Entry) {
        let journal = &mut self.journal;
        match entry {
            Entry::Lease(order) => {
                journal.highest = journal.highest.max(order.token);
                journal.leases.push(Remembered {
                    token: order.token,
                    task: order.task,
                    request: order.spec.request.clone(),
                    identity: None,
                    reported: false,
                });
            }
            Entry::Started { token, identity } => {
                if let Some(lease) = journal.leases.iter_mut().find(|lease| lease.token == *token) {
                    lease.identity = Some(identity.clone());
                }
            }
            Entry::Report(report) => self.remember_report(report),
            Entry::Acked { up_to } => journal.reports.retain(|report| report.seq > *up_to),
            Entry::Released { token } => journal.leases.retain(|lease| lease.token != *token),
            Entry::Term(term) => journal.term = *term,
        }
    }

    fn remember_report(&mut self, report: &Report) {
        let journal = &mut self.journal;
        journal.next_seq = journal.next_seq.max(report.seq + 1);
        journal.reports.push(report.clone());
        match &report.what {
            What::Started { .. } => {}
            What::Ended { end: End::KillFailed, .. } => {
                if let Some(lease) = journal.leases.iter_mut().find(|lease| lease.token == report.token) {
                    lease.reported = true;
                }
            }
            What::Ended { .. } | What::Returned { .. } => journal.leases.retain(|lease| lease.token != report.token),
        }
    }
}

/// A process may be killed this long after it was asked to end.
pub fn kill_takes(grace: Duration, roll: u64) -> u64 {
    let grace = u64::try_from(grace.as_micros()).unwrap_or(u64::MAX).min(2_000_000);
    roll % (grace + 50_000)
}

/// The token an action is about, for traces.
pub fn about(action: &Action) -> Option<(Token, Option<TaskId>)> {
    match action {
        Action::Start(order) => Some((order.token, Some(order.task))),
        Action::Offer { order, .. } => Some((order.token, Some(order.task))),
        Action::Claim { token } | Action::Withdraw { token } => Some((*token, None)),
        Action::Kill { token, .. } => Some((*token, None)),
        Action::Send(report) => Some((report.token, Some(report.task))),
        _ => None,
    }
}
