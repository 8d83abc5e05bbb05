//! Tokens, reaches and the audit chain, in the cluster and across restarts.

use std::{sync::Arc, time::Duration};

use muster_core::{
    access::{Caller, NewToken, Reach, Role, Token, Who},
    audit::{BLOCK, Note, Outcome, Record, verify},
    cluster::Config,
    event::{Answer, Event, Refusal, Target, Which},
    identity::{Change, Enrolment, Join},
    record::{Key, Piece, Queue},
    spec::{After, JobSpec, On, TaskSpec},
    time::Timestamp,
};

use crate::kit::{Kit, cpus, job, task};

fn caller(queues: &[&str]) -> Arc<Caller> {
    let who = Who::Token { id: "t1".into(), name: "ops".into() };
    Arc::new(Caller { who, peer: "10.0.0.1:5".into(), reach: Reach::of(queues.iter().map(|queue| Arc::from(*queue))) })
}

fn token(id: &str, name: &str, role: Role) -> NewToken {
    NewToken {
        id: id.into(),
        name: name.into(),
        role,
        reach: Reach::All,
        digest: [7; 32],
        by: "ann".into(),
        expires: Timestamp(0),
    }
}

fn spec(queue: &str) -> JobSpec {
    JobSpec { queue: queue.to_owned(), ..job([task("a")]) }
}

fn records(kit: &Kit) -> Vec<Record> {
    let blocks = kit.store.iter().filter_map(|(key, piece)| match (key, piece) {
        (Key::Audit(_), Piece::Audit(block)) => Some(block.records.clone()),
        _ => None,
    });
    blocks.flatten().collect()
}

fn kept(kit: &Kit, id: &str) -> Option<Arc<Token>> {
    match kit.store.get(&Key::Token(id.into())) {
        Some(Piece::Token(token)) => Some(Arc::clone(token)),
        _ => None,
    }
}

#[test]
fn what_a_caller_changed_is_recorded_in_the_same_step_and_what_failed_is_not() {
    let mut kit = Kit::new();
    let ops = caller(&[]);
    let (step, answer) = kit.cluster.handle(kit.now, Event::Submit(Kit::submission(spec("day"))).by(&ops));
    assert!(step.changes.iter().any(|key| matches!(key, Key::Audit(_))), "{:?}", step.changes);
    assert!(step.changes.iter().any(|key| matches!(key, Key::Job(_))), "{:?}", step.changes);
    let Ok(Answer::Submitted { job, .. }) = answer else { panic!("{answer:?}") };
    kit.event(Event::SetQueue(Queue { name: "day".to_owned(), ..Queue::default() }).by(&ops));
    let target = Target::Job(job);
    kit.event(Event::Cancel { target, by: "x".into(), reason: "enough".into(), teardown_too: false }.by(&ops));
    kit.event(Event::Retry { target, which: Which::All }.by(&ops));
    let none = Target::Job(muster_core::id::JobId(99));
    assert!(kit.try_event(Event::Retry { target: none, which: Which::All }.by(&ops)).is_err());
    let all = records(&kit);
    let told: Vec<_> = all.iter().map(|record| (&*record.action, &*record.object, &*record.detail)).collect();
    let limits = "max_running none, max_waiting none, paused false";
    let expected = [
        ("submit", "1", "test in queue day"),
        ("queue.set", "day", limits),
        ("cancel", "1", "enough"),
        ("retry", "1", "all"),
    ];
    assert_eq!(told, expected);
    assert!(all.iter().all(|record| record.who == ops.who && &*record.peer == "10.0.0.1:5"));
    assert_eq!(verify(&all), Ok(()));
}

#[test]
fn a_repeated_submission_and_a_known_agent_are_no_news() {
    let mut kit = Kit::new();
    let ops = caller(&[]);
    let mut submission = Kit::submission(spec("day"));
    submission.key = "k".into();
    kit.event(Event::Submit(submission.clone()).by(&ops));
    kit.event(Event::Submit(submission).by(&ops));
    let attach = |session| Event::Attach {
        uid: "u".into(),
        offer: muster_core::record::Offer { name: "north".to_owned(), capacity: cpus(1), ..Default::default() },
        session: muster_core::id::SessionId(session),
        holding: Vec::new(),
    };
    kit.event(attach(1).by(&ops));
    kit.event(attach(2).by(&ops));
    let told: Vec<_> = records(&kit).iter().map(|record| record.action.to_string()).collect();
    assert_eq!(told, ["submit", "agent.join"]);
}

#[test]
fn a_limited_caller_touches_only_work_of_its_queues() {
    let mut kit = Kit::new();
    let (all, day) = (caller(&[]), caller(&["day"]));
    let mut keyed = Kit::submission(spec("night"));
    keyed.key = "k".into();
    let Answer::Submitted { job: night, .. } = kit.event(Event::Submit(keyed.clone()).by(&all)) else { panic!() };
    let Answer::Submitted { job: own, .. } = kit.event(Event::Submit(Kit::submission(spec("day"))).by(&day)) else {
        panic!()
    };
    let before = (kit.store.clone(), kit.states(night));
    let cancel =
        |job| Event::Cancel { target: Target::Job(job), by: "x".into(), reason: "".into(), teardown_too: false };
    // Somebody may have learnt the number of a job before the door could see whose it is.
    let depends = |which: Option<&str>| {
        let after = vec![After { job: Some(night), job_name: None, task: which.map(str::to_owned), on: On::Any }];
        let task = TaskSpec { after, ..task("a") };
        Event::Submit(Kit::submission(JobSpec { queue: "day".to_owned(), ..job([task]) }))
    };
    let beyond = [
        depends(None),
        depends(Some("a")),
        cancel(night),
        Event::Cancel {
            target: Target::Tasks { job: night, first: 0, count: 1 },
            by: "x".into(),
            reason: "".into(),
            teardown_too: false,
        },
        Event::Retry { target: Target::Job(night), which: Which::All },
        Event::Submit(Kit::submission(spec("night"))),
        // A key tells nothing of another's work.
        Event::Submit(muster_core::event::Submission { spec: Arc::new(spec("day")), ..keyed }),
    ];
    for event in beyond {
        let text = format!("{event:?}");
        let refused = kit.try_event(event.by(&day)).unwrap_err();
        let is_told_nothing = match &refused {
            Refusal::NotFound(_) | Refusal::Conflict(_) => true,
            Refusal::Invalid(problems) => problems.iter().all(|problem| problem.message.contains("does not exist")),
            _ => false,
        };
        assert!(is_told_nothing, "{text}: {refused}");
    }
    assert_eq!((kit.store.clone(), kit.states(night)), before, "nothing was changed");
    kit.event(cancel(own).by(&day));
    kit.event(cancel(night).by(&all));
}

#[test]
fn tokens_are_made_and_revoked_and_survive_a_restart() {
    let mut kit = Kit::new();
    let first = kit.try_event(Event::CreateToken(token("v", "viewer", Role::Viewer))).unwrap_err();
    assert!(first.to_string().contains("the first token must have the role admin"), "{first}");
    kit.event(Event::CreateToken(token("a", "root", Role::Admin)));
    kit.event(Event::CreateToken(token("v", "viewer", Role::Viewer)));
    let limited = NewToken { reach: Reach::of(["q".into()]), ..token("x", "x", Role::Admin) };
    for bad in
        [token("v", "other", Role::Viewer), token("w", "viewer", Role::Viewer), token("w", "", Role::Viewer), limited]
    {
        assert!(matches!(kit.try_event(Event::CreateToken(bad)), Err(Refusal::Conflict(_))));
    }
    kit.restart();
    let revoke = |which: &str| Event::RevokeToken { which: which.into() };
    assert!(matches!(kit.try_event(revoke("nobody")), Err(Refusal::NotFound(_))));
    let last = kit.try_event(revoke("root")).unwrap_err();
    assert!(last.to_string().contains("the last one of an admin"), "{last}");
    kit.event(Event::CreateToken(token("b", "second", Role::Admin)));
    kit.event(revoke("root"));
    kit.event(revoke("v"));
    assert!(matches!(kit.try_event(revoke("v")), Err(Refusal::Conflict(_))), "it was revoked before");
    kit.restart();
    assert!(!kept(&kit, "a").unwrap().is_live(kit.now.wall));
    assert!(!kept(&kit, "v").unwrap().is_live(kit.now.wall));
    assert!(kept(&kit, "b").unwrap().is_live(kit.now.wall));
    // Its name is free again.
    kit.event(Event::CreateToken(token("w", "viewer", Role::Viewer)));
}

#[test]
fn dead_tokens_make_room_and_live_ones_never_do() {
    let mut kit = Kit::new();
    kit.event(Event::CreateToken(token("root", "root", Role::Admin)));
    // The check of all invariants after every step is not what is tested here.
    for n in 0..9_999 {
        let (_, answer) =
            kit.cluster.handle(kit.now, Event::CreateToken(token(&format!("i{n}"), &format!("n{n}"), Role::Viewer)));
        answer.unwrap();
    }
    assert!(matches!(kit.try_event(Event::CreateToken(token("x", "x", Role::Viewer))), Err(Refusal::Conflict(_))));
    kit.event(Event::RevokeToken { which: "n7".into() });
    kit.event(Event::CreateToken(token("x", "x", Role::Viewer)));
    assert!(kept(&kit, "i7").is_none() && kept(&kit, "x").is_some());
}

#[test]
fn the_chain_goes_on_across_restarts_and_old_blocks_go() {
    let config = Config { audit_keep: 2 * BLOCK, audit_age: Duration::from_secs(100), ..Config::default() };
    let mut kit = Kit::with(config);
    let note = |n: u64| Event::Note(Note::done(&caller(&[]), "test", &n.to_string(), ""));
    for n in 1..=10 * BLOCK {
        kit.event(note(n));
        if n % 7 == 0 {
            kit.restart();
        }
        let all = records(&kit);
        assert_eq!(verify(&all), Ok(()), "after {n}");
        assert_eq!(all.last().map(|record| record.n), Some(n));
        let kept = all.len() as u64;
        assert!(kept >= n.min(2 * BLOCK) && kept <= 4 * BLOCK, "{kept} are kept after {n}");
    }
    kit.pass(Duration::from_secs(200));
    kit.event(note(0));
    let all = records(&kit);
    assert!(all.len() as u64 <= BLOCK && !all.is_empty(), "what is too old is gone: {}", all.len());
}

#[test]
fn a_chain_that_was_tampered_with_is_taken_up_and_told() {
    let mut kit = Kit::new();
    for n in 0..40 {
        kit.event(Event::Note(Note::refused(&caller(&[]), "test", &n.to_string(), "")));
    }
    let key = Key::Audit(1);
    let Some(Piece::Audit(block)) = kit.store.get(&key).cloned() else { panic!("there is a second block") };
    let mut forged = (*block).clone();
    forged.records[3].outcome = Outcome::Done;
    kit.store.insert(key, Piece::Audit(Arc::new(forged)));
    kit.restart();
    kit.event(Event::Note(Note::done(&caller(&[]), "test", "more", "")));
    let told = verify(&records(&kit)).unwrap_err();
    assert_eq!(
        told.to_string(),
        format!("record {} was changed: record {} holds another hash of it", BLOCK + 3, BLOCK + 4)
    );
}

#[test]
fn machines_that_are_let_in_and_sent_away_are_on_record_and_one_that_was_refused_is_not() {
    let mut kit = Kit::new();
    let (made, expires) = (kit.now.wall, kit.now.wall.after(Duration::from_secs(60)));
    let join = Join { hash: "h".into(), agent: "".into(), expires, uses: 1, keys: Vec::new(), made, by: "ann".into() };
    let enrol = |hash: &str, key: &str| {
        Change::Enrol(Enrolment { hash: hash.into(), name: "north".into(), uid: "u".into(), key: key.into() })
    };
    let changes = [
        (Change::Invite(join), true),
        (enrol("guessed", "k"), false),
        (enrol("h", "k"), true),
        (Change::Revoke { name: "north".into() }, true),
    ];
    let ops = caller(&[]);
    for (change, done) in changes {
        let text = format!("{change:?}");
        assert_eq!(kit.try_event(Event::Identity(change).by(&ops)).is_ok(), done, "{text}");
    }
    let all = records(&kit);
    let told: Vec<_> = all.iter().map(|record| (&*record.action, &*record.object)).collect();
    assert_eq!(told, [("agent.invite", ""), ("agent.enrol", "north"), ("agent.revoke", "north")]);
    assert!(all.iter().all(|record| record.who == ops.who));
}

#[test]
fn a_token_that_is_revoked_by_its_name_is_recorded_by_its_id() {
    let mut kit = Kit::new();
    let ops = caller(&[]);
    kit.event(Event::CreateToken(token("a", "root", Role::Admin)).by(&ops));
    kit.event(Event::CreateToken(token("v", "eye", Role::Viewer)).by(&ops));
    kit.event(Event::RevokeToken { which: "eye".into() }.by(&ops));
    let all = records(&kit);
    let told: Vec<_> = all.iter().map(|record| (&*record.action, &*record.object, &*record.detail)).collect();
    let made = [("token.create", "a", "root: admin"), ("token.create", "v", "eye: viewer")];
    assert_eq!(told, [made[0], made[1], ("token.revoke", "v", "eye")]);
}
