//! Tokens are made and revoked, and a caller touches only the work within its reach.

use std::sync::Arc;

use super::{Cluster, submit::no_such_job};
use crate::{
    access::{Caller, NewToken, Reach, Role, Token},
    event::{Answer, Event, Refusal},
    id::JobId,
    record::Key,
    spec::JobSpec,
    time::Now,
    validate::Problem,
};

/// Tokens that are kept, dead ones too.
const TOKENS_MAX: usize = 10_000;

impl Cluster {
    /// Makes a token. The first one must be an admin's: from then on nobody else could make another.
    pub(super) fn create_token(&mut self, now: Now, new: NewToken) -> Result<Answer, Refusal> {
        let NewToken { id, name, role, reach, digest, by, expires } = new;
        if self.tokens.contains_key(&id) {
            return Err(Refusal::Conflict(format!("a token `{id}` exists; make it again")));
        }
        if name.is_empty() {
            return Err(Refusal::Conflict("a token needs a name".to_owned()));
        }
        if self.tokens.values().any(|token| token.name == name && token.is_live(now.wall)) {
            let text = format!("a token is called `{name}` already; revoke it first, or choose another name");
            return Err(Refusal::Conflict(text));
        }
        if reach != Reach::All && matches!(role, Role::Admin | Role::Agent) {
            // A limited admin could make itself an unlimited one.
            return Err(Refusal::Conflict(format!("the role {role} cannot be limited to queues; leave them out")));
        }
        if self.tokens.is_empty() && role != Role::Admin {
            let text = "the first token must have the role admin: once it exists, only an admin can make others";
            return Err(Refusal::Conflict(text.to_owned()));
        }
        if self.tokens.len() >= TOKENS_MAX && !self.forget_dead_token(now) {
            return Err(Refusal::Conflict(format!("there are {TOKENS_MAX} live tokens; revoke some")));
        }
        let created = now.wall;
        let revoked = crate::time::Timestamp(0);
        let created_by = by;
        let token = Token { id: Arc::clone(&id), name, role, reach, digest, created, created_by, expires, revoked };
        self.tokens.insert(Arc::clone(&id), Arc::new(token));
        self.changed(Key::Token(id));
        Ok(Answer::Done)
    }

    /// Makes room: the oldest token that is worth nothing goes. Never the last one, which would open all doors.
    fn forget_dead_token(&mut self, now: Now) -> bool {
        let dead = self.tokens.values().filter(|token| !token.is_live(now.wall));
        let Some(id) = dead.min_by_key(|token| token.created).map(|token| Arc::clone(&token.id)) else { return false };
        self.tokens.remove(&id);
        self.changed(Key::Token(id));
        true
    }

    /// The token of this id, or the live one of this name.
    pub(super) fn find_token(&self, now: Now, which: &str) -> Option<Arc<Token>> {
        let named = || self.tokens.values().find(|token| *token.name == *which && token.is_live(now.wall));
        self.tokens.get(which).or_else(named).map(Arc::clone)
    }

    /// Revokes the token of this id, or the live one of this name.
    pub(super) fn revoke_token(&mut self, now: Now, which: &str) -> Result<Answer, Refusal> {
        let Some(token) = self.find_token(now, which) else {
            return Err(Refusal::NotFound(format!("token `{which}`")));
        };
        if !token.revoked.is_never() {
            return Err(Refusal::Conflict(format!("token {} ({}) was revoked before", token.id, token.name)));
        }
        let is_admin = |token: &Token| token.role == Role::Admin && token.is_live(now.wall);
        let is_other = |other: &&Arc<Token>| other.id != token.id && is_admin(other);
        if is_admin(&token) && self.tokens.values().find(is_other).is_none() {
            return Err(Refusal::Conflict(format!(
                "token {} ({}) is the last one of an admin; make another first, then revoke it",
                token.id, token.name
            )));
        }
        let id = Arc::clone(&token.id);
        self.tokens.insert(Arc::clone(&id), Arc::new(Token { revoked: now.wall, ..(*token).clone() }));
        self.changed(Key::Token(id));
        Ok(Answer::Done)
    }

    /// Refuses what lies outside of a caller's reach, in the words for what does not exist.
    pub(super) fn check_reach(&self, caller: &Caller, event: &Event) -> Result<(), Refusal> {
        match event {
            Event::Submit(submission) => {
                let queue = &submission.spec.queue;
                if !caller.reach.covers(queue) {
                    return Err(Refusal::NotFound(format!("queue `{queue}`")));
                }
                match self.keys.get(&submission.key) {
                    Some(job) if self.check_job(caller, *job).is_err() => {
                        let text = "this key was used before, for work that is out of reach; take another key";
                        Err(Refusal::Conflict(text.to_owned()))
                    }
                    _ => self.check_dependencies(caller, &submission.spec),
                }
            }
            Event::Cancel { target, .. } | Event::Retry { target, .. } => self.check_job(caller, target.job()),
            // Those who may ask for these have no limit, or they touch no queue.
            Event::SetQueue(_)
            | Event::Tend(_)
            | Event::Identity(_)
            | Event::By { .. }
            | Event::Note(_)
            | Event::CreateToken(_)
            | Event::RevokeToken { .. }
            | Event::Attach { .. }
            | Event::Offer { .. }
            | Event::Heartbeat { .. }
            | Event::Report { .. }
            | Event::Detach { .. }
            | Event::Drain { .. }
            | Event::Leave { .. }
            | Event::Tick
            | Event::Round => Ok(()),
        }
    }

    /// A task gets what the tasks before it left: to wait for another's work would be to read it. The door looks, too,
    /// but sees what is committed only, and numbers of jobs are easily guessed.
    fn check_dependencies(&self, caller: &Caller, spec: &JobSpec) -> Result<(), Refusal> {
        if caller.reach == Reach::All {
            return Ok(());
        }
        let mut problems = Vec::new();
        for (index, task) in spec.tasks.iter().enumerate() {
            for (place, job) in task.after.iter().enumerate().filter_map(|(place, after)| Some((place, after.job?))) {
                if self.check_job(caller, job).is_err() {
                    problems
                        .push(Problem { path: format!("tasks[{index}].after[{place}]"), message: no_such_job(job) });
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Refusal::Invalid(problems)) }
    }

    fn check_job(&self, caller: &Caller, job: JobId) -> Result<(), Refusal> {
        match self.jobs.get(&job) {
            Some(entry) if !caller.reach.covers(&entry.queue) => Err(Refusal::NotFound(format!("job {job}"))),
            _ => Ok(()),
        }
    }
}
