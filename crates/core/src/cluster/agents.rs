//! Agents come, live, fall silent and go.

use std::{collections::BTreeSet, sync::Arc};

use super::{Cluster, lease::Ending};
use crate::{
    agent::{Agent, Holding, Place},
    event::{Answer, Effect, Refusal},
    fleet::Limits,
    id::{AgentId, SessionId, TaskId, Token},
    mutant,
    record::{AgentRecord, Key, Offer},
    time::{Mono, Now},
};

impl Cluster {
    /// Only an agent's newest connection is listened to.
    pub(super) fn check_session(&self, agent: AgentId, session: SessionId) -> Result<(), Refusal> {
        match self.agents.get(&agent) {
            Some(known) if known.session == Some(session) => Ok(()),
            _ => Err(Refusal::StaleSession { agent }),
        }
    }

    pub(super) fn attach(
        &mut self,
        now: Now,
        uid: Arc<str>,
        offer: Offer,
        session: SessionId,
        holding: &[Token],
    ) -> Result<Answer, Refusal> {
        if let Some(agent) = self.uids.get(&uid).and_then(|id| self.agents.get_mut(id))
            && !agent.may_greet(now.mono, self.config.lease_ttl / 2)
        {
            return Err(Refusal::Unheard { agent: agent.record.id });
        }
        let id = self.introduce(now, uid, offer);
        if let Some(old) = self.agents.get_mut(&id).and_then(|agent| agent.session.replace(session)) {
            self.step.effects.push(Effect::Disconnect { agent: id, session: old });
        }
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.draining = false;
            agent.greeted(now.mono);
        }
        self.renew(now, id);
        let named: BTreeSet<Token> = holding.iter().copied().collect();
        let known: Vec<(Token, Place)> = self
            .agents
            .get(&id)
            .map(|agent| agent.holdings.iter().map(|(token, holding)| (*token, holding.place)).collect())
            .unwrap_or_default();
        for (token, place) in known.iter().filter(|(token, _)| !named.contains(token)) {
            let dropped = self.agents.get_mut(&id).and_then(|agent| agent.drop_holding(*token));
            if let Some(holding) = dropped.filter(|_| *place != Place::Stuck) {
                self.unnamed(now, *token, holding.task);
            }
        }
        let held: BTreeSet<Token> = known.iter().map(|(token, _)| *token).collect();
        self.restop(id, session);
        Ok(Answer::Attached { agent: id, drop: named.difference(&held).copied().collect() })
    }

    /// An agent journals a lease before it acts on it, and hears only its newest connection: what it does not name never
    /// began, or its survivors are gone (A3). But one from before a restore may have run, ended and been reported to the
    /// controller that was, and be forgotten since.
    fn unnamed(&mut self, now: Now, token: Token, task: TaskId) {
        if token.0 < self.meta.restored_below {
            let why = "what became of it was lost when the installation was restored from a backup";
            self.end_attempt(now, task, Ending::lost(now, why));
        } else {
            self.undo_lease(task);
        }
    }

    /// Says again what the agent may not have heard: these attempts are to be ended.
    fn restop(&mut self, id: AgentId, session: SessionId) {
        let Some(agent) = self.agents.get(&id) else { return };
        let stopping = |task: TaskId| {
            let task = self.jobs.get(&task.job).and_then(|entry| entry.touched(task.index));
            task.and_then(|task| task.stopping)
        };
        for (token, holding) in &agent.holdings {
            if let Some(why) = stopping(holding.task) {
                self.step.effects.push(Effect::Stop { agent: id, session, token: *token, why });
            }
        }
    }

    /// The agent's number and record; new ones for a newcomer.
    fn introduce(&mut self, now: Now, uid: Arc<str>, offer: Offer) -> AgentId {
        if let Some(id) = self.uids.get(&uid).copied()
            && let Some(agent) = self.agents.get_mut(&id)
        {
            if agent.record.offer != offer || agent.record.lost {
                let record =
                    AgentRecord { offer, lost: false, stopped: false, changed: now.wall, ..(*agent.record).clone() };
                agent.set_record(Arc::new(record));
                self.changed(Key::Agent(id));
            }
            return id;
        }
        let id = AgentId(self.next_agent);
        self.next_agent += 1;
        let (lost, stopped) = (false, false);
        let (first_seen, changed) = (now.wall, now.wall);
        let (cordon, limits) = (None, Limits::default());
        let uid_of = Arc::clone(&uid);
        let record = AgentRecord { id, uid: uid_of, offer, lost, stopped, first_seen, changed, cordon, limits };
        self.uids.insert(uid, id);
        self.agents.insert(id, Agent::new(Arc::new(record)));
        self.changed(Key::Agent(id));
        id
    }

    /// The agent gave a sign: its leases run from now.
    pub(super) fn renew(&mut self, now: Now, id: AgentId) {
        let wait = self.config.lease_ttl + self.config.lease_margin;
        let wait = if mutant::is_on("lost-at-once") { wait / 4 } else { wait };
        let deadline = now.mono.after(wait);
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.last_seen = now.mono;
        if let Some(old) = agent.deadline.replace(deadline) {
            self.deadlines.remove(&(old, id));
        }
        self.deadlines.insert((deadline, id));
    }

    pub(super) fn heartbeat(
        &mut self,
        now: Now,
        agent: AgentId,
        session: SessionId,
        stamp: u64,
    ) -> Result<Answer, Refusal> {
        self.check_session(agent, session)?;
        self.renew(now, agent);
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.heard();
        }
        self.step.effects.push(Effect::HeartbeatAck { agent, session, stamp });
        Ok(Answer::Done)
    }

    pub(super) fn detach(&mut self, agent: AgentId, session: SessionId) -> Result<Answer, Refusal> {
        self.check_session(agent, session)?;
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.session = None;
        }
        Ok(Answer::Done)
    }

    /// The agent stops: what it gives back must not come to it again.
    pub(super) fn drain(&mut self, agent: AgentId, session: SessionId) -> Result<Answer, Refusal> {
        self.check_session(agent, session)?;
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.draining = true;
        }
        Ok(Answer::Done)
    }

    pub(super) fn leave(&mut self, now: Now, agent: AgentId, session: SessionId) -> Result<Answer, Refusal> {
        self.check_session(agent, session)?;
        // It reported all that ever began; what is left never did.
        let left: Vec<Token> =
            self.agents.get(&agent).map(|a| a.holdings.keys().copied().collect()).unwrap_or_default();
        for token in left {
            if let Some(holding) = self.agents.get_mut(&agent).and_then(|agent| agent.drop_holding(token))
                && holding.place != Place::Stuck
            {
                self.unnamed(now, token, holding.task);
            }
        }
        self.give_up(now, agent, "the agent left");
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.record = Arc::new(AgentRecord { stopped: true, ..(*agent.record).clone() });
        }
        Ok(Answer::Done)
    }

    /// Agents whose time is over. Their own clock ended their attempts before (A1).
    pub(super) fn expire_agents(&mut self, now: Now) {
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now.mono {
                return;
            }
            if !self.give_up_some(now, id) {
                self.give_up(now, id, "its agent fell silent");
            }
        }
    }

    /// Takes from a silent agent what its own clock has ended; whether anything is left that goes on there.
    fn give_up_some(&mut self, now: Now, id: AgentId) -> bool {
        let (ttl, margin) = (self.config.lease_ttl, self.config.lease_margin);
        let Some(agent) = self.agents.get_mut(&id) else { return false };
        let last_seen = agent.last_seen;
        let until = |holding: &Holding| {
            let goes_on = if mutant::is_on("kept-too-short") { ttl } else { holding.demand.spec.goes_on_for(ttl) };
            let wait = goes_on + margin;
            last_seen.after(if mutant::is_on("lost-at-once") { wait / 4 } else { wait })
        };
        let Some(next) = agent.holdings.values().map(until).filter(|until| *until > now.mono).min() else {
            return false;
        };
        let over = agent.holdings.iter().filter(|(_, holding)| until(holding) <= now.mono);
        let over: Vec<(Token, Place)> = over.map(|(token, holding)| (*token, holding.place)).collect();
        if let Some(session) = agent.session.take() {
            self.step.effects.push(Effect::Disconnect { agent: id, session });
        }
        if let Some(old) = agent.deadline.replace(next) {
            self.deadlines.remove(&(old, id));
        }
        self.deadlines.insert((next, id));
        for (token, place) in over {
            let Some(holding) = self.agents.get_mut(&id).and_then(|agent| agent.drop_holding(token)) else { continue };
            if place != Place::Stuck {
                self.end_attempt(now, holding.task, Ending::lost(now, "its agent fell silent"));
            }
        }
        true
    }

    /// Takes everything from an agent that will not report any more.
    fn give_up(&mut self, now: Now, id: AgentId, why: &str) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        if let Some(deadline) = agent.deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(session) = agent.session.take() {
            self.step.effects.push(Effect::Disconnect { agent: id, session });
        }
        agent.fell_silent();
        let record = AgentRecord { lost: true, changed: now.wall, ..(*agent.record).clone() };
        agent.record = Arc::new(record);
        let tokens: Vec<Token> = agent.holdings.keys().copied().collect();
        self.changed(Key::Agent(id));
        for token in tokens {
            let Some(holding) = self.agents.get_mut(&id).and_then(|agent| agent.drop_holding(token)) else { continue };
            if holding.place != Place::Stuck {
                self.end_attempt(now, holding.task, Ending::lost(now, why));
            }
        }
    }

    /// Takes up an agent that the store knows: it has until `deadline` to come back, as if it had been heard of now.
    pub(super) fn remember(&mut self, record: Arc<AgentRecord>, now: Now, deadline: Mono) {
        let id = record.id;
        self.next_agent = self.next_agent.max(id.0 + 1);
        self.uids.insert(Arc::clone(&record.uid), id);
        self.remember_drain(now, &record);
        let mut agent = Agent::new(record);
        agent.last_seen = now.mono;
        if !agent.record.lost {
            agent.deadline = Some(deadline);
            self.deadlines.insert((deadline, id));
        }
        self.agents.insert(id, agent);
    }
}
