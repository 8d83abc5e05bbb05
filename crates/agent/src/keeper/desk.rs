//! What a keeper knows and decides: what it was given, what became of it, and who was told.
//!
//! A lease is known here from its order until the agent says that it remembers its end, whichever agent that is.

use std::{collections::BTreeMap, fs::File, sync::Arc, time::Duration};

use muster_common::{clock::Clock, wire::facts::enforced_to_proto};
use muster_core::{
    id::{JobId, TaskId, Token},
    state::End,
    time::{Mono, Timestamp},
};
use prost::Message as _;
use tracing::{info, warn};

use super::{
    deliver::Deliveries,
    heir::Common,
    message::{
        self, Down, Event, Found, HEIRS_SINCE, Heard, Hello, Hold, PARTS_SINCE, Spooled, Started, Up, VERSIONS,
        Welcome, Word,
    },
    orders::Orders,
};
use crate::{
    exec::{self, Estate, Exec, ExecEvent, KillReason, Leftover, Order, ProcessIdentity, Swept, deposit, guard},
    link::down,
    logs::Spools,
    safe::{COMMON, Safe},
    supervisor::Unusable,
};

/// An agent that is not frozen ends its attempts itself when their leases end, and says so within this. The guard, which
/// ends them when we are frozen too, waits a little longer.
const HEAR_WITHIN: Duration = Duration::from_millis(200);
/// What was to be ended was sent SIGKILL within this, or the guard ends everything: our threads may wait for a disk. Far below
/// what a controller waits after a lease's end.
const DEAD_WITHIN: Duration = Duration::from_millis(1500);

/// What the loop does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    /// All that was said is to be sent, and then the keeper ends.
    End,
}

/// One order that is not over, or whose end is not remembered yet.
struct Kept {
    order: Arc<Order>,
    process: Option<(Timestamp, ProcessIdentity)>,
    end: Option<ExecEvent>,
}

impl Kept {
    fn new(order: Arc<Order>) -> Self {
        Self { order, process: None, end: None }
    }
}

/// The state of a keeper.
pub(super) struct Desk {
    clock: Clock,
    exec: Exec,
    spools: Spools,
    deliveries: Arc<Deliveries>,
    setup: String,
    kept: BTreeMap<Token, Kept>,
    offered: BTreeMap<Token, Arc<Order>>,
    hold: Option<(Mono, Duration)>,
    /// Those that are to end since nobody renewed their leases, and by when they must have been sent SIGKILL;
    /// none: they were.
    fenced: BTreeMap<Token, Option<Mono>>,
    /// An agent remembers what became of all that an earlier keeper had.
    is_settled: bool,
    /// What we leave if we are killed.
    safe: Option<Safe>,
    common: Common,
    /// How many keepers of this instance were killed before.
    generation: u32,
    /// Our folder's, until we end.
    _lock: Option<File>,
}

impl Desk {
    pub(super) fn new(clock: Clock, exec: Exec, spools: Spools, deliveries: Arc<Deliveries>, setup: String) -> Self {
        let (kept, offered) = (BTreeMap::new(), BTreeMap::new());
        Self {
            clock,
            exec,
            spools,
            deliveries,
            setup,
            kept,
            offered,
            hold: None,
            fenced: BTreeMap::new(),
            is_settled: false,
            safe: None,
            common: Common::default(),
            generation: 0,
            _lock: None,
        }
    }

    /// Knows what an earlier keeper left in the safe: what runs, and what ended unheard.
    pub(super) fn inherit(
        &mut self,
        estate: &Estate,
        generation: u32,
        kept: &[deposit::Kept],
        common: Common,
        lock: Option<File>,
    ) {
        (self.safe, self.generation, self._lock) = (Some(estate.safe.clone()), generation, lock);
        self.hold = common.hold.and_then(Hold::hold);
        if let Some(gpus) = &common.gpus {
            self.exec.offer_gpus(&gpus.all, []);
        }
        self.common = common;
        for found in kept {
            let process = Some((found.started, found.identity.clone()));
            let order = Arc::clone(&found.order);
            self.kept.insert(order.token, Kept { order, process, end: found.end() });
        }
        self.tell_guard();
    }

    pub(super) fn exec(&self) -> &Exec {
        &self.exec
    }

    /// What belongs to no attempt is as it is now for the next keeper, too.
    fn note_common(&mut self, change: impl FnOnce(&mut Common)) {
        change(&mut self.common);
        if let Some(safe) = &self.safe {
            safe.note(COMMON, self.common.encode_to_vec());
        }
    }

    /// Whether nothing runs, and nobody has to be told anything.
    pub(super) fn is_idle(&self) -> bool {
        self.kept.is_empty() && self.offered.is_empty()
    }

    /// How many orders can begin without the agent.
    pub(super) fn offered(&self) -> usize {
        self.offered.len()
    }

    /// The version that an agent speaks with us; none: there is no such.
    pub(super) fn version(&self, hello: &Hello) -> Option<u32> {
        let version = VERSIONS.0.min(hello.newest);
        // An agent of the first version would begin anew what it had from a keeper that was killed.
        let oldest = if self.generation > 0 { HEIRS_SINCE } else { VERSIONS.1 };
        let is_spoken = version >= oldest.max(hello.oldest);
        if !is_spoken {
            warn!(newest = hello.newest, oldest = hello.oldest, "an agent speaks no version that this keeper knows");
        }
        is_spoken.then_some(version)
    }

    /// What the agent says of leases as it comes, which it may have renewed while it had no keeper.
    pub(super) fn renewed(&mut self, hold: Option<Hold>) {
        let from = |hold: Option<(Mono, Duration)>| hold.map(|(from, _)| from);
        if let Some(hold) = hold.filter(|hold| from(hold.hold()) > from(self.hold)) {
            self.hold(hold);
        }
    }

    fn hold(&mut self, hold: Hold) {
        self.hold = hold.hold();
        self.note_common(|common| common.hold = Some(hold));
    }

    /// What an agent that is there gets first; `swept` of [`Desk::sweep`]. More of what is kept than a message should hold
    /// comes in several.
    pub(super) fn welcome(&mut self, version: u32, swept: Vec<Found>) -> Vec<Up> {
        let mut orders = Orders::begun(self.kept.values().map(|kept| &kept.order), version >= PARTS_SINCE);
        let running = self.kept.values().filter(|kept| kept.end.is_none()).filter_map(|kept| {
            let (at, identity) = kept.process.as_ref()?;
            Some(Started::new(kept.order.token, *at, identity))
        });
        let ends = self.kept.values().filter_map(|kept| Some(told(kept.end.clone()?, kept)));
        let mut words = message::parts(ends.chain(self.deliveries.waiting().into_iter().map(deliver)));
        let ends = words.iter().map(Vec::len).sum::<usize>();
        let welcome = Welcome {
            version,
            instance: format!("{}.{}", self.exec.instance(), self.generation),
            cookie: self.exec.instance().to_owned(),
            setup: self.setup.clone(),
            running: running.collect(),
            orders: orders.pop(),
            swept,
            hold: Some(Hold::new(self.hold)),
            limits: self.exec.limits(),
            refused: String::new(),
            enforced: self.exec.enforced().iter().map(enforced_to_proto).collect(),
            writing: self.spools.begin_notices().into_iter().map(|token| token.0).collect(),
            more: false,
        };
        info!(orders = self.kept.len(), ends, "an agent is there");
        let last = if version >= PARTS_SINCE { words.pop() } else { Some(words.drain(..).flatten().collect()) };
        let parts = orders
            .into_iter()
            .map(|part| (Welcome { orders: Some(part), more: true, ..Welcome::default() }, Vec::new()));
        let more = words.into_iter().map(|words| (Welcome { more: true, ..Welcome::default() }, words));
        let last = (welcome, last.unwrap_or_default());
        parts.chain(more).chain([last]).map(|(part, words)| Up { welcome: Some(part), words }).collect()
    }

    /// What became of attempts that are not ours: they never were, or an earlier keeper had them. It needs nothing of us
    /// while it works: that may take some seconds, in which leases end.
    pub(super) fn sweep(&self, hello: Hello) -> impl Future<Output = Vec<Found>> + use<> {
        let leftovers = hello.leftovers.into_iter().map(message::Left::leftover);
        let strange = leftovers.filter(|left| !self.kept.contains_key(&left.token));
        let never = |left: &Leftover| self.is_settled && left.identity.is_none();
        let (never, unsure): (Vec<_>, Vec<_>) = strange.partition(never);
        let exec = self.exec.clone();
        async move {
            let found = exec.sweep(&unsure).await;
            exec.keep_gpus(exec::gpus_of_survivors(&unsure, &found));
            let never = never.into_iter().map(|left| Found::new(left.token, Swept::NeverBegun));
            let unsure = unsure.iter().zip(found).map(|(left, found)| Found::new(left.token, found));
            never.chain(unsure).collect()
        }
    }

    /// The agent is gone. What it offered was meant for it to watch over; what began meanwhile is ours as all that runs.
    pub(super) fn left(&mut self) {
        for token in self.exec.drop_offers() {
            self.offered.remove(&token);
        }
        for (token, order) in std::mem::take(&mut self.offered) {
            self.kept.entry(token).or_insert_with(|| Kept::new(order));
        }
        info!(orders = self.kept.len(), "the agent is gone");
    }

    /// Does what the agent says. Answers go to `out`.
    pub(super) fn say(&mut self, down: Down, out: &mut Vec<Heard>) -> Next {
        let orders: Vec<_> = down::orders(down.orders.unwrap_or_default()).collect();
        let order_at = |place: u32, out: &mut Vec<Heard>| match orders.get(usize::try_from(place).ok()?)? {
            Ok(order) => Some(Arc::clone(order)),
            Err(unusable) => {
                // An agent reads what it sends on, so this is one that adds things that we do not know.
                let Unusable { token, task, why } = unusable;
                warn!(job = %task.job, %task, %token, %why, "an order cannot be read by this keeper");
                out.push(heard(message::event(not_started(unusable), unusable.task)));
                None
            }
        };
        let mut next = Next::Go;
        for word in down.words.into_iter().filter_map(|said| said.word) {
            match word {
                Word::Start(place) => order_at(place, out).into_iter().for_each(|order| self.start(order)),
                Word::Offer(offer) => {
                    if let Some(order) = order_at(offer.order, out) {
                        self.offered.insert(order.token, Arc::clone(&order));
                        self.exec.offer(order, Mono(offer.until_us));
                    }
                }
                Word::Claim(token) => self.claim(Token(token)),
                Word::Withdraw(token) => self.exec.withdraw(Token(token)),
                Word::Kill(kill) => {
                    let (reason, grace) = (kill.reason(), Duration::from_micros(kill.grace_us));
                    self.exec.kill(Token(kill.token), reason, grace);
                }
                Word::Hold(hold) => self.hold(hold),
                Word::Forget(tokens) => tokens.tokens.into_iter().for_each(|token| self.forget(Token(token))),
                Word::Delivered(delivered) => self.deliveries.answer(delivered),
                Word::Shipped(bytes) => self.spools.shipped(bytes),
                Word::Settled(_) => self.is_settled = true,
                Word::Gpus(gpus) => {
                    self.exec.offer_gpus(&gpus.all, []);
                    self.note_common(|common| common.gpus = Some(gpus));
                }
                Word::Farewell(_) => next = Next::End,
                Word::Retire(_) if self.is_idle() => {
                    out.push(heard(Event::Retired(true)));
                    return Next::End;
                }
                Word::Retire(_) => out.push(heard(Event::Busy(true))),
            }
        }
        self.tell_guard();
        next
    }

    fn start(&mut self, order: Arc<Order>) {
        self.kept.entry(order.token).or_insert_with(|| Kept::new(Arc::clone(&order)));
        self.exec.start(order);
    }

    /// Of one that was begun by itself meanwhile, an event tells.
    fn claim(&mut self, token: Token) {
        if let Some(order) = self.offered.get(&token) {
            self.kept.entry(token).or_insert_with(|| Kept::new(Arc::clone(order)));
            self.exec.claim(token);
        }
    }

    fn forget(&mut self, token: Token) {
        if self.kept.get(&token).is_some_and(|kept| kept.end.is_some()) {
            let kept = self.kept.remove(&token);
            // What survived its end is watched on.
            let survives = kept
                .is_some_and(|kept| matches!(kept.end, Some(ExecEvent::Ended { end, .. }) if end == End::KillFailed));
            if !survives {
                self.take_out(token);
            }
        } else if !self.kept.contains_key(&token) {
            self.take_out(token);
        }
    }

    fn take_out(&self, token: Token) {
        if let Some(safe) = &self.safe {
            safe.take_out(token.0);
        }
    }

    /// Something became of an order; what the agent hears of it goes to `out`.
    pub(super) fn event(&mut self, event: ExecEvent, out: &mut Vec<Heard>) {
        let token = event.token();
        match &event {
            ExecEvent::Started { at, identity, .. } => {
                if let Some(kept) = self.kept.get_mut(&token) {
                    kept.process = Some((*at, identity.clone()));
                }
            }
            ExecEvent::Ended { next, .. } => {
                self.offered.remove(&token);
                self.fenced.remove(&token);
                let next = next.and_then(|next| self.offered.remove(&next));
                if let Some(next) = next {
                    self.kept.entry(next.token).or_insert_with(|| Kept::new(next));
                }
                if let Some(kept) = self.kept.get_mut(&token) {
                    kept.end = Some(event.clone());
                }
            }
            ExecEvent::Withdrawn { .. } => {
                self.offered.remove(&token);
                // It was on its way when its agent left.
                if self.kept.get(&token).is_some_and(|kept| kept.process.is_none() && kept.end.is_none()) {
                    self.kept.remove(&token);
                }
            }
        }
        let task = self.kept.get(&token).map_or(TaskId::new(JobId(0), 0), |kept| kept.order.task);
        out.push(heard(message::event(event, task)));
    }

    /// What else the agent is to hear: of output, and of results that it should deliver.
    pub(super) fn news(&self, out: &mut Vec<Heard>) {
        while let Some(notice) = self.spools.next_notice() {
            out.push(heard(Event::Spooled(Spooled::new(notice))));
        }
        out.extend(self.deliveries.new_ones().into_iter().map(deliver));
    }

    /// A1: ends what the agent should have ended by now, and did not: it is frozen, or gone.
    pub(super) fn fence(&mut self) {
        let now = self.clock.mono();
        if self.fence_at().is_none_or(|due| due > now) {
            // The first lease may have ended over attempts that go on without one: the guard must know.
            return self.tell_guard();
        }
        let due = |kept: &&Kept| self.end_of(kept).is_some_and(|end| end.after(HEAR_WITHIN) <= now);
        let late: Vec<Token> = self.kept.values().filter(due).map(|kept| kept.order.token).collect();
        if !late.is_empty() {
            warn!(attempts = late.len(), "no agent renewed their leases in time; they are ended");
        }
        for token in late {
            // Also of those that are being ended already, whose grace may be longer than anybody's lease.
            self.exec.kill(token, KillReason::LeaseExpired, Duration::ZERO);
            self.fenced.insert(token, Some(now.after(DEAD_WITHIN)));
        }
        self.tell_guard();
    }

    /// When [`Desk::fence`] has something to do; none: not before something else happens.
    pub(super) fn fence_at(&self) -> Option<Mono> {
        self.first_end().map(|end| end.after(HEAR_WITHIN))
    }

    /// When the first lease ends, at the earliest.
    fn first_end(&self) -> Option<Mono> {
        let (from, ttl) = self.hold.filter(|_| !self.kept.is_empty())?;
        let earliest = from.after(ttl);
        // No attempt ends sooner, so that nobody need look at each before then.
        if earliest > self.clock.mono() {
            return Some(earliest);
        }
        self.kept.values().filter_map(|kept| self.end_of(kept)).min()
    }

    /// When its lease ends, if somebody must see to that.
    fn end_of(&self, kept: &Kept) -> Option<Mono> {
        let is_watched = kept.end.is_none() && !self.fenced.contains_key(&kept.order.token);
        let (from, ttl) = self.hold.filter(|_| is_watched)?;
        Some(from.after(kept.order.spec.goes_on_for(ttl)))
    }

    /// Whether somebody must still be sent SIGKILL, or the guard ends everything.
    pub(super) fn is_fencing(&self) -> bool {
        self.fenced.values().any(Option::is_some)
    }

    /// The guard ends everything when we are frozen past the first lease, or cannot end what we should. What it did not end
    /// when it was its turn, nobody can.
    fn tell_guard(&mut self) {
        let (now, exec) = (self.clock.mono(), &self.exec);
        for (token, by) in &mut self.fenced {
            *by = by.filter(|by| !exec.is_struck(*token) && by.after(guard::HEAR_WITHIN * 2) > now);
        }
        let fenced = self.fenced.values().copied().flatten();
        self.exec.hold_until(self.first_end().into_iter().chain(fenced).min());
    }

    /// Ends everything: the machine stops, and nobody is there who could want anything else.
    pub(super) fn end_all(&mut self) {
        let live = self.kept.values().filter(|kept| kept.end.is_none());
        let live: Vec<_> = live.map(|kept| (kept.order.token, kept.order.spec.grace)).collect();
        live.into_iter().for_each(|(token, grace)| self.exec.kill(token, KillReason::Shutdown, grace));
    }

    /// Whether anything runs.
    pub(super) fn has_live(&self) -> bool {
        self.kept.values().any(|kept| kept.end.is_none()) || !self.offered.is_empty()
    }

    /// The threads end, and the guard.
    pub(super) async fn stop(&self) {
        self.exec.stop().await;
    }
}

/// The end of an order that makes no sense to us.
fn not_started(order: &Unusable) -> ExecEvent {
    let (token, why, never) = (order.token, Some(Arc::clone(&order.why)), Timestamp(0));
    let (started, ended) = (never, never);
    ExecEvent::Ended { token, end: End::NotStarted, why, started, ended, result: None, usage: None, next: None }
}

fn heard(event: Event) -> Heard {
    Heard { event: Some(event) }
}

fn told(event: ExecEvent, kept: &Kept) -> Heard {
    heard(message::event(event, kept.order.task))
}

fn deliver((token, task): (Token, TaskId)) -> Heard {
    heard(Event::Deliver(message::Deliver { token: token.0, job: task.job.0, task: task.index }))
}
