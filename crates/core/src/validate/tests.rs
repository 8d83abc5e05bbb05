//! Each rule with what breaks it, and the promises about size.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    container::{Container, Volume},
    id::JobId,
    run_as::Scratch,
    spec::{After, LabelRule, On, OomRetries, Priority, RetryPolicy, Role},
    time::Timestamp,
};

fn task(name: &str) -> TaskSpec {
    TaskSpec { name: name.to_owned(), command: Command::Argv(vec!["true".to_owned()]), ..TaskSpec::default() }
}

fn after(name: &str) -> After {
    After { job: None, job_name: None, task: Some(name.to_owned()), on: On::Success }
}

fn waits(name: &str, names: &[&str]) -> TaskSpec {
    TaskSpec { after: names.iter().map(|name| after(name)).collect(), ..task(name) }
}

fn job(tasks: Vec<TaskSpec>) -> JobSpec {
    let tasks = tasks.into_iter().map(Arc::new).collect();
    JobSpec { name: "census".to_owned(), queue: "default".to_owned(), tasks, ..JobSpec::default() }
}

fn lines(spec: &JobSpec) -> Vec<String> {
    check(spec).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn one(spec: &JobSpec, line: &str) {
    assert_eq!(lines(spec), [line]);
}

#[test]
fn a_good_job_has_no_problem() {
    let spec = job(vec![task("list"), waits("count", &["list"]), waits("merge", &["count", "list"])]);
    assert_eq!(lines(&spec), [""; 0]);
}

type BreakTask = fn(&mut TaskSpec);

/// What breaks a good task, and the one line that it earns.
const TASK_RULES: &[(BreakTask, &str)] = &[
    (|t| t.name = String::new(), "tasks[0].name: is empty; give a name of letters, digits, `_`, `.` and `-`"),
    (|t| t.name = "17".into(), "tasks[0].name: `17` reads as a task's number; put a letter in front"),
    (
        |t| t.name = "a.b".into(),
        "tasks[0].name: `a.b` holds a dot, which stands between a job and its task; use `_` or `-`",
    ),
    (|t| t.name = "a[1]".into(), "tasks[0].name: `a[1]` holds '['; a name has only letters, digits, `_`, `.` and `-`"),
    (|t| t.name = "-f".into(), "tasks[0].name: `-f` must start with a letter, a digit or `_`"),
    (
        |t| t.command = Command::Argv(vec![]),
        "tasks[0].run: is empty; give a program and its arguments, or leave `run` out to make a join point",
    ),
    (|t| t.command = Command::Argv(vec!["".into()]), "tasks[0].run[0]: is empty; the first word names the program"),
    (
        |t| t.command = Command::Argv(vec!["a".into(), "b\0".into()]),
        "tasks[0].run[1]: holds a zero byte, which no process can be given",
    ),
    (
        |t| t.command = Command::Argv(vec!["x".repeat(MAX_WORD + 1)]),
        "tasks[0].run[0]: has 131072 bytes; at most 131071 are accepted",
    ),
    (
        |t| t.command = Command::Argv(vec!["x".repeat(100_000); 11]),
        "tasks[0].run: has 1100011 bytes; at most 1048576 are accepted: give long lists in a file",
    ),
    (
        |t| t.command = Command::Shell(" \n".into()),
        "tasks[0].shell: is empty; give a script, or leave `shell` out to make a join point",
    ),
    (|t| t.command = Command::Shell("a\0".into()), "tasks[0].shell: holds a zero byte, which no process can be given"),
    (
        |t| drop(t.env.insert("A=B".into(), "".into())),
        "tasks[0].env[\"A=B\"]: a variable's name holds neither `=` nor a zero byte",
    ),
    (|t| drop(t.env.insert("".into(), "".into())), "tasks[0].env[\"\"]: is empty; a variable needs a name"),
    (
        |t| drop(t.env.insert("A".into(), "\0".into())),
        "tasks[0].env.A: holds a zero byte, which no process can be given",
    ),
    (
        |t| drop(t.env.insert("MUSTER_JOB".into(), "1".into())),
        "tasks[0].env.MUSTER_JOB: names that start with MUSTER_ are set by the agent",
    ),
    (
        |t| drop(t.env.insert("A".into(), "x".repeat(MAX_ENV))),
        "tasks[0].env: takes 131075 bytes; at most 131072 are accepted: keep more in a file",
    ),
    (|t| t.cwd = Some("".into()), "tasks[0].cwd: is empty; give a folder"),
    (|t| t.cwd = Some("a\0b".into()), "tasks[0].cwd: holds a zero byte, which no process can be given"),
    (
        |t| t.stdin = Some(vec![0; MAX_STDIN + 1]),
        "tasks[0].stdin: has 1048577 bytes; at most 1048576 are accepted: keep more in a file that the task opens",
    ),
    (
        |t| t.container = Some(Container { image: "-v".into(), volumes: vec![] }),
        "tasks[0].image: \"-v\" is no name of an image; write it like \"alpine\", \"docker.io/library/alpine:3\" or \
         \"registry.example.com:5000/team/tool@sha256:…\"",
    ),
    (
        |t| t.container = Some(Container { image: "".into(), volumes: vec!["/a:/b".parse().unwrap()] }),
        "tasks[0].volumes: are seen in a container only; give an `image`, too",
    ),
    (
        |t| t.container = Some(Container { image: "a".into(), volumes: vec![Volume::default()] }),
        "tasks[0].volumes[0]: has the source \"\", which is not named from the root",
    ),
    (
        |t| (t.container, t.run_as.nice) = (Some(Container { image: "a".into(), volumes: vec![] }), Some(1)),
        "tasks[0].run_as: does not go with `image`: the image says as whom its processes run",
    ),
    (
        |t| (t.container, t.scratch) = (Some(Container { image: "a".into(), volumes: vec![] }), Scratch::Private),
        "tasks[0].scratch: does not go with `image`: a container has a scratch folder of its own",
    ),
    (
        |t| (t.container, t.command) = (Some(Container { image: "a".into(), volumes: vec![] }), Command::Empty),
        "tasks[0].image: runs nothing; say what with `run` or `shell`",
    ),
    (
        |t| (t.container, t.cwd) = (Some(Container { image: "a".into(), volumes: vec![] }), Some("b".into())),
        "tasks[0].cwd: is a folder in the container, which is named from its root",
    ),
    (|t| t.pids = Some(0), "tasks[0].pids: is 0; a task has at least one process"),
    (|t| t.log_rate = Some(999), "tasks[0].log_rate: 999 is less than 1000; leave it out for what the agent allows"),
    (
        |t| (t.scratch, t.scratch_size) = (Scratch::Private, Some(0)),
        "tasks[0].scratch_size: 0 is less than 1; leave it out for what the agent allows",
    ),
    (
        |t| t.scratch_size = Some(5),
        "tasks[0].scratch_size: needs `scratch = \"private\"`: it is the size of that folder",
    ),
    (|t| t.mask = vec!["PIN".into()], "tasks[0].mask[0]: names \"PIN\", which is no variable of `env`"),
    (
        |t| {
            t.env.insert("PIN".into(), "123".into());
            t.mask = vec!["PIN".into()];
        },
        "tasks[0].mask[0]: names \"PIN\", whose value has 3 bytes; it needs at least 4, or `***` would stand where it was not \
         meant",
    ),
    (
        |t| {
            t.env.insert("KEY".into(), "x".repeat(8193));
            t.mask = vec!["KEY".into()];
        },
        "tasks[0].mask[0]: names \"KEY\", whose value has 8193 bytes; at most 8192 are looked for",
    ),
    (
        |t| t.io.read = Some(4095),
        "tasks[0].io_read: 4095 is less than 4096, a page in a second; leave it out for no limit",
    ),
    (|t| t.io.write = Some(1 << 53), "tasks[0].io_write: 9007199254740992 is more than 9007199254740991"),
    (
        |t| t.io.write_ops = Some(0),
        "tasks[0].io_write_ops: 0 is less than 1, once in a second; leave it out for no limit",
    ),
    (
        |t| (t.cpu_limit, t.request.cpu_milli) = (true, 0),
        "tasks[0].cpu_limit: limits to `cpus`, which is 0; give more, or leave it out",
    ),
    (|t| t.run_as.user = Some(String::new()), "tasks[0].run_as.user: is empty; give a name or a number"),
    (|t| t.run_as.group = Some("a:b".into()), "tasks[0].run_as.group: \"a:b\" is no name or number of a user or group"),
    (
        |t| t.run_as.groups = Some(vec!["ok".into(), String::new()]),
        "tasks[0].run_as.groups[1]: is empty; give a name or a number",
    ),
    (|t| t.run_as.umask = Some(0o1000), "tasks[0].run_as.umask: 1000 is more than 777"),
    (|t| t.run_as.nice = Some(20), "tasks[0].run_as.nice: 20 is outside -20 to 19"),
    (
        |t| (t.request.memory, t.oom_retries) = (0, Some(OomRetries { max: 1, factor_milli: 2000, cap: None })),
        "tasks[0].oom_retries: needs `memory`, of which the next attempt gets more",
    ),
    (
        |t| (t.request.memory, t.oom_retries) = (64 << 20, Some(OomRetries { max: 1, factor_milli: 1000, cap: None })),
        "tasks[0].oom_retries.factor: 1 is outside 1.001 to 1000",
    ),
    (
        |t| (t.request.memory, t.oom_retries) = (64 << 20, Some(OomRetries { max: 33, factor_milli: 2000, cap: None })),
        "tasks[0].oom_retries.max: 33 is more than 32",
    ),
    (
        |t| {
            (t.request.memory, t.oom_retries) =
                (64 << 20, Some(OomRetries { max: 1, factor_milli: 2000, cap: Some(64 << 20) }))
        },
        "tasks[0].oom_retries.cap: 67108864 is not between `memory` (67108864) and 9007199254740991",
    ),
    (|t| t.request.cpu_milli = u64::MAX, "tasks[0].cpus: 18446744073709551 is more than 1000000"),
    (
        |t| t.request.memory = 512,
        "tasks[0].memory: 512 bytes are less than 1 MiB, in which nothing starts; if that is MiB, write \"512MiB\"",
    ),
    (
        |t| t.request.memory = (1 << 20) - 1,
        "tasks[0].memory: 1048575 bytes are less than 1 MiB, in which nothing starts; if that is MiB, write \"1048575MiB\"",
    ),
    (|t| t.request.memory = 1 << 53, "tasks[0].memory: 9007199254740992 is more than 9007199254740991"),
    (
        |t| t.request.named.extend([("gpus".into(), 1)]),
        "tasks[0].resources.gpus: write `gpus` beside `resources`, not in it",
    ),
    (
        |t| t.request.named.extend([("a b".into(), 1)]),
        "tasks[0].resources[\"a b\"]: `a b` holds ' '; a name has only letters, digits, `_`, `.` and `-`",
    ),
    (
        |t| t.requires.os = Some("".into()),
        "tasks[0].requires.os: is empty; give a name of letters, digits, `_`, `.` and `-`",
    ),
    (
        |t| t.requires.labels = vec![LabelRule::Has("".into())],
        "tasks[0].requires.labels[0]: is empty; a label needs a key",
    ),
    (
        |t| t.requires.labels = vec![LabelRule::In("a".into(), vec![])],
        "tasks[0].requires.labels[0]: compares with no value; give at least one in the brackets",
    ),
    (|t| t.priority = Priority(1001), "tasks[0].priority: 1001 is outside -1000 to 1000"),
    (
        |t| t.timeout = Some(Duration::ZERO),
        "tasks[0].timeout: is zero; give at least 1ms, or leave it out for no limit",
    ),
    (|t| t.timeout = Some(Duration::MAX), "tasks[0].timeout: is longer than 100 years"),
    (|t| t.grace = Duration::MAX, "tasks[0].grace: is longer than 100 years"),
    (
        |t| t.start_at = Some(Timestamp(0)),
        "tasks[0].start_at: lies at the beginning of 1970; give a time, or leave it out to start at once",
    ),
    (|t| t.retry.max = u32::MAX, "tasks[0].retries.max: 4294967295 is more than 1000000"),
    (|t| t.retry.factor_milli = 500, "tasks[0].retries.factor: 0.5 is outside 1 to 1000"),
    (|t| t.retry.jitter_milli = 1500, "tasks[0].retries.jitter: 1.5 is outside 0 to 1"),
    (
        |t| t.retry.delay = Duration::from_secs(301),
        "tasks[0].retries.cap: 300s is shorter than the first delay of 301s",
    ),
    (|t| t.retry.exit_codes = vec![3, 0], "tasks[0].retries.exit_codes[1]: 0 means success, which is never retried"),
    (
        |t| t.array = Some(Array::Range { first: 0, count: 0, step: 1 }),
        "tasks[0].array: is empty; an array has at least one task",
    ),
    (
        |t| t.array = Some(Array::Range { first: 0, count: 2, step: 0 }),
        "tasks[0].array.step: is 0; give the distance from one index to the next",
    ),
    (
        |t| t.array = Some(Array::Range { first: i64::MAX, count: 2, step: 1 }),
        "tasks[0].array: has a last index beyond 64 bits",
    ),
    (|t| t.array = Some(Array::Items(Arc::new([]))), "tasks[0].array: is empty; an array has at least one task"),
    (
        |t| t.array = Some(Array::Items(Arc::new(["a".into(), "\0".into()]))),
        "tasks[0].array.items[1]: holds a zero byte, which no process can be given",
    ),
    (|t| t.tags = vec!["".into()], "tasks[0].tags[0]: is empty; give a word"),
];

#[test]
fn every_rule_about_one_task_names_its_place_and_what_would_be_accepted() {
    for (break_it, line) in TASK_RULES {
        let mut task = task("a");
        break_it(&mut task);
        one(&job(vec![task]), line);
    }
}

#[test]
fn every_rule_about_the_job_names_its_place() {
    type Break = fn(&mut JobSpec);
    let table: &[(Break, &str)] = &[
        (|j| j.name = "".into(), "name: is empty; give a name of letters, digits, `_`, `.` and `-`"),
        (|j| j.name = "17".into(), "name: `17` reads as a job's number; put a letter in front"),
        (|j| j.name = "17.5".into(), "name: `17.5` reads as a job's number; put a letter in front"),
        (|j| j.name = "x".repeat(129), "name: has 129 bytes; a name has at most 128"),
        (|j| j.queue = "".into(), "queue: is empty; give a name of letters, digits, `_`, `.` and `-`"),
        (
            |j| drop(j.labels.insert("a b".into(), "".into())),
            "labels[\"a b\"]: the key `a b` holds ' '; a key has only letters, digits, `_`, `.`, `-`, `/`",
        ),
        (
            |j| drop(j.metadata.insert("a".into(), "x".repeat(MAX_LABELS))),
            "metadata: takes 65537 bytes; at most 65536 are accepted",
        ),
        (|j| j.tasks.clear(), "tasks: is empty; a job has at least one task"),
    ];
    for (break_it, line) in table {
        let mut spec = job(vec![task("a")]);
        break_it(&mut spec);
        one(&spec, line);
    }
}

#[test]
fn a_dependency_on_nothing_is_told_with_the_nearest_name() {
    one(
        &job(vec![task("extract"), waits("load", &["extrakt"])]),
        "tasks[1].after[0]: no task of this job is called `extrakt`; did you mean `extract`?",
    );
    one(&job(vec![task("extract"), waits("load", &["zzz"])]), "tasks[1].after[0]: no task of this job is called `zzz`");
}

#[test]
fn a_task_that_waits_for_itself_twice_or_for_nothing_is_refused() {
    one(&job(vec![waits("a", &["a"])]), "tasks[0].after[0]: `a` waits for itself");
    one(
        &job(vec![task("a"), waits("b", &["a", "a"])]),
        "tasks[1].after[1]: says again what after[0] says; keep one of them",
    );
    let nothing = After { task: None, ..after("") };
    one(
        &job(vec![TaskSpec { after: vec![nothing], ..task("a") }]),
        "tasks[0].after[0]: names neither a task nor a job",
    );
    one(&job(vec![task("a"), task("a")]), "tasks[1].name: `a` is the name of tasks[0] too; names are unique in a job");
}

#[test]
fn a_circle_is_named_whole_and_each_knot_once() {
    let spec = job(vec![
        waits("a", &["c"]),
        waits("b", &["a"]),
        waits("c", &["b"]),
        waits("d", &["e"]),
        waits("e", &["d", "a"]),
    ]);
    assert_eq!(
        lines(&spec),
        [
            "tasks[1].after[0]: these tasks wait for one another and would never start: a -> c -> b -> a",
            "tasks[4].after[0]: these tasks wait for one another and would never start: d -> e -> d",
        ]
    );
}

#[test]
fn circles_that_share_a_task_are_told_once() {
    one(
        &job(vec![waits("a", &["b"]), waits("b", &["c", "a"]), waits("c", &["a", "b"])]),
        "tasks[2].after[0]: these tasks wait for one another and would never start: a -> b -> c -> a",
    );
}

#[test]
fn other_jobs_are_named_by_number_or_name() {
    let other = |job: Option<u64>, name: Option<&str>| After {
        job: job.map(JobId),
        job_name: name.map(str::to_owned),
        task: Some("x".to_owned()),
        on: On::Any,
    };
    let with = |after: After| job(vec![TaskSpec { after: vec![after], ..task("a") }]);
    assert_eq!(lines(&with(other(Some(17), None))), [""; 0]);
    assert_eq!(lines(&with(other(Some(17), Some("nightly")))), [""; 0]);
    one(&with(other(Some(0), None)), "tasks[0].after[0]: job 0 does not exist; jobs are counted from 1");
    one(
        &with(other(None, Some("17"))),
        "tasks[0].after[0]: the job's name `17` reads as a job's number; put a letter in front",
    );
}

#[test]
fn roles_that_contradict_an_after_are_refused() {
    let role = |role, task: TaskSpec| TaskSpec { role, ..task };
    let good = job(vec![
        role(Role::Setup, task("s")),
        role(Role::Setup, waits("s2", &["s"])),
        waits("w", &["s"]),
        role(Role::Teardown, task("t")),
        role(Role::Teardown, waits("t2", &["t"])),
    ]);
    assert_eq!(lines(&good), [""; 0]);
    let bad = job(vec![
        role(Role::Setup, waits("s", &["w"])),
        task("w"),
        role(Role::Teardown, waits("t", &["w"])),
        waits("v", &["t"]),
        TaskSpec { after: vec![After { on: On::Failure, ..after("s") }], ..task("u") },
    ]);
    assert_eq!(
        lines(&bad),
        [
            "tasks[0].after[0]: `s` is a setup and comes before all work; it can wait for other setups only, not for `w`",
            "tasks[2].after[0]: `t` is a teardown: it runs after all work, whatever happened, and cannot wait for `w`",
            "tasks[3].after[0]: `t` is a teardown and comes after all work; only a teardown can wait for it",
            "tasks[4].after[0]: work starts only when setup succeeded, so `u` would never run when `s` fails",
        ]
    );
}

#[test]
fn sizes_have_limits() {
    let range = |count| TaskSpec { array: Some(Array::Range { first: 0, count, step: 1 }), ..task("a") };
    assert_eq!(lines(&job(vec![range(10_000_000)])), [""; 0]);
    one(&job(vec![range(10_000_001)]), "tasks: stands for 10000001 tasks; at most 10000000 are accepted in one job");
    let item = "x".repeat(100_000);
    let items: Arc<[String]> = (0..700).map(|_| item.clone()).collect();
    one(
        &job(vec![TaskSpec { array: Some(Array::Items(items)), ..task("a") }]),
        "tasks: takes 70000036 bytes; at most 67108864 are accepted in one job",
    );
    let tasks = (0..=MAX_AFTER)
        .map(|n| task(&format!("t{n}")))
        .chain([TaskSpec { after: (0..=MAX_AFTER).map(|n| after(&format!("t{n}"))).collect(), ..task("join") }]);
    one(
        &job(tasks.collect()),
        "tasks[10001].after: has 10001 entries; at most 10000 are accepted: put empty tasks between that join some each",
    );
}

#[test]
fn a_flood_of_problems_is_cut() {
    let tasks = (0..5000).map(|n| waits(&format!("t{n}"), &["nobody"])).collect();
    assert_eq!(check(&job(tasks)).len(), MAX_PROBLEMS);
}

#[test]
fn a_long_chain_and_a_circle_of_all_tasks_end() {
    let names: Vec<String> = (0..100_000).map(|n| format!("t{n}")).collect();
    let ring = |n: usize| waits(&names[n], &[&names[(n + 1) % names.len()]]);
    let found = check(&job((0..names.len()).map(ring).collect()));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path, "tasks[99999].after[0]");
    assert!(found[0].message.ends_with("t98 -> t99 -> (99900 more) -> t0"), "{}", found[0].message);
}

proptest! {
    #[test]
    fn a_job_is_accepted_exactly_when_its_tasks_can_be_put_in_order(edges in prop::collection::vec((0usize..8, 0usize..8), 0..14)) {
        let tasks = (0..8).map(|from| {
            let mut targets: Vec<usize> = edges.iter().filter(|(f, _)| *f == from).map(|(_, to)| *to).collect();
            targets.sort_unstable();
            targets.dedup();
            let names: Vec<String> = targets.iter().map(|to| format!("t{to}")).collect();
            waits(&format!("t{from}"), &names.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let spec = job(tasks.collect());
        // Takes away what waits for nothing that is left, again and again.
        let mut left: Vec<usize> = (0..8).collect();
        while let Some(at) = left.iter().position(|t| !edges.iter().any(|(f, to)| f == t && left.contains(to))) {
            left.remove(at);
        }
        prop_assert_eq!(check(&spec).is_empty(), left.is_empty());
    }

    #[test]
    fn no_text_makes_the_check_panic(name in ".*", key in ".*", value in ".*", dep in ".*") {
        let mut bad = waits(&name, &[&dep]);
        bad.env.insert(key.clone(), value.clone());
        bad.request.named.insert(key.clone(), 1);
        bad.retry = RetryPolicy { exit_codes: vec![0], ..RetryPolicy::default() };
        let mut spec = job(vec![bad, task("a")]);
        spec.labels.insert(key, value);
        check(&spec);
    }
}
