//! Tokens and audit records, as the wire and the store carry them.

use std::sync::Arc;

use muster_core::{
    access::{Digest, Reach, Role, Token, Who},
    audit::{Block, Outcome, Record},
    time::Timestamp,
};

use super::{Error, record::VERSION, required, unknown_value};
use crate::proto::v1;

/// A role as the wire carries it.
pub fn role_to_proto(role: Role) -> v1::AccessRole {
    match role {
        Role::Viewer => v1::AccessRole::Viewer,
        Role::Operator => v1::AccessRole::Operator,
        Role::Admin => v1::AccessRole::Admin,
        Role::Agent => v1::AccessRole::Agent,
    }
}

/// A role as it is meant.
///
/// # Errors
/// It is none.
pub fn role_from_proto(role: i32) -> Result<Role, Error> {
    match v1::AccessRole::try_from(role) {
        Ok(v1::AccessRole::Viewer) => Ok(Role::Viewer),
        Ok(v1::AccessRole::Operator) => Ok(Role::Operator),
        Ok(v1::AccessRole::Admin) => Ok(Role::Admin),
        Ok(v1::AccessRole::Agent) => Ok(Role::Agent),
        Ok(v1::AccessRole::Unspecified) | Err(_) => {
            Err(unknown_value("role", role, "viewer (1), operator (2), admin (3), agent (4)"))
        }
    }
}

pub(super) fn token_to_proto(token: &Token) -> v1::TokenRecord {
    v1::TokenRecord {
        version: VERSION,
        id: token.id.to_string(),
        name: token.name.to_string(),
        role: role_to_proto(token.role).into(),
        queues: token.reach.queues().iter().map(ToString::to_string).collect(),
        digest: token.digest.to_vec(),
        created_us: token.created.0,
        created_by: token.created_by.to_string(),
        expires_us: token.expires.0,
        revoked_us: token.revoked.0,
    }
}

pub(super) fn token_from_proto(token: v1::TokenRecord) -> Result<Token, Error> {
    Ok(Token {
        id: token.id.into(),
        name: token.name.into(),
        role: role_from_proto(token.role)?,
        reach: Reach::of(token.queues.into_iter().map(Arc::from)),
        digest: digest(&token.digest, "digest")?,
        created: Timestamp(token.created_us),
        created_by: token.created_by.into(),
        expires: Timestamp(token.expires_us),
        revoked: Timestamp(token.revoked_us),
    })
}

fn digest(bytes: &[u8], path: &str) -> Result<Digest, Error> {
    Digest::try_from(bytes).map_err(|_| Error::field(path, format!("has {} bytes, and must have 32", bytes.len())))
}

pub(super) fn block_to_proto(block: &Block) -> v1::AuditBlockRecord {
    v1::AuditBlockRecord { version: VERSION, records: block.records.iter().map(audit_to_proto).collect() }
}

pub(super) fn block_from_proto(block: v1::AuditBlockRecord) -> Result<Block, Error> {
    let one = |(n, record)| audit_from_proto(record).map_err(|error| error.inside(format_args!("records[{n}]")));
    Ok(Block { records: block.records.into_iter().enumerate().map(one).collect::<Result<_, _>>()? })
}

/// An audit record as the wire carries it.
pub fn audit_to_proto(record: &Record) -> v1::AuditRecord {
    let (kind, id) = match &record.who {
        Who::Anonymous => (v1::ActorKind::Anonymous, ""),
        Who::Token { id, .. } => (v1::ActorKind::Token, &**id),
        Who::Agent(_) => (v1::ActorKind::Agent, ""),
        Who::Controller(_) => (v1::ActorKind::Controller, ""),
        Who::Muster => (v1::ActorKind::Muster, ""),
    };
    v1::AuditRecord {
        n: record.n,
        at_us: record.at.0,
        actor: Some(v1::Actor { kind: kind.into(), id: id.to_owned(), name: record.who.name().to_owned() }),
        peer: record.peer.to_string(),
        action: record.action.to_string(),
        object: record.object.to_string(),
        refused: record.outcome == Outcome::Refused,
        detail: record.detail.to_string(),
        uncounted: record.uncounted,
        before: record.before.to_vec(),
    }
}

/// An audit record as it was made.
///
/// # Errors
/// It was not made by any version of Muster up to this.
pub fn audit_from_proto(record: v1::AuditRecord) -> Result<Record, Error> {
    let actor = required(record.actor, "actor")?;
    let who = match v1::ActorKind::try_from(actor.kind) {
        Ok(v1::ActorKind::Anonymous) => Who::Anonymous,
        Ok(v1::ActorKind::Token) => Who::Token { id: actor.id.into(), name: actor.name.into() },
        Ok(v1::ActorKind::Agent) => Who::Agent(actor.name.into()),
        Ok(v1::ActorKind::Controller) => Who::Controller(actor.name.into()),
        Ok(v1::ActorKind::Muster) => Who::Muster,
        Err(_) => return Err(unknown_value("actor.kind", actor.kind, "0 to 4")),
    };
    Ok(Record {
        n: record.n,
        at: Timestamp(record.at_us),
        who,
        peer: record.peer.into(),
        action: record.action.into(),
        object: record.object.into(),
        outcome: if record.refused { Outcome::Refused } else { Outcome::Done },
        detail: record.detail.into(),
        uncounted: record.uncounted,
        before: digest(&record.before, "before")?,
    })
}
