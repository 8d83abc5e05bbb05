//! An installation moves from its own store to a real etcd, with running work, and whenever its controller dies.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use muster_integration::{
    binaries,
    ctl::Ctl,
    daemon::Daemon,
    etcd::{self, Etcd},
    proxy::{Mode, Proxy},
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;

const JOBS: u64 = 60;

fn gated(gate: &Path) -> String {
    let shell = format!("until test -e {}; do sleep 0.01; done", gate.display());
    format!("name = \"gated\"\n[[tasks]]\nname = \"a\"\non_lost = \"fail\"\nshell = \"{shell}\"\n")
}

fn task(ctl: &Ctl, job: u64) -> Result<Value> {
    let ran = ctl.run(&["show", &job.to_string(), "--tasks", "-o", "json"])?;
    let shown: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
    Ok(shown["tasks"][0].clone())
}

fn reaches(ctl: &Ctl, job: u64, state: &str) -> Result<Value> {
    wait::until(&format!("job {job} to be {state}"), || {
        let task = task(ctl, job)?;
        Ok(if task["state"] == state { Look::Done(task) } else { Look::not_yet(task) })
    })
}

fn keys(etcd: &Etcd) -> Result<usize> {
    Ok(etcd.ctl(&["get", "--prefix", "--keys-only", "/muster/v1/"])?.lines().filter(|key| !key.is_empty()).count())
}

#[test]
fn an_installation_moves_with_its_jobs_and_its_running_work_and_cannot_go_back() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("promote::an_installation_moves_with_its_jobs_and_its_running_work_and_cannot_go_back", &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let mut system = System::plain()?;
    let (ctl, gate) = (system.ctl(), system.folder().join("gate"));
    let old = system.submit("old.toml", "name = \"old\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    reaches(&ctl, old, "succeeded")?;
    let job = system.submit("gated.toml", &gated(&gate))?;
    reaches(&ctl, job, "running")?;

    let before = ctl.json(&["version"])?["controller"]["term"].as_u64().context("a term")?;
    let moved = ctl.json(&["admin", "promote", "--to", &etcd.address()])?;
    ensure!(moved["store"] == etcd.address().as_str() && moved["term"].as_u64() > Some(before), "{moved}");
    let held = moved["held_seconds"].as_f64().context("how long calls waited")?;
    eprintln!("calls waited {held} s while the installation moved");

    // The same address, the same process, the same work; and etcd has it.
    system.agent_connected()?;
    let status = ctl.json(&["status"])?;
    ensure!(status["store"]["about"] == etcd.address().as_str(), "{status}");
    let origin = etcd.ctl(&["get", "/muster/v1/origin", "--print-value-only"])?;
    ensure!(origin.contains("embedded store in"), "{origin}");
    ensure!(task(&ctl, job)?["state"] == "running", "{}", task(&ctl, job)?);
    fs::write(&gate, "")?;
    let ended = reaches(&ctl, job, "succeeded")?;
    ensure!(ended["attempts"].as_array().map(Vec::len) == Some(1), "{ended}");
    let new = system.submit("new.toml", "name = \"new\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    ensure!(new == job + 1, "job {new} follows {job}");
    reaches(&ctl, new, "succeeded")?;
    let again = ctl.run(&["admin", "promote", "--to", &etcd.address()])?;
    ensure!(again.code == 5 && again.stderr.contains("in etcd already"), "{again}");

    // Started as before, it says where it is; started there, it has everything.
    system.controller()?.stop()?;
    let refused = system.start_controller().expect_err("the old store is not used any more").to_string();
    ensure!(refused.contains("has moved to") && refused.contains(&etcd.address()), "{refused}");
    system.keep_in(None, Some(etcd.address()));
    system.start_controller()?;
    system.agent_connected()?;
    for done in [old, job, new] {
        ensure!(task(&ctl, done)?["state"] == "succeeded", "job {done}: {}", task(&ctl, done)?);
    }
    system.finish()
}

#[test]
fn what_cannot_take_an_installation_is_named_and_work_goes_on_where_it_is() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("promote::what_cannot_take_an_installation_is_named_and_work_goes_on_where_it_is", &why);
    }
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let system = System::plain()?;
    let ctl = system.ctl();
    etcd.ctl(&["put", "/muster/v1/queues/theirs", "x"])?;
    let blue = format!("{}/blue", etcd.address());
    etcd.ctl(&["put", "/blue/muster/v1/head", "x"])?;
    let table = [
        ("http://somewhere", "is no address of etcd"),
        (etcd.address().as_str(), "is not empty"),
        (blue.as_str(), "`head` is damaged"),
        ("etcd://127.0.0.1:1", "does not answer"),
    ]
    .map(|(to, why)| (to.to_owned(), why));
    for (to, why) in table {
        let ran = ctl.run(&["admin", "promote", "--to", &to])?;
        ensure!(ran.code != 0 && ran.stderr.contains(why) && ran.stderr.contains("goes on where it is"), "{to}: {ran}");
        let job = system.submit("new.toml", "name = \"new\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
        reaches(&ctl, job, "succeeded")?;
    }
    ensure!(keys(&etcd)? == 1, "what was there was changed");
    system.finish()
}

/// When the controller is killed, by what etcd shows of its move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It has called, and nobody heard it.
    Unheard,
    /// So many keys are there.
    Keys(usize),
    /// So long after all of them are: in the middle of what decides.
    After(Duration),
    /// It has said that it moved.
    Told,
}

#[test]
fn a_controller_that_dies_while_it_moves_leaves_exactly_one_installation() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("promote::a_controller_that_dies_while_it_moves_leaves_exactly_one_installation", &why);
    }
    let mut ends = [0, 0];
    // Behind a slow line, so that there is time between the steps.
    let moments = [1, 2, 100].map(Moment::Keys);
    let later = [0, 100, 200, 300, 400, 600, 900].map(|ms| Moment::After(Duration::from_millis(ms)));
    // Of the first and the last it is known how they end; of all others only that there is one end.
    for moment in [Moment::Unheard].into_iter().chain(moments).chain(later).chain([Moment::Told]) {
        let moved = die_at(moment).with_context(|| format!("killed at {moment:?}"))?;
        ends[usize::from(moved)] += 1;
        ensure!(moment != Moment::Unheard || !moved, "it moved to where nobody heard of it");
        ensure!(moment != Moment::Told || moved, "it said that it moved, and did not");
    }
    eprintln!("it stayed {} times and moved {} times", ends[0], ends[1]);
    Ok(())
}

/// Whether it had moved.
fn die_at(moment: Moment) -> Result<bool> {
    let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let proxy = Proxy::start(etcd.client_address(0)?)?;
    let slow = format!("etcd://{}", proxy.address);
    let mut system = System::start(Options { lease_ttl: Duration::from_secs(30), ..Options::default() })?;
    let ctl = system.ctl();
    for n in 0..JOBS {
        system.submit("job.toml", &format!("name = \"job-{n}\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n"))?;
    }
    let gate = system.folder().join("gate");
    let gated = system.submit("gated.toml", &gated(&gate))?;
    reaches(&ctl, gated, "running")?;
    let records = ctl.json(&["admin", "backup", &system.folder().join("b").to_string_lossy()])?["records"].as_u64();
    let records = usize::try_from(records.context("records")?)?;

    proxy.set(if moment == Moment::Unheard { Mode::Hole } else { Mode::Delay(Duration::from_millis(40)) });
    let asking = ctl.clone();
    let to = slow.clone();
    let promote = thread::spawn(move || asking.run(&["admin", "promote", "--to", &to]));
    wait::until("the copy to be there", || {
        if promote.is_finished() {
            return Ok(Look::Done(()));
        }
        let there = match keys(&etcd) {
            Ok(there) => there,
            Err(error) => return Ok(Look::not_yet(error)),
        };
        let is_time = match moment {
            Moment::Unheard => proxy.connections() > 0,
            Moment::Keys(keys) => there >= keys,
            Moment::After(_) => there >= records,
            Moment::Told => false,
        };
        Ok(Look::when(is_time, there))
    })?;
    if let Moment::After(pause) = moment {
        thread::park_timeout(pause);
    }
    system.controller()?.kill9()?;
    if let Ok(Ok(ran)) = promote.join() {
        eprintln!("{moment:?}: {}", ran.stderr.lines().next().unwrap_or("it had answered"));
    }
    proxy.set(Mode::Pass);
    settle(&mut system, &etcd, &slow, gated, &gate)
}

/// Starts it where it was; if it is not there, where it went. Everything must be in one of the two, and only there.
fn settle(system: &mut System, etcd: &Etcd, to: &str, gated: u64, gate: &Path) -> Result<bool> {
    let moved = match system.start_controller() {
        Ok(()) => false,
        Err(error) if format!("{error:#}").contains("has moved to") => true,
        Err(error) => return Err(error.context("neither here nor there")),
    };
    if moved {
        system.keep_in(None, Some(to.to_owned()));
        system.start_controller()?;
    }
    system.agent_connected()?;
    let ctl = system.ctl();
    fs::write(gate, "")?;
    let ended = reaches(&ctl, gated, "succeeded")?;
    ensure!(ended["attempts"].as_array().map(Vec::len) == Some(1), "{ended}");
    let listed = ctl.json(&["list", "--all"])?;
    let jobs = listed["jobs"].as_array().map_or(0, Vec::len);
    ensure!(jobs as u64 == JOBS + 1, "{jobs} jobs are there");
    if !moved {
        refused_there(system, etcd)?;
    }
    Ok(moved)
}

/// Another controller that is started on the etcd finds no installation there that could be taken for this one.
fn refused_there(system: &System, etcd: &Etcd) -> Result<()> {
    let left = etcd.ctl(&["get", "--prefix", "--keys-only", "/muster/v1/jobs/"])?;
    let origin = etcd.ctl(&["get", "/muster/v1/origin", "--print-value-only"])?;
    if left.trim().is_empty() && origin.trim().is_empty() {
        return Ok(());
    }
    let mut command = Command::new(binaries::path("muster-controller")?);
    command.args(["--listen", "127.0.0.1:0", "--store", &etcd.address(), "--data"]).arg(system.folder().join("other"));
    let mut other = Daemon::start("other", &mut command, system.folder())?;
    wait::until("the other controller to refuse what is left there", || {
        Ok(match other.ended()? {
            Some(status) if !status.success() && other.log().contains("unfinished copy") => Look::Done(()),
            Some(status) => bail!("it ended with {status}: {}", other.log()),
            None => Look::NotYet(other.log()),
        })
    })
}
