//! Who looks: all jobs are read again and again through `ctl`, one controller after another, and programs that ended by
//! themselves are noticed and started again.

use std::{fs::File, io::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    cast::{Cast, Node},
    ground::Ground,
    now,
    stage::{Diary, Stop},
    work::{FLOOD_NAME, People},
};

const LOOK_EVERY: Duration = Duration::from_millis(700);
const RETRY_EVERY: Duration = Duration::from_millis(300);

/// Reads until `stop`; each whole answer is one line of `polls.jsonl`.
pub(crate) fn jobs(people: &People<'_>, folder: &Path, stop: &Stop) -> Result<()> {
    let path = folder.join("polls.jsonl");
    let mut log = File::create(&path).with_context(|| format!("could not make {}", path.display()))?;
    let mut turn = 0;
    while !stop.rest(LOOK_EVERY) {
        turn += 1;
        let began_us = now::us();
        // A failed call says nothing, and is not written down: the people's own calls show that the doors are closed.
        let Ok(lines) = list(people, turn) else { continue };
        let mut jobs = serde_json::Map::new();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).context("ctl list printed no JSON")?;
            jobs.insert(line["id"].to_string(), line["state"].clone());
        }
        let line = json!({ "began_us": began_us, "ended_us": now::us(), "jobs": jobs });
        writeln!(log, "{line}").context("could not write what was read")?;
    }
    Ok(())
}

/// Starts again what ended by itself, and tells of it: of etcd nothing else is expected when its disk is full.
pub(crate) fn programs(cast: &Cast, ground: &Ground, diary: &Diary, stop: &Stop) -> Result<()> {
    while !stop.rest(RETRY_EVERY) {
        for (node, how) in cast.restart_fallen(ground)? {
            let id = if matches!(node, Node::Etcd(_)) { "etcd-fell" } else { "fallen" };
            diary.note(id, &format!("{} ended by itself: {how}", node.name()));
        }
    }
    Ok(())
}

/// All jobs, one line each.
fn list(people: &People<'_>, turn: usize) -> Result<String> {
    let ran = people.ctl(turn, &["list", "--all", "-o", "jsonl"], &[])?;
    if ran.code != 0 {
        bail!("ctl list: {ran}");
    }
    Ok(ran.text())
}

/// Waits until every job is over, and keeps what `ctl` says then. Jobs that stay open are left for the checker.
pub(crate) fn until_over(people: &People<'_>, folder: &Path, within: Duration, stop: &Stop) -> Result<()> {
    let until = now::us() + u64::try_from(within.as_micros()).unwrap_or(0);
    let mut turn = 0;
    loop {
        turn += 1;
        let listed = list(people, turn);
        let is_over = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            ["succeeded", "failed", "cancelled", "skipped"].iter().any(|state| line["state"] == *state)
        };
        let is_late = now::us() > until || stop.is_asked();
        match listed {
            Ok(lines) if is_late || lines.lines().all(is_over) => {
                for line in lines.lines().filter(|line| !is_over(line)) {
                    explain(people, folder, line)?;
                }
                let path = folder.join("final.jsonl");
                std::fs::write(&path, &lines).with_context(|| format!("could not write {}", path.display()))?;
                return ends(people, folder, &lines);
            }
            Err(error) if is_late => return Err(error.context("nobody says how the jobs ended")),
            _ => stop.rest(RETRY_EVERY),
        };
    }
}

/// How the attempts of jobs ended that failed.
fn ends(people: &People<'_>, folder: &Path, lines: &str) -> Result<()> {
    let path = folder.join("ends.jsonl");
    let mut log = File::create(&path).with_context(|| format!("could not make {}", path.display()))?;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        if line["state"] != "failed" {
            continue;
        }
        let shown = people.ctl(0, &["show", &line["id"].to_string(), "--tasks", "-o", "json"], &[])?;
        let shown: Value = serde_json::from_slice(&shown.stdout).with_context(|| format!("ctl show: {shown}"))?;
        writeln!(log, "{shown}").context("could not write how attempts ended")?;
    }
    Ok(())
}

/// What is kept of each attempt that flooded, as a person gets it: frame by frame, one in a line.
pub(crate) fn floods(people: &People<'_>, folder: &Path) -> Result<()> {
    let path = folder.join("floods.jsonl");
    let mut log = File::create(&path).with_context(|| format!("could not make {}", path.display()))?;
    let listed = people.ctl(0, &["list", "--all", "--name", FLOOD_NAME, "-o", "jsonl"], &[])?;
    for line in listed.text().lines() {
        let line: Value = serde_json::from_str(line).context("ctl list printed no JSON")?;
        let shown = people.ctl(0, &["show", &line["id"].to_string(), "--tasks", "-o", "json"], &[])?;
        let shown: Value = serde_json::from_slice(&shown.stdout).with_context(|| format!("ctl show: {shown}"))?;
        for task in shown["tasks"].as_array().into_iter().flatten() {
            let name = format!("{}.{}", line["id"], task["name"].as_str().unwrap_or_default());
            for attempt in task["attempts"].as_array().into_iter().flatten() {
                let number = attempt["number"].to_string();
                // Followed: what an agent has not sent yet is waited for.
                let ran = people.ctl(0, &["logs", &name, "--attempt", &number, "--follow", "-o", "jsonl"], &[])?;
                log.write_all(&ran.stdout).context("could not write what was logged")?;
            }
        }
    }
    Ok(())
}

/// Why a job is not over, for whoever looks into it.
fn explain(people: &People<'_>, folder: &Path, line: &str) -> Result<()> {
    let line: Value = serde_json::from_str(line).unwrap_or_default();
    let job = line["id"].to_string();
    let (shown, why) =
        (people.ctl(0, &["show", &job, "--tasks", "-o", "json"], &[])?, people.ctl(0, &["explain", &job], &[])?);
    let path = folder.join(format!("open-{job}"));
    std::fs::write(&path, format!("{shown}\n{why}\n")).with_context(|| format!("could not write {}", path.display()))
}
