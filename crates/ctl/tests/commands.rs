//! The ctl binary against a scripted controller: what it asks, prints and ends with.

#[cfg(test)]
mod support;

use std::{fs, net::TcpListener, process::Stdio};

use muster_common::proto::{
    OLDEST_PROTOCOL, PROTOCOL,
    v1::{self, EndKind, JobState},
};
use support::{Ran, Script, Server, T0, ctl, file, job, ran, task, until};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const JOB: &str = "name = \"census\"\n[[tasks]]\nname = \"main\"\nrun = [\"true\"]\n";

fn frame(stream: v1::Stream, offset: u64, text: &str) -> v1::LogFrame {
    let data = text.to_owned().into_bytes().into();
    v1::LogFrame { stream: stream as i32, at_us: T0, offset, data, ..Default::default() }
}

fn logs(task: u32, name: &str, frames: Vec<v1::LogFrame>) -> v1::LogsReply {
    v1::LogsReply { job: 17, task, task_name: name.into(), attempt: 1, frames }
}

fn ended(kind: EndKind, code: i32, state: JobState) -> Script {
    Script { jobs: vec![job(17, state)], tasks: vec![task(17, 0, "main", kind, code)], ..Script::default() }
}

#[test]
fn where_nobody_answers_the_error_says_what_was_tried_and_what_to_do() {
    // A port that was just free: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let tried = [
        (ran(&mut ctl(&["list", "--controller", &url])), "--controller"),
        (ran(ctl(&["list"]).env("MUSTER_CONTROLLER", &url)), "MUSTER_CONTROLLER"),
    ];
    for (Ran { code, out, err }, source) in tried {
        assert_eq!((code, out.as_str()), (Some(4), ""), "{err}");
        assert!(err.starts_with(&format!("error: no controller answers at {url}: ")), "{err}");
        assert!(err.contains(&format!("the address is from {source}\n")), "{err}");
        assert!(err.contains("\n  next: "), "{err}");
    }
}

#[test]
fn the_config_file_names_the_controller_when_nothing_else_does() {
    let server = Server::start(Script::default());
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("muster")).unwrap();
    fs::write(dir.path().join("muster/ctl.toml"), format!("controller = \"{}\"\n", server.url)).unwrap();
    let mut command = ctl(&["list"]);
    command.env("XDG_CONFIG_HOME", dir.path()).env("APPDATA", dir.path());
    let answer = ran(&mut command);
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), "no jobs\n"), "{}", answer.err);
}

#[test]
fn list_asks_for_what_is_filtered_and_names_the_next_page() {
    let script = Script { jobs: (1..=5).map(|id| job(id, JobState::Running)).collect(), ..Script::default() };
    let server = Server::start(script);
    let args = ["list", "--state", "failed,running", "--label", "a=b", "--name", "n", "--queue", "q", "--limit", "2"];
    let answer = server.ctl(&[&args[..], &["--since", "2026-09-21", "--until", "2026-09-22"]].concat());
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    assert_eq!(answer.out.lines().count(), 3, "{}", answer.out);
    assert!(answer.err.contains("--page-token 2"), "{}", answer.err);
    let asked = server.asked();
    let request = &asked.lists[0];
    assert_eq!(request.states, ["failed", "running"]);
    assert_eq!((request.labels.as_slice(), request.page_size), (&["a=b".to_owned()][..], 2));
    assert_eq!((request.name.as_str(), request.queue.as_str()), ("n", "q"));
    assert_eq!(request.before_us - request.after_us, 86_400_000_000);
}

#[test]
fn list_all_walks_every_page() {
    let script = Script { jobs: (1..=2500).map(|id| job(id, JobState::Running)).collect(), ..Script::default() };
    let server = Server::start(script);
    let answer = server.ctl(&["list", "--all", "-o", "jsonl"]);
    assert_eq!((answer.code, answer.out.lines().count(), answer.err.as_str()), (Some(0), 2500, ""));
    assert_eq!(server.asked().lists.len(), 3);
    let first: serde_json::Value = serde_json::from_str(answer.out.lines().next().unwrap()).unwrap();
    assert_eq!((first["id"].as_u64(), first["state"].as_str()), (Some(1), Some("running")));
}

#[test]
fn machine_formats_agree_with_one_another() {
    let server = Server::start(Script { jobs: vec![job(17, JobState::Failed)], ..Script::default() });
    let json: serde_json::Value = serde_json::from_str(&server.ctl(&["list", "-o", "json"]).out).unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_str(&server.ctl(&["list", "-o", "yaml"]).out).unwrap();
    let line: serde_json::Value = serde_json::from_str(&server.ctl(&["list", "-o", "jsonl"]).out).unwrap();
    assert_eq!(json, yaml);
    assert_eq!(json["jobs"][0], line);
}

#[test]
fn what_is_not_there_is_named_and_ends_with_3() {
    let server = Server::start(Script::default());
    for args in [["show", "99"], ["cancel", "99"], ["retry", "99"], ["explain", "99"], ["wait", "99"], ["logs", "99"]] {
        let answer = server.ctl(&args);
        assert_eq!((answer.code, answer.out.as_str()), (Some(3), ""), "{args:?}: {}", answer.err);
        assert!(answer.err.contains("there is no job 99") && answer.err.contains("next:"), "{}", answer.err);
    }
}

#[test]
fn a_refusal_lists_every_field_and_ends_with_its_code() {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("tasks[0].run", "is empty");
    details.add_bad_request_violation("queue", "is unknown");
    let refuse = Status::with_error_details(Code::InvalidArgument, "the job is refused", details);
    let server = Server::start(Script { refuse: Some(refuse), ..Script::default() });
    let (_dir, path) = file(JOB);
    let answer = server.ctl(&["submit", &path]);
    assert_eq!(answer.code, Some(2));
    assert_eq!(answer.err, "error: the job is refused\n  tasks[0].run: is empty\n  queue: is unknown\n");
    let refuse = Some(Status::resource_exhausted("queue default has 10 of at most 10 waiting tasks"));
    let answer = Server::start(Script { refuse, ..Script::default() }).ctl(&["submit", &path]);
    assert_eq!(answer.code, Some(5), "{}", answer.err);
}

#[test]
fn submit_prints_the_number_alone_and_passes_the_key() {
    let script = Script { warnings: vec!["no agent has 8 gpus".into()], ..Script::default() };
    let server = Server::start(script);
    let (_dir, path) = file(JOB);
    let answer = server.ctl(&["submit", &path, "--key", "k1", "--name", "other", "--label", "a=b", "--queue", "q"]);
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), "17\n"), "{}", answer.err);
    assert_eq!(answer.err, "warning: no agent has 8 gpus\n");
    server.ctl(&["submit", &path]);
    let asked = server.asked();
    let (first, second) = (&asked.submits[0], &asked.submits[1]);
    assert_eq!((first.key.as_str(), first.by.as_str()), ("k1", "ada"));
    assert!(second.key.len() >= 32 && second.trace_parent.starts_with("00-"), "{second:?}");
    let spec = first.spec.as_ref().unwrap();
    assert_eq!((spec.name.as_str(), spec.queue.as_str(), spec.labels["a"].as_str()), ("other", "q", "b"));
}

#[test]
fn a_bad_job_file_is_told_with_its_places_and_nothing_is_submitted() {
    let server = Server::start(Script::default());
    let (_dir, path) = file("name = \"x\"\n[[tasks]]\nname = \"a\"\nrum = [\"true\"]\nafter = [\"nobody\"]\n");
    for command in ["submit", "run", "validate"] {
        let answer = server.ctl(&[command, &path]);
        assert_eq!((answer.code, answer.out.as_str()), (Some(2), ""), "{command}: {}", answer.err);
        assert!(answer.err.contains(&format!("{path}:4:1: error: ")), "{command}: {}", answer.err);
        assert!(answer.err.contains("\n  4 | rum = [\"true\"]\n    | ^"), "{command}: {}", answer.err);
    }
    assert!(server.asked().submits.is_empty());
    let answer = server.ctl(&["validate", &path, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((answer.code, json["files"][0]["valid"].as_bool()), (Some(2), Some(false)));
    assert_eq!(json["files"][0]["findings"][0]["line"].as_u64(), Some(4), "{json}");
}

#[test]
fn validate_and_schema_need_no_controller() {
    let (_dir, path) = file(JOB);
    let answer = ran(&mut ctl(&["validate", &path]));
    assert_eq!((answer.code, answer.out), (Some(0), format!("{path}: job census, 1 task: valid\n")), "{}", answer.err);
    let answer = ran(&mut ctl(&["schema"]));
    let schema: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert!(schema.get("$schema").is_some(), "{schema}");
    let missing = ran(&mut ctl(&["validate", "no-such-file.toml"]));
    assert_eq!(missing.code, Some(2));
    assert!(missing.err.contains("cannot read the job file no-such-file.toml"), "{}", missing.err);
}

#[test]
fn run_on_a_controller_passes_the_output_and_the_exit_code_of_a_single_task() {
    use v1::Stream::{Stderr, Stdout};
    let table = [
        (EndKind::Succeeded, 0, JobState::Succeeded, 0),
        (EndKind::Exit, 3, JobState::Failed, 3),
        (EndKind::Signal, 9, JobState::Failed, 137),
        (EndKind::Timeout, 0, JobState::Failed, 124),
        (EndKind::NotStarted, 0, JobState::Failed, 126),
        (EndKind::Cancelled, 0, JobState::Cancelled, 6),
    ];
    for (kind, code, state, exit) in table {
        let mut script = ended(kind, code, state);
        let frames = vec![frame(Stdout, 0, "to out\n"), frame(Stderr, 0, "to err\n")];
        script.logs = vec![logs(0, "main", frames)];
        let server = Server::start(script);
        let answer = server.ctl(&["run", "--env", "A=b", "--", "sh", "-c", "whatever"]);
        assert_eq!((answer.code, answer.out.as_str()), (Some(exit), "to out\n"), "{kind:?}: {}", answer.err);
        assert!(answer.err.contains("to err\n"), "{}", answer.err);
        assert!(exit == 0 || answer.err.contains("17.main "), "the end is told: {}", answer.err);
        let asked = server.asked();
        let spec = asked.submits[0].spec.as_ref().unwrap();
        assert_eq!((spec.name.as_str(), spec.tasks[0].env["A"].as_str()), ("sh", "b"));
    }
}

#[test]
fn run_of_a_file_tells_each_end_the_summary_and_the_result() {
    let mut script = ended(EndKind::Succeeded, 0, JobState::Succeeded);
    script.tasks[0].has_result = true;
    script.result = Some(b"{\"lines\":3}".to_vec());
    let server = Server::start(script);
    let (_dir, path) = file(JOB);
    let answer = server.ctl(&["run", &path]);
    let wanted = "\
17.main succeeded (2.0s)
job 17 census succeeded: 1 succeeded in 2.0s
{
  \"lines\": 3
}
";
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), wanted), "{}", answer.err);
    let answer = server.ctl(&["run", &path, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((json["exit_code"].as_u64(), json["result"]["lines"].as_u64()), (Some(0), Some(3)));
    assert_eq!(json["tasks"][0]["attempts"][0]["end"]["kind"].as_str(), Some("succeeded"));
}

#[test]
fn a_controller_that_restarts_does_not_end_the_following() {
    let mut script = ended(EndKind::Exit, 3, JobState::Failed);
    script.broken_watches = 2;
    let server = Server::start(script);
    let answer = server.ctl(&["run", "--", "sh"]);
    assert_eq!(answer.code, Some(3), "{}", answer.err);
    assert_eq!(server.asked().watches, 3);
}

#[test]
fn wait_ends_with_the_gravest_end() {
    let jobs = [(1, JobState::Succeeded), (2, JobState::Cancelled), (3, JobState::Failed)];
    let script = Script { jobs: jobs.map(|(id, state)| job(id, state)).to_vec(), ..Script::default() };
    let server = Server::start(script);
    for (args, exit) in [(&["1"][..], 0), (&["1", "2"], 6), (&["2", "3", "1"], 1)] {
        let answer = server.ctl(&[&["wait"], args].concat());
        assert_eq!((answer.code, answer.out.lines().count()), (Some(exit), args.len()), "{}", answer.err);
    }
}

#[test]
fn wait_gives_up_at_its_time_limit_and_says_how_the_work_stands() {
    let script = Script { jobs: vec![job(1, JobState::Running)], endless: true, ..Script::default() };
    let server = Server::start(script);
    let answer = server.ctl(&["wait", "1", "--timeout", "50ms", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((answer.code, json["timed_out"].as_bool()), (Some(7), Some(true)));
    assert_eq!(json["jobs"][0]["state"].as_str(), Some("running"));
}

#[test]
fn wait_for_one_task_ends_with_that_task() {
    let mut script = Script { jobs: vec![job(17, JobState::Running)], endless: true, ..Script::default() };
    script.tasks = vec![task(17, 0, "good", EndKind::Succeeded, 0), task(17, 1, "bad", EndKind::Exit, 3)];
    let server = Server::start(script);
    assert_eq!(server.ctl(&["wait", "17.good"]).code, Some(0));
    assert_eq!(server.ctl(&["wait", "17.bad"]).code, Some(1));
}

#[test]
fn logs_of_several_tasks_say_whose_each_line_is() {
    let out = v1::Stream::Stdout;
    let mut script = Script { jobs: vec![job(17, JobState::Running)], ..Script::default() };
    script.tasks = vec![task(17, 0, "a", EndKind::Succeeded, 0), task(17, 1, "b", EndKind::Succeeded, 0)];
    script.logs = vec![
        logs(0, "a", vec![frame(out, 0, "half")]),
        logs(1, "b", vec![frame(out, 0, "b1\n")]),
        logs(0, "a", vec![frame(out, 4, " line\n")]),
    ];
    let server = Server::start(script);
    assert_eq!(server.ctl(&["logs", "17"]).out, "b | b1\na | half line\n");
    let args = ["logs", "17", "-f", "--tail", "3", "--stream", "stdout", "--attempt", "2", "--timestamps"];
    let answer = server.ctl(&args);
    assert!(answer.out.starts_with("2026-09-21T14:13:20.000000Z b | b1\n"), "{}", answer.out);
    let asked = server.asked();
    let request = asked.logs.last().unwrap();
    assert_eq!((request.follow, request.tail_lines, request.attempt), (true, 3, 2));
    assert_eq!(request.stream, "stdout");
}

#[test]
fn logs_of_one_task_are_its_bytes_and_machines_get_frames() {
    let mut script = ended(EndKind::Succeeded, 0, JobState::Succeeded);
    let mut raw = frame(v1::Stream::Stdout, 0, "");
    raw.data = vec![0xff, 0xfe].into();
    let cut = v1::LogFrame { offset: 2, cut_bytes: 9, cut_reason: "quota".into(), ..Default::default() };
    script.logs = vec![logs(0, "main", vec![raw, cut])];
    let server = Server::start(script);
    let answer = server.ctl(&["logs", "17"]);
    assert_eq!(answer.out, "\u{fffd}\u{fffd}");
    assert_eq!(answer.err, "[17.main: 9 bytes cut at byte 2: quota]\n");
    let answer = server.ctl(&["logs", "17", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (json["frames"][0]["base64"].as_str(), json["frames"][1]["cut_bytes"].as_u64()),
        (Some("//4="), Some(9))
    );
    assert_eq!(server.ctl(&["logs", "17", "-f", "-o", "json"]).code, Some(2));
}

#[test]
fn cancel_and_retry_pass_on_what_was_said() {
    let server = Server::start(Script { jobs: vec![job(17, JobState::Running)], ..Script::default() });
    let answer = server.ctl(&["cancel", "census.main", "--reason", "too slow", "--teardown-too"]);
    assert_eq!((answer.code, answer.out.as_str()), (Some(0), "job 17: 1 task cancelled\n"));
    assert_eq!(server.ctl(&["retry", "17", "--failed"]).out, "job 17: 2 tasks will run again\n");
    let asked = server.asked();
    let cancel = &asked.cancels[0];
    assert_eq!((cancel.reason.as_str(), cancel.by.as_str(), cancel.teardown_too), ("too slow", "ada", true));
    assert_eq!(cancel.selector.as_ref().unwrap().text, "census.main");
    assert!(asked.retries[0].failed_only);
}

#[test]
fn a_result_is_printed_as_it_was_written() {
    let script = Script { result: Some(b"{\"b\": 1,  \"a\": 2}".to_vec()), ..Script::default() };
    let server = Server::start(script);
    assert_eq!(server.ctl(&["result", "17.merge"]).out, "{\"b\": 1,  \"a\": 2}\n");
    assert_eq!(server.ctl(&["result", "17.merge", "-o", "jsonl"]).out.trim(), "{\"a\":2,\"b\":1}");
    let none = Server::start(Script::default()).ctl(&["result", "17.merge"]);
    assert_eq!(none.code, Some(3), "{}", none.err);
}

#[test]
fn queue_set_changes_only_what_is_named() {
    let old = v1::QueueRecord { name: "gpu".into(), max_running: Some(3), paused: true, ..Default::default() };
    let queues = vec![v1::QueueView { queue: Some(old), ..Default::default() }];
    let server = Server::start(Script { queues, ..Script::default() });
    let answer = server.ctl(&["queue", "set", "gpu", "--max-waiting", "9", "--resume"]);
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    let asked = server.asked();
    let queue = &asked.queues[0];
    assert_eq!((queue.max_running, queue.max_waiting, queue.paused), (Some(3), Some(9), false));
}

#[test]
fn version_tells_of_a_controller_only_if_one_answers() {
    let server = Server::start(Script::default());
    let text = server.ctl(&["version"]).out;
    let wanted = format!("controller 9.9.9 (protocol {PROTOCOL}) at {} (term 3, scripted store)", server.url);
    assert!(text.contains(&wanted), "{text}");
}

#[test]
fn a_controller_of_another_release_is_told_with_what_to_upgrade() {
    // (oldest and newest of the controller, what is said; none: nothing)
    let table = [
        ((OLDEST_PROTOCOL, PROTOCOL), None),
        ((OLDEST_PROTOCOL - 1, PROTOCOL - 1), None),
        ((PROTOCOL, PROTOCOL + 1), None),
        (
            (PROTOCOL + 1, PROTOCOL + 2),
            Some("is too old: it speaks protocol 3, and controller 9.9.9 4 to 5; upgrade ctl"),
        ),
        ((0, 0), Some("is older than this ctl")),
    ];
    for (protocols, said) in table {
        let server = Server::start(Script { protocols: Some(protocols), ..Script::default() });
        for command in ["version", "status"] {
            let answer = server.ctl(&[command]);
            match said {
                Some(part) => assert!(answer.err.contains(part), "{protocols:?}: {answer:?}"),
                None => assert_eq!(answer.err, "", "{protocols:?}"),
            }
            assert!(answer.out.contains("9.9.9"), "{protocols:?}: {answer:?}");
        }
    }
}

#[test]
fn an_agent_that_is_away_and_one_that_stopped_are_not_told_as_lost() {
    let agent = |name: &str, state: &str, kept_until_us| {
        let offer = Some(v1::Offer { name: name.to_owned(), ..v1::Offer::default() });
        v1::AgentView { offer, state: state.to_owned(), kept_until_us, ..v1::AgentView::default() }
    };
    let agents = vec![agent("far", "away", T0), agent("off", "stopped", 0), agent("gone", "lost", 0)];
    let running = v1::Task { state: v1::TaskState::Running as i32, ..v1::Task::default() };
    let view = |name: &str| v1::TaskView {
        job: 17,
        name: "main".into(),
        agent_name: name.into(),
        task: Some(running.clone()),
        ..v1::TaskView::default()
    };
    let script =
        Script { agents, tasks: vec![view("far")], jobs: vec![job(17, JobState::Running)], ..Script::default() };
    let server = Server::start(script);
    let away = "agent far is away; what may go on there is kept for it until 2026-09-21T14:13:20";
    let answer = server.ctl(&["agents"]);
    assert!(answer.out.contains(away) && answer.out.contains("stopped"), "{answer:?}");
    assert!(server.ctl(&["agents", "-o", "json"]).out.contains("\"kept_until\": \"2026-09-21T14:13:20"));
    let answer = server.ctl(&["status"]);
    assert!(answer.out.contains("agents: 0 connected, 0 silent, 1 away, 1 stopped, 1 lost"), "{answer:?}");
    for work in ["17.main", "17"] {
        let answer = server.ctl(&["show", work]);
        assert!(answer.out.contains(away), "{work}: {answer:?}");
    }
}

#[test]
fn wishes_for_agents_are_said_as_they_were_typed() {
    use v1::tend_agents_request::Wish;
    let server = Server::start(Script::default());
    let answer = server.ctl(&["agent", "drain", "n1", "n2", "--deadline", "10m", "--reason", "kernel"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let wanted = "agent n1 takes no new work and is being drained\n\
                  agent n2 takes no new work and is being drained (nothing changed)\n";
    assert_eq!(answer.out, wanted);
    for words in ["cordon --label zone=a", "resume n1", "set n1 --cpus 0.5 --memory 1GiB", "set n1 --all"] {
        let words: Vec<&str> = ["agent"].into_iter().chain(words.split(' ')).collect();
        let answer = server.ctl(&words);
        assert_eq!(answer.code, Some(0), "{answer:?}");
    }
    let limits = v1::Limits { cpu_milli: Some(500), memory_bytes: Some(1 << 30), gpus: None };
    let wishes = [
        Wish::Drain(v1::DrainWish { within_ms: Some(600_000) }),
        Wish::Cordon(v1::CordonWish {}),
        Wish::Resume(v1::ResumeWish {}),
        Wish::Limit(v1::LimitWish { limits: Some(limits), lift: false }),
        Wish::Limit(v1::LimitWish { limits: Some(v1::Limits::default()), lift: true }),
    ];
    let asked = server.asked();
    assert_eq!(asked.tended.iter().filter_map(|request| request.wish).collect::<Vec<_>>(), wishes);
    assert_eq!((asked.tended[0].names.join(" "), asked.tended[0].reason.as_str()), ("n1 n2".to_owned(), "kernel"));
    assert_eq!((asked.tended[0].by.as_str(), asked.tended[1].labels.join(" ")), ("ada", "zone=a".to_owned()));
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let answer = ran(&mut ctl(&["completions", shell]));
        assert!(answer.code == Some(0) && answer.out.contains("teardown-too"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script = Script { jobs: (1..=3000).map(|id| job(id, JobState::Running)).collect(), ..Script::default() };
    let server = Server::start(script);
    let mut command = ctl(&["list", "--all", "-o", "jsonl"]);
    command.env("MUSTER_CONTROLLER", &server.url).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn no_colours_reach_what_is_no_terminal_unless_asked_for() {
    let server = Server::start(Script { jobs: vec![job(17, JobState::Failed)], ..Script::default() });
    assert!(!server.ctl(&["list"]).out.contains('\x1b'));
    assert!(server.ctl(&["list", "--color", "always"]).out.contains("\x1b[31mfailed"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_work_on_a_controller_alone_and_says_how_to_go_on() {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let script = Script { jobs: vec![job(17, JobState::Running)], endless: true, ..Script::default() };
    let server = Server::start(script);
    let mut command = ctl(&["run", "--", "sleep", "1000"]);
    command.env("MUSTER_CONTROLLER", &server.url).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    until("ctl follows", || server.asked().watches == 1);
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("job 17 goes on: ctl wait 17, ctl logs -f 17, ctl cancel 17"), "{err}");
    assert!(server.asked().cancels.is_empty());
}

#[test]
fn a_controller_that_knows_of_no_terminals_is_not_asked_for_a_command_without_one() {
    let server = Server::start(ended(EndKind::Succeeded, 0, JobState::Running));
    let Ran { code, out, err } = server.ctl(&["exec", "--tty", "17.0", "--", "sh"]);
    if cfg!(unix) {
        assert_eq!((code, &*out), (Some(5), ""), "{err}");
        assert!(err.contains("older than this ctl\n  next: upgrade the controller, or leave out `--tty`"), "{err}");
    } else {
        assert_eq!((code, &*out), (Some(2), ""), "{err}");
    }
}
