//! The same job in each format is the same spec.

use super::*;

const TOML: &str = r#"
name = "etl"
queue = "nightly"
labels = { team = "data" }
metadata = { about = "x: y" }

[defaults]
timeout = "1h"
env = { A = "1" }

[[tasks]]
name = "setup"
role = "setup"
shell = """
set -eu
echo hi
"""

[[tasks]]
name = "extract"
run = ["extract", "--all", ""]
cpus = 1.5
memory = "512MiB"
gpus = 0
resources = { disk = 2 }
array = { items = ["a b", 1, 2.5, true, { k = [1, "x"] }] }
requires = { os = "linux", labels = ["zone in (a, b)", "!old"] }
retries = { max = 3, delay = 0.5, jitter = 0, exit_codes = [75] }

[[tasks]]
name = "load"
after = ["extract", { job = 17, task = "merge", on = "any" }]
priority = -5
grace = 1
on_lost = "fail"
tags = ["on", "null", "1"]
start_at = "2030-01-31T06:00:00+01:00"
"#;

const YAML: &str = r#"
name: etl
queue: nightly
labels: {team: data}
metadata: {about: "x: y"}
defaults:
  timeout: 1h
  env: {A: "1"}
tasks:
- name: setup
  role: setup
  shell: |
    set -eu
    echo hi
- name: extract
  run: [extract, --all, ""]
  cpus: 1.5
  memory: 512MiB
  gpus: 0
  resources: {disk: 2}
  array:
    items: [a b, 1, 2.5, true, {k: [1, x]}]
  requires:
    os: linux
    labels: ["zone in (a, b)", "!old"]
  retries: {max: 3, delay: 0.5, jitter: 0, exit_codes: [75]}
- name: load
  after: [extract, {job: 17, task: merge, on: any}]
  priority: -5
  grace: 1
  on_lost: fail
  tags: [on, "null", "1"]
  start_at: 2030-01-31T06:00:00+01:00
"#;

const JSON: &str = r#"
{
  "name": "etl",
  "queue": "nightly",
  "labels": { "team": "data" },
  "metadata": { "about": "x: y" },
  "defaults": { "timeout": "1h", "env": { "A": "1" } },
  "tasks": [
    { "name": "setup", "role": "setup", "shell": "set -eu\necho hi\n" },
    {
      "name": "extract",
      "run": ["extract", "--all", ""],
      "cpus": 1.5,
      "memory": "512MiB",
      "gpus": 0,
      "resources": { "disk": 2 },
      "array": { "items": ["a b", 1, 2.5, true, { "k": [1, "x"] }] },
      "requires": { "os": "linux", "labels": ["zone in (a, b)", "!old"] },
      "retries": { "max": 3, "delay": 0.5, "jitter": 0, "exit_codes": [75] }
    },
    {
      "name": "load",
      "after": ["extract", { "job": 17, "task": "merge", "on": "any" }],
      "priority": -5,
      "grace": 1,
      "on_lost": "fail",
      "tags": ["on", "null", "1"],
      "start_at": "2030-01-31T06:00:00+01:00"
    }
  ]
}
"#;

#[test]
fn the_same_job_in_each_format_is_the_same_spec() {
    let toml = good(TOML, Format::Toml);
    assert_eq!(toml.task_count(), 7);
    assert_eq!(toml, good(YAML, Format::Yaml));
    assert_eq!(toml, good(JSON, Format::Json));
}

#[test]
fn json_is_yaml_too() {
    assert_eq!(good(JSON, Format::Json), good(JSON, Format::Yaml));
}

#[test]
fn each_example_is_the_same_job_as_its_tree_in_json() {
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let format = Format::of_path(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let json = crate::jobfile::syntax::parse(&text, format).unwrap().to_json().unwrap();
        // A map of serde_json sorts its keys; the tasks of a table come in the order of the file.
        let sorted = |mut spec: JobSpec| {
            spec.tasks.sort_by(|a, b| a.name.cmp(&b.name));
            spec
        };
        assert_eq!(sorted(good(&text, format)), sorted(good(&json.to_string(), Format::Json)), "{}", path.display());
    }
}
