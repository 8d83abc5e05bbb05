//! Backups of real installations at work, and what is made of them.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    etcd::{self, Etcd},
    skip::skip,
    system::System,
    wait::{self, Look},
};
use serde_json::Value;

/// A task that lasts until `gate` is there, and may be lost only once.
fn gated(name: &str, gate: &Path) -> String {
    let shell = format!("until test -e {}; do sleep 0.01; done", gate.display());
    format!("name = \"{name}\"\n[[tasks]]\nname = \"a\"\non_lost = \"fail\"\nshell = \"{shell}\"\n")
}

/// Waits until the only task of a job is in this state; the task as it is then.
fn reaches(ctl: &Ctl, job: u64, state: &str) -> Result<Value> {
    wait::until(&format!("job {job} to be {state}"), || {
        let ran = ctl.run(&["show", &job.to_string(), "--tasks", "-o", "json"])?;
        let shown: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        let task = shown["tasks"][0].clone();
        Ok(if task["state"] == state { Look::Done(task) } else { Look::NotYet(ran.to_string()) })
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of a test is UTF-8")
}

#[test]
fn running_work_outlives_a_restore_and_nothing_that_came_after_the_backup_is_taken_for_what_was_there() -> Result<()> {
    let mut system = System::plain()?;
    let gate = |name: &str| system.folder().join(name);
    let (stays, ends, later) = (gate("stays"), gate("ends"), gate("later"));
    let ctl = system.ctl();
    let (one, two) =
        (system.submit("1.toml", &gated("stays", &stays))?, system.submit("2.toml", &gated("ends", &ends))?);
    reaches(&ctl, one, "running")?;
    reaches(&ctl, two, "running")?;

    let file = system.folder().join("backup");
    let taken = ctl.json(&["admin", "backup", text(&file)?])?;
    ensure!(taken["jobs"] == 2 && taken["agents"] == 1, "{taken}");
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    let again = ctl.run(&["admin", "backup", text(&file)?])?;
    ensure!(again.code == 2 && again.stderr.contains("exists already"), "{again}");
    let verified = Ctl::alone().json(&["admin", "verify", text(&file)?])?;
    ensure!(verified["records"] == taken["records"], "{verified}");

    // The world goes on: one attempt ends and is forgotten by its agent, another begins.
    fs::write(&ends, "")?;
    reaches(&ctl, two, "succeeded")?;
    let three = system.submit("3.toml", &gated("later", &later))?;
    reaches(&ctl, three, "running")?;
    system.controller()?.kill9()?;

    let new = system.folder().join("restored");
    let restored = Ctl::alone().json(&["admin", "restore", text(&file)?, "--data", text(&new)?])?;
    ensure!(restored["jobs"] == 2, "{restored}");
    system.keep_in(Some(new), None);
    system.start_controller()?;
    system.agent_connected()?;

    let lost = reaches(&ctl, two, "failed")?;
    ensure!(lost.to_string().contains("restored from a backup"), "{lost}");
    let gone = ctl.run(&["show", &three.to_string()])?;
    ensure!(gone.code == 3, "{gone}");
    fs::write(&stays, "")?;
    let task = reaches(&ctl, one, "succeeded")?;
    ensure!(task["attempts"].as_array().map(Vec::len) == Some(1), "{task}");
    let four = system.submit("4.toml", &gated("new", &stays))?;
    ensure!(four > 1_000_000, "job {four} may be taken for an older one");
    // Its slot is free again: what ran of the later lease was ended.
    reaches(&ctl, four, "succeeded")?;
    system.finish()
}

#[test]
fn logs_and_results_are_there_again_if_they_were_asked_for() -> Result<()> {
    let mut system = System::plain()?;
    let ctl = system.ctl();
    let shell = "echo spoken; printf '\\\"%0100000d\\\"' 7 > $MUSTER_RESULT";
    let job = system.submit("1.toml", &format!("name = \"loud\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n"))?;
    reaches(&ctl, job, "succeeded")?;
    wait::until("its log to be stored", || {
        let ran = ctl.run(&["logs", &job.to_string()])?;
        Ok(Look::when(ran.stdout == b"spoken\n", ran.to_string()))
    })?;
    let file = system.folder().join("backup");
    let taken = wait::until("the log to be among the objects", || {
        drop(fs::remove_file(&file));
        let taken = ctl.json(&["admin", "backup", text(&file)?, "--with-logs"])?;
        Ok(if taken["objects"] == 2 { Look::Done(taken) } else { Look::not_yet(taken) })
    })?;
    ensure!(taken["with_logs"] == true, "{taken}");
    system.controller()?.kill9()?;
    let new = system.folder().join("restored");
    Ctl::alone().json(&["admin", "restore", text(&file)?, "--data", text(&new)?])?;
    system.keep_in(Some(new), None);
    system.start_controller()?;
    system.agent_connected()?;
    let logs = ctl.run(&["logs", &job.to_string()])?;
    ensure!(logs.stdout == b"spoken\n", "{logs}");
    let result = ctl.run(&["result", &job.to_string()])?;
    ensure!(result.stdout.len() >= 100_000, "{result}");
    system.finish()
}

#[test]
fn a_backup_of_one_kind_of_store_becomes_the_other_kind() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("backups::a_backup_of_one_kind_of_store_becomes_the_other_kind", &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let mut system = System::plain()?;
    let ctl = system.ctl();
    let gate = system.folder().join("gate");
    let one = system.submit("1.toml", &gated("stays", &gate))?;
    reaches(&ctl, one, "running")?;
    let first = folder.path().join("first");
    ctl.json(&["admin", "backup", text(&first)?])?;
    system.controller()?.kill9()?;

    let restore = ["admin", "restore", text(&first)?, "--store", &etcd.address()];
    Ctl::alone().json(&restore)?;
    let again = Ctl::alone().run(&restore)?;
    ensure!(again.code == 5 && again.stderr.contains("is not empty"), "{again}");
    system.keep_in(None, Some(etcd.address()));
    system.start_controller()?;
    system.agent_connected()?;
    ensure!(reaches(&ctl, one, "running")?.to_string().contains("running"));

    let second = folder.path().join("second");
    let taken = ctl.json(&["admin", "backup", text(&second)?])?;
    ensure!(taken["jobs"] == 1, "{taken}");
    system.controller()?.kill9()?;
    let back = folder.path().join("back");
    Ctl::alone().json(&["admin", "restore", text(&second)?, "--data", text(&back)?])?;
    system.keep_in(Some(back), None);
    system.start_controller()?;
    system.agent_connected()?;
    fs::write(&gate, "")?;
    let task = reaches(&ctl, one, "succeeded")?;
    ensure!(task["attempts"].as_array().map(Vec::len) == Some(1), "{task}");
    system.finish()
}

#[test]
fn what_is_no_whole_backup_is_refused_before_anything_is_made() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (file, new) = (folder.path().join("torn"), folder.path().join("new"));
    fs::write(&file, b"MUSTERBK\x01\x00\x00\x00")?;
    for bytes in [&b"MUSTERBK\x01\x00\x00\x00\x00\x10\x00\x00"[..], b"hello", b""] {
        fs::write(&file, bytes)?;
        let ran = Ctl::alone().run(&["admin", "restore", text(&file)?, "--data", text(&new)?])?;
        ensure!(ran.code == 5 && ran.stderr.contains("nothing was changed"), "{ran}");
        ensure!(!new.exists(), "a folder was made");
    }
    Ok(())
}
