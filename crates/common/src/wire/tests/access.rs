//! Tokens and audit records in every shape.

use std::sync::Arc;

use muster_core::{
    access::{Reach, Role, Token, Who},
    audit::{Block, Outcome, Record},
    record::{Key, Piece},
};
use proptest::{array::uniform32, collection::vec, prelude::*};

use super::{
    super::access::{audit_from_proto, audit_to_proto, role_from_proto, role_to_proto},
    arcs, times, words,
};
use crate::proto::v1;

pub(super) fn token_pieces() -> impl Strategy<Value = (Key, Piece)> {
    let id = words().prop_filter("an id", |id| !id.is_empty());
    let role = prop::sample::select(Role::ALL.as_slice());
    let times = (times(), times(), times());
    (id, arcs(), role, vec(arcs(), 0..3), uniform32(any::<u8>()), arcs(), times).prop_map(
        |(id, name, role, queues, digest, created_by, (created, expires, revoked))| {
            let (id, reach): (Arc<str>, _) = (id.into(), Reach::of(queues));
            let token = Token { id: Arc::clone(&id), name, role, reach, digest, created, created_by, expires, revoked };
            (Key::Token(id), Piece::Token(Arc::new(token)))
        },
    )
}

fn records() -> impl Strategy<Value = Record> {
    let who = prop_oneof![
        Just(Who::Anonymous),
        Just(Who::Muster),
        (arcs(), arcs()).prop_map(|(id, name)| Who::Token { id, name }),
        arcs().prop_map(Who::Agent),
        arcs().prop_map(Who::Controller),
    ];
    let outcome = prop_oneof![Just(Outcome::Done), Just(Outcome::Refused)];
    let texts = (arcs(), arcs(), arcs(), arcs());
    (any::<u64>(), times(), who, texts, outcome, any::<u64>(), uniform32(any::<u8>())).prop_map(
        |(n, at, who, (peer, action, object, detail), outcome, uncounted, before)| Record {
            n,
            at,
            who,
            peer,
            action,
            object,
            outcome,
            detail,
            uncounted,
            before,
        },
    )
}

pub(super) fn audit_pieces() -> impl Strategy<Value = (Key, Piece)> {
    (any::<u64>(), vec(records(), 0..4))
        .prop_map(|(n, records)| (Key::Audit(n), Piece::Audit(Arc::new(Block { records }))))
}

proptest! {
    #[test]
    fn an_audit_record_keeps_its_hash_over_the_wire(record in records()) {
        let back = audit_from_proto(audit_to_proto(&record)).unwrap();
        prop_assert_eq!(back.digest(), record.digest());
    }
}

#[test]
fn every_role_survives_and_no_other_number_is_one() {
    for role in Role::ALL {
        assert_eq!(role_from_proto(role_to_proto(role).into()).unwrap(), role);
    }
    for odd in [0, 5, -1] {
        assert!(role_from_proto(odd).is_err(), "{odd}");
    }
}

#[test]
fn an_audit_record_that_nobody_made_is_refused() {
    let good = v1::AuditRecord { actor: Some(v1::Actor::default()), before: vec![0; 32], ..Default::default() };
    assert!(audit_from_proto(good.clone()).is_ok());
    let bad = [
        v1::AuditRecord { actor: None, ..good.clone() },
        v1::AuditRecord { actor: Some(v1::Actor { kind: 9, ..Default::default() }), ..good.clone() },
        v1::AuditRecord { before: vec![0; 31], ..good },
    ];
    for record in bad {
        assert!(audit_from_proto(record.clone()).is_err(), "{record:?}");
    }
}
