//! The agent's one loop: wait, tell the supervisor what happened, do what it says.

use std::{sync::Arc, time::Duration};

use muster_common::{
    clock::Clock,
    proto::{
        OLDEST_PROTOCOL, PROTOCOL,
        v1::{self, agent_up::Message},
    },
    wire::link::offer_to_proto,
};
use muster_core::{id::Token, record::Offer, time::Mono};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{Processes, Pulse, telling::Telling, upstream::Upstream};
use crate::{
    exec::ExecEvent,
    host,
    journal::Journal,
    link::{self, Up},
    supervisor::{Action, Input, Supervisor},
    visits::Visits,
};

/// Events taken in at most before anything is done about them: one journal write and one message for all.
const BURST: usize = 1024;
/// While so many leases can begin without us, ends of attempts are read together, [`READ_EVERY`] so often.
const OFFERED_ENOUGH: usize = 8;
/// Far less than the offers last, far more than one end costs.
const READ_EVERY: Duration = Duration::from_millis(2);
/// Between two tries to begin a new journal segment after one that failed.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);
/// When nothing else is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Where events come from.
#[derive(Debug)]
pub struct Sources {
    /// The link's events.
    pub link: mpsc::Receiver<link::Event>,
    /// What became of attempts.
    pub exec: mpsc::Receiver<ExecEvent>,
    /// Each message is one request to stop.
    pub stops: mpsc::Receiver<Stop>,
    /// What was seen of the machine.
    pub machine: mpsc::Receiver<host::News>,
}

/// How an agent is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What runs is ended with its grace, and reported; asked again, without grace.
    End,
    /// What runs is left to the keeper, for the agent that comes next: for as long as its leases hold. With nothing to
    /// leave, or nobody to leave it to, everything is ended.
    Leave,
}

/// How the loop ended.
pub struct Done {
    /// The stream, open until this is dropped.
    pub up: Option<Up>,
    /// Attempts were left to the keeper.
    pub left: bool,
}

/// What one wait gave.
enum News {
    Link(Option<link::Event>),
    Exec(Option<ExecEvent>),
    Machine(host::News),
    /// Somebody asked, or whoever could ask is gone.
    Stop(Option<Stop>),
    /// Time passed, or there is room in the stream.
    Nothing,
}

/// The loop's own state.
pub struct Agent<P> {
    clock: Clock,
    uid: Arc<str>,
    offer: Offer,
    supervisor: Supervisor,
    journal: Journal,
    processes: P,
    upstream: Upstream,
    actions: Vec<Action>,
    /// Attempts that ended and of which the journal does not know yet.
    ended: Vec<Token>,
    telling: Telling,
    /// How the machine is, to be said with the next heartbeat.
    load: Option<v1::Load>,
    /// When to try again to make the journal good; it is broken until then.
    broken: Option<Mono>,
    /// Nobody is left who could ask us to stop.
    abandoned: bool,
    stopped: bool,
    pulse: Pulse,
    visits: Option<Visits>,
    left: bool,
}

impl<P: Processes> Agent<P> {
    /// An agent of this name and folder that offers this, with what runs its attempts.
    pub fn new(
        clock: Clock,
        (uid, offer): (Arc<str>, Offer),
        supervisor: Supervisor,
        journal: Journal,
        processes: P,
    ) -> Self {
        let broken = (!journal.is_clean()).then(|| clock.mono());
        Self {
            clock,
            uid,
            offer,
            supervisor,
            journal,
            processes,
            upstream: Upstream::default(),
            actions: Vec::new(),
            ended: Vec::new(),
            telling: Telling::default(),
            load: None,
            broken,
            abandoned: false,
            stopped: false,
            pulse: Pulse::default(),
            visits: None,
            left: false,
        }
    }

    /// The same, watched.
    #[must_use]
    pub fn watched(self, pulse: Pulse) -> Self {
        Self { pulse, ..self }
    }

    /// The same, with commands beside attempts.
    #[must_use]
    pub(crate) fn visited(self, visits: Visits) -> Self {
        Self { visits: Some(visits), ..self }
    }

    /// Begins with what was decided before it ran.
    #[must_use]
    pub fn with(mut self, actions: Vec<Action>) -> Self {
        self.actions = actions;
        self
    }

    /// Runs until a stop is complete. The stream stays open until what comes back is dropped.
    pub async fn run(mut self, mut sources: Sources) -> Done {
        while !self.stopped {
            let news = self.wait(&mut sources).await;
            self.take(news);
            self.take_what_is_ready(&mut sources);
            self.tick_if_due();
            self.act();
            self.pulse.turn(self.supervisor.is_attached(), self.supervisor.holding());
        }
        Done { up: self.upstream.into_stream(), left: self.left }
    }

    /// Cancel safe in every branch: no event is lost when another one comes first.
    async fn wait(&self, sources: &mut Sources) -> News {
        let unhurried = !self.processes.gathers() && self.supervisor.offered() >= OFFERED_ENOUGH;
        let pause = if unhurried { self.pause().min(READ_EVERY) } else { self.pause() };
        tokio::select! {
            event = sources.link.recv() => News::Link(event),
            event = sources.exec.recv(), if !unhurried => News::Exec(event),
            stop = sources.stops.recv(), if !self.abandoned => News::Stop(stop),
            Some(news) = sources.machine.recv() => News::Machine(news),
            () = self.upstream.room(self.supervisor.is_attached()) => News::Nothing,
            () = tokio::time::sleep(pause) => News::Nothing,
        }
    }

    fn pause(&self) -> Duration {
        let now = self.clock.mono();
        let due = self.supervisor.wakeup().into_iter().chain(self.broken).chain(self.upstream.due()).min();
        due.map_or(IDLE, |due| due.since(now)).min(self.pulse.every())
    }

    fn take(&mut self, news: News) {
        match news {
            News::Link(Some(event)) => self.link(event),
            News::Exec(Some(event)) => self.exec(event),
            News::Stop(Some(Stop::Leave)) if self.processes.outlive_us() && self.supervisor.holding() > 0 => {
                info!(
                    attempts = self.supervisor.holding(),
                    "leaving; what runs goes on for as long as its leases hold"
                );
                (self.stopped, self.left) = (true, true);
            }
            News::Machine(news) => self.machine(news),
            News::Stop(asked) => {
                // Whoever could stop us is gone: nobody wants us any more.
                self.abandoned |= asked.is_none();
                self.handle(Input::Shutdown);
                self.pulse.ends(self.supervisor.longest_grace());
            }
            // Link and exec end only when the runtime does; nothing can be done without them.
            News::Link(None) | News::Exec(None) => self.stopped = true,
            News::Nothing => {}
        }
    }

    /// Under load many events are there at once; they cost one write and one message together.
    fn take_what_is_ready(&mut self, sources: &mut Sources) {
        for _ in 0..BURST {
            if let Ok(event) = sources.exec.try_recv() {
                self.exec(event);
            } else if let Ok(event) = sources.link.try_recv() {
                self.link(event);
            } else {
                return;
            }
        }
    }

    fn exec(&mut self, event: ExecEvent) {
        if let ExecEvent::Ended { token, .. } = &event {
            self.ended.push(*token);
        }
        self.telling.hear(&event, &self.supervisor);
        self.handle(Input::Exec(event));
    }

    fn link(&mut self, event: link::Event) {
        match event {
            link::Event::Opened(up) => {
                self.upstream.open(up);
                self.handle(Input::Connected);
                // A hello belongs to its stream: it is sent before there can be another one.
                self.act();
            }
            link::Event::Input(input) => {
                if let Input::HeartbeatAcked { stamp, .. } = &input {
                    let took = self.clock.mono().since(*stamp);
                    debug!(took_us = took.as_micros(), "a heartbeat was answered");
                }
                self.handle(input);
            }
            link::Event::Closed => {
                self.upstream.close();
                self.handle(Input::Disconnected);
                self.act();
            }
        }
    }

    fn machine(&mut self, news: host::News) {
        match news {
            host::News::Load(load) => self.load = Some(load),
            host::News::Offer(offer, gpus) => {
                self.processes.offer_gpus(&gpus);
                self.handle(Input::Capacity(offer.capacity.clone()));
                self.offer = *offer;
                self.upstream.offer_changed();
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.supervisor.handle(self.clock.now(), input, &mut self.actions);
    }

    fn tick_if_due(&mut self) {
        if self.supervisor.wakeup().is_some_and(|due| due <= self.clock.mono()) {
            self.handle(Input::Tick);
        }
    }

    /// Does what was decided: first all that must be remembered (A2), then the rest in its order.
    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        self.telling.tell(&actions, &self.supervisor);
        for action in &actions {
            if let Action::Journal(entry) = action {
                self.journal.add(entry);
            }
        }
        self.write_journal();
        // A1: before anything more is started under a lease.
        self.processes.hold(self.supervisor.hold());
        for action in actions.drain(..) {
            self.do_one(action);
        }
        self.actions = actions;
        // While the journal cannot be written, what ran elsewhere is remembered there.
        if self.broken.is_none() && !self.ended.is_empty() {
            self.processes.forget(std::mem::take(&mut self.ended));
        }
        self.processes.flush();
        let (is_attached, waiting) = (self.supervisor.is_attached(), self.supervisor.waiting());
        self.upstream.flush(self.clock.mono(), &self.offer, is_attached, waiting);
    }

    fn do_one(&mut self, action: Action) {
        match action {
            Action::Journal(_) => {}
            Action::Start(order) => self.processes.start(order),
            Action::Offer { order, until } => self.processes.offer(order, until),
            Action::Claim { token } => self.processes.claim(token),
            Action::Withdraw { token } => self.processes.withdraw(token),
            Action::Kill { token, reason, grace } => self.processes.kill(token, reason, grace),
            Action::Visit { visit, process } => {
                if let Some(visits) = &self.visits {
                    visits.begin(visit, process);
                }
            }
            Action::Hello { holding, term } => {
                let hello = v1::Hello {
                    uid: self.uid.to_string(),
                    offer: Some(offer_to_proto(&self.offer)),
                    protocol: PROTOCOL,
                    holding: holding.into_iter().map(|token| token.0).collect(),
                    term: term.0,
                    oldest_protocol: OLDEST_PROTOCOL,
                    terminals: true,
                };
                self.upstream.hello(hello);
            }
            Action::Heartbeat { stamp } => {
                let load = self.load.take();
                self.upstream.send(Message::Heartbeat(v1::Heartbeat { stamp_us: stamp.0, load }));
            }
            Action::Send(report) => self.upstream.report(&report),
            Action::Attached { agent, session } => {
                info!(%agent, %session, "attached to the controller");
                self.upstream.attached(agent);
            }
            Action::Disconnect { why } => {
                warn!(why, "leaving the controller");
                self.upstream.cut();
            }
            Action::Draining => self.upstream.drain(),
            Action::Goodbye => self.upstream.goodbye(),
            Action::Stopped => self.stopped = true,
        }
    }

    /// A journal that cannot be written is made good later; until then the process itself remembers.
    fn write_journal(&mut self) {
        if let Err(error) = self.journal.write() {
            warn!(error = %link::chain(&error), "the journal cannot be written; a restart now would lose track of attempts");
            self.broken = Some(self.clock.mono().after(JOURNAL_RETRY));
        }
        if !self.journal.wants_memory() || self.broken.is_some_and(|due| due > self.clock.mono()) {
            return;
        }
        match self.journal.renew(&self.supervisor.memory()) {
            Ok(()) => {
                if self.broken.take().is_some() {
                    info!("the journal can be written again and is complete");
                }
                self.processes.settled();
            }
            Err(error) => {
                debug!(error = %link::chain(&error), "the journal cannot be renewed yet");
                self.broken = Some(self.clock.mono().after(JOURNAL_RETRY));
            }
        }
    }
}
