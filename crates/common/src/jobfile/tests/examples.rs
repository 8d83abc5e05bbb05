//! The scripts of the examples do what they say, run task by task with nothing but a shell.
#![cfg(unix)]

use std::{fs, path::Path};

use muster_core::spec::{Command, TaskSpec};
use serde_json::{Map, Value, json};

use super::*;

/// What one attempt wrote: its result, if any, and its stdout.
struct Ran {
    result: Option<Value>,
    stdout: String,
}

fn run(task: &TaskSpec, offset: u32, cwd: &Path, inputs: &Value) -> Result<Ran, String> {
    let scratch = tempfile::tempdir().unwrap();
    let (result, input) = (scratch.path().join("result"), scratch.path().join("inputs"));
    fs::write(&input, inputs.to_string()).unwrap();
    let Command::Shell(script) = &task.command else { panic!("{} has no script", task.name) };
    #[expect(clippy::disallowed_methods, reason = "a script of an example is tried without an agent")]
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(cwd).stdin(std::process::Stdio::null()).env_clear().envs(&task.env);
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("MUSTER_RESULT", &result).env("MUSTER_INPUTS", &input);
    if let Some((index, item)) = task.element(offset) {
        command.env("MUSTER_INDEX", index.to_string()).env("MUSTER_ITEM", item.unwrap_or_default());
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() || !output.stderr.is_empty() {
        return Err(format!("{} ended with {}: {}", task.name, output.status, text(&output.stderr)));
    }
    let result = fs::read(&result).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    Ok(Ran { result, stdout: text(&output.stdout) })
}

/// Runs every task of an example in `cwd`; what the last one left.
fn run_all(example: &str, cwd: &Path) -> Result<Ran, String> {
    let path = examples().join(example);
    let spec = good(&fs::read_to_string(&path).unwrap(), Format::of_path(&path).unwrap());
    let mut results = Map::new();
    let mut last = Err("no task".to_owned());
    for task in &spec.tasks {
        let inputs: Map<String, Value> = task
            .after
            .iter()
            .filter_map(|after| after.task.clone())
            .map(|name| (name.clone(), results[&name].clone()))
            .collect();
        let inputs = Value::Object(inputs);
        let ran: Vec<Ran> =
            (0..task.count()).map(|offset| run(task, offset, cwd, &inputs)).collect::<Result<_, _>>()?;
        let mut all: Vec<Value> = ran.iter().map(|ran| ran.result.clone().unwrap_or_default()).collect();
        results.insert(task.name.clone(), if task.array.is_some() { Value::Array(all) } else { all.remove(0) });
        last = ran.into_iter().next_back().ok_or_else(|| "no attempt".to_owned());
    }
    last
}

fn row(files: u64, lines: u64, words: u64, bytes: u64) -> Value {
    json!({ "files": files, "lines": lines, "words": words, "bytes": bytes })
}

#[test]
fn the_census_counts_odd_names_and_leaves_out_what_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("a b/c d.rs", "one two\nthree");
    put("apo'strophe.rs", "q\n");
    put("q\"uo\\te/we\\ird \"n\" .md", "x\n");
    put("back\\", "a\\");
    put(".gitignore", "y\n\n");
    put("empty.total", "");
    put("no.type/plain", "1 2 3\n");
    put("e/é ü.txt", "abc\n");
    put(".git/config", "no");
    put("a b/target/debug/no.rs", "no");
    put("new\nline.rs", "no");
    let ran = run_all("census.toml", folder.path()).unwrap();
    let types = json!({
        "rs": row(2, 2, 4, 15),
        "md": row(1, 1, 1, 2),
        "(none)": row(3, 3, 5, 11),
        "total": row(1, 0, 0, 0),
        "txt": row(1, 1, 1, 4),
    });
    assert_eq!(ran.result.unwrap(), json!({ "types": types, "total": row(8, 7, 11, 32) }));
    let rows: Vec<Vec<&str>> = ran.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["type", "files", "lines", "words", "bytes"]);
    assert_eq!(rows[1], ["(none)", "3", "3", "5", "11"]);
    assert_eq!(rows.last().unwrap()[..], ["total", "8", "7", "11", "32"]);
}

#[test]
fn the_census_of_an_empty_folder_is_zero() {
    let folder = tempfile::tempdir().unwrap();
    let ran = run_all("census.toml", folder.path()).unwrap();
    assert_eq!(ran.result.unwrap(), json!({ "types": {}, "total": row(0, 0, 0, 0) }));
}

#[test]
fn the_census_of_many_files_is_right() {
    let folder = tempfile::tempdir().unwrap();
    (0..3000).for_each(|n| fs::write(folder.path().join(format!("f {n}.txt")), "a b\n").unwrap());
    let ran = run_all("census.toml", folder.path()).unwrap();
    assert_eq!(ran.result.unwrap()["total"], row(3000, 3000, 6000, 12_000));
}

#[test]
fn a_census_that_differs_from_wc_fails() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "a\n").unwrap();
    let path = examples().join("census.toml");
    let spec = good(&fs::read_to_string(path).unwrap(), Format::Toml);
    let error = run(&spec.tasks[3], 0, folder.path(), &json!({ "merge": { "txt": [1, 1, 1, 3] } })).err().unwrap();
    assert!(error.contains("the census counts 1 1 1 3 (files, lines, words, bytes), but wc says 1 1 1 2"), "{error}");
}

#[test]
fn the_matrix_counts_the_primes_below_100000() {
    let folder = tempfile::tempdir().unwrap();
    let ran = run_all("matrix.json", folder.path()).unwrap();
    assert_eq!(ran.result.unwrap(), json!(9592));
    assert_eq!(ran.stdout, "there are 9592 primes below 100000\n");
}
