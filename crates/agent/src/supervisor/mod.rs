//! Decides everything an agent does: one function from what happened to what must be done.
//!
//! Pure: no clock, no runtime, no I/O, no randomness. The daemon and the simulation drive the same
//! code. It must never free a slot before exec says that nothing of the attempt is left (A3), never
//! drop a report that is not acknowledged (A2), and never keep an attempt running past its lease (A1).

mod adopt;
mod alone;
#[cfg(test)]
mod frozen;
mod leases;
mod message;
mod offers;
mod outbox;
#[cfg(test)]
mod properties;
mod room;
mod session;
#[cfg(test)]
mod stopping;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use muster_core::{
    id::{Term, Token},
    resources::Request,
    time::{Mono, Now, Timestamp},
};

pub use self::message::{Action, Entry, Input, Memory, Remembered, Unusable, Visit, Welcome};
use self::{leases::Held, outbox::Outbox, room::Room, session::Link};
use crate::exec::{KillReason, Leftover};

/// What the supervisor is set to.
#[derive(Clone, Debug)]
pub struct Config {
    /// All that attempts may take together.
    pub capacity: Request,
    /// A lease that found no room for this long is given back, so that another agent may have it.
    pub hold: Duration,
    /// Attempts shorter than this are reported once, at their end.
    pub announce_after: Duration,
    /// The longest grace of an attempt whose lease is lost: it must be dead before another agent
    /// gets it, and the controller's margin for that is a few seconds (A1).
    pub lost_grace: Duration,
    /// How many leases that wait exec may begin by itself ([`Action::Offer`]): more than end between two looks of ours,
    /// fewer than are sent ahead; 0: none.
    pub offers: usize,
    /// How long what runs may go on after a request to stop, as on a drained agent; zero: it is ended at once.
    pub drain: Duration,
    /// How long a stopping agent with nothing left to end waits for its reports to be acknowledged.
    pub farewell: Duration,
}

impl Config {
    /// The settings of a daemon with this capacity.
    pub fn new(capacity: Request) -> Self {
        Self {
            capacity,
            hold: Duration::from_secs(1),
            announce_after: Duration::from_millis(250),
            lost_grace: Duration::from_secs(1),
            offers: 16,
            drain: Duration::ZERO,
            farewell: Duration::from_secs(3),
        }
    }
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    /// Nothing new is taken, and what runs may go on until then.
    Draining(Mono),
    /// Attempts are being ended.
    Ending,
    /// Nothing runs; reports may go until then.
    Farewell(Mono),
    /// All is over.
    Stopped,
}

/// The state of an agent.
#[derive(Debug)]
pub struct Supervisor {
    config: Config,
    room: Room,
    /// Leases that are not over.
    held: BTreeMap<Token, Held>,
    /// Those that wait for room, oldest first; entries of leases that no longer wait are skipped.
    queue: VecDeque<Token>,
    /// How many of them were on offer when last looked.
    offered: usize,
    /// Slots that something unkillable still holds (A3).
    stuck: BTreeMap<Token, Remembered>,
    /// Leases of an earlier instance that are not swept yet.
    orphans: BTreeMap<Token, Remembered>,
    /// Attempts whose start is to be reported if they last, by when.
    unannounced: VecDeque<(Mono, Token)>,
    outbox: Outbox,
    link: Link,
    /// When leases were last renewed, and for how long that holds; none: not since the last expiry.
    renewed: Option<(Mono, Duration)>,
    /// When leases that ran out since were renewed last; some attempts may go on without.
    away: Option<Mono>,
    term: Term,
    highest: Token,
    stopping: Option<Stopping>,
}

impl Supervisor {
    /// An agent that remembers `memory`; its leases are to be swept ([`Input::Swept`]) before it connects.
    pub fn new(config: Config, memory: Memory) -> Self {
        Self {
            room: Room::new(config.capacity.clone()),
            config,
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            offered: 0,
            stuck: BTreeMap::new(),
            orphans: memory.leases.into_iter().map(|lease| (lease.token, lease)).collect(),
            unannounced: VecDeque::new(),
            outbox: Outbox::new(memory.next_seq, memory.reports),
            link: Link::Detached,
            renewed: None,
            away: None,
            term: memory.term,
            highest: memory.highest,
            stopping: None,
        }
    }

    /// Takes one input in at `now`; what must be done is appended to `actions`, in order.
    pub fn handle(&mut self, now: Now, input: Input, actions: &mut Vec<Action>) {
        if self.stopping == Some(Stopping::Stopped) {
            return;
        }
        // A1: before all else. After a pause of the whole process the first thing to be read may
        // well be an end that would make room for a lease that is long lost.
        self.expire(now, actions);
        match input {
            Input::Adopted { alive, renewed } => self.adopt(now, alive, renewed, actions),
            Input::Swept(swept) => self.swept(now, swept, actions),
            Input::Connected => self.connected(now, actions),
            Input::Welcome(welcome) => self.welcome(now, welcome, actions),
            Input::Leases { term, orders, unusable } => self.leases(now, term, (orders, unusable), actions),
            Input::Stop { term, token } => self.stop(now, term, token, actions),
            Input::ReportsAcked { up_to } => {
                if self.outbox.acknowledge(up_to) {
                    actions.push(Action::Journal(Entry::Acked { up_to }));
                }
            }
            Input::HeartbeatAcked { term, stamp } => self.heartbeat_acked(term, stamp, actions),
            Input::Visit(visit) => {
                let process = self.process_of(visit.token);
                actions.push(Action::Visit { visit, process });
            }
            Input::Disconnected => self.link = Link::Detached,
            Input::Exec(event) => self.exec(now, event, actions),
            Input::Capacity(capacity) => self.room.set_capacity(capacity),
            Input::Tick => self.tick(now, actions),
            Input::Shutdown => self.shutdown(now, actions),
        }
        self.start_what_fits(actions);
        self.tidy();
        self.offer(actions);
        self.finish_stop(now, actions);
    }

    /// When [`Input::Tick`] is next of use; none: not before something else happens.
    pub fn wakeup(&self) -> Option<Mono> {
        let hold = self.queue.front().and_then(|token| self.held.get(token)).map(|held| held.until(self.config.hold));
        let announce = self.unannounced.front().map(|(due, _)| *due);
        let expiry = self.renewed.filter(|_| !self.held.is_empty()).map(|(from, ttl)| from.after(ttl));
        let kept = self.kept_until();
        let farewell = match self.stopping {
            Some(Stopping::Draining(until) | Stopping::Farewell(until)) => Some(until),
            None | Some(Stopping::Ending | Stopping::Stopped) => None,
        };
        [hold, announce, expiry, kept, farewell, self.link.wakeup(), self.silence_ends()].into_iter().flatten().min()
    }

    /// When our leases were last renewed, and for how long that holds for attempts that may not go on without; none:
    /// nothing is held by a lease.
    pub fn hold(&self) -> Option<(Mono, Duration)> {
        self.renewed.or(self.away.map(|from| (from, Duration::ZERO)))
    }

    /// What an earlier instance left and exec is to sweep.
    pub fn leftovers(&self) -> Vec<Leftover> {
        let leftover =
            |lease: &Remembered| Leftover { token: lease.token, task: lease.task, identity: lease.identity.clone() };
        self.orphans.values().map(leftover).collect()
    }

    /// All that must not be forgotten, for a fresh journal.
    pub fn memory(&self) -> Memory {
        let held = self.held.values().map(Held::remembered);
        let others = self.stuck.values().chain(self.orphans.values()).cloned();
        let mut leases: Vec<_> = held.chain(others).collect();
        leases.sort_unstable_by_key(|lease| lease.token);
        Memory {
            term: self.term,
            highest: self.highest,
            next_seq: self.outbox.next_seq(),
            leases,
            reports: self.outbox.iter().cloned().collect(),
        }
    }

    /// What attempts take now, and what survived them.
    pub fn taken(&self) -> &Request {
        self.room.taken()
    }

    /// How long what is held may take to end at most, once it is told to.
    pub fn longest_grace(&self) -> Duration {
        self.held.values().map(|held| held.spec().grace).max().unwrap_or_default()
    }

    /// Leases that are not over.
    pub fn holding(&self) -> usize {
        self.held.len()
    }

    /// About how many leases wait here for room: those sent ahead.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How many leases exec may begin by itself, about: while there are some, no end of an attempt waits for us.
    pub fn offered(&self) -> usize {
        self.offered
    }

    /// Whether the controller took us in over the present stream.
    pub fn is_attached(&self) -> bool {
        matches!(self.link, Link::Attached { .. })
    }

    fn tick(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.heartbeat(now.mono, actions);
        self.give_back_what_waits(now, actions);
        self.announce(now.mono, actions);
        if matches!(self.stopping, Some(Stopping::Draining(until)) if until <= now.mono) {
            self.stopping = Some(Stopping::Ending);
            self.end_all(KillReason::Shutdown, None, actions);
        }
    }

    /// Gives back what waits, and kills what runs: at once, or when the time that it has for that is over. Who asks
    /// again waits for nothing.
    fn shutdown(&mut self, now: Now, actions: &mut Vec<Action>) {
        let again = self.stopping.is_some();
        if !again && self.is_attached() {
            actions.push(Action::Draining);
        }
        if !again && !self.config.drain.is_zero() {
            self.stopping = Some(Stopping::Draining(now.mono.after(self.config.drain)));
            return self.give_back_all(actions);
        }
        self.stopping = Some(Stopping::Ending);
        let grace = if again { Some(Duration::ZERO) } else { None };
        self.end_all(KillReason::Shutdown, grace, actions);
    }

    fn finish_stop(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(stopping) = self.stopping else { return };
        if !(self.held.is_empty() && self.orphans.is_empty()) {
            return;
        }
        let until = match stopping {
            Stopping::Draining(_) | Stopping::Ending => now.mono.after(self.config.farewell),
            Stopping::Farewell(until) => until,
            Stopping::Stopped => return,
        };
        self.stopping = Some(Stopping::Farewell(until));
        if self.outbox.is_empty() && self.is_attached() {
            actions.push(Action::Goodbye);
        } else if now.mono < until {
            return;
        }
        self.stopping = Some(Stopping::Stopped);
        actions.push(Action::Stopped);
    }

    /// Drops the entries at the front of both queues whose lease is over, so that nobody wakes for them.
    fn tidy(&mut self) {
        let held = &self.held;
        while self.queue.front().is_some_and(|token| !held.get(token).is_some_and(Held::waits)) {
            self.queue.pop_front();
        }
        while self.unannounced.front().is_some_and(|(_, token)| !held.contains_key(token)) {
            self.unannounced.pop_front();
        }
    }
}

/// A reason as reports carry it.
fn text(why: &str) -> Option<Arc<str>> {
    Some(Arc::from(why))
}

/// A report's `started` when nothing was started.
const NEVER: Timestamp = Timestamp(0);
