//! The loop: wait, decide about all that came, start a commit, and again.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_common::telemetry;
use muster_core::{
    cluster::Cluster,
    event::{Answer, Effect, Event, Step},
    gate::Gate,
    id::{JobId, Term},
    time::Now,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Span, field};

use crate::{
    engine::{
        Ended, Error, Parts,
        alarm::Alarm,
        commit::{Held, InFlight, release},
        handle::{Message, Reply, Shared},
        reload::Taken,
    },
    store::Outcome,
};

/// Messages that are decided about in one turn. Enough to make a commit worth its while, few enough
/// that a finished commit waits no more than a millisecond for its turn.
pub(super) const TURN: usize = 256;

/// At the end, a commit that takes longer than this is left to itself.
const LAST_COMMIT_WITHIN: Duration = Duration::from_secs(30);

/// The one owner and writer of all state.
pub struct Engine {
    pub(super) parts: Parts,
    pub(super) cluster: Cluster,
    pub(super) gate: Gate<Held>,
    /// Jobs whose counts changed since the last commit began.
    pub(super) jobs: BTreeSet<JobId>,
    pub(super) term: Term,
    pub(super) in_flight: Option<InFlight>,
    pub(super) inbox: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
    /// What need not wait for a commit, for the end of the turn.
    at_once: Vec<Effect>,
    /// Something happened since the last round that may have made room or work.
    wants_round: bool,
}

enum Woken {
    Commit(Outcome),
    Alarm,
    Inbox(usize),
    Stop,
}

impl Engine {
    pub(super) fn new(parts: Parts, shared: Arc<Shared>, inbox: mpsc::Receiver<Message>, taken: Taken) -> Self {
        let Taken { term, cluster, step } = taken;
        shared.term.store(term.0, Ordering::Relaxed);
        let mut engine = Self {
            parts,
            cluster,
            gate: Gate::default(),
            jobs: BTreeSet::new(),
            term,
            in_flight: None,
            inbox,
            shared,
            at_once: Vec::new(),
            wants_round: true,
        };
        engine.absorb(step);
        engine
    }

    /// Runs until it is cancelled, fenced off, or cannot go on. To be spawned once.
    pub async fn run(mut self, cancel: CancellationToken) -> Ended {
        let mut messages = Vec::with_capacity(TURN);
        let mut alarm = Alarm::new();
        loop {
            // A process that was stopped and goes on may have been replaced meanwhile: nothing leaves it (L1, C2).
            if !self.parts.store.holds() {
                return self.fenced();
            }
            let now = self.parts.clock.now();
            self.end_turn(now);
            alarm.set(self.cluster.wakeup(), now);
            let woken = tokio::select! {
                // A finished commit first: others wait for it, and the next one waits to begin.
                biased;
                () = cancel.cancelled() => Woken::Stop,
                outcome = InFlight::outcome(&mut self.in_flight) => Woken::Commit(outcome),
                () = alarm.rings() => Woken::Alarm,
                count = self.inbox.recv_many(&mut messages, TURN) => Woken::Inbox(count),
            };
            match woken {
                Woken::Stop | Woken::Inbox(0) => return self.stop().await,
                Woken::Commit(Outcome::Committed) => self.confirmed(),
                Woken::Commit(Outcome::Fenced) => return self.fenced(),
                Woken::Commit(Outcome::Unknown(why)) => {
                    if let Err(ended) = self.reload(&why, &cancel).await {
                        return ended;
                    }
                }
                Woken::Alarm => {
                    let now = self.parts.clock.now();
                    self.decide(now, Event::Tick, None);
                }
                Woken::Inbox(_) => {
                    let now = self.parts.clock.now();
                    for message in messages.drain(..) {
                        self.take(now, message);
                    }
                }
            }
        }
    }

    fn take(&mut self, now: Now, message: Message) {
        // A caller that went away wants no answer.
        match message {
            Message::Ask(event, reply) => self.decide(now, event, Some(reply)),
            Message::Tell(event) => self.decide(now, event, None),
            Message::TellAll(events) => {
                for event in events {
                    self.decide(now, event, None);
                }
            }
            Message::Explain(target, reply) => _ = reply.send(self.cluster.explain(now, target).map_err(Error::from)),
            Message::Agents(reply) => _ = reply.send(Ok(self.cluster.agents())),
            Message::Fleet(query, reply) => _ = reply.send(Ok(self.cluster.fleet(&query))),
            Message::Queues(reply) => _ = reply.send(Ok(self.cluster.queues())),
            Message::Turn(reply) => _ = reply.send(Ok(())),
        }
    }

    fn decide(&mut self, now: Now, event: Event, reply: Option<Reply<Answer>>) {
        self.wants_round |= !matches!(event, Event::Heartbeat { .. });
        let span = span_of(&event);
        if let Some(submission) = event.submission()
            && !self.cluster.is_repeated(submission)
            && let Some(why) = self.parts.store.gauge().is_full()
        {
            // Nobody waits for it, or it is told at once: nothing was changed.
            _ = reply.map(|reply| reply.send(Err(Error::Full(why))));
            return;
        }
        let (step, answer) = self.cluster.handle(now, event);
        self.absorb(step);
        let Some(reply) = reply else {
            if let Err(refusal) = answer {
                tracing::debug!(%refusal, "refused");
            }
            return;
        };
        if let Ok(Answer::Submitted { job, .. }) = &answer {
            span.record("job", job.0);
        }
        // A refusal waits too: it may rest on something that is not committed.
        self.hold(Held::Answer(reply, answer.map_err(Error::from), span));
    }

    fn absorb(&mut self, step: Step) {
        self.gate.changed(step.changes);
        self.jobs.extend(step.jobs);
        if step.effects.is_empty() {
            return;
        }
        if step.effects.iter().all(Effect::waits_for_commit) {
            return self.hold(Held::Effects(step.effects));
        }
        let (wait, now): (Vec<_>, Vec<_>) = step.effects.into_iter().partition(Effect::waits_for_commit);
        self.at_once.extend(now);
        if !wait.is_empty() {
            self.hold(Held::Effects(wait));
        }
    }

    fn hold(&mut self, held: Held) {
        if let Some(free) = self.gate.hold(held) {
            release(free, &mut self.at_once);
        }
    }

    fn end_turn(&mut self, now: Now) {
        if std::mem::take(&mut self.wants_round) && self.cluster.has_ready_work() {
            let (step, _done) = self.cluster.handle(now, Event::Round);
            self.absorb(step);
        }
        self.begin_commit();
        if !self.at_once.is_empty() {
            self.parts.sessions.deliver(std::mem::take(&mut self.at_once));
        }
    }

    /// Takes up what was loaded anew.
    pub(super) fn adopt(&mut self, taken: Taken) {
        let Taken { term, cluster, step } = taken;
        self.term = term;
        self.shared.term.store(term.0, Ordering::Relaxed);
        self.cluster = cluster;
        self.absorb(step);
        self.wants_round = true;
    }

    pub(super) fn drop_memory(&mut self, why: &str) {
        self.refuse_held(why);
        self.jobs.clear();
        self.at_once.clear();
        self.parts.sessions.close_all();
    }

    fn fenced(&mut self) -> Ended {
        self.drop_memory("another controller leads");
        Ended::Fenced
    }

    /// Commits all that was decided and decides no more; what still waits in the inbox was not
    /// looked at, and its callers are told so when it is dropped.
    async fn stop(mut self) -> Ended {
        self.inbox.close();
        loop {
            if self.in_flight.is_none() {
                self.begin_commit();
            }
            if self.in_flight.is_none() {
                return Ended::Stopped;
            }
            match timeout(LAST_COMMIT_WITHIN, InFlight::outcome(&mut self.in_flight)).await {
                Ok(Outcome::Committed) => self.confirmed(),
                Ok(Outcome::Fenced) => return self.fenced(),
                Ok(Outcome::Unknown(why)) => {
                    tracing::warn!(why, "the outcome of the last commit is unknown");
                    self.drop_memory("the controller is stopping");
                    return Ended::Stopped;
                }
                Err(_) => {
                    tracing::warn!("the last commit takes too long and is left alone");
                    self.drop_memory("the controller is stopping");
                    return Ended::Stopped;
                }
            }
        }
    }
}

/// One span for each submission, part of the submitter's trace; none for anything else.
fn span_of(event: &Event) -> Span {
    let Some(submission) = event.submission() else { return Span::none() };
    let span = tracing::info_span!("accept", job = field::Empty, name = submission.spec.name, by = &*submission.by);
    telemetry::set_parent(&span, &submission.trace_parent);
    span
}
