//! Records: what was written is read, for ever; what is foreign, newer or torn is refused.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_core::{
    access,
    audit::{Block, Outcome, Record},
    fleet::{Cordon, Limits},
    id::{AgentId, JobId, TaskId, Token},
    record::{AgentRecord, Cancel, Enforced, Facts, Gpu, Job, Key, Meta, Offer, Piece, Queue, TaskResult},
    resources::Request,
    spec::{After, Array, Command, JobSpec, LabelRule, On, OnLost, Priority, Requires, RetryPolicy, Role, TaskSpec},
    state::{Attempt, Chunk, End, State, Stopping, Task},
    time::Timestamp,
};
use proptest::{collection::vec, prelude::*};

use super::{
    super::{Error, record::*},
    pieces,
};

/// One of each, with something in every field; at most one entry a map, because their order on the
/// wire is not fixed.
fn samples() -> Vec<(Key, Piece)> {
    let job = JobId(17);
    let queue = Queue { name: "night".to_owned(), max_running: Some(5), max_waiting: Some(900), paused: true };
    let cancel = Cancel {
        at: Timestamp(99),
        by: "ann".into(),
        reason: "why not".into(),
        teardown_too: true,
        skipped: vec![1, 300],
    };
    vec![
        (Key::Meta, Piece::Meta(Meta { token_ceiling: 1000, job_floor: 16, agent_floor: 2, restored_below: 7 })),
        (Key::Queue("night".into()), Piece::Queue(Arc::new(queue))),
        (Key::Agent(AgentId(3)), Piece::Agent(Arc::new(sample_agent()))),
        (Key::Job(job), Piece::Job(Arc::new(sample_job(job)))),
        (Key::Cancel(job), Piece::Cancel(Arc::new(cancel))),
        (Key::Chunk(job, 2), Piece::Chunk(Arc::new(sample_chunk()))),
        (Key::Result(TaskId::new(job, 128)), Piece::Result(Arc::new(TaskResult::Inline(Arc::new(*b"{\"a\":1}"))))),
        (Key::Result(TaskId::new(job, 129)), Piece::Result(Arc::new(TaskResult::Stored(70_000)))),
        (Key::Token("abcd2345".into()), Piece::Token(Arc::new(sample_token()))),
        (Key::Audit(2), Piece::Audit(Arc::new(Block { records: vec![sample_audit()] }))),
        (Key::Agent(AgentId(4)), Piece::Agent(Arc::new(sample_tended()))),
    ]
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn sample_token() -> access::Token {
    access::Token {
        id: "abcd2345".into(),
        name: "ops".into(),
        role: access::Role::Operator,
        reach: access::Reach::of(["day".into(), "night".into()]),
        digest: [7; 32],
        created: Timestamp(1),
        created_by: "ann".into(),
        expires: Timestamp(2),
        revoked: Timestamp(3),
    }
}

fn sample_audit() -> Record {
    Record {
        n: 33,
        at: Timestamp(9),
        who: access::Who::Token { id: "abcd2345".into(), name: "ops".into() },
        peer: "10.0.0.1:5".into(),
        action: "cancel".into(),
        object: "17".into(),
        outcome: Outcome::Refused,
        detail: "why".into(),
        uncounted: 4,
        before: [1; 32],
    }
}

fn sample_agent() -> AgentRecord {
    let named = BTreeMap::from([("licence".to_owned(), 4)]);
    let offer = Offer {
        name: "box-1".to_owned(),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        labels: one("zone", "a"),
        capacity: Request { cpu_milli: 2500, memory: 1 << 33, gpus: 1, named },
        version: "0.1.0".to_owned(),
        host: "host-1".to_owned(),
        ..Offer::default()
    };
    AgentRecord {
        id: AgentId(3),
        uid: "u-1".into(),
        offer,
        lost: true,
        stopped: false,
        first_seen: Timestamp(1_700_000_000_000_000),
        changed: Timestamp(1_700_000_000_000_001),
        cordon: None,
        limits: Limits::default(),
    }
}

/// One that says all that agents came to say since, and of which a person wishes something.
fn sample_tended() -> AgentRecord {
    let known = sample_agent();
    let facts = Facts {
        kernel: "6.1".to_owned(),
        distribution: "Debian".to_owned(),
        processors: 4,
        numa: vec!["0-3".to_owned()],
        memory: 1 << 34,
        disk: 1 << 40,
        gpus: vec![Gpu { index: 1, name: "A100".to_owned(), uuid: "GPU-1".to_owned(), memory: 1 << 36 }],
        enforced: vec![Enforced { what: "memory".to_owned(), by: "v2".to_owned(), why_not: "no".to_owned() }],
    };
    let cordon = Cordon {
        at: Timestamp(1_700_000_000_000_002),
        by: "ops".into(),
        reason: "new kernel".into(),
        drain: true,
        deadline: Timestamp(1_700_000_000_000_003),
    };
    AgentRecord {
        id: AgentId(4),
        offer: Offer { facts: Box::new(facts), unfit: "no disk".to_owned(), ..known.offer },
        cordon: Some(Arc::new(cordon)),
        limits: Limits { cpu_milli: Some(500), memory: Some(1 << 30), gpus: Some(0) },
        ..known
    }
}

fn sample_job(id: JobId) -> Job {
    let first = TaskSpec {
        name: "scan".to_owned(),
        role: Role::Setup,
        command: Command::Argv(vec!["wc".to_owned(), "-l".to_owned()]),
        env: one("LANG", "C"),
        cwd: Some("/tmp".to_owned()),
        stdin: Some(b"in".to_vec()),
        request: Request {
            cpu_milli: 500,
            memory: 1 << 20,
            gpus: 1,
            named: BTreeMap::from([("licence".to_owned(), 1)]),
        },
        requires: Requires {
            os: Some("linux".to_owned()),
            arch: Some("x86_64".to_owned()),
            labels: vec![LabelRule::In("zone".to_owned(), vec!["a".to_owned(), "b c".to_owned()])],
        },
        priority: Priority(-100),
        timeout: Some(Duration::from_millis(1500)),
        retry: RetryPolicy { max: 3, exit_codes: vec![75, -1], ..RetryPolicy::default() },
        start_at: Some(Timestamp(1_700_000_000_000_000)),
        after: vec![After {
            job: Some(JobId(5)),
            job_name: Some("early".to_owned()),
            task: Some("t".to_owned()),
            on: On::Any,
        }],
        array: Some(Array::Range { first: -5, count: 3, step: 2 }),
        on_lost: OnLost::Fail,
        max_disconnect: None,
        tags: vec!["slow".to_owned()],
        grace: Duration::from_secs(5),
        output_limit: Some(4096),
        cpu_limit: false,
        pids: None,
        ..TaskSpec::default()
    };
    let items = Some(Array::Items(Arc::new(["x".to_owned(), String::new()])));
    let second = TaskSpec {
        name: "say".to_owned(),
        command: Command::Shell("echo".to_owned()),
        array: items,
        ..TaskSpec::default()
    };
    let spec = JobSpec {
        name: "census".to_owned(),
        labels: one("team", "data"),
        metadata: one("ticket", "42"),
        queue: "night".to_owned(),
        tasks: vec![Arc::new(first), Arc::new(second)],
    };
    Job {
        id,
        spec: Arc::new(spec),
        submitted: Timestamp(1_700_000_000_000_000),
        key: "k-1".into(),
        by: "ann".into(),
        trace_parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
    }
}

fn sample_chunk() -> Chunk {
    let attempt = |number: u32, end, why: Option<&str>| Attempt {
        number,
        token: Token(700 + u64::from(number)),
        agent: AgentId(3),
        leased: Timestamp(1_700_000_000_000_000),
        started: Timestamp(1_700_000_000_000_100),
        ended: Timestamp(1_700_000_000_000_200),
        end,
        why: why.map(Arc::from),
        usage: None,
    };
    let running = Task {
        stopping: Some(Stopping::Cancel),
        retries: 2,
        losses: 1,
        ooms: 0,
        attempt: Some(Attempt { ended: Timestamp(0), ..attempt(3, None, None) }),
        past: vec![attempt(1, Some(End::Exit(-7)), Some("no disk")), attempt(2, Some(End::Signal(9)), None)],
        ..Task::new(State::Running)
    };
    let retrying = Task { retry_at: Timestamp(1_700_000_000_000_300), ..Task::new(State::Retrying) };
    let skipped = Task { why: Some("`list` failed".into()), ..Task::new(State::Skipped) };
    let queued = Task::new(State::Queued);
    Chunk { tasks: vec![queued.clone(), queued.clone(), queued, running, retrying, skipped] }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

/// Version 1 as it lies on disks. A change here is a change of the format: only ever add lines.
const GOLDEN: &[(&str, &str)] = &[
    ("meta", "080110e807181020022a0c6d757374657220302e312e303007"),
    ("queues/night", "080112056e6967687418052084072801"),
    (
        "agents/00000000000000000003",
        "080110031a03752d31224a0a05626f782d3112056c696e75781a067838365f363422090a047a6f6e651201612a1808c4 \
         131080808080201801220b0a076c6963656e636510043205302e312e303a06686f73742d312801308080f9c0c1c48203 \
         388180f9c0c1c48203",
    ),
    (
        "jobs/00000000000000000017",
        "080110111a8b020a0663656e737573120c0a047465616d1204646174611a0c0a067469636b65741202343222056e6967 \
         68742ab2010a047363616e10011a080a0277630a022d6c2a090a044c414e4712014332042f746d703a02696e421608f4 \
         03108080401801220b0a076c6963656e636510014a230a056c696e757812067838365f36341a127a6f6e6520696e2028 \
         612c2022622063222950c70158dc0b6213080310e80718d00f20e0a71228643203960101688080f9c0c1c48203720e08 \
         05120174180222056561726c797a06080910031804880101920104736c6f7798018827a00180202a290a037361792204 \
         6563686f42004a00620c10e80718d00f20e0a71228648201050a01780a009801904e208080f9c0c1c482032a036b2d31 \
         3203616e6e3a3730302d30616637363531393136636434336464383434386562323131633830333139632d6237616436 \
         62373136393230333333312d3031",
    ),
    ("jobs/00000000000000000017/cancel", "080110631a03616e6e2207776879206e6f742801320301ac02"),
    (
        "jobs/00000000000000000017/c/0000000002",
        "08011206080312020803128501080112800108041219080310bf051803208080f9c0c1c4820328e480f9c0c1c482031a \
         31080110bd051803208080f9c0c1c4820328e480f9c0c1c4820330c881f9c0c1c482033a0d0802100d1a076e6f206469 \
         736b1a28080210be051803208080f9c0c1c4820328e480f9c0c1c4820330c881f9c0c1c482033a040803101220022801 \
         4001120f0801120b080530ac82f9c0c1c4820312150801121108093a0d606c69737460206661696c6564",
    ),
    ("jobs/00000000000000000017/r/0000000128", "080112077b2261223a317d"),
    ("jobs/00000000000000000017/r/0000000129", "080118f0a204"),
    (
        "tokens/abcd2345",
        "0801120861626364323334351a036f707320022a036461792a056e6967687432200707070707070707070707 \
         07070707070707070707070707070707070707070738014203616e6e48025003",
    ),
    (
        "audit/00000000000000000002",
        "0801125a082110091a110801120861626364323334351a036f7073220a31302e302e302e313a352a0663616e \
         63656c3202313738014203776879480452200101010101010101010101010101010101010101010101010101 \
         010101010101",
    ),
    (
        "agents/00000000000000000004",
        "080110041a03752d3122a0010a05626f782d3112056c696e75781a067838365f363422090a047a6f6e651201612a1808 \
         c4131080808080201801220b0a076c6963656e636510043205302e312e303a06686f73742d31424b0a03362e31120644 \
         656269616e18042203302d33288080808040308080808080203a1608011204413130301a054750552d31208080808080 \
         0242100a066d656d6f7279120276321a026e6f4a076e6f206469736b2801308080f9c0c1c48203388180f9c0c1c48203 \
         4a25088280f9c0c1c4820312036f70731a0a6e6577206b65726e656c2001288380f9c0c1c48203520b08f40310808080 \
         80041800",
    ),
];

#[test]
fn every_record_of_version_1_is_read_and_written_to_the_byte() {
    let samples = samples();
    let written: Vec<_> = samples.iter().map(|(key, piece)| (key_bytes(key), hex(&encode(piece, key)))).collect();
    let version = hex(env!("CARGO_PKG_VERSION").as_bytes());
    let golden: Vec<_> =
        GOLDEN.iter().map(|(key, hex)| ((*key).to_owned(), hex.replace(char::is_whitespace, ""))).collect();
    let mut expected = golden.clone();
    // The one field that changes with every release: what wrote the store last.
    if let Some(meta) = expected.first_mut() {
        meta.1 = meta.1.replace(&hex(b"0.1.0"), &version);
    }
    assert_eq!(written, expected, "the format of the store has changed");
    for ((key, piece), (_, bytes)) in samples.iter().zip(&golden) {
        assert_eq!(decode(key, &unhex(bytes)).unwrap(), *piece);
    }
}

#[test]
fn the_hash_of_an_audit_record_is_the_same_for_ever() {
    let expected = "d42d7b89e84f5f35849c36314927d1a46d6640ae03a22107d06bc23ee8784d96";
    assert_eq!(hex(&sample_audit().digest()), expected, "chains that were written would not hold any more");
}

#[test]
fn equal_neighbours_are_written_once() {
    let chunk = |n| Piece::Chunk(Arc::new(Chunk { tasks: vec![Task::new(State::Queued); n] }));
    let key = Key::Chunk(JobId(1), 0);
    assert_eq!(encode(&chunk(64), &key).len(), encode(&chunk(2), &key).len());
    assert_eq!(decode(&key, &encode(&chunk(64), &key)).unwrap(), chunk(64));
}

#[test]
fn a_newer_record_is_refused_and_named() {
    let key = Key::Chunk(JobId(17), 2);
    // Version 3, and past it nothing that version 2 could read.
    for bytes in [vec![0x08, 3, 0x12, 1, 0xff], vec![0x12, 1, 0xff, 0x08, 3]] {
        let error = decode(&key, &bytes).unwrap_err();
        let text = error.to_string();
        let expected = "record `jobs/00000000000000000017/c/0000000002` has version 3 and this build knows up to 2; \
                        start a newer muster-controller";
        assert_eq!(text, expected, "{bytes:?}");
        assert!(matches!(error, Error::Newer { found: 3, known: 2, .. }));
    }
    let queue = decode(&Key::Queue("a".into()), &[0x08, 2]).unwrap_err();
    assert!(matches!(queue, Error::Newer { found: 2, known: 1, .. }));
}

#[test]
fn a_field_that_a_later_build_of_this_version_adds_does_not_disturb() {
    for (key, piece) in samples() {
        let mut bytes = encode(&piece, &key);
        // Field 1000, a varint.
        bytes.extend([0xc0, 0x3e, 7]);
        assert_eq!(decode(&key, &bytes).unwrap(), piece);
    }
}

#[test]
fn what_is_damaged_or_misplaced_is_refused() {
    let damage = |key: &Key, bytes: &[u8]| match decode(key, bytes) {
        Err(Error::Damaged { source, .. }) => source.to_string(),
        other => panic!("{key:?}: {other:?}"),
    };
    let all = samples();
    let bytes = |n: usize| encode(&all[n].1, &all[n].0);
    assert_eq!(damage(&Key::Meta, b""), "it has no version");
    assert_eq!(damage(&Key::Meta, b"\x10\x07"), "it has no version");
    assert_eq!(damage(&Key::Queue("day".into()), &bytes(1)), "it names something other than its key does");
    assert_eq!(damage(&Key::Agent(AgentId(4)), &bytes(2)), "it names something other than its key does");
    assert_eq!(damage(&Key::Job(JobId(18)), &bytes(3)), "it names something other than its key does");
    assert_eq!(damage(&Key::Agent(AgentId(0)), b"\x08\x01"), "offer: is missing");
    assert_eq!(damage(&Key::Job(JobId(0)), b"\x08\x01"), "spec: is missing");
    let chunk = Key::Chunk(JobId(1), 0);
    assert_eq!(damage(&chunk, b"\x08\x01\x12\x02\x08\x01"), "runs[0].task: is missing");
    let huge = [b"\x08\x01\x12\x0a\x08\xff\xff\xff\xff\x0f\x12\x02\x08\x01".as_slice(), b"\x12\x02\x08\x01"].concat();
    assert!(
        damage(&chunk, &huge).starts_with("runs: 4294967295 tasks stand in one chunk"),
        "{}",
        damage(&chunk, &huge)
    );
    let torn = &bytes(5)[..20];
    assert!(damage(&all[5].0, torn).contains("decode"), "{}", damage(&all[5].0, torn));
}

#[test]
fn keys_are_fixed_to_the_byte() {
    let table = [
        (Key::Meta, "meta"),
        (Key::Queue("a/b c".into()), "queues/a/b c"),
        (Key::Agent(AgentId(u64::MAX)), "agents/18446744073709551615"),
        (Key::Job(JobId(7)), "jobs/00000000000000000007"),
        (Key::Cancel(JobId(7)), "jobs/00000000000000000007/cancel"),
        (Key::Chunk(JobId(7), 9), "jobs/00000000000000000007/c/0000000009"),
        (Key::Result(TaskId::new(JobId(7), u32::MAX)), "jobs/00000000000000000007/r/4294967295"),
    ];
    for (key, text) in table {
        assert_eq!(key_bytes(&key), text);
        assert_eq!(parse_key(text.as_bytes()).unwrap(), key);
    }
}

#[test]
fn a_key_that_no_build_writes_is_refused() {
    let table: [&[u8]; 17] = [
        b"",
        b"meta/",
        b"leader",
        b"queues/",
        b"queues",
        b"agents/7",
        b"agents/18446744073709551616",
        b"agents/+0000000000000000007",
        b"jobs/7",
        b"jobs/00000000000000000007/",
        b"jobs/00000000000000000007/cancel/",
        b"jobs/00000000000000000007/c/9",
        b"jobs/00000000000000000007/c/4294967296",
        b"jobs/00000000000000000007/x/0000000009",
        b"queues/\xff",
        b"tokens/",
        b"audit/7",
    ];
    for bytes in table {
        let error = parse_key(bytes).unwrap_err();
        assert!(matches!(&error, Error::Key { key } if *key == bytes.escape_ascii().to_string()), "{error}");
    }
}

fn place(key: &Key) -> impl Ord + use<> {
    // Agents, audit records, then each job before its pieces, by number.
    match key {
        Key::Agent(id) => (0, id.0, 0, 0),
        Key::Audit(n) => (1, *n, 0, 0),
        Key::Identity(_) => (1, u64::MAX, 0, 0),
        Key::Job(job) => (2, job.0, 0, 0),
        Key::Chunk(job, n) => (2, job.0, 1, *n),
        Key::Cancel(job) => (2, job.0, 2, 0),
        Key::Result(task) => (2, task.job.0, 3, task.index),
        Key::Meta => (3, 0, 0, 0),
        Key::Queue(_) => (4, 0, 0, 0),
        Key::Token(_) => (5, 0, 0, 0),
    }
}

proptest! {
    #[test]
    fn every_piece_survives_the_store((key, piece) in pieces()) {
        prop_assert_eq!(parse_key(key_bytes(&key).as_bytes()).unwrap(), key.clone());
        prop_assert_eq!(decode(&key, &encode(&piece, &key)).unwrap(), piece);
    }

    #[test]
    fn the_order_of_bytes_is_the_order_of_numbers((a, _) in pieces(), (b, _) in pieces()) {
        if place(&a) != place(&b) {
            prop_assert_eq!(key_bytes(&a) < key_bytes(&b), place(&a) < place(&b));
        }
    }

    #[test]
    fn bytes_that_are_no_record_never_panic((key, _) in pieces(), bytes in vec(any::<u8>(), 0..80), head in any::<bool>()) {
        let bytes = if head { [vec![0x08, 1], bytes].concat() } else { bytes };
        drop(parse_key(&bytes));
        if let Ok(piece) = decode(&key, &bytes) {
            prop_assert_eq!(decode(&key, &encode(&piece, &key)).unwrap(), piece);
        }
    }

    #[test]
    fn a_record_with_broken_bytes_never_panics(
        (key, piece) in pieces(),
        hits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = encode(&piece, &key);
        for (at, byte) in hits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        // What is still read is something that can be written again.
        if let Ok(piece) = decode(&key, &bytes) {
            prop_assert_eq!(decode(&key, &encode(&piece, &key)).unwrap(), piece);
        }
    }
}
