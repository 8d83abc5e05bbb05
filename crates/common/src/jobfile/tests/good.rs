//! What each key means.

use std::{path::Path, sync::Arc, time::Duration};

use muster_core::{
    id::JobId,
    spec::{After, Array, Command, LabelRule, On, OnLost, Priority, RetryPolicy, Role, TaskSpec},
    time::Timestamp,
};

use super::*;
use crate::jobfile::{CommandOptions, command_job, load};

/// The one task of a TOML job whose task says `keys`.
#[track_caller]
fn task(keys: &str) -> TaskSpec {
    let spec = good(&format!("name = \"j\"\n[[tasks]]\nname = \"t\"\nrun = [\"true\"]\n{keys}\n"), Format::Toml);
    TaskSpec::clone(&spec.tasks[0])
}

#[test]
fn the_smallest_job_has_every_default() {
    let spec = good("name = \"hello\"\n[tasks.greet]\nrun = [\"echo\", \"hi\"]\n", Format::Toml);
    assert_eq!((spec.name.as_str(), spec.queue.as_str(), spec.tasks.len()), ("hello", "default", 1));
    let expected = TaskSpec {
        name: "greet".to_owned(),
        command: Command::Argv(vec!["echo".to_owned(), "hi".to_owned()]),
        cwd: Some("/home/ada".to_owned()),
        request: muster_core::resources::Request { cpu_milli: 1000, ..Default::default() },
        ..TaskSpec::default()
    };
    assert_eq!(*spec.tasks[0], expected);
}

#[test]
fn a_task_without_a_command_takes_nothing_even_from_defaults() {
    let text =
        "name = 'j'\n[defaults]\ncpus = 4\nmemory = '1GiB'\nresources.x = 1\n[tasks.join]\n[tasks.work]\nshell = 'x'\n";
    let spec = good(text, Format::Toml);
    assert!(spec.tasks[0].request.is_empty());
    assert_eq!(spec.tasks[0].cwd, None);
    assert_eq!((spec.tasks[1].request.cpu_milli, spec.tasks[1].request.memory), (4000, 1 << 30));
    assert_eq!(spec.tasks[1].request.named["x"], 1);
}

#[test]
fn tasks_come_in_the_order_of_the_file_in_both_forms() {
    let table = good("name = 'j'\n[tasks.z]\n[tasks.a]\nafter = ['z']\n[tasks.m]\n", Format::Toml);
    let list = good(
        "name = 'j'\n[[tasks]]\nname = 'z'\n[[tasks]]\nname = 'a'\nafter = ['z']\n[[tasks]]\nname='m'",
        Format::Toml,
    );
    assert_eq!(table, list);
    assert_eq!(table.tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["z", "a", "m"]);
}

#[test]
fn a_task_comes_before_defaults_and_adds_to_their_tables() {
    let text = r#"
name = "j"
[defaults]
shell = "from defaults"
timeout = "1h"
env = { A = "1", B = "2" }
resources = { disk = 1 }
retries = 3
cpus = 2
[tasks.plain]
[tasks.other]
run = ["own"]
env.B = "3"
resources.net = 2
retries = { max = 1 }
cpus = 0.5
"#;
    let spec = good(text, Format::Toml);
    let [plain, other] = &spec.tasks[..] else { panic!("two tasks") };
    assert_eq!(plain.command, Command::Shell("from defaults".to_owned()));
    assert_eq!((plain.retry.max, plain.request.cpu_milli), (3, 2000));
    assert_eq!(other.command, Command::Argv(vec!["own".to_owned()]));
    assert_eq!(other.timeout, Some(Duration::from_secs(3600)));
    assert_eq!(other.env.iter().map(|(k, v)| format!("{k}{v}")).collect::<String>(), "A1B3");
    assert_eq!(other.request.named.iter().map(|(k, v)| format!("{k}{v}")).collect::<String>(), "disk1net2");
    assert_eq!((other.retry.max, other.request.cpu_milli), (1, 500));
}

#[test]
fn durations_are_texts_with_units_or_seconds() {
    let table = [
        ("\"90s\"", 90_000),
        ("\"1h30m\"", 5_400_000),
        ("\"1h 30m\"", 5_400_000),
        ("\"1.5h\"", 5_400_000),
        ("\"250ms\"", 250),
        ("\"2d\"", 172_800_000),
        ("\"1w\"", 604_800_000),
        ("5", 5_000),
        ("0.5", 500),
    ];
    for (text, ms) in table {
        assert_eq!(task(&format!("timeout = {text}")).timeout, Some(Duration::from_millis(ms)), "{text}");
    }
    assert_eq!(task("grace = 0").grace, Duration::ZERO);
}

#[test]
fn sizes_are_texts_with_units_or_bytes() {
    let table = [
        ("\"512MiB\"", 512 << 20),
        ("\"2GB\"", 2_000_000_000),
        ("\"2 GB\"", 2_000_000_000),
        ("\"1.5KiB\"", 1536),
        ("\"100B\"", 100),
        ("\"1kB\"", 1000),
        ("4096", 4096),
    ];
    for (text, bytes) in table {
        assert_eq!(task(&format!("output_limit = {text}")).output_limit, Some(bytes), "{text}");
    }
    assert_eq!(task("memory = \"1MiB\"").request.memory, 1 << 20);
    let found = task(
        "log_rate = \"1MB\"\nscratch = \"private\"\nscratch_size = \"1GB\"\nmask = [\"A\"]\nenv = { A = \"hush\" }",
    );
    assert_eq!((found.log_rate, found.scratch_size), (Some(1_000_000), Some(1_000_000_000)));
    assert_eq!(found.mask, ["A"]);
    let io = task("io_read = \"50MB\"\nio_write = 8192\nio_read_ops = 100\nio_write_ops = 7").io;
    assert_eq!(io.by_key().map(|(_, amount)| amount), [Some(50_000_000), Some(8192), Some(100), Some(7)]);
}

#[test]
fn arrays_are_ranges_counts_lines_or_items() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("list.txt"), "a b\r\n\nc\n").unwrap();
    let context = Context { dir: folder.path().to_owned(), ..context() };
    let range = |first, count, step| Array::Range { first, count, step };
    let items = |items: &[&str]| Array::Items(items.iter().map(|item| (*item).to_owned()).collect());
    let table = [
        ("\"0-999\"", range(0, 1000, 1)),
        ("\"5\"", range(0, 5, 1)),
        ("\"0-99:2\"", range(0, 50, 2)),
        ("\"3-3\"", range(3, 1, 1)),
        ("7", range(0, 7, 1)),
        ("{ range = [10, 20] }", range(10, 11, 1)),
        ("{ range = [10, 20], step = 5 }", range(10, 3, 5)),
        ("{ from = -2, to = 2 }", range(-2, 5, 1)),
        ("{ from = 10, to = 0, step = -5 }", range(10, 3, -5)),
        ("{ lines = \"list.txt\" }", items(&["a b", "", "c"])),
        (
            "{ items = [\"a b\", 1, 2.5, true, [1, \"x\"], { k = \"v\" }] }",
            items(&["a b", "1", "2.5", "true", "[1,\"x\"]", "{\"k\":\"v\"}"]),
        ),
    ];
    for (text, expected) in table {
        let file = format!("name='j'\n[tasks.t]\narray = {text}\n");
        let parsed = parse(&file, Format::Toml, &context).map_err(|found| lines(&found)).unwrap();
        assert_eq!(parsed.spec.tasks[0].array.as_ref(), Some(&expected), "{text}");
    }
}

#[test]
fn dependencies_are_texts_or_tables() {
    let after = |job: Option<u64>, name: Option<&str>, task: Option<&str>, on| After {
        job: job.map(JobId),
        job_name: name.map(str::to_owned),
        task: task.map(str::to_owned),
        on,
    };
    let text = r#"
name = "j"
[tasks.a]
[tasks.b]
after = ["a", "17", "17.merge", "17.scan:any", "nightly.merge:failure", { job = 18 }, { job = "19" }, { job = "nightly" },
  { job = "v1.2", task = "x", on = "any" }]
[tasks.c]
after = ["a:failure", { task = "b", on = "failure" }]
"#;
    let spec = good(text, Format::Toml);
    let expected = [
        after(None, None, Some("a"), On::Success),
        after(Some(17), None, None, On::Success),
        after(Some(17), None, Some("merge"), On::Success),
        after(Some(17), None, Some("scan"), On::Any),
        after(None, Some("nightly"), Some("merge"), On::Failure),
        after(Some(18), None, None, On::Success),
        after(Some(19), None, None, On::Success),
        after(None, Some("nightly"), None, On::Success),
        after(None, Some("v1.2"), Some("x"), On::Any),
    ];
    assert_eq!(spec.tasks[1].after, expected);
    assert_eq!(spec.tasks[2].after[1], after(None, None, Some("b"), On::Failure));
}

#[test]
fn retries_are_a_number_or_a_policy() {
    assert_eq!(task("retries = 3").retry, RetryPolicy { max: 3, ..RetryPolicy::default() });
    let policy =
        task("retries = { max = 5, delay = \"2s\", factor = 1.5, cap = \"1m\", jitter = 0.25, exit_codes = [75, -1] }");
    let expected = RetryPolicy {
        max: 5,
        delay: Duration::from_secs(2),
        factor_milli: 1500,
        cap: Duration::from_secs(60),
        jitter_milli: 250,
        exit_codes: vec![75, -1],
    };
    assert_eq!(policy.retry, expected);
    let long = task("retries = { max = 1, delay = \"10m\" }").retry;
    assert_eq!((long.delay, long.cap), (Duration::from_secs(600), Duration::from_secs(600)));
}

#[test]
fn the_other_keys_of_a_task_mean_what_they_say() {
    assert_eq!(task("priority = \"high\"").priority, Priority::HIGH);
    assert_eq!(task("priority = \"medium\"").priority, Priority::NORMAL);
    assert_eq!(task("priority = -7").priority, Priority(-7));
    assert_eq!(task("on_lost = \"fail\"").on_lost, OnLost::Fail);
    let alone = [
        ("on_disconnect = \"continue\"", Some(3600)),
        ("on_disconnect = \"continue\"\nmax_disconnect = \"2m\"", Some(120)),
        ("max_disconnect = \"2m\"", Some(120)),
        ("on_disconnect = \"stop\"\nmax_disconnect = \"2m\"", None),
        ("", None),
    ];
    for (text, seconds) in alone {
        assert_eq!(task(text).max_disconnect, seconds.map(Duration::from_secs), "{text}");
    }
    assert_eq!(task("role = \"teardown\"").role, Role::Teardown);
    assert_eq!(task("tags = [\"a\", \"b\"]").tags, ["a", "b"]);
    assert_eq!(task("stdin = \"hi\"").stdin, Some(b"hi".to_vec()));
    assert_eq!(task("gpus = 2").request.gpus, 2);
    assert_eq!(task("start_at = \"+10m\"").start_at, Some(Timestamp(NOW.0 + 600_000_000)));
    let moment = Some(Timestamp(NOW.0 + 1_500_000));
    assert_eq!(task("start_at = \"2026-01-01T01:00:01.5+01:00\"").start_at, moment);
    assert_eq!(task("start_at = 2026-01-01T00:00:01.5Z").start_at, moment);
    let requires = task("requires = { os = \"linux\", labels = [\"zone=a\", \"!old\", \"tier in (x, y)\"] }").requires;
    assert_eq!(requires.os.as_deref(), Some("linux"));
    assert_eq!(requires.labels[0], LabelRule::Is("zone".to_owned(), "a".to_owned()));
    assert_eq!(requires.labels[2], LabelRule::In("tier".to_owned(), vec!["x".to_owned(), "y".to_owned()]));
}

#[test]
fn a_relative_folder_starts_at_the_submitters() {
    let table = [
        ("data", "/home/ada/data"),
        (".", "/home/ada"),
        ("./a/../b", "/home/ada/a/../b"),
        ("/srv", "/srv"),
        ("C:\\\\x", "C:\\x"),
    ];
    for (cwd, expected) in table {
        assert_eq!(task(&format!("cwd = \"{cwd}\"")).cwd.as_deref(), Some(expected));
    }
}

#[test]
fn stdin_may_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.bin"), b"\xff\x00").unwrap();
    let path = folder.path().join("job.toml");
    std::fs::write(&path, "name='j'\n[tasks.t]\nrun=['cat']\nstdin_file='in.bin'\n").unwrap();
    let parsed = load(&path, PathBuf::from("/"), NOW).map_err(|found| lines(&found)).unwrap();
    assert_eq!(parsed.spec.tasks[0].stdin, Some(vec![0xff, 0]));
}

#[test]
fn words_that_no_agent_reports_are_a_warning() {
    let text = "name='j'\n[tasks.t]\nrequires = { os = \"linx\", arch = \"arm64\" }\n";
    let parsed = parse(text, Format::Toml, &context()).unwrap();
    assert_eq!(
        lines(&parsed.warnings),
        [
            "3:19: tasks.t.requires.os: no agent is known to report \"linx\"; did you mean \"linux\"?",
            "3:34: tasks.t.requires.arch: no agent is known to report \"arm64\"; did you mean \"aarch64\"?",
        ]
    );
}

#[test]
fn yaml_has_strict_booleans_anchors_and_merge_keys() {
    let text = r"
name: j
labels: { on: yes, off: no }
defaults: &d { timeout: 5s }
tasks:
  a: &a
    run: [echo, &word hi, *word]
    env: &e { A: '1', B: '2' }
  b:
    <<: *a
    env: { <<: *e, B: '3' }
  c:
    <<: [*d, *a]
    run: [!!str 5]
";
    let spec = good(text, Format::Yaml);
    assert_eq!(spec.labels["on"], "yes");
    assert_eq!(spec.tasks[1].command, Command::Argv(vec!["echo".into(), "hi".into(), "hi".into()]));
    assert_eq!((spec.tasks[1].env["A"].as_str(), spec.tasks[1].env["B"].as_str()), ("1", "3"));
    assert_eq!(spec.tasks[2].command, Command::Argv(vec!["5".into()]));
    assert_eq!(spec.tasks[2].timeout, Some(Duration::from_secs(5)));
}

#[test]
fn json_strings_may_hold_every_escape() {
    let text = r#"{"name":"j","tasks":[{"name":"t","run":["\u00e9\ud83d\ude00\/\n\"",""]}]}"#;
    assert_eq!(good(text, Format::Json).tasks[0].command, Command::Argv(vec!["é😀/\n\"".into(), String::new()]));
}

#[test]
fn a_format_is_known_by_its_ending_and_a_byte_order_mark_is_no_text() {
    assert_eq!(Format::of_path(Path::new("a/b.TOML")), Some(Format::Toml));
    assert_eq!(Format::of_path(Path::new("b.yml")), Some(Format::Yaml));
    assert_eq!(Format::of_path(Path::new("b.txt")), None);
    good("\u{feff}name = 'j'\ntasks.t = {}\n", Format::Toml);
}

#[test]
fn every_example_is_a_good_job_without_a_warning() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let parsed = load(&path, PathBuf::from("/home/ada"), NOW).map_err(|found| lines(&found)).unwrap();
        assert_eq!(lines(&parsed.warnings), [""; 0], "{}", path.display());
        names.push(parsed.spec.name);
    }
    names.sort();
    assert_eq!(names, ["census", "hello", "matrix", "retry"]);
}

#[test]
fn a_command_becomes_a_job_that_can_be_submitted() {
    let table = [
        ("/bin/sleep", "sleep"),
        ("python3.11", "python3-11"),
        ("7z", "7z"),
        ("17", "command-17"),
        ("…", "command"),
        ("C:\\x\\tool.exe", "tool"),
    ];
    for (program, name) in table {
        let spec = command_job(vec![program.to_owned(), "1".to_owned()], CommandOptions::default());
        assert_eq!((spec.name.as_str(), spec.tasks[0].name.as_str()), (name, name));
        assert_eq!(spec.tasks[0].request.cpu_milli, 1000);
        assert_eq!(muster_core::validate::check(&spec), []);
    }
    let array = Some(Array::Items(Arc::new(["a".to_owned()])));
    let options = CommandOptions {
        name: Some("mine".to_owned()),
        task: TaskSpec { array, ..TaskSpec::default() },
        ..CommandOptions::default()
    };
    let spec = command_job(vec!["true".to_owned()], options);
    assert_eq!((spec.name.as_str(), spec.task_count()), ("mine", 1));
}
