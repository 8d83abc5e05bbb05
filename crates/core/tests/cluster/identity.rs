//! Machines join with tokens and are sent away; a token is used up by a commit.

use std::{sync::Arc, time::Duration};

use muster_core::{
    event::{Answer, Event, Refusal},
    identity::{Answer as Told, Authority, Change, Enrolment, Join, Machine, Name, Piece},
    record::{Key, Piece as Any},
    time::Timestamp,
};

use crate::kit::Kit;

const HOUR: Duration = Duration::from_secs(3600);

fn authority(made: u64) -> Change {
    Change::Found(Authority { certificate: vec![1].into(), key: vec![2].into(), made: Timestamp(made) })
}

fn enrolment(hash: &str, name: &str, uid: &str, key: &str) -> Enrolment {
    Enrolment { hash: hash.into(), name: name.into(), uid: uid.into(), key: key.into() }
}

impl Kit {
    fn change(&mut self, change: Change) -> Result<Told, Refusal> {
        match self.try_event(Event::Identity(change))? {
            Answer::Identity(told) => Ok(told),
            other => panic!("an answer of another kind: {other:?}"),
        }
    }

    fn invite(&mut self, hash: &str, agent: &str, uses: u32) {
        let expires = self.now.wall.after(HOUR);
        let (made, by) = (self.now.wall, "ann".into());
        let join = Join { hash: hash.into(), agent: agent.into(), expires, uses, keys: Vec::new(), made, by };
        assert_eq!(self.change(Change::Invite(join)), Ok(Told::Invited));
    }

    fn enrol(&mut self, hash: &str, name: &str, uid: &str, key: &str) -> Result<u64, String> {
        match self.change(Change::Enrol(enrolment(hash, name, uid, key))) {
            Ok(Told::Enrolled { generation }) => Ok(generation),
            Err(Refusal::Denied(why)) => Err(why),
            other => panic!("neither joined nor denied: {other:?}"),
        }
    }

    fn machine(&self, name: &str) -> Arc<Machine> {
        match self.store.get(&Key::Identity(Name::Machine(name.into()))) {
            Some(Any::Identity(Piece::Machine(machine))) => Arc::clone(machine),
            other => panic!("no machine: {other:?}"),
        }
    }
}

#[test]
fn the_first_authority_stays_whoever_comes_later() {
    let mut kit = Kit::new();
    for made in [1, 2] {
        let Ok(Told::Authority(found)) = kit.change(authority(made)) else { panic!("an authority") };
        assert_eq!(found.made, Timestamp(1));
    }
}

#[test]
fn a_join_token_is_used_once_and_its_replay_is_refused() {
    let mut kit = Kit::new();
    kit.invite("h", "", 1);
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(1));
    // The answer was lost: the same machine asks again, with the same key.
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(1));
    for (name, uid, key) in [("south", "u2", "k2"), ("north", "u1", "k2"), ("north", "u2", "k1"), ("south", "u1", "k1")]
    {
        let why = kit.enrol("h", name, uid, key).expect_err("refused");
        assert!(why.contains("used already"), "{name} {uid} {key}: {why}");
    }
    assert!(kit.enrol("g", "south", "u2", "k2").expect_err("refused").contains("not known"));
}

#[test]
fn a_token_is_used_up_after_a_restart_too() {
    let mut kit = Kit::new();
    kit.invite("h", "", 1);
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(1));
    kit.restart();
    assert!(kit.enrol("h", "south", "u2", "k2").expect_err("refused").contains("used already"));
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(1));
}

#[test]
fn a_token_may_be_for_several_agents_and_ends_with_its_time() {
    let mut kit = Kit::new();
    kit.invite("h", "", 3);
    assert_eq!(kit.enrol("h", "a", "ua", "ka"), Ok(1));
    assert_eq!(kit.enrol("h", "b", "ub", "kb"), Ok(1));
    kit.pass(HOUR);
    assert!(kit.enrol("h", "c", "uc", "kc").expect_err("refused").contains("has expired"));
    // The next one that is made takes it away.
    kit.invite("i", "", 1);
    assert!(!kit.store.contains_key(&Key::Identity(Name::Join("h".into()))));
    assert!(kit.store.contains_key(&Key::Identity(Name::Join("i".into()))));
}

#[test]
fn nobody_becomes_somebody_else_by_joining() {
    let mut kit = Kit::new();
    kit.invite("h", "", 9);
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(1));
    assert!(kit.enrol("h", "north", "u2", "k2").expect_err("the name is taken").contains("another --name"));
    assert!(kit.enrol("h", "south", "u1", "k2").expect_err("the folder is taken").contains("--name north"));
    // A token that names it replaces it: what the old folder holds is worth nothing any more.
    kit.invite("only-north", "north", 1);
    assert!(kit.enrol("only-north", "south", "u3", "k3").expect_err("for another").contains("for agent `north`"));
    assert_eq!(kit.enrol("only-north", "north", "u2", "k2"), Ok(2));
    assert_eq!((&*kit.machine("north").uid, kit.machine("north").generation), ("u2", 2));
}

#[test]
fn the_folder_of_an_agent_that_never_joined_is_taken_by_its_own_name_only() {
    let mut kit = Kit::new();
    // Its folder has the number `one`, and so has its name.
    kit.host(4);
    kit.invite("h", "", 9);
    assert!(kit.enrol("h", "south", "one", "k").expect_err("not its name").contains("belongs to agent `one`"));
    assert_eq!(kit.enrol("h", "one", "one", "k"), Ok(1));
}

#[test]
fn who_is_revoked_comes_back_with_a_new_token_only() {
    let mut kit = Kit::new();
    kit.invite("h", "", 2);
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(1));
    let revoke = || Change::Revoke { name: "north".into() };
    assert_eq!(kit.change(revoke()), Ok(Told::Revoked { already: false }));
    assert!(kit.machine("north").revoked);
    assert_eq!(kit.change(revoke()), Ok(Told::Revoked { already: true }));
    assert_eq!(kit.enrol("h", "north", "u1", "k1"), Ok(2), "the second use of the token");
    assert!(!kit.machine("north").revoked);
    let nobody = kit.change(Change::Revoke { name: "nobody".into() });
    assert!(matches!(nobody, Err(Refusal::NotFound(_))), "{nobody:?}");
}
