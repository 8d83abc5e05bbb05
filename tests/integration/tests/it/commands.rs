//! Each command of `ctl` against real daemons: what it prints for machines, and that the job really changed.

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    system::System,
    wait::{self, Look},
};
use serde_json::Value;

/// Fails unless a value is this one; says where.
macro_rules! same {
    ($left:expr, $right:expr) => {{
        let (left, right) = (&$left, &$right);
        ensure!(*left == *right, "{} is {:?}, not {:?}", stringify!($left), left, right);
    }};
}

const TWO_STEPS: &str = r#"
name = "two-steps"
labels = { team = "blue" }

[[tasks]]
name = "first"
shell = 'echo out; echo err >&2; echo "{\"n\": 41}" > "$MUSTER_RESULT"'

[[tasks]]
name = "second"
shell = 'grep -q 41 "$MUSTER_INPUTS" && echo "{\"n\": 42}" > "$MUSTER_RESULT"'
after = ["first"]
"#;

const ONE_FAILS: &str = r#"
name = "one-fails"

[[tasks]]
name = "good"
run = ["true"]

[[tasks]]
name = "bad"
shell = 'test -e "$GATE" || exit 3'
env = { GATE = "@GATE@" }
"#;

const WAITS_FOREVER: &str = r#"
name = "waits-forever"

[[tasks]]
name = "sleeper"
run = ["sleep", "1000"]

[[tasks]]
name = "impossible"
run = ["true"]
cpus = 1000
"#;

#[test]
fn a_job_is_submitted_shown_listed_and_its_result_is_read() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let job = system.submit("two.toml", TWO_STEPS)?;
    let finished = ctl.finished(job, wait::LIMIT)?;
    same!(finished["state"], "succeeded");
    same!(finished["name"], "two-steps");
    same!(finished["tasks"]["succeeded"], 2);

    let listed = ctl.json(&["list", "--label", "team=blue"])?;
    same!(listed["jobs"][0]["id"], job);
    same!(ctl.json(&["list", "--label", "team=red"])?["jobs"], serde_json::json!([]));
    same!(ctl.json(&["list", "--state", "completed"])?["jobs"][0]["id"], job);

    let shown = ctl.json(&["show", "two-steps", "--tasks"])?;
    let second = &shown["tasks"][1];
    same!(second["name"], "second");
    same!(second["attempts"][0]["end"]["kind"], "succeeded");

    let stats = ctl.json(&["stats"])?;
    same!(stats["tasks"]["succeeded"], 2);
    system.finish()
}

#[test]
fn the_two_streams_of_a_task_are_kept_apart() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let job = system.submit("two.toml", TWO_STEPS)?;
    ctl.finished(job, wait::LIMIT)?;
    let first = format!("{job}.first");
    wait::until("both streams of the task", || {
        let of = |stream| Ok::<_, anyhow::Error>(ctl.run(&["logs", &first, "--stream", stream])?.expect(0)?.text());
        let both = (of("stdout")?, of("stderr")?);
        Ok(Look::when(both == ("out\n".to_owned(), "err\n".to_owned()), both))
    })?;
    system.finish()
}

#[test]
fn a_failed_task_is_retried_by_hand_and_the_job_succeeds() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let gate = system.folder().join("gate");
    let job = system.submit("fails.toml", &ONE_FAILS.replace("@GATE@", &gate.to_string_lossy()))?;
    same!(ctl.finished(job, wait::LIMIT)?["state"], "failed");
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    same!(shown["tasks"][1]["attempts"][0]["end"]["exit_code"], 3);
    ctl.run(&["wait", &job.to_string()])?.expect(1)?;

    std::fs::write(&gate, "")?;
    let retried = ctl.json(&["retry", "--failed", &job.to_string()])?;
    same!(retried["tasks"], 1);
    same!(ctl.finished(job, wait::LIMIT)?["state"], "succeeded");
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    same!(shown["tasks"][0]["attempts"].as_array().map(Vec::len), Some(1));
    same!(shown["tasks"][1]["attempts"].as_array().map(Vec::len), Some(2));
    system.finish()
}

#[test]
fn what_waits_is_explained_and_what_runs_is_cancelled() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let job = system.submit("waits.toml", WAITS_FOREVER)?;
    wait::until("the sleeper to run", || {
        let shown = ctl.json(&["show", &job.to_string()])?;
        Ok(Look::when(shown["job"]["tasks"]["running"] == 1, shown))
    })?;
    same!(running(&ctl)?, 1);

    let explained = ctl.json(&["explain", &format!("{job}.impossible")])?;
    let reasons = explained["explanations"][0]["reasons"].as_array().cloned().unwrap_or_default();
    ensure!(!reasons.is_empty(), "nothing explains why it waits: {explained}");
    ensure!(reasons.iter().all(|reason| reason["code"].is_string() && reason["text"].is_string()), "{explained}");

    ctl.json(&["cancel", &job.to_string(), "--reason", "enough"])?;
    let cancelled = ctl.finished(job, wait::LIMIT)?;
    same!(cancelled["state"], "cancelled");
    same!(cancelled["cancel_reason"], "enough");
    same!(running(&ctl)?, 0);
    system.finish()
}

fn running(ctl: &Ctl) -> Result<u64> {
    let agents = ctl.json(&["agents"])?;
    agents["agents"][0]["running"].as_u64().with_context(|| format!("no count of running tasks: {agents}"))
}

#[test]
fn every_machine_format_says_the_same() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let job = system.submit("two.toml", TWO_STEPS)?;
    ctl.finished(job, wait::LIMIT)?;
    let json = ctl.json(&["list"])?;
    let lines = ctl.run(&["list", "-o", "jsonl"])?.expect(0)?.text();
    let line: Value = serde_json::from_str(lines.lines().next().context("jsonl printed nothing")?)?;
    same!(line["id"], json["jobs"][0]["id"]);
    same!(line["state"], json["jobs"][0]["state"]);
    let yaml = ctl.run(&["list", "-o", "yaml"])?.expect(0)?.text();
    ensure!(yaml.contains(&format!("id: {job}")), "{yaml}");
    let table = ctl.run(&["list", "-o", "table"])?.expect(0)?.text();
    ensure!(table.contains("two-steps") && table.contains("succeeded"), "{table}");
    system.finish()
}

#[test]
fn a_job_outlives_an_orderly_restart_of_its_controller() -> Result<()> {
    let mut system = System::plain()?;
    let before = system.submit("two.toml", TWO_STEPS)?;
    let ended = system.ctl().finished(before, wait::LIMIT)?;
    let waiting = system.submit("waits.toml", WAITS_FOREVER)?;
    system.controller()?.stop()?;
    system.start_controller()?;
    system.agent_connected()?;
    let ctl = system.ctl();
    same!(ctl.json(&["show", &before.to_string()])?["job"], ended);
    ctl.json(&["cancel", &waiting.to_string()])?;
    same!(ctl.finished(waiting, wait::LIMIT)?["state"], "cancelled");
    system.finish()
}

#[test]
fn work_that_waited_in_vain_is_skipped_and_no_success() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let gate = system.folder().join("gate");
    let failed = system.submit("fails.toml", &ONE_FAILS.replace("@GATE@", &gate.to_string_lossy()))?;
    let after = format!("name = \"after\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\nafter = [\"{failed}\"]\n");
    let job = system.submit("after.toml", &after)?;
    same!(ctl.finished(job, wait::LIMIT)?["state"], "skipped");
    for work in [job.to_string(), format!("{job}.a"), "after.a".to_owned()] {
        ctl.run(&["wait", &work])?.expect(9)?;
    }
    same!(ctl.json(&["list", "--state", "skipped"])?["jobs"][0]["id"], job);
    ctl.run(&["wait", &format!("{failed}.good")])?.expect(0)?;
    ctl.run(&["wait", &format!("{failed}.bad")])?.expect(1)?;
    system.finish()
}

#[test]
fn a_command_reads_standard_input_only_where_that_is_asked_for() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let counted = |arguments: &[&str], input: &[u8]| ctl.run_with(&[arguments, &["--", "wc", "-c"]].concat(), input);
    same!(counted(&["run", "--stdin"], b"12345\xff")?.expect(0)?.text(), "6\n");
    same!(counted(&["run"], b"12345")?.expect(0)?.text(), "0\n");
    let refused = counted(&["run", "--stdin"], &vec![b'x'; (1 << 20) + 1])?.expect(2)?;
    ensure!(refused.stderr.contains("stdin") && refused.stderr.contains("1048576"), "{refused}");
    system.finish()
}

#[test]
fn one_file_that_cannot_be_read_hides_nothing_about_the_others() -> Result<()> {
    let system = System::plain()?;
    let good = system.file("good.toml", TWO_STEPS)?.to_string_lossy().into_owned();
    let ran = system.ctl().run(&["validate", "/no/such.toml", &good, "/dev/zero"])?.expect(2)?;
    ensure!(ran.text().contains("two-steps") && ran.stderr.contains("/no/such.toml"), "{ran}");
    let reply = system.ctl().run(&["validate", "/no/such.toml", &good, "-o", "json"])?.expect(2)?;
    let reply: Value = serde_json::from_slice(&reply.stdout)?;
    same!(reply["files"][0]["valid"], false);
    same!(reply["files"][1]["valid"], true);
    system.finish()
}
