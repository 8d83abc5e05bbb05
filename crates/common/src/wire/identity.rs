//! Records of who machines are: `identity/ca`, `identity/joins/<hash>`, `identity/machines/<name>`.

use std::{error::Error, sync::Arc};

use muster_core::{
    identity::{Authority, Join, Machine, Name, Piece},
    time::Timestamp,
};
use prost::Message as _;

use super::record::VERSION;
use crate::proto::v1;

/// The key as the store has it, below `identity/`.
pub(super) fn key(name: &Name) -> String {
    match name {
        Name::Authority => "ca".to_owned(),
        Name::Join(hash) => format!("joins/{hash}"),
        Name::Machine(name) => format!("machines/{name}"),
    }
}

/// The reverse of [`key`].
pub(super) fn parse(rest: &str) -> Option<Name> {
    match rest.split_once('/') {
        None => (rest == "ca").then_some(Name::Authority),
        Some((_, "")) => None,
        Some(("joins", hash)) => Some(Name::Join(hash.into())),
        Some(("machines", name)) => Some(Name::Machine(name.into())),
        Some(_) => None,
    }
}

pub(super) fn belongs(piece: &Piece, name: &Name) -> bool {
    match (name, piece) {
        (Name::Authority, Piece::Authority(_)) => true,
        (Name::Join(hash), Piece::Join(join)) => *hash == join.hash,
        (Name::Machine(name), Piece::Machine(machine)) => *name == machine.name,
        _ => false,
    }
}

pub(super) fn encode(piece: &Piece) -> Vec<u8> {
    match piece {
        Piece::Authority(authority) => v1::AuthorityRecord {
            version: VERSION,
            certificate: authority.certificate.to_vec(),
            key: authority.key.to_vec(),
            made_us: authority.made.0,
        }
        .encode_to_vec(),
        Piece::Join(join) => v1::JoinRecord {
            version: VERSION,
            hash: join.hash.to_string(),
            agent: join.agent.to_string(),
            expires_us: join.expires.0,
            uses: join.uses,
            keys: join.keys.iter().map(ToString::to_string).collect(),
            made_us: join.made.0,
            by: join.by.to_string(),
        }
        .encode_to_vec(),
        Piece::Machine(machine) => v1::MachineRecord {
            version: VERSION,
            name: machine.name.to_string(),
            uid: machine.uid.to_string(),
            generation: machine.generation,
            key: machine.key.to_string(),
            revoked: machine.revoked,
            enrolled_us: machine.enrolled.0,
            changed_us: machine.changed.0,
        }
        .encode_to_vec(),
    }
}

pub(super) fn decode(name: &Name, bytes: &[u8]) -> Result<Piece, Box<dyn Error + Send + Sync>> {
    Ok(match name {
        Name::Authority => {
            let record = v1::AuthorityRecord::decode(bytes)?;
            if record.certificate.is_empty() || record.key.is_empty() {
                return Err("it has no certificate or no key".into());
            }
            Piece::Authority(Arc::new(Authority {
                certificate: record.certificate.into(),
                key: record.key.into(),
                made: Timestamp(record.made_us),
            }))
        }
        Name::Join(_) => {
            let record = v1::JoinRecord::decode(bytes)?;
            Piece::Join(Arc::new(Join {
                hash: record.hash.into(),
                agent: record.agent.into(),
                expires: Timestamp(record.expires_us),
                uses: record.uses,
                keys: record.keys.into_iter().map(Into::into).collect(),
                made: Timestamp(record.made_us),
                by: record.by.into(),
            }))
        }
        Name::Machine(_) => {
            let record = v1::MachineRecord::decode(bytes)?;
            Piece::Machine(Arc::new(Machine {
                name: record.name.into(),
                uid: record.uid.into(),
                generation: record.generation,
                key: record.key.into(),
                revoked: record.revoked,
                enrolled: Timestamp(record.enrolled_us),
                changed: Timestamp(record.changed_us),
            }))
        }
    })
}

#[cfg(test)]
mod tests {
    use muster_core::record::{Key, Piece as Any};

    use super::*;
    use crate::wire::record;

    fn pieces() -> Vec<(Name, Piece)> {
        let authority = Authority { certificate: vec![1, 2].into(), key: vec![3, 4].into(), made: Timestamp(5) };
        let join = Join {
            hash: "aa".into(),
            agent: "north".into(),
            expires: Timestamp(9),
            uses: 2,
            keys: vec!["bb".into(), "cc".into()],
            made: Timestamp(7),
            by: "ann".into(),
        };
        let machine = Machine {
            name: "north".into(),
            uid: "u-1".into(),
            generation: 3,
            key: "bb".into(),
            revoked: true,
            enrolled: Timestamp(7),
            changed: Timestamp(8),
        };
        vec![
            (Name::Authority, Piece::Authority(Arc::new(authority))),
            (Name::Join("aa".into()), Piece::Join(Arc::new(join))),
            (Name::Machine("north".into()), Piece::Machine(Arc::new(machine))),
        ]
    }

    #[test]
    fn what_is_stored_of_machines_comes_back_as_it_was() {
        for (name, piece) in pieces() {
            let (key, piece) = (Key::Identity(name), Any::Identity(piece));
            let text = record::key_bytes(&key);
            assert_eq!(record::parse_key(text.as_bytes()).expect("a key"), key, "{text}");
            let bytes = record::encode(&piece, &key);
            assert_eq!(record::decode(&key, &bytes).expect("a record"), piece, "{text}");
        }
    }

    #[test]
    fn a_record_under_anothers_key_and_a_key_that_is_none_are_refused() {
        let bytes = encode(&pieces()[2].1);
        assert!(record::decode(&Key::Identity(Name::Machine("south".into())), &bytes).is_err());
        assert!(record::decode(&Key::Identity(Name::Authority), &bytes[..2]).is_err(), "no certificate");
        for text in ["identity/", "identity/xyz", "identity/joins/", "identity/machines", "identity/ca/x"] {
            assert!(record::parse_key(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let text = format!("{:?}", pieces()[0].1);
        assert!(!text.contains("key") && text.contains("made"), "{text}");
    }
}
