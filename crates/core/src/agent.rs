//! One agent as the scheduler sees it: what it holds, what is free, and how far ahead it is kept.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    id::{SessionId, TaskId, Token},
    mutant,
    record::AgentRecord,
    resources::Request,
    spec::TaskSpec,
    time::Mono,
};

/// Work sent ahead should last about this long: a few round trips of a busy controller.
const AHEAD_US: u64 = 50_000;
/// Tasks that take longer than this are not sent ahead: the gap between two of them is nothing.
const AHEAD_TASK_MAX_US: u64 = 1_000_000;
/// No agent is sent more ahead than this.
const AHEAD_MAX: u64 = 512;
/// No agent holds more leases than this, whatever they take; bounds empty tasks.
pub(crate) const HOLDINGS_MAX: usize = 2048;

/// How a lease stands on its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It takes its resources.
    Active,
    /// It waits there for room.
    Ahead,
    /// Its attempt is over but something of it survives; it takes its resources until the agent
    /// no longer names it (A3).
    Stuck,
}

/// An agent that did not answer so many welcomes in a row is not taken in again before it is given up: where only what it
/// says arrives, each hello would keep leases of which it knows that they are over.
const UNHEARD_MAX: u32 = 2;

/// What an attempt asks for: what its entry does, but for memory where earlier ones needed more.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    pub(crate) spec: Arc<TaskSpec>,
    pub(crate) memory: Option<u64>,
}

impl Demand {
    /// What it takes of its agent.
    pub(crate) fn request(&self) -> Cow<'_, Request> {
        match self.memory {
            Some(memory) => Cow::Owned(Request { memory, ..self.spec.request.clone() }),
            None => Cow::Borrowed(&self.spec.request),
        }
    }
}

/// One lease that an agent holds.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub(crate) task: TaskId,
    pub(crate) demand: Demand,
    pub(crate) place: Place,
}

/// Whether and how an agent can take one more lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It can run at once.
    Now,
    /// It can wait there, and will not for long.
    Ahead,
}

/// One agent.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) record: Arc<AgentRecord>,
    pub(crate) session: Option<SessionId>,
    pub(crate) last_seen: Mono,
    /// When it is given up unless it gives a sign; none: it was given up.
    pub(crate) deadline: Option<Mono>,
    pub(crate) holdings: BTreeMap<Token, Holding>,
    /// It is about to stop and takes nothing new.
    pub(crate) draining: bool,
    /// When it was taken in last; none: it has said something since, and so has heard its welcome.
    welcomed: Option<Mono>,
    /// How often in a row it was taken in, had time to answer, and did not.
    unheard: u32,
    /// What tasks may take of it: its offer, and less where a person says so.
    capacity: Request,
    used: Request,
    free: Request,
    /// It gives less than before, and what runs does not fit into that.
    overfull: bool,
    ahead: VecDeque<Token>,
    /// Leases whose resources will not come free by themselves.
    stuck: usize,
    /// A lease came back for want of room: nothing is sent ahead until something ends.
    blocked_ahead: bool,
}

impl Agent {
    pub(crate) fn new(record: Arc<AgentRecord>) -> Self {
        let capacity = record.limits.of(&record.offer.capacity);
        let free = capacity.clone();
        Self {
            record,
            session: None,
            last_seen: Mono(0),
            deadline: None,
            holdings: BTreeMap::new(),
            draining: false,
            welcomed: None,
            unheard: 0,
            capacity,
            used: Request::default(),
            free,
            overfull: false,
            ahead: VecDeque::new(),
            stuck: 0,
            blocked_ahead: false,
        }
    }

    /// What running leases take.
    pub(crate) fn used(&self) -> &Request {
        &self.used
    }

    /// All that tasks may take together.
    pub(crate) fn capacity(&self) -> &Request {
        &self.capacity
    }

    /// Whether it gives less than what runs there takes; nothing new goes there until that fits.
    pub(crate) fn is_overfull(&self) -> bool {
        self.overfull
    }

    /// What is left of the capacity.
    pub(crate) fn free(&self) -> &Request {
        &self.free
    }

    /// Leases that wait there for room.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Leases that take resources.
    pub(crate) fn active(&self) -> usize {
        self.holdings.len() - self.ahead.len()
    }

    /// Until when the last of what may go on there without a word of it is waited for.
    pub(crate) fn kept_until(&self, lease_ttl: Duration, margin: Duration) -> Option<Mono> {
        if self.session.is_some() {
            return None;
        }
        let specs = self.holdings.values().filter(|held| held.place != Place::Stuck).map(|held| &held.demand.spec);
        let longest = specs.map(|spec| spec.goes_on_for(lease_ttl)).filter(|goes_on| *goes_on > lease_ttl).max()?;
        Some(self.last_seen.after(longest + margin))
    }

    /// It connects again. Whether it may be taken in: not if what is sent to it never arrives.
    pub(crate) fn may_greet(&mut self, now: Mono, answers_within: Duration) -> bool {
        if self.welcomed.is_some_and(|welcomed| now.since(welcomed) >= answers_within) {
            self.unheard += 1;
            self.welcomed = None;
        }
        // One that was given up holds nothing that could wait for it.
        self.unheard < UNHEARD_MAX || self.deadline.is_none()
    }

    /// It was taken in.
    pub(crate) fn greeted(&mut self, now: Mono) {
        self.welcomed = Some(now);
    }

    /// Whether nothing shows that it hears us, though there was time for it.
    pub(crate) fn is_deaf(&self) -> bool {
        self.unheard > 0
    }

    /// It was given up: that it is silent needs no other reason.
    pub(crate) fn fell_silent(&mut self) {
        self.welcomed = None;
    }

    /// It said something that shows that it heard us.
    pub(crate) fn heard(&mut self) {
        (self.welcomed, self.unheard) = (None, 0);
    }

    /// Takes up a new description of the machine.
    pub(crate) fn set_record(&mut self, record: Arc<AgentRecord>) {
        self.record = record;
        self.capacity = self.record.limits.of(&self.record.offer.capacity);
        self.refresh();
        self.overfull = !self.used.fits(&self.capacity);
        self.promote();
    }

    /// Whether one more task with this request can go there. `mean_us` is what such tasks take.
    pub(crate) fn room(&self, request: &Request, mean_us: u64) -> Option<Room> {
        if self.draining
            || self.is_cordoned()
            || !self.record.offer.unfit.is_empty()
            || self.overfull
            || self.unheard > 0
            || self.holdings.len() >= HOLDINGS_MAX
        {
            return None;
        }
        // The agent starts leases in the order in which they came, so one that waits blocks all.
        if self.ahead.is_empty() && request.fits(&self.free) {
            return Some(Room::Now);
        }
        let fits_ever = request.fits(&self.capacity);
        (fits_ever && (self.ahead.len() as u64) < self.ahead_limit(mean_us)).then_some(Room::Ahead)
    }

    /// Whether a person wishes that it takes no new work.
    pub(crate) fn is_cordoned(&self) -> bool {
        self.record.cordon.is_some() && !mutant::is_on("cordon-ignored")
    }

    fn ahead_limit(&self, mean_us: u64) -> u64 {
        // It would start them by what it offers, which is more than a person lets it give.
        let limited = !self.record.limits.is_none();
        if limited || self.blocked_ahead || mean_us == 0 || mean_us > AHEAD_TASK_MAX_US {
            return 0;
        }
        let slots = self.active().saturating_sub(self.stuck) as u64;
        if slots == 0 {
            return 0;
        }
        (slots * AHEAD_US / mean_us).clamp(slots.min(AHEAD_MAX), AHEAD_MAX)
    }

    /// Gives a lease to the agent.
    pub(crate) fn hold(&mut self, token: Token, task: TaskId, demand: Demand, room: Room) {
        let place = match room {
            Room::Now => {
                let request = demand.request();
                self.used.give(&request);
                self.free.take(&request);
                Place::Active
            }
            Room::Ahead => {
                self.ahead.push_back(token);
                Place::Ahead
            }
        };
        self.holdings.insert(token, Holding { task, demand, place });
    }

    /// Takes up a lease that only the store knows of. In order of tokens, which is the order in which
    /// the agent starts them.
    pub(crate) fn adopt(&mut self, token: Token, task: TaskId, demand: Demand) {
        let fits = self.ahead.is_empty() && demand.request().fits(&self.free);
        self.hold(token, task, demand, if fits { Room::Now } else { Room::Ahead });
    }

    /// The lease is over: its resources are free, and who waited there may be running now.
    pub(crate) fn drop_holding(&mut self, token: Token) -> Option<Holding> {
        let holding = self.holdings.remove(&token)?;
        match holding.place {
            Place::Active | Place::Stuck => {
                self.stuck -= usize::from(holding.place == Place::Stuck);
                self.used.take(&holding.demand.request());
                self.blocked_ahead = false;
                self.refresh();
            }
            Place::Ahead => self.ahead.retain(|waiting| *waiting != token),
        }
        self.promote();
        Some(holding)
    }

    /// Whether something of that attempt survives.
    pub(crate) fn is_stuck(&self, token: Token, task: TaskId) -> bool {
        self.holdings.get(&token).is_some_and(|holding| holding.task == task && holding.place == Place::Stuck)
    }

    /// The lease is over but its resources are not free.
    pub(crate) fn keep_stuck(&mut self, token: Token) {
        if let Some(holding) = self.holdings.get_mut(&token) {
            if holding.place == Place::Ahead {
                self.ahead.retain(|waiting| *waiting != token);
                self.used.give(&holding.demand.request());
            }
            self.stuck += usize::from(holding.place != Place::Stuck);
            holding.place = Place::Stuck;
        }
        self.refresh();
    }

    /// A lease came back because there was no room for it.
    pub(crate) fn block_ahead(&mut self) {
        self.blocked_ahead = self.active() > 0;
    }

    fn refresh(&mut self) {
        self.free = self.capacity.clone();
        self.free.take(&self.used);
        self.overfull &= !self.used.fits(&self.capacity);
    }

    /// Does in the books what the agent does when something ends: starts who waited, in order.
    fn promote(&mut self) {
        while let Some(token) = self.ahead.front() {
            let Some(holding) = self.holdings.get_mut(token) else {
                self.ahead.pop_front();
                continue;
            };
            if !holding.demand.request().fits(&self.free) {
                return;
            }
            holding.place = Place::Active;
            self.used.give(&holding.demand.request());
            self.free.take(&holding.demand.request());
            self.ahead.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::Limits,
        id::{AgentId, JobId},
        record::Offer,
        time::Timestamp,
    };

    fn agent(cpus: u64) -> Agent {
        let capacity = Request { cpu_milli: cpus * 1000, ..Request::default() };
        Agent::new(Arc::new(AgentRecord {
            id: AgentId(1),
            uid: Arc::from("u"),
            offer: Offer { capacity, ..Offer::default() },
            lost: false,
            stopped: false,
            first_seen: Timestamp(0),
            changed: Timestamp(0),
            cordon: None,
            limits: Limits::default(),
        }))
    }

    fn demand(cpus: u64) -> Demand {
        let request = Request { cpu_milli: cpus * 1000, ..Request::default() };
        Demand { spec: Arc::new(TaskSpec { request, ..TaskSpec::default() }), memory: None }
    }

    fn task(n: u32) -> TaskId {
        TaskId::new(JobId(1), n)
    }

    #[test]
    fn nothing_is_sent_ahead_while_nobody_knows_how_long_such_tasks_take() {
        let mut agent = agent(1);
        assert_eq!(agent.room(&demand(1).request(), 0), Some(Room::Now));
        agent.hold(Token(1), task(0), demand(1), Room::Now);
        assert_eq!(agent.room(&demand(1).request(), 0), None);
        assert_eq!(agent.room(&demand(1).request(), 1_000), Some(Room::Ahead));
        assert_eq!(agent.room(&demand(1).request(), 2_000_000), None);
        assert_eq!(agent.room(&demand(2).request(), 1_000), None, "it would never fit");
    }

    #[test]
    fn who_waits_starts_in_order_when_something_ends() {
        let mut agent = agent(2);
        agent.hold(Token(1), task(0), demand(1), Room::Now);
        agent.hold(Token(2), task(1), demand(1), Room::Now);
        agent.hold(Token(3), task(2), demand(2), Room::Ahead);
        agent.hold(Token(4), task(3), demand(1), Room::Ahead);
        agent.drop_holding(Token(1));
        assert_eq!(agent.ahead(), 2, "the first in line needs both");
        assert_eq!(agent.room(&demand(1).request(), 0), None, "no overtaking");
        agent.drop_holding(Token(2));
        assert_eq!((agent.ahead(), agent.used().cpu_milli), (1, 2000));
    }

    #[test]
    fn a_survivor_keeps_its_resources_until_the_agent_no_longer_names_it() {
        let mut agent = agent(1);
        agent.hold(Token(1), task(0), demand(1), Room::Now);
        agent.keep_stuck(Token(1));
        assert_eq!(agent.room(&demand(1).request(), 0), None);
        agent.drop_holding(Token(1));
        assert_eq!(agent.room(&demand(1).request(), 0), Some(Room::Now));
    }

    #[test]
    fn a_smaller_offer_is_never_overdrawn() {
        let mut agent = agent(4);
        agent.hold(Token(1), task(0), demand(3), Room::Now);
        let mut record = (*agent.record).clone();
        record.offer.capacity.cpu_milli = 2000;
        agent.set_record(Arc::new(record));
        assert_eq!(agent.free().cpu_milli, 0);
        agent.drop_holding(Token(1));
        assert_eq!(agent.free().cpu_milli, 2000);
    }
}
