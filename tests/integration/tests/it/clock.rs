//! A wall clock that jumps while work runs: only what people write down follows it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const DAY: &str = "86400";
const TWO_DAYS: &str = "172800";

const STEADY: &str = r#"
name = "steady"
[[tasks]]
name = "steady"
shell = 'while [ ! -e "$GATE" ]; do sleep 0.1; done'
env = { GATE = "@GATE@" }
timeout = "10m"
"#;

const LIMITED: &str = r#"
name = "limited"
[[tasks]]
name = "limited"
run = ["sleep", "1000"]
timeout = "10s"
"#;

const QUICK: &str = r#"
name = "quick"
[[tasks]]
name = "quick"
run = ["true"]
"#;

/// What daemons take for their wall clock: so many seconds off the machine's. They look once a second.
fn set(clock: &Path, offset: &str) -> Result<()> {
    let new = clock.with_extension("new");
    fs::write(&new, format!("{offset}\n")).context("could not write the clock")?;
    fs::rename(&new, clock).context("could not turn the clock")
}

fn attempts(system: &System, job: u64) -> Result<Vec<Value>> {
    let shown = system.ctl().json(&["show", &job.to_string(), "--tasks"])?;
    shown["tasks"][0]["attempts"].as_array().cloned().with_context(|| format!("no attempts: {shown}"))
}

/// The day on which the agent says that it started something just now.
fn day(system: &System, limit: Duration) -> Result<String> {
    let job = system.submit("quick.toml", QUICK)?;
    system.ctl().finished(job, limit)?;
    let attempts = attempts(system, job)?;
    let [attempt] = attempts.as_slice() else { anyhow::bail!("not one attempt: {attempts:?}") };
    ensure!(attempt["duration_seconds"].as_f64().is_some_and(|took| (0.0..100_000.0).contains(&took)), "{attempt}");
    let at = attempt["started_at"].as_str().and_then(|at| at.get(..10));
    Ok(at.with_context(|| format!("no start: {attempt}"))?.to_owned())
}

#[test]
fn a_clock_that_jumps_neither_ends_nor_prolongs_what_runs() -> Result<()> {
    const NAME: &str = "a_clock_that_jumps_neither_ends_nor_prolongs_what_runs";
    if !Path::new(FAKETIME).is_file() {
        return skip(NAME, "libfaketime is not there; `cargo xtask setup` installs it");
    }
    let limit = Duration::from_secs(60);
    let folder = tempfile::tempdir().context("could not make a folder")?;
    let clock = folder.path().join("clock");
    set(&clock, "+0")?;
    let file = clock.to_string_lossy().into_owned();
    let env = [
        ("LD_PRELOAD", FAKETIME),
        ("FAKETIME_TIMESTAMP_FILE", &*file),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_CACHE_DURATION", "1"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    // Far shorter than each jump.
    let system = System::start(Options { env, lease_ttl: Duration::from_secs(15), ..Options::default() })?;
    let gate = system.folder().join("gate");
    let steady = system.submit("steady.toml", &STEADY.replace("@GATE@", &gate.display().to_string()))?;
    let today = day(&system, limit)?;
    set(&clock, &format!("+{DAY}"))?;
    wait::until("the clock to be a day ahead", || {
        let day = day(&system, limit)?;
        Ok(Look::when(day > today, day))
    })?;
    let limited = system.submit("limited.toml", LIMITED)?;
    wait::until("the other task to run", || {
        // Whether it still runs or not: it is looked at later than it began.
        let attempts = attempts(&system, limited)?;
        Ok(Look::when(attempts.iter().any(|attempt| attempt["started_at"].is_string()), attempts))
    })?;
    // By two, since it may be past midnight by now.
    set(&clock, &format!("-{TWO_DAYS}"))?;
    wait::until("the clock to be two days behind", || {
        let day = day(&system, limit)?;
        Ok(Look::when(day < today, day))
    })?;
    system.ctl().finished(limited, limit)?;
    let ends = attempts(&system, limited)?;
    ensure!(ends.len() == 1 && ends[0]["end"]["kind"] == "timeout", "{ends:?}");
    fs::write(&gate, "").context("could not open the gate")?;
    system.ctl().finished(steady, limit)?;
    let ends = attempts(&system, steady)?;
    ensure!(ends.len() == 1 && ends[0]["end"]["kind"] == "succeeded", "{ends:?}");
    system.finish()
}
