//! The ledger: what a caller changed is recorded in the same step, so that both are committed or neither.

use std::{collections::BTreeMap, sync::Arc};

use super::Cluster;
use crate::{
    access::{Caller, Digest},
    audit::{BLOCK, Block, Note, Record},
    event::{Answer, Event, Refusal, Target},
    identity::Change,
    mutant,
    record::Key,
    time::Now,
};

/// All records that are kept.
#[derive(Debug)]
pub(super) struct Ledger {
    blocks: BTreeMap<u64, Arc<Block>>,
    next: u64,
    /// Of the newest record.
    head: Digest,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { blocks: BTreeMap::new(), next: 1, head: [0; 32] }
    }
}

impl Ledger {
    pub(super) fn block(&self, n: u64) -> Option<&Arc<Block>> {
        self.blocks.get(&n)
    }

    /// Takes a block up. A chain that was tampered with is no reason to stand still: it is told where it is verified.
    pub(super) fn adopt(&mut self, n: u64, block: Arc<Block>) {
        if let Some(last) = block.records.last()
            && last.n >= self.next
        {
            self.next = last.n.saturating_add(1);
            self.head = last.digest();
        }
        self.blocks.insert(n, block);
    }
}

impl Cluster {
    /// Does what `caller` asks for, if it is within reach, and records it.
    pub(super) fn by(&mut self, now: Now, caller: &Arc<Caller>, event: Event) -> Result<Answer, Refusal> {
        self.check_reach(caller, &event)?;
        let newcomer = self.next_agent;
        let asked = self.asked(now, &event);
        let answer = self.dispatch(now, event)?;
        let note = match (asked, &answer) {
            (Asked::Nothing, _) | (_, Answer::Submitted { duplicate: true, .. }) => return Ok(answer),
            // A connection is no news; a machine that was never here is.
            (Asked::Attach(_), Answer::Attached { agent, .. }) if agent.0 != newcomer => return Ok(answer),
            (Asked::Attach(name), Answer::Attached { agent, .. }) => {
                Note::done(caller, "agent.join", &agent.to_string(), &name)
            }
            (Asked::Submit(name), Answer::Submitted { job, .. }) => {
                Note::done(caller, "submit", &job.to_string(), &name)
            }
            (Asked::Attach(name) | Asked::Submit(name), _) => Note::done(caller, "other", "", &name),
            (Asked::Other(action, object, detail), _) => Note::done(caller, action, &object, &detail),
        };
        if !mutant::is_on("audit-forgotten") {
            self.note(now, note);
        }
        Ok(answer)
    }

    /// Adds a record to the chain.
    pub(super) fn note(&mut self, now: Now, note: Note) {
        let Note { caller, action, object, outcome, detail, uncounted } = note;
        let (n, before) = (self.ledger.next, self.ledger.head);
        let (who, peer, at) = (caller.who.clone(), Arc::clone(&caller.peer), now.wall);
        let record = Record { n, at, who, peer, action, object, outcome, detail, uncounted, before };
        self.ledger.head = record.digest();
        self.ledger.next = n.saturating_add(1);
        let block = n / BLOCK;
        Arc::make_mut(self.ledger.blocks.entry(block).or_default()).records.push(record);
        self.changed(Key::Audit(block));
        self.prune_audit(now);
    }

    /// The oldest blocks go: past the number that is kept, or when all in them is too old. The newest stays: the
    /// chain goes on from it.
    fn prune_audit(&mut self, now: Now) {
        let (keep, age) = (self.config.audit_keep.div_ceil(BLOCK), self.config.audit_age);
        while self.ledger.blocks.len() > 1 {
            let Some((n, oldest)) = self.ledger.blocks.first_key_value() else { return };
            let n = *n;
            let is_old = oldest.records.last().is_none_or(|last| now.wall.since(last.at) > age);
            // One more than is kept: the newest is not full.
            if !is_old && self.ledger.blocks.len() as u64 <= keep.saturating_add(1) {
                return;
            }
            self.ledger.blocks.remove(&n);
            self.changed(Key::Audit(n));
        }
    }
}

/// What an event asks for, in words; the answer may hold the object.
enum Asked {
    Nothing,
    Submit(String),
    Attach(String),
    Other(&'static str, String, String),
}

impl Cluster {
    fn asked(&self, now: Now, event: &Event) -> Asked {
        match event {
            // A name may be another token's tomorrow; the id stays.
            Event::RevokeToken { which } => {
                let found = self.find_token(now, which);
                let (id, name) =
                    found.map_or_else(Default::default, |token| (token.id.to_string(), token.name.to_string()));
                Asked::Other("token.revoke", id, name)
            }
            other => asked(other),
        }
    }
}

fn asked(event: &Event) -> Asked {
    match event {
        Event::Submit(submission) => {
            Asked::Submit(format!("{} in queue {}", submission.spec.name, submission.spec.queue))
        }
        Event::Cancel { target, reason, .. } => Asked::Other("cancel", object(*target), reason.to_string()),
        Event::Retry { target, which } => Asked::Other("retry", object(*target), format!("{which:?}").to_lowercase()),
        Event::SetQueue(queue) => {
            let limit = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |n| n.to_string());
            let (running, waiting) = (limit(queue.max_running), limit(queue.max_waiting));
            let detail = format!("max_running {running}, max_waiting {waiting}, paused {}", queue.paused);
            Asked::Other("queue.set", queue.name.clone(), detail)
        }
        Event::Tend(tending) => {
            Asked::Other(tending.wish.action(), tending.agents.to_string(), super::fleet::in_words(tending))
        }
        Event::CreateToken(new) => {
            let queues = new.reach.queues().join(", ");
            let limits = if queues.is_empty() { String::new() } else { format!(" in {queues}") };
            Asked::Other("token.create", new.id.to_string(), format!("{}: {}{limits}", new.name, new.role))
        }
        Event::Identity(change) => asked_of_machines(change),
        Event::Attach { offer, .. } => Asked::Attach(offer.name.clone()),
        Event::RevokeToken { .. }
        | Event::By { .. }
        | Event::Note(_)
        | Event::Offer { .. }
        | Event::Heartbeat { .. }
        | Event::Report { .. }
        | Event::Detach { .. }
        | Event::Drain { .. }
        | Event::Leave { .. }
        | Event::Tick
        | Event::Round => Asked::Nothing,
    }
}

fn asked_of_machines(change: &Change) -> Asked {
    match change {
        Change::Invite(join) => {
            let agent = if join.agent.is_empty() { "any" } else { &*join.agent };
            Asked::Other("agent.invite", join.agent.to_string(), format!("uses {}, agent {agent}", join.uses))
        }
        Change::Enrol(enrolment) => Asked::Other("agent.enrol", enrolment.name.to_string(), String::new()),
        Change::Revoke { name } => Asked::Other("agent.revoke", name.to_string(), String::new()),
        Change::Found(_) => Asked::Nothing,
    }
}

fn object(target: Target) -> String {
    match target {
        Target::Job(job) => job.to_string(),
        Target::Tasks { job, first, count: 1 } => format!("{job}.{first}"),
        Target::Tasks { job, first, count } => {
            format!("{job}.{first} to {}", first.saturating_add(count).saturating_sub(1))
        }
    }
}
