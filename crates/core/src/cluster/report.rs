//! What agents say of attempts: believed only with the current token (T4).

use std::sync::Arc;

use super::{Cluster, lease::Ending};
use crate::{
    event::{Answer, Effect, Refusal, Report, What},
    id::{AgentId, SessionId, TaskId, Token},
    mutant,
    state::{Attempt, End, Task},
    time::Now,
};

impl Cluster {
    pub(super) fn report(
        &mut self,
        now: Now,
        agent: AgentId,
        session: SessionId,
        report: Report,
    ) -> Result<Answer, Refusal> {
        self.check_session(agent, session)?;
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.heard();
        }
        // Held behind the commit of what follows, like every effect: acknowledged means durable (A2).
        let seq = report.seq;
        let Report { token, task, what, .. } = report;
        if self.is_current(agent, token, task) {
            self.believe(now, agent, token, task, what);
        } else {
            self.free_stuck(agent, token, task, &what);
            self.keep_evidence(token, task, what);
        }
        self.step.effects.push(Effect::Acknowledge { agent, session, seq });
        Ok(Answer::Done)
    }

    /// T4: the report is of the live attempt, by the agent that holds its lease.
    fn is_current(&self, agent: AgentId, token: Token, task: TaskId) -> bool {
        let holds =
            self.agents.get(&agent).and_then(|agent| agent.holdings.get(&token)).is_some_and(|h| h.task == task);
        let live = self.jobs.get(&task.job).and_then(|entry| entry.touched(task.index)).and_then(Task::live);
        let is_live = live.is_some_and(|attempt| attempt.token == token);
        (holds && is_live) || (mutant::is_on("token-unchecked") && live.is_some())
    }

    fn believe(&mut self, now: Now, agent: AgentId, token: Token, task: TaskId, what: What) {
        // An agent that says that it stops ends what it has: no task is to blame.
        let free = self.agents.get(&agent).is_some_and(|agent| agent.draining);
        match what {
            What::Started { at } => self.edit_task(task, |task| {
                if let Some(attempt) = task.attempt.as_mut() {
                    attempt.started = at;
                }
            }),
            What::Ended { end, why, started, ended, result, usage } => {
                if let Some(agent) = self.agents.get_mut(&agent) {
                    if end == End::KillFailed {
                        // A3: what survives keeps its resources.
                        agent.keep_stuck(token);
                    } else {
                        agent.drop_holding(token);
                    }
                }
                self.end_attempt(now, task, Ending { end, why, started, ended, result, usage, free });
            }
            What::Returned { .. } => {
                if let Some(agent) = self.agents.get_mut(&agent) {
                    agent.drop_holding(token);
                    agent.block_ahead();
                }
                self.undo_lease(task);
            }
        }
    }

    /// What survived the kill of an attempt that is over is dead at last: its room is free.
    fn free_stuck(&mut self, agent: AgentId, token: Token, task: TaskId, what: &What) {
        let What::Ended { end, .. } = what else { return };
        let Some(agent) = self.agents.get_mut(&agent).filter(|agent| agent.is_stuck(token, task)) else { return };
        if *end != End::KillFailed {
            agent.drop_holding(token);
        }
    }

    /// A late report never overwrites; it is kept with the attempt that it is about.
    fn keep_evidence(&mut self, token: Token, task: TaskId, what: What) {
        let What::Ended { end, why, .. } = what else { return };
        let known = self.jobs.get(&task.job).and_then(|entry| entry.touched(task.index));
        let lost = |attempt: &Attempt| attempt.token == token && attempt.end == Some(End::Lost);
        let Some(known) = known.filter(|task| task.past.iter().chain(&task.attempt).any(lost)) else { return };
        let mark = "; reported later: ";
        let told = |attempt: &Attempt| attempt.why.as_deref().is_some_and(|why| why.contains(mark));
        if known.past.iter().chain(&known.attempt).any(|attempt| lost(attempt) && told(attempt)) {
            return;
        }
        self.edit_task(task, |task| {
            let attempts = task.past.iter_mut().chain(task.attempt.as_mut());
            for attempt in attempts.filter(|attempt| lost(attempt)) {
                let before = attempt.why.as_deref().unwrap_or("lost");
                let why = why.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
                attempt.why = Some(Arc::from(format!("{before}{mark}{end}{why}")));
            }
        });
    }
}
