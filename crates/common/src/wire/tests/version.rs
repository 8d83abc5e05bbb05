//! Versions of records: which say more than the release before reads.

use std::sync::Arc;

use muster_core::{
    container::Container,
    id::{AgentId, JobId, Token},
    record::{Job, Key, Piece},
    resources::IoLimits,
    spec::{JobSpec, TaskSpec},
    state::{Attempt, Chunk, End, State, Task},
    time::Timestamp,
};

use super::super::record::{decode, encode};

/// It would give a task to an agent without its image, or with its secrets unmasked.
#[test]
fn what_an_older_build_would_drop_stands_in_a_record_that_it_refuses() {
    let plain = TaskSpec { name: "a".to_owned(), ..TaskSpec::default() };
    let container = Some(Container { image: "alpine".to_owned(), volumes: Vec::new() });
    let io = IoLimits { read_ops: Some(1), ..IoLimits::default() };
    let table = [
        (plain.clone(), 1),
        (TaskSpec { container, ..plain.clone() }, 2),
        (TaskSpec { mask: vec!["KEY".to_owned()], ..plain.clone() }, 2),
        (TaskSpec { io, ..plain.clone() }, 2),
        (TaskSpec { log_rate: Some(1), ..plain.clone() }, 2),
        (TaskSpec { scratch_size: Some(1), ..plain.clone() }, 2),
    ];
    let key = Key::Job(JobId(1));
    for (task, version) in table {
        let spec = Arc::new(JobSpec { tasks: vec![Arc::new(plain.clone()), Arc::new(task)], ..JobSpec::default() });
        let words = || Arc::from("");
        let job = Job { id: JobId(1), spec, submitted: Timestamp(1), key: words(), by: words(), trace_parent: words() };
        let piece = Piece::Job(Arc::new(job));
        let bytes = encode(&piece, &key);
        assert_eq!(bytes[..2], [0x08, version], "{piece:?}");
        assert_eq!(decode(&key, &bytes).unwrap(), piece);
    }
    let key = Key::Chunk(JobId(1), 0);
    for (end, version) in [(End::Oom, 1), (End::ScratchFull, 2)] {
        let attempt = Attempt {
            number: 1,
            token: Token(1),
            agent: AgentId(1),
            leased: Timestamp(1),
            started: Timestamp(1),
            ended: Timestamp(1),
            end: Some(end),
            why: None,
            usage: None,
        };
        for past in [true, false] {
            let mut task = Task::new(State::Failed);
            if past {
                task.past.push(attempt.clone())
            } else {
                task.attempt = Some(attempt.clone())
            }
            let piece = Piece::Chunk(Arc::new(Chunk { tasks: vec![Task::new(State::Queued), task] }));
            let bytes = encode(&piece, &key);
            assert_eq!(bytes[..2], [0x08, version], "{piece:?}");
            assert_eq!(decode(&key, &bytes).unwrap(), piece);
        }
    }
}
