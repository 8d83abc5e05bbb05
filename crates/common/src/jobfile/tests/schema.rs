//! The schema says what the reader does, and the reference in the documents is made from the same tables.

use serde_json::{Value, json};

use super::*;
use crate::jobfile::{reference, schema, syntax};

fn validator() -> jsonschema::Validator {
    jsonschema::options().build(&schema()).unwrap()
}

/// A good job with `value` in place of `path`'s.
fn changed(path: &str, value: Value) -> Value {
    let mut job = json!({
        "name": "j",
        "tasks": [{
            "name": "t",
            "run": ["true"],
            "retries": { "max": 1 },
            "oom_retries": { "max": 1 },
            "memory": 67108864,
            "run_as": { "user": "alice" },
            "requires": { "os": "linux" },
            "array": { "from": 0, "to": 9 },
            "after": ["17", { "job": 1 }]
        }]
    });
    let (parent, key) = path.rsplit_once('/').unwrap();
    match job.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        other => panic!("{other} has no {key}"),
    }
    job
}

#[test]
fn the_schema_is_one_and_accepts_every_example() {
    assert!(jsonschema::meta::is_valid(&schema()));
    let validator = validator();
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let json = syntax::parse(&text, Format::of_path(&path).unwrap()).unwrap().to_json().unwrap();
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
}

/// Every key of a task, and values that it does not take.
const TASK_KEYS: &str = "run shell env cwd stdin stdin_file output_limit cpus memory cpu_limit pids io_read io_write io_read_ops io_write_ops gpus resources requires priority \
                         start_at timeout grace retries on_lost on_disconnect max_disconnect tags image volumes after array role name \
                         run_as scratch oom_retries log_rate scratch_size mask";

fn bad_values() -> Vec<(&'static str, Value)> {
    vec![
        ("run", json!("echo hi")),
        ("run", json!([])),
        ("shell", json!("both")),
        ("env", json!({ "A": 1 })),
        ("cpus", json!(-1)),
        ("memory", json!("2G")),
        ("memory", json!(-1)),
        ("cpu_limit", json!(1)),
        ("pids", json!("many")),
        ("io_read", json!("50M")),
        ("io_write", json!(-1)),
        ("io_read_ops", json!("100MB")),
        ("io_write_ops", json!(1.5)),
        ("volumes", json!(["/data"])),
        ("volumes", json!(["data:/data"])),
        ("volumes", json!(["/data:/data:z"])),
        ("gpus", json!(0.5)),
        ("priority", json!("urgent")),
        ("priority", json!(1001)),
        ("timeout", json!("5 parsecs")),
        ("timeout", json!(-1)),
        ("start_at", json!("tomorrow")),
        ("retries", json!(-1)),
        ("retries/max", json!("1")),
        ("retries/factor", json!(0.5)),
        ("retries/jitter", json!(1.5)),
        ("retries/exit_codes", json!([1.5])),
        ("retries/what", json!(1)),
        ("requires/os", json!(1)),
        ("requires/what", json!(1)),
        ("array", json!(0)),
        ("array", json!("9..1")),
        ("array/lines", json!("x")),
        ("array/items", json!([])),
        ("array", json!({ "from": 1 })),
        ("array", json!({ "items": [1], "step": 1 })),
        ("array", json!({ "range": [1, 2], "items": [1] })),
        ("after/0", json!(1)),
        ("after/1", json!({})),
        ("after/1", json!({ "task": "x", "on": "end" })),
        ("role", json!("tear")),
        ("run_as/umask", json!("9")),
        ("run_as/umask", json!(18)),
        ("run_as/nice", json!(20)),
        ("run_as/nice", json!("low")),
        ("run_as/user", json!(-1)),
        ("run_as/groups", json!("wheel")),
        ("run_as/what", json!(1)),
        ("scratch", json!("always")),
        ("scratch_size", json!("much")),
        ("log_rate", json!("1M")),
        ("mask", json!("TOKEN")),
        ("mask", json!([1])),
        ("oom_retries", json!(-1)),
        ("oom_retries/factor", json!(0.5)),
        ("oom_retries/cap", json!("2G")),
        ("oom_retries/what", json!(1)),
        ("on_lost", json!("never")),
        ("on_disconnect", json!("hope")),
        ("max_disconnect", json!("soon")),
    ]
}

#[test]
fn what_one_refuses_the_other_refuses() {
    let (t, other) = ("/tasks/0", json!({ "a": 1 }));
    let mut refused =
        vec![("/name".to_owned(), json!(5)), ("/nmae".to_owned(), json!("x")), ("/tasks".to_owned(), json!("x"))];
    for key in TASK_KEYS.split(' ') {
        for value in [Value::Null, json!(true), json!([[]]), other.clone(), json!([null])] {
            let is_free =
                matches!((key, &value), ("env" | "resources", Value::Object(_)) | ("cpu_limit", Value::Bool(_)));
            if !is_free {
                refused.push((format!("{t}/{key}"), value));
            }
        }
    }
    refused.extend(bad_values().into_iter().map(|(key, value)| (format!("{t}/{key}"), value)));
    let validator = validator();
    assert!(validator.is_valid(&changed("/name", json!("j"))));
    good(&changed("/name", json!("j")).to_string(), Format::Json);
    for (path, value) in refused {
        let job = changed(&path, value.clone());
        assert!(!validator.is_valid(&job), "the schema accepts {value} at {path}");
        assert_ne!(bad(&job.to_string(), Format::Json), ["accepted"], "the reader accepts {value} at {path}");
    }
}

#[test]
fn every_key_has_a_description() {
    fn look(value: &Value, path: &str) {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            for (key, property) in properties {
                let text = property["description"].as_str().unwrap_or_default();
                assert!(text.ends_with('.'), "{path}.{key}: {text:?}");
            }
            assert_eq!(value["additionalProperties"], json!(false), "{path}");
        }
    }
    let schema = schema();
    look(&schema, "job");
    let defs = schema["$defs"].as_object().unwrap();
    defs.iter().for_each(|(name, def)| look(def, name));
    assert_eq!(
        defs.keys().collect::<Vec<_>>(),
        ["after", "array", "defaults", "named_task", "oom_retries", "requires", "retries", "run_as", "task"]
    );
}

/// Set to write the tables into the document.
const BLESS: &str = "MUSTER_BLESS";

#[test]
fn the_reference_in_the_documents_is_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/job-file.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- made from the reader's tables; do not edit -->\n", "<!-- end -->");
    let (head, rest) = text.split_once(begin).unwrap();
    let (tables, tail) = rest.split_once(end).unwrap();
    let expected = format!("\n{}\n", reference());
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, format!("{head}{begin}{expected}{end}{tail}")).unwrap();
        return;
    }
    assert_eq!(tables, expected, "run this test with {BLESS}=1");
}

#[test]
fn every_example_in_the_documents_is_a_good_job() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/job-file.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut seen = 0;
    for block in text.split("\n```toml\n").skip(1) {
        let block = block.split("\n```").next().unwrap();
        // A part of a file stands for one with a name.
        let file = if block.contains("name = \"") { block.to_owned() } else { format!("name = \"j\"\n{block}") };
        good(&file, Format::Toml);
        seen += 1;
    }
    assert!(seen >= 3, "{seen}");
}
