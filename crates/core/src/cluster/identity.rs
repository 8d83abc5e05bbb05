//! Machines join and are sent away. A token is used up by a commit, so that it cannot be used again (replay).

use std::{collections::BTreeMap, sync::Arc};

use super::Cluster;
use crate::{
    event::{Answer, Refusal},
    identity::{Answer as Told, Authority, Change, Enrolment, Hash, Join, Machine, Name, Piece},
    record::Key,
    time::Now,
};

/// All that is known of machines.
#[derive(Debug, Default)]
pub(super) struct Identities {
    authority: Option<Arc<Authority>>,
    joins: BTreeMap<Hash, Arc<Join>>,
    machines: BTreeMap<Arc<str>, Arc<Machine>>,
}

impl Identities {
    pub(super) fn piece(&self, name: &Name) -> Option<Piece> {
        match name {
            Name::Authority => self.authority.clone().map(Piece::Authority),
            Name::Join(hash) => self.joins.get(hash).cloned().map(Piece::Join),
            Name::Machine(name) => self.machines.get(name).cloned().map(Piece::Machine),
        }
    }

    /// Takes up a piece from the store; false: it is of another kind than its name.
    pub(super) fn remember(&mut self, name: Name, piece: Piece) -> bool {
        match (name, piece) {
            (Name::Authority, Piece::Authority(authority)) => self.authority = Some(authority),
            (Name::Join(hash), Piece::Join(join)) => _ = self.joins.insert(hash, join),
            (Name::Machine(name), Piece::Machine(machine)) => _ = self.machines.insert(name, machine),
            _ => return false,
        }
        true
    }
}

impl Cluster {
    pub(super) fn identify(&mut self, now: Now, change: Change) -> Result<Answer, Refusal> {
        match change {
            Change::Found(authority) => Ok(self.found(authority)),
            Change::Invite(join) => Ok(self.invite(now, join)),
            Change::Enrol(enrolment) => self.enrol(now, &enrolment),
            Change::Revoke { name } => self.revoke(now, &name),
        }
        .map(Answer::Identity)
    }

    /// The first one stays: what it signed must not become worthless.
    fn found(&mut self, authority: Authority) -> Told {
        if let Some(known) = &self.identities.authority {
            return Told::Authority(Arc::clone(known));
        }
        let authority = Arc::new(authority);
        self.identities.authority = Some(Arc::clone(&authority));
        self.changed(Key::Identity(Name::Authority));
        Told::Authority(authority)
    }

    fn invite(&mut self, now: Now, join: Join) -> Told {
        // Those that nobody can use any more go with the next one that is made.
        let over: Vec<Hash> = self
            .identities
            .joins
            .values()
            .filter(|join| join.expires <= now.wall)
            .map(|join| join.hash.clone())
            .collect();
        for hash in over {
            self.identities.joins.remove(&hash);
            self.changed(Key::Identity(Name::Join(hash)));
        }
        let hash = Arc::clone(&join.hash);
        self.identities.joins.insert(Arc::clone(&hash), Arc::new(join));
        self.changed(Key::Identity(Name::Join(hash)));
        Told::Invited
    }

    fn enrol(&mut self, now: Now, new: &Enrolment) -> Result<Told, Refusal> {
        let join = self.usable(now, new)?;
        let known = self.identities.machines.get(&new.name).cloned();
        if let Some(known) = &known {
            // The answer was lost: the same key gets the same again.
            let again = known.key == new.key && known.uid == new.uid && !known.revoked;
            if again && join.keys.contains(&new.key) {
                return Ok(Told::Enrolled { generation: known.generation });
            }
        }
        if join.keys.len() >= join.uses as usize {
            return Err(denied("this join token has been used already; make another with `ctl admin join-token`"));
        }
        self.check_taken(&join, known.as_deref(), new)?;
        let generation = known.map_or(1, |known| known.generation.saturating_add(1));
        let machine = Machine {
            name: Arc::clone(&new.name),
            uid: Arc::clone(&new.uid),
            generation,
            key: Arc::clone(&new.key),
            revoked: false,
            enrolled: now.wall,
            changed: now.wall,
        };
        let mut keys = join.keys.clone();
        keys.push(Arc::clone(&new.key));
        let used = Join { keys, ..(*join).clone() };
        self.identities.joins.insert(Arc::clone(&new.hash), Arc::new(used));
        self.identities.machines.insert(Arc::clone(&new.name), Arc::new(machine));
        self.changed(Key::Identity(Name::Join(Arc::clone(&new.hash))));
        self.changed(Key::Identity(Name::Machine(Arc::clone(&new.name))));
        Ok(Told::Enrolled { generation })
    }

    /// The token, if it may be used by this agent now.
    fn usable(&self, now: Now, new: &Enrolment) -> Result<Arc<Join>, Refusal> {
        let Some(join) = self.identities.joins.get(&new.hash) else {
            return Err(denied(
                "this join token is not known here, or expired long ago; make another with `ctl admin join-token`",
            ));
        };
        if join.expires <= now.wall {
            return Err(denied("this join token has expired; make another with `ctl admin join-token`"));
        }
        if !join.agent.is_empty() && join.agent != new.name {
            let (agent, name) = (&join.agent, &new.name);
            return Err(denied(format!("this join token is for agent `{agent}`, and not for `{name}`")));
        }
        Ok(Arc::clone(join))
    }

    /// Nobody becomes somebody else by joining: a name that is taken needs a token that names it, and a data folder
    /// keeps its name.
    fn check_taken(&self, join: &Join, known: Option<&Machine>, new: &Enrolment) -> Result<(), Refusal> {
        let name = &new.name;
        if let Some(known) = known
            && known.uid != new.uid
            && join.agent.is_empty()
        {
            return Err(denied(format!(
                "an agent `{name}` has joined already, with another data folder; choose another --name, or replace it \
                 with a token of `ctl admin join-token --name {name}`"
            )));
        }
        let other = self.identities.machines.values().find(|machine| machine.uid == new.uid && machine.name != *name);
        if let Some(other) = other {
            let other = &other.name;
            return Err(denied(format!(
                "this data folder has joined as agent `{other}`; keep --name {other}, or take an empty --data folder"
            )));
        }
        // Before there were certificates, or with another store, the number may be somebody's who never joined.
        let plain = self.uids.get(&new.uid).and_then(|id| self.agents.get(id));
        match plain {
            Some(agent) if agent.record.offer.name != **name && join.agent.is_empty() => Err(denied(format!(
                "this data folder belongs to agent `{}`; join under that name, or with a token that names `{name}`",
                agent.record.offer.name
            ))),
            _ => Ok(()),
        }
    }

    fn revoke(&mut self, now: Now, name: &Arc<str>) -> Result<Told, Refusal> {
        let Some(machine) = self.identities.machines.get_mut(name) else {
            return Err(Refusal::NotFound(format!("agent `{name}` with a certificate")));
        };
        if machine.revoked {
            return Ok(Told::Revoked { already: true });
        }
        *machine = Arc::new(Machine { revoked: true, changed: now.wall, ..(**machine).clone() });
        self.changed(Key::Identity(Name::Machine(Arc::clone(name))));
        Ok(Told::Revoked { already: false })
    }
}

fn denied(why: impl Into<String>) -> Refusal {
    Refusal::Denied(why.into())
}
