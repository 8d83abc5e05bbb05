//! Leases from their arrival to their end: wait, run, be ended, be reported.

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::What,
    id::{TaskId, Term, Token},
    record::TaskResult,
    spec::{Command, TaskSpec},
    state::End,
    time::{Mono, Now, Timestamp},
    usage::Usage,
};

use super::{Action, Entry, NEVER, Remembered, Supervisor, Unusable, offers::After, text};
use crate::exec::{ExecEvent, KillReason, Order, ProcessIdentity, Swept};

/// SIGKILL.
const KILL: i32 = 9;

/// A lease that is not over.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) order: Arc<Order>,
    pub(super) arrived: Mono,
    pub(super) phase: Phase,
    pub(super) started: Timestamp,
    pub(super) identity: Option<ProcessIdentity>,
    /// No longer ours: nothing is said of it.
    pub(super) dropped: bool,
    /// Its lease ran out, whether or not it was dead by then.
    pub(super) expired: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// For room.
    Waiting,
    /// For room, and exec may begin it by itself.
    Offered,
    /// The offer was taken back; exec has not answered yet.
    Withdrawn(After),
    Running,
    /// Being ended, with at most this grace.
    Ending(Duration),
}

impl Held {
    pub(super) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Offered)
    }

    fn is_started(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Ending(_))
    }

    /// Whether it was started and nobody wants it ended.
    pub(super) fn runs(&self) -> bool {
        self.phase == Phase::Running
    }

    pub(super) fn spec(&self) -> &TaskSpec {
        &self.order.spec
    }

    /// When it is given back if it still waits.
    pub(super) fn until(&self, hold: Duration) -> Mono {
        self.arrived.after(hold)
    }

    pub(super) fn remembered(&self) -> Remembered {
        Remembered {
            token: self.order.token,
            task: self.order.task,
            request: self.order.spec.request.clone(),
            identity: self.identity.clone(),
            reported: false,
        }
    }
}

/// How exec says that an attempt ended.
struct Over {
    end: End,
    why: Option<Arc<str>>,
    started: Timestamp,
    ended: Timestamp,
    result: Option<TaskResult>,
    usage: Option<Usage>,
}

impl Supervisor {
    pub(super) fn leases(
        &mut self,
        now: Now,
        term: Term,
        (orders, unusable): (Vec<Arc<Order>>, Vec<Unusable>),
        actions: &mut Vec<Action>,
    ) {
        if !self.is_attached() || !self.accepts(term, actions) {
            return;
        }
        for order in orders {
            self.accept(now, order, actions);
        }
        for Unusable { token, task, why } in unusable {
            if self.is_new(token) {
                self.highest = self.highest.max(token);
                let what = What::Ended {
                    end: End::NotStarted,
                    why: Some(why),
                    started: NEVER,
                    ended: now.wall,
                    result: None,
                    usage: None,
                };
                self.report(token, task, what, actions);
            }
        }
    }

    fn accept(&mut self, now: Now, order: Arc<Order>, actions: &mut Vec<Action>) {
        let (token, task) = (order.token, order.task);
        if !self.is_new(token) {
            return;
        }
        let request = &order.spec.request;
        let refusal = if token <= self.highest {
            // We may have run it and forgotten it. Its own report then stands; otherwise another may have it.
            Some(format!("lease {token} came after lease {}, so it may be a repetition", self.highest))
        } else if self.stopping.is_some() {
            Some("the agent stops".to_owned())
        } else if !request.fits(self.room.capacity()) {
            let short = request.shortages(self.room.capacity());
            let short: Vec<_> = short.iter().map(|s| format!("{} {} of {}", s.resource, s.wanted, s.there)).collect();
            Some(format!("the agent is too small: {}", short.join(", ")))
        } else {
            None
        };
        self.highest = self.highest.max(token);
        if let Some(why) = refusal {
            return self.report(token, task, What::Returned { why: why.into() }, actions);
        }
        if order.spec.command == Command::Empty {
            // It takes nothing while it runs, so it takes nobody's turn either.
            let what = What::Ended {
                end: End::Succeeded,
                why: None,
                started: now.wall,
                ended: now.wall,
                result: None,
                usage: None,
            };
            return self.report(token, task, what, actions);
        }
        actions.push(Action::Journal(Entry::Lease(order.clone())));
        self.queue.push_back(token);
        let held = Held {
            order,
            arrived: now.mono,
            phase: Phase::Waiting,
            started: NEVER,
            identity: None,
            dropped: false,
            expired: false,
        };
        self.held.insert(token, held);
    }

    /// Whether we do not hold it and have nothing to say of it.
    fn is_new(&self, token: Token) -> bool {
        token > self.highest
            || !(self.held.contains_key(&token)
                || self.orphans.contains_key(&token)
                || self.stuck.contains_key(&token)
                || self.outbox.iter().any(|report| report.token == token))
    }

    /// Strictly in order: a large lease is not starved by small ones behind it.
    pub(super) fn start_what_fits(&mut self, actions: &mut Vec<Action>) {
        while let Some(token) = self.queue.front() {
            if let Some(held) = self.held.get_mut(token)
                && held.waits()
            {
                let request = &held.order.spec.request;
                if !self.room.has(request) {
                    break;
                }
                self.room.take(request);
                actions.push(match held.phase {
                    Phase::Offered => Action::Claim { token: *token },
                    _ => Action::Start(held.order.clone()),
                });
                held.phase = Phase::Running;
            }
            self.queue.pop_front();
        }
    }

    /// What is held under `token`, whether or not it was started.
    pub fn order(&self, token: Token) -> Option<&Order> {
        self.held.get(&token).map(|held| &*held.order)
    }

    /// The first process of an attempt that runs here, and what it was started for.
    pub(super) fn process_of(&self, token: Token) -> Option<(ProcessIdentity, Arc<TaskSpec>)> {
        let held = self.held.get(&token).filter(|held| held.is_started() && !held.dropped)?;
        Some((held.identity.clone()?, Arc::clone(&held.order.spec)))
    }

    pub(super) fn stop(&mut self, now: Now, term: Term, token: Token, actions: &mut Vec<Action>) {
        if !self.is_attached() || !self.accepts(term, actions) {
            return;
        }
        // Unknown: its end is on the way to the controller.
        let Some(held) = self.held.get(&token) else { return };
        let grace = held.order.spec.grace;
        match held.phase {
            Phase::Waiting => self.cancel_unstarted(token, now.wall, actions),
            Phase::Offered => self.withdraw(token, After::Cancel, actions),
            Phase::Running => self.kill(token, KillReason::Cancelled, grace, actions),
            Phase::Withdrawn(_) | Phase::Ending(_) => {}
        }
    }

    /// A lease that is not, or no longer, ours: end it and say nothing. A report that is already
    /// made stays: the controller refuses it by its token, and numbers stay without gaps.
    pub(super) fn drop_lease(&mut self, token: Token, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get_mut(&token) else { return };
        held.dropped = true;
        match held.phase {
            Phase::Waiting => self.drop_unstarted(token, actions),
            Phase::Offered | Phase::Withdrawn(_) => self.withdraw(token, After::Drop, actions),
            Phase::Running | Phase::Ending(_) => {
                let grace = held.order.spec.grace.min(self.config.lost_grace);
                self.kill(token, KillReason::Dropped, grace, actions);
            }
        }
    }

    /// Ends everything: what waits goes back, what runs is killed with its own grace, or at most `limit`.
    pub(super) fn end_all(&mut self, reason: KillReason, limit: Option<Duration>, actions: &mut Vec<Action>) {
        let tokens: Vec<_> = self.held.keys().copied().collect();
        for token in tokens {
            let Some(held) = self.held.get(&token) else { continue };
            match held.phase {
                Phase::Waiting => self.give_back(token, reason.text(), actions),
                Phase::Withdrawn(After::Drop) => {}
                Phase::Offered | Phase::Withdrawn(_) => self.withdraw(token, After::End(reason, limit), actions),
                Phase::Running | Phase::Ending(_) => {
                    let grace = held.order.spec.grace;
                    self.kill(token, reason, limit.map_or(grace, |limit| grace.min(limit)), actions);
                }
            }
        }
    }

    /// Asks exec to end a started attempt; again only with a shorter grace.
    pub(super) fn kill(&mut self, token: Token, reason: KillReason, grace: Duration, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get_mut(&token) else { return };
        held.expired |= reason == KillReason::LeaseExpired;
        let sooner = match held.phase {
            Phase::Waiting | Phase::Offered | Phase::Withdrawn(_) => false,
            Phase::Running => true,
            Phase::Ending(before) => grace < before,
        };
        if sooner {
            held.phase = Phase::Ending(grace);
            actions.push(Action::Kill { token, reason, grace });
        }
    }

    /// Gives back what found no room in time.
    pub(super) fn give_back_what_waits(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some(token) = self.queue.front().copied() {
            let why = "the agent had no room for it in time";
            let held = self.held.get(&token).filter(|held| held.waits());
            match held.map(|held| (held.until(self.config.hold), held.phase == Phase::Offered)) {
                Some((due, _)) if due > now.mono => return,
                Some((_, true)) => self.withdraw(token, After::GiveBack(why), actions),
                Some((_, false)) => self.give_back(token, why, actions),
                None => {}
            }
            self.queue.pop_front();
        }
    }

    /// Gives back all that waits, whatever its time.
    pub(super) fn give_back_all(&mut self, actions: &mut Vec<Action>) {
        let why = "the agent stops";
        for token in self.held.keys().copied().collect::<Vec<_>>() {
            match self.held.get(&token).map(|held| held.phase == Phase::Offered) {
                Some(true) => self.withdraw(token, After::GiveBack(why), actions),
                Some(false) if self.held.get(&token).is_some_and(Held::waits) => self.give_back(token, why, actions),
                _ => {}
            }
        }
    }

    pub(super) fn give_back(&mut self, token: Token, why: &str, actions: &mut Vec<Action>) {
        if let Some(held) = self.held.remove(&token) {
            self.report(token, held.order.task, What::Returned { why: why.into() }, actions);
        }
    }

    /// Reports the start of attempts that last.
    pub(super) fn announce(&mut self, now: Mono, actions: &mut Vec<Action>) {
        while let Some((_, token)) = self.unannounced.front().copied().filter(|(due, _)| *due <= now) {
            self.unannounced.pop_front();
            let Some(held) = self.held.get(&token).filter(|held| !held.dropped) else { continue };
            let what = What::Started { at: held.started };
            self.report(token, held.order.task, what, actions);
        }
    }

    pub(super) fn exec(&mut self, now: Now, event: ExecEvent, actions: &mut Vec<Action>) {
        self.begun_unheard(&event, actions);
        match event {
            ExecEvent::Started { token, at, identity } => {
                let Some(held) = self.held.get_mut(&token).filter(|held| held.is_started()) else { return };
                held.started = at;
                held.identity = Some(identity.clone());
                self.unannounced.push_back((now.mono.after(self.config.announce_after), token));
                actions.push(Action::Journal(Entry::Started { token, identity }));
            }
            ExecEvent::Ended { token, end, why, started, ended, result, usage, next } => {
                self.over(token, Over { end, why, started, ended, result, usage }, actions);
                if let Some(next) = next {
                    self.begun_in_place(next, actions);
                }
            }
            ExecEvent::Withdrawn { token } => self.withdrawn(now, token, actions),
        }
    }

    fn over(&mut self, token: Token, over: Over, actions: &mut Vec<Action>) {
        let Over { end, why, started, ended, result, usage } = over;
        if let Some(lease) = self.stuck.get(&token) {
            // What could not be killed is gone at last.
            if end != End::KillFailed {
                let task = lease.task;
                self.room.free(&lease.request);
                self.stuck.remove(&token);
                actions.push(Action::Journal(Entry::Released { token }));
                // The controller still counts its room as taken.
                self.report(token, task, What::Ended { end, why, started, ended, result: None, usage }, actions);
            }
            return;
        }
        if !self.held.get(&token).is_some_and(Held::is_started) {
            return;
        }
        let Some(held) = self.held.remove(&token) else { return };
        // A1: while we were frozen the guard ended it, and exec could not know why.
        let (end, why) = match end {
            End::Signal(KILL) if held.expired => (End::Lost, text(KillReason::LeaseExpired.text())),
            end => (end, why),
        };
        if !held.dropped {
            let what = What::Ended { end, why, started, ended, result, usage };
            self.report(token, held.order.task, what, actions);
        }
        if end == End::KillFailed {
            // A3: something of it still lives in its slot.
            self.stuck.insert(token, Remembered { reported: true, ..held.remembered() });
            return;
        }
        self.room.free(&held.order.spec.request);
        if held.dropped {
            actions.push(Action::Journal(Entry::Released { token }));
        }
    }

    /// What became of the leases that an earlier instance of this agent held.
    pub(super) fn swept(&mut self, now: Now, swept: Vec<(Token, Swept)>, actions: &mut Vec<Action>) {
        for (token, found) in swept {
            let Some(lease) = self.orphans.remove(&token) else { continue };
            if !lease.reported {
                let lost = |end, why| {
                    let (why, ended) = (text(why), now.wall);
                    What::Ended { end, why, started: NEVER, ended, result: None, usage: None }
                };
                let what = match found {
                    Swept::Dead => lost(End::Lost, "the agent restarted"),
                    Swept::Survives => {
                        lost(End::KillFailed, "the agent restarted and could not end what was left of it")
                    }
                    Swept::Rebooted => lost(End::Lost, "the machine was restarted"),
                    Swept::NeverBegun => What::Returned { why: "the agent restarted before it was begun".into() },
                };
                self.report(token, lease.task, what, actions);
            }
            match found {
                Swept::Survives => {
                    self.room.take(&lease.request);
                    self.stuck.insert(token, Remembered { reported: true, ..lease });
                }
                Swept::Dead | Swept::Rebooted | Swept::NeverBegun if lease.reported => {
                    actions.push(Action::Journal(Entry::Released { token }));
                }
                Swept::Dead | Swept::Rebooted | Swept::NeverBegun => {}
            }
        }
    }

    /// Makes a report: kept, journaled, and sent as soon as there is somebody to send it to.
    pub(super) fn report(&mut self, token: Token, task: TaskId, what: What, actions: &mut Vec<Action>) {
        let report = self.outbox.push(token, task, what);
        actions.push(Action::Journal(Entry::Report(report.clone())));
        if self.is_attached() {
            actions.push(Action::Send(report));
        }
    }
}
