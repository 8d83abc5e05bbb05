//! Every answer in every format against the files of `tests/golden`. `UPDATE_GOLDEN=1` writes them anew.

use std::{env, fs, path::Path};

use muster_common::proto::v1;
use muster_core::time::Timestamp;
use serde::Serialize;

use super::{agent, change, explain, group, job, queue, recommend, stats, task};
use crate::output::{self, Format, Human, Page, style::Style};

const T0: u64 = 1_790_000_000_000_000;
const SECOND: u64 = 1_000_000;

fn check<T: Serialize + Human, I: Serialize>(name: &str, whole: &T, items: &[I]) {
    let page = Page { style: Style::PLAIN, width: Some(100), now: Timestamp(T0 + 300 * SECOND) };
    let lines = items.iter().map(|item| output::machine(Format::Jsonl, item).unwrap()).collect();
    let texts = [
        ("txt", whole.human(&page)),
        ("json", output::machine(Format::Json, whole).unwrap()),
        ("jsonl", lines),
        ("yaml", output::machine(Format::Yaml, whole).unwrap()),
    ];
    for (extension, text) in texts {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.{extension}"));
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let wanted = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(text, wanted, "{} is not what is written now; UPDATE_GOLDEN=1 writes it", file.display());
    }
}

fn summary(id: u64, state: v1::JobState) -> v1::JobSummary {
    let labels = [("team".to_owned(), "data".to_owned()), ("env".to_owned(), "prod".to_owned())].into();
    let tally = v1::Tally { succeeded: 7, failed: 1, running: 2, queued: 30, ..Default::default() };
    v1::JobSummary {
        id,
        name: "census".into(),
        queue: "default".into(),
        labels,
        state: state as i32,
        tally: Some(tally),
        submitted_us: T0,
        started_us: T0 + SECOND / 2,
        finished_us: 0,
        submitted_by: "ada".into(),
        cancel_reason: String::new(),
    }
}

fn attempt(number: u32, kind: Option<(v1::EndKind, i32, &str)>) -> v1::Attempt {
    let at = T0 + u64::from(number) * 10 * SECOND;
    v1::Attempt {
        number,
        token: 100 + u64::from(number),
        agent: 1,
        leased_us: at,
        started_us: at + 1_500,
        ended_us: kind.map_or(0, |_| at + 2 * SECOND + 1_500),
        end: kind.map(|(kind, code, reason)| v1::End { kind: kind as i32, code, reason: reason.into() }),
        usage: kind.map(|_| v1::Usage {
            memory_peak_bytes: 37 << 20,
            cpu_user_us: 1_250_000,
            cpu_system_us: 40_000,
            read_bytes: 4096,
            written_bytes: 1 << 20,
            unenforced: u32::from(number == 1),
            has_output: Some(true),
        }),
    }
}

fn tasks() -> Vec<task::Task> {
    let view = |index, name: &str, task| v1::TaskView {
        job: 17,
        index,
        name: name.into(),
        task: Some(task),
        agent_name: if index < 2 { "machine-1".into() } else { String::new() },
        has_result: index == 0,
    };
    let good = v1::Task {
        state: v1::TaskState::Succeeded as i32,
        attempt: Some(attempt(1, Some((v1::EndKind::Succeeded, 0, "")))),
        ..Default::default()
    };
    let bad = v1::Task {
        state: v1::TaskState::Failed as i32,
        past: vec![attempt(1, Some((v1::EndKind::Timeout, 0, "")))],
        attempt: Some(attempt(2, Some((v1::EndKind::Exit, 3, "")))),
        retries: 1,
        ..Default::default()
    };
    let skipped =
        v1::Task { state: v1::TaskState::Skipped as i32, why: "scan did not succeed".into(), ..Default::default() };
    let again = v1::Task {
        state: v1::TaskState::Retrying as i32,
        attempt: Some(attempt(1, Some((v1::EndKind::NotStarted, 0, "no such file: /bin/nope")))),
        retry_at_us: T0 + 400 * SECOND,
        ..Default::default()
    };
    let views = [view(0, "list", good), view(1, "scan[0]", bad), view(2, "scan[1]", again), view(3, "merge", skipped)];
    views.into_iter().map(task::Task::from).collect()
}

#[test]
fn what_failed_is_a_line_that_tells_of_no_time_that_never_was() {
    let page = Page { style: Style::PLAIN, width: None, now: Timestamp(T0 + 300 * SECOND) };
    let never = |number| {
        let begun = attempt(number, Some((v1::EndKind::NotStarted, 0, "no such file")));
        v1::Attempt { started_us: 0, ..begun }
    };
    let line = |past, attempt| {
        let task = v1::Task { state: v1::TaskState::Failed as i32, past, attempt, ..Default::default() };
        let view = v1::TaskView { job: 17, name: "a".into(), task: Some(task), ..Default::default() };
        task::Task::from(view).line(&page)
    };
    let ran = |number| attempt(number, Some((v1::EndKind::Exit, 3, "")));
    assert_eq!(line(vec![], None), "17.a failed");
    assert_eq!(line(vec![], Some(ran(1))), "17.a failed: exit code 3 (2.0s)");
    assert_eq!(line(vec![ran(1)], Some(ran(2))), "17.a failed: exit code 3 (2.0s, attempt 2)");
    assert_eq!(line(vec![], Some(never(1))), "17.a failed: not started: no such file");
    assert_eq!(line(vec![ran(1)], Some(never(2))), "17.a failed: not started: no such file (attempt 2)");
}

#[test]
fn jobs_are_listed_as_documented() {
    let mut small = summary(3, v1::JobState::Cancelled);
    small.labels.clear();
    small.name = "a name that is much longer than any terminal has room for".into();
    small.finished_us = T0 + 90 * SECOND;
    small.cancel_reason = "no longer wanted".into();
    let jobs = [summary(1_234_567, v1::JobState::Running), small].map(job::Job::from).to_vec();
    let whole = job::Jobs { jobs, next_page_token: Some("3".into()) };
    check("list", &whole, &whole.jobs);
    let none = job::Jobs { jobs: Vec::new(), next_page_token: None };
    check("list-empty", &none, &none.jobs);
}

#[test]
fn a_job_is_shown_as_documented() {
    let request = v1::Request { cpu_milli: 1500, memory_bytes: 1 << 30, ..Default::default() };
    let scan = v1::TaskSpec {
        name: "scan".into(),
        command: Some(v1::task_spec::Command::Argv(v1::Argv { args: vec!["wc".into(), "-l".into()] })),
        after: vec![v1::After { task: "list".into(), ..Default::default() }],
        array: Some(v1::task_spec::Array::Range(v1::RangeArray { first: 0, count: 2, step: 1 })),
        request: Some(request),
        timeout_ms: Some(1500),
        retry: Some(v1::Retry { max: 2, ..Default::default() }),
        tags: vec!["io".into()],
        ..Default::default()
    };
    let done = v1::TaskSpec {
        name: "tidy".into(),
        role: v1::Role::Teardown as i32,
        command: Some(v1::task_spec::Command::Shell("rm -rf scratch\n".into())),
        after: vec![v1::After { job: 9, on: v1::On::Any as i32, ..Default::default() }],
        ..Default::default()
    };
    let groups = [("scan", 2), ("tidy", 1)].map(|(name, tasks)| v1::GroupSummary {
        name: name.into(),
        tasks,
        tally: Some(v1::Tally { succeeded: 1, ..Default::default() }),
        ..Default::default()
    });
    let spec = v1::JobSpec { tasks: vec![scan, done], ..Default::default() };
    let detail = job::Detail {
        job: summary(17, v1::JobState::Running).into(),
        metadata: [("ticket".to_owned(), "42".to_owned())].into(),
        groups: group::of(groups.to_vec(), Some(spec)),
        tasks: Some(tasks()),
    };
    check("show", &detail, std::slice::from_ref(&detail));
}

#[test]
fn tasks_are_shown_as_documented() {
    let whole = task::Tasks { tasks: tasks(), next_page_token: None };
    check("tasks", &whole, &whole.tasks);
    check("task", &whole.tasks[1], &whole.tasks[1..2]);
}

#[test]
fn agents_are_listed_as_documented() {
    let capacity = v1::Request { cpu_milli: 8000, memory_bytes: 16 << 30, ..Default::default() };
    let offer = v1::Offer {
        name: "machine-1".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        capacity: Some(capacity),
        version: "0.1.0".into(),
        host: "machine-1.example.org".into(),
        ..Default::default()
    };
    let view = v1::AgentView {
        kept_until_us: 0,
        id: 1,
        offer: Some(offer.clone()),
        state: "connected".into(),
        used: Some(v1::Request { cpu_milli: 1500, memory_bytes: 1 << 30, ..Default::default() }),
        running: 2,
        prefetched: 1,
        last_seen_us: T0 + 299 * SECOND,
        ..Default::default()
    };
    let drained = v1::AgentView { offer: Some(known(offer)), ..tended(view.clone()) };
    let whole = agent::Agents::of(v1::ListAgentsReply { agents: vec![view, drained], ..Default::default() });
    check("agents", &whole, &whole.agents);
    let wide = agent::Agents { wide: true, ..whole.clone() };
    check("agents-wide", &wide, &wide.agents);
    let shown = agent::Shown { agents: whole.agents[1..].to_vec() };
    check("agent-show", &shown, &shown.agents);
    let tended =
        agent::Tended { changed: vec!["machine-2".into()], same: vec!["machine-3".into()], what: String::new() };
    let tended = tended.told("takes work again");
    check("agent-resume", &tended, std::slice::from_ref(&tended));
}

/// A machine of which all is known.
fn known(offer: v1::Offer) -> v1::Offer {
    let gpu = v1::Gpu { index: 1, name: "H100".into(), uuid: "GPU-17".into(), memory_bytes: 80 << 30 };
    let facts = v1::Facts {
        kernel: "6.12.1".into(),
        distribution: "Debian GNU/Linux 13 (trixie)".into(),
        processors: 16,
        numa: vec!["0-7".into(), "8-15".into()],
        memory_bytes: 32 << 30,
        disk_bytes: 1 << 40,
        gpus: vec![gpu],
        enforced: [("memory", "cgroup v2 in /sys/fs/cgroup/muster", ""), ("pids", "", "the controller is not there")]
            .map(|(what, by, why_not)| v1::Enforced { what: what.into(), by: by.into(), why_not: why_not.into() })
            .to_vec(),
    };
    v1::Offer { name: "machine-2".into(), facts: Some(facts), ..offer }
}

/// The same, drained and limited.
fn tended(view: v1::AgentView) -> v1::AgentView {
    let cordon = v1::Cordon {
        at_us: T0,
        by: "ops".into(),
        reason: "new kernel".into(),
        drain: true,
        deadline_us: T0 + 600 * SECOND,
    };
    let limits = v1::Limits { cpu_milli: Some(2000), ..Default::default() };
    let capacity = v1::Request { cpu_milli: 2000, memory_bytes: 16 << 30, ..Default::default() };
    v1::AgentView {
        id: 2,
        cordon: Some(cordon),
        limits: Some(limits),
        capacity: Some(capacity),
        load: Some(v1::Load { load_milli: 1250, memory_free: 3 << 30, disk_free: 200 << 30 }),
        ..view
    }
}

#[test]
fn queues_are_listed_as_documented() {
    let queue = |name: &str, max_running, paused| v1::QueueView {
        queue: Some(v1::QueueRecord { name: name.into(), max_running, paused, ..Default::default() }),
        running: 2,
        queued: 30,
    };
    let queues = vec![queue("default", None, false), queue("gpu", Some(4), true)];
    let whole = queue::Queues::of(v1::ListQueuesReply { queues });
    check("queues", &whole, &whole.queues);
}

#[test]
fn reasons_are_told_as_documented() {
    let reason = |code: &str, text: &str, unblock: &str, agent: &str| v1::ReasonView {
        code: code.into(),
        text: text.into(),
        unblock: unblock.into(),
        agent: agent.into(),
    };
    let one = v1::Explanation {
        subject: "17.scan".into(),
        tasks: 30,
        state: v1::TaskState::Queued as i32,
        reasons: vec![
            reason("agent-busy", "needs 4 cpus, 0.5 are free", "4 cpus become free", "machine-1"),
            reason("queue-full", "queue default runs 2 of at most 2", "", ""),
        ],
    };
    let whole = explain::Explanations::of(v1::ExplainReply { explanations: vec![one.clone()], untold: 0 });
    check("explain", &whole, &whole.explanations);
    let page = Page { style: Style::PLAIN, width: None, now: Timestamp(T0) };
    let cut = explain::Explanations::of(v1::ExplainReply { explanations: vec![one], untold: 70 });
    assert!(cut.human(&page).ends_with("and 70 more tasks: ask about some of them, like `ctl explain JOB.TASK`\n"));
    assert_eq!(serde_json::to_value(&cut).unwrap()["untold"], 70);
}

#[test]
fn what_an_agent_says_of_itself_and_why_somebody_cancelled_do_nothing_to_the_terminal() {
    let evil = || "x\u{1b}]52;c;aGk=\u{7}".to_owned();
    let gpu = v1::Gpu { uuid: evil(), name: evil(), ..Default::default() };
    let facts =
        v1::Facts { kernel: evil(), distribution: evil(), numa: vec![evil()], gpus: vec![gpu], ..Default::default() };
    let named = [(evil(), 1)].into();
    let offer = v1::Offer {
        name: evil(),
        os: evil(),
        arch: evil(),
        host: evil(),
        version: evil(),
        labels: [(evil(), evil())].into(),
        capacity: Some(v1::Request { named, ..Default::default() }),
        facts: Some(facts),
        unfit: evil(),
    };
    let view = v1::AgentView { offer: Some(offer), ..Default::default() };
    let page = Page { style: Style::PLAIN, width: None, now: Timestamp(T0) };
    let shown = agent::Shown { agents: vec![view.into()] }.human(&page);
    let mut cancelled = summary(17, v1::JobState::Cancelled);
    cancelled.cancel_reason = evil();
    for text in [shown, job::Job::from(cancelled).line(&page)] {
        assert!(text.contains("x ]52"), "{text:?}");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
}

#[test]
fn stats_are_told_as_documented() {
    let reply = v1::StatsReply {
        tally: summary(1, v1::JobState::Running).tally,
        jobs: 1,
        measured: 8,
        mean_us: 1_250_000,
        p50_us: 900_000,
        p99_us: 2_000_000,
        total_us: 10_000_000,
        slowest: Vec::new(),
    };
    let mut whole = stats::Stats::from(reply);
    check("stats", &whole, std::slice::from_ref(&whole));
    whole.slowest = tasks();
    assert!(whole.human(&Page { style: Style::PLAIN, width: None, now: Timestamp(T0) }).contains("slowest\nTASK"));
}

#[test]
fn changes_are_told_as_documented() {
    let submitted = change::Submitted { job: 17, duplicate: false, warnings: vec!["no agent yet".into()], ended: None };
    check("submit", &submitted, std::slice::from_ref(&submitted));
    let cancelled = change::Cancelled { job: 17, tasks: 3, already_final: 1 };
    check("cancel", &cancelled, std::slice::from_ref(&cancelled));
    let retried = change::Retried { job: 17, tasks: 1 };
    check("retry", &retried, std::slice::from_ref(&retried));
    let job: job::Job = summary(17, v1::JobState::Failed).into();
    let waited = change::Waited { jobs: vec![job.clone()], timed_out: false };
    check("wait", &waited, &waited.jobs);
    let result = Some(serde_json::json!({ "lines": 3 }));
    let ran = change::Ran { job, tasks: tasks(), result, exit_code: 1 };
    check("run", &ran, std::slice::from_ref(&ran));
}

#[test]
fn the_installation_is_told_as_documented() {
    let member = |name: &str, leads| v1::MemberView {
        name: name.into(),
        address: format!("http://{name}.example:7717"),
        leads,
        since_us: T0,
        release: "0.1.0".into(),
    };
    let store = v1::StoreView {
        about: "etcd://a.example:2379".into(),
        bytes: 3 << 20,
        limit: 1 << 30,
        latency_us: 1_250,
        problems: vec!["etcd member 1f: etcd has no room left (NOSPACE)".into()],
    };
    let info = v1::InfoReply { version: "0.1.0".into(), term: 17, ..Default::default() };
    let members = vec![member("north", true), member("south", false)];
    let reply = v1::StatusReply { info: Some(info), members, store: Some(store) };
    let view = |state: &str, running| v1::AgentView { state: state.into(), running, ..Default::default() };
    let agents = v1::ListAgentsReply {
        agents: vec![view("connected", 3), view("connected", 0), view("lost", 0)],
        ..Default::default()
    };
    let queue = v1::QueueRecord { name: "default".into(), ..Default::default() };
    let queues = vec![v1::QueueView { queue: Some(queue), running: 3, queued: 5 }];
    let whole = crate::model::status::Status::of(reply, agents, v1::ListQueuesReply { queues });
    assert!(whole.has_problems());
    check("status", &whole, std::slice::from_ref(&whole));
}

#[test]
fn what_is_recommended_for_a_job() {
    let command = || Some(v1::task_spec::Command::Shell("x".into()));
    let group = |name: &str, memory_bytes| v1::TaskSpec {
        name: name.into(),
        request: Some(v1::Request { cpu_milli: 4000, memory_bytes, ..Default::default() }),
        command: command(),
        ..Default::default()
    };
    let spec =
        v1::JobSpec { tasks: vec![group("list", 48 << 20), group("scan", 0), group("merge", 0)], ..Default::default() };
    let found = recommend::Recommendation::of(17, &spec, &tasks());
    check("recommend", &found, std::slice::from_ref(&found));
}
