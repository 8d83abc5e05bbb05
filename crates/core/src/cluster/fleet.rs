//! A person's wishes for agents: who takes no new work, who is to be empty, who gives less than it offers.

use std::sync::Arc;

use super::{AgentStatus, Cluster, lease::Ending};
use crate::{
    agent::{Agent, Place},
    event::{Answer, Effect, Refusal},
    fleet::{Cordon, Selection, Tending, Wish},
    id::{AgentId, SessionId, TaskId, Token},
    mutant,
    record::{AgentRecord, Key, Offer},
    resources::Request,
    state::{End, Stopping, Task},
    time::{Mono, Now, Timestamp},
};

/// Which agents somebody wants to see.
#[derive(Clone, Debug)]
pub struct FleetQuery {
    /// Only these; empty: all.
    pub which: Selection,
    /// Only those whose number is higher.
    pub after: Option<AgentId>,
    /// At most so many.
    pub limit: usize,
}

/// Some agents, and what all together are.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// By number.
    pub agents: Vec<AgentStatus>,
    /// Whether there are more after the last of them.
    pub more: bool,
    /// Of all that match, whatever the page.
    pub totals: Totals,
}

/// How many agents there are, and what they have together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connected ones.
    pub connected: u64,
    /// Those of them that take no new work.
    pub cordoned: u64,
    /// Not connected, with nothing that goes on.
    pub silent: u64,
    /// Not connected, with something that goes on.
    pub away: u64,
    /// They said goodbye.
    pub stopped: u64,
    /// Given up.
    pub lost: u64,
    /// What tasks may take of those that are connected.
    pub capacity: Request,
    /// What they take.
    pub used: Request,
    /// Leases that take resources.
    pub running: u64,
}

/// Whether an agent is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Connected,
    /// Not at the moment.
    Silent,
    /// Not at the moment, and what goes on there is waited for.
    Away,
    /// It said goodbye.
    Stopped,
    /// It was given up.
    Lost,
}

impl Presence {
    /// The word that people and machines use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Silent => "silent",
            Self::Away => "away",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
        }
    }
}

impl AgentStatus {
    /// Whether it is there.
    pub fn presence(&self) -> Presence {
        match (self.session, self.record.lost, self.record.stopped) {
            (Some(_), _, _) => Presence::Connected,
            (None, false, _) if self.kept_until.is_some() => Presence::Away,
            (None, false, _) => Presence::Silent,
            (None, true, true) => Presence::Stopped,
            (None, true, false) => Presence::Lost,
        }
    }
}

impl Totals {
    fn add(&mut self, status: &AgentStatus) {
        let count = match status.presence() {
            Presence::Connected => &mut self.connected,
            Presence::Silent => &mut self.silent,
            Presence::Away => &mut self.away,
            Presence::Stopped => &mut self.stopped,
            Presence::Lost => &mut self.lost,
        };
        *count += 1;
        self.running += u64::from(status.running);
        if status.session.is_some() {
            self.cordoned += u64::from(status.record.cordon.is_some());
            self.capacity.give(&status.capacity);
            self.used.give(&status.used);
        }
    }
}

impl Cluster {
    /// The agents that somebody wants to see.
    pub fn fleet(&self, query: &FleetQuery) -> Fleet {
        let mut fleet = Fleet::default();
        let all = query.which == Selection::default();
        for agent in self.agents.values().filter(|agent| all || query.which.covers(&agent.record.offer)) {
            let status = self.status(agent);
            fleet.totals.add(&status);
            if query.after.is_some_and(|after| agent.record.id <= after) {
                continue;
            }
            if fleet.agents.len() < query.limit {
                fleet.agents.push(status);
            } else {
                fleet.more = true;
            }
        }
        fleet
    }

    pub(super) fn tend(&mut self, now: Now, tending: Tending) -> Result<Answer, Refusal> {
        let Tending { agents, wish, by, reason } = tending;
        let (mut changed, mut same) = (Vec::new(), Vec::new());
        for id in self.select(&agents)? {
            let Some(agent) = self.agents.get_mut(&id) else { continue };
            let name = agent.record.offer.name.clone();
            let wished = wished(now, &agent.record, wish, (&by, &reason));
            let before = (agent.record.cordon.as_deref(), agent.record.limits);
            if is_granted(wished.cordon.as_deref(), before.0) && wished.limits == before.1 {
                same.push(name);
                continue;
            }
            agent.set_record(Arc::new(wished));
            self.set_drain(now, id);
            self.changed(Key::Agent(id));
            changed.push(name);
        }
        Ok(Answer::Tended { changed, same })
    }

    /// Who is meant. Of several records with one name those that are not given up; a machine may have had others before. Where two
    /// of them are connected they are two machines, of which a name means neither.
    fn select(&self, selection: &Selection) -> Result<Vec<AgentId>, Refusal> {
        let mut found = Vec::new();
        for name in &selection.names {
            let named = || self.agents.values().filter(|agent| agent.record.offer.name == *name);
            self.check_twins(name)?;
            let before = found.len();
            found.extend(named().filter(|agent| !agent.record.lost).map(|agent| agent.record.id));
            if found.len() == before {
                found.extend(named().next_back().map(|agent| agent.record.id));
            }
            if found.len() == before {
                return Err(Refusal::NotFound(format!("agent `{name}`")));
            }
        }
        let by_labels = Selection { names: Vec::new(), labels: selection.labels.clone() };
        let labelled = self.agents.values().filter(|agent| by_labels.covers(&agent.record.offer));
        found.extend(labelled.map(|agent| agent.record.id));
        if found.is_empty() {
            let what =
                if selection.labels.is_empty() { "an agent without a name" } else { "an agent with these labels" };
            return Err(Refusal::NotFound(format!("{what} ({selection})")));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Nobody may mean one machine and have two of them drained.
    fn check_twins(&self, name: &str) -> Result<(), Refusal> {
        let there = |agent: &&Agent| agent.session.is_some() && agent.record.offer.name == *name;
        let twins: Vec<&Agent> = self.agents.values().filter(there).collect();
        if twins.len() < 2 {
            return Ok(());
        }
        let one = |agent: &&Agent| {
            let record = &agent.record;
            format!("agent {} on host `{}` (data folder {})", record.id, record.offer.host, record.uid)
        };
        let all = twins.iter().map(one).collect::<Vec<_>>().join(", ");
        let text =
            format!("`{name}` is the name of {} agents: {all}; give each its own, or mean them by labels", twins.len());
        Err(Refusal::Conflict(text))
    }

    /// When a drain ends what still runs follows from the agent's record.
    fn set_drain(&mut self, now: Now, id: AgentId) {
        self.drains.retain(|(_, agent)| *agent != id);
        let Some(record) = self.agents.get(&id).map(|agent| Arc::clone(&agent.record)) else { return };
        self.remember_drain(now, &record);
    }

    /// The same for an agent that the store knows.
    pub(super) fn remember_drain(&mut self, now: Now, record: &AgentRecord) {
        if let Some(ends) = record.cordon.as_ref().and_then(|cordon| drain_ends(now, cordon)) {
            self.drains.insert((ends, record.id));
        }
    }

    /// Drains whose time is over: what still runs there is ended.
    pub(super) fn end_drains(&mut self, now: Now) {
        while let Some((at, id)) = self.drains.first().copied().filter(|(at, _)| *at <= now.mono) {
            self.drains.remove(&(at, id));
            self.empty(id);
        }
    }

    /// Ends all that an agent holds, to be queued again once it is seen dead (A3).
    fn empty(&mut self, id: AgentId) {
        let Some(agent) = self.agents.get(&id) else { return };
        let session = agent.session;
        let live = agent.holdings.iter().filter(|(_, holding)| holding.place != Place::Stuck);
        let live: Vec<(Token, TaskId)> = live.map(|(token, holding)| (*token, holding.task)).collect();
        for (token, task) in live {
            let known = self.jobs.get(&task.job).and_then(|entry| entry.touched(task.index));
            if known.is_none_or(|task| task.stopping.is_some()) {
                continue;
            }
            self.edit_task(task, |task| task.stopping = Some(Stopping::Drain));
            // One that is away is told when it is back.
            if let Some(session) = session {
                self.step.effects.push(Effect::Stop { agent: id, session, token, why: Stopping::Drain });
            }
        }
    }

    /// What an ending is of a task that a drain ended; none: its attempt never began, and nothing is to be told of it.
    pub(super) fn ended_by_drain(&self, task: &Task, ending: Ending) -> Option<Ending> {
        let drained = task.stopping == Some(Stopping::Drain) && matches!(ending.end, End::Cancelled | End::Lost);
        if !drained || mutant::is_on("drain-costs") {
            return Some(ending);
        }
        if ending.end == End::Cancelled && ending.started.is_never() {
            return None;
        }
        let agent = task.live().and_then(|attempt| self.agents.get(&attempt.agent));
        let why = agent.and_then(|agent| agent.record.cordon.as_deref()).map(Cordon::text);
        let why = format!("its agent was {}", why.as_deref().unwrap_or("drained"));
        Some(Ending { end: End::Lost, why: Some(why.into()), free: true, ..ending })
    }

    /// The machine offers something else; what runs there goes on.
    pub(super) fn offer(
        &mut self,
        now: Now,
        agent: AgentId,
        session: SessionId,
        offer: Offer,
    ) -> Result<Answer, Refusal> {
        self.check_session(agent, session)?;
        let Some(known) = self.agents.get_mut(&agent) else { return Ok(Answer::Done) };
        if known.record.offer.name != offer.name {
            let name = &known.record.offer.name;
            return Err(Refusal::Conflict(format!("agent `{name}` cannot take another name while it is connected")));
        }
        if known.record.offer != offer {
            let record = AgentRecord { offer, changed: now.wall, ..(*known.record).clone() };
            known.set_record(Arc::new(record));
            self.changed(Key::Agent(agent));
        }
        Ok(Answer::Done)
    }
}

/// The record as it is wished to be.
fn wished(now: Now, record: &AgentRecord, wish: Wish, (by, reason): (&Arc<str>, &Arc<str>)) -> AgentRecord {
    let cordon = |drain, deadline| {
        Some(Arc::new(Cordon { at: now.wall, by: Arc::clone(by), reason: Arc::clone(reason), drain, deadline }))
    };
    let mut next = record.clone();
    match wish {
        Wish::Cordon => next.cordon = cordon(false, Timestamp(0)),
        Wish::Drain { within } => {
            next.cordon = cordon(true, within.map_or(Timestamp(0), |within| now.wall.after(within)));
        }
        Wish::Resume => next.cordon = None,
        Wish::Limit(limits) => next.limits = limits.over(record.limits),
        Wish::Unlimit => next.limits = Default::default(),
    }
    next
}

/// Whether what is wished is so already, since whenever. A deadline counts from the wish, so that each is another one.
fn is_granted(wished: Option<&Cordon>, there: Option<&Cordon>) -> bool {
    if wished == there {
        return true;
    }
    let (Some(wished), Some(there)) = (wished, there) else { return false };
    wished.deadline.is_never() && Cordon { at: there.at, ..wished.clone() } == *there
}

/// When a drain ends what still runs, by the clock that never jumps: never later than was asked for, whatever became of
/// the time of day.
fn drain_ends(now: Now, cordon: &Cordon) -> Option<Mono> {
    let has_end = cordon.drain && !cordon.deadline.is_never();
    let asked = cordon.deadline.since(cordon.at);
    has_end.then(|| now.mono.after(cordon.deadline.since(now.wall).min(asked)))
}

/// A wish for the audit log.
pub(super) fn in_words(tending: &Tending) -> String {
    let what = match tending.wish {
        Wish::Cordon | Wish::Resume => String::new(),
        Wish::Drain { within: None } => "no deadline".to_owned(),
        Wish::Drain { within: Some(within) } => format!("deadline {} s", within.as_secs_f64()),
        Wish::Unlimit => "no limits".to_owned(),
        Wish::Limit(limits) => {
            let limit = |name: &str, limit: Option<u64>| limit.map(|n| format!("{name} {n}"));
            let all =
                [limit("cpu_milli", limits.cpu_milli), limit("memory", limits.memory), limit("gpus", limits.gpus)];
            all.into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    };
    let parts = [what.as_str(), &tending.reason];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}
