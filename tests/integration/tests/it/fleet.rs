//! Machines that people see to while work runs: drains, cordons, changed offers, GPUs.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    system::{Options, System},
    wait::{self, Look},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs for ever in its first attempt, and ends at once in the second.
const FIRST_FOR_EVER: &str = "name = 'j'\n[tasks.a]\nshell = '[ $MUSTER_ATTEMPT -gt 1 ] || exec sleep 600'\n";

fn task(system: &System, job: u64) -> Result<Value> {
    system.ctl().json(&["show", &format!("{job}.0")])
}

fn running(system: &System, job: u64) -> Result<()> {
    wait::until("the task to run", || {
        let task = task(system, job)?;
        Ok(Look::when(task["state"] == "running", &task))
    })
}

fn worker(system: &System) -> Result<Value> {
    let shown = system.ctl().json(&["agent", "show", "worker"])?;
    shown["agents"].get(0).cloned().with_context(|| format!("no agent in {shown}"))
}

/// What explain says of a task that waits.
fn reasons(system: &System, job: u64) -> Result<String> {
    Ok(system.ctl().run(&["explain", &job.to_string()])?.expect(0)?.text())
}

#[test]
fn a_drain_with_a_deadline_ends_what_runs_there_and_costs_it_nothing() -> Result<()> {
    let system = System::plain()?;
    let job = system.submit("job.toml", FIRST_FOR_EVER)?;
    running(&system, job)?;
    let drain = ["agent", "drain", "worker", "--deadline", "1s", "--reason", "new kernel", "--wait"];
    let ran = system.ctl().run(&drain)?.expect(0)?;
    ensure!(ran.text().contains("agent worker is drained"), "{ran}");
    let ended = task(&system, job)?;
    ensure!(
        (&ended["state"], &ended["losses"], &ended["retries"]) == (&"queued".into(), &0.into(), &0.into()),
        "{ended}"
    );
    let reason = ended["attempts"][0]["end"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("was drained by") && reason.contains("new kernel"), "{ended}");
    let why = reasons(&system, job)?;
    ensure!(why.contains("new kernel") && why.contains("ctl agent resume worker"), "{why}");
    ensure!(system.ctl().run(&["agents"])?.text().contains("drained"), "the table says so");
    system.ctl().run(&["agent", "resume", "worker"])?.expect(0)?;
    let done = system.ctl().finished(job, LIMIT)?;
    ensure!(done["state"] == "succeeded", "{done}");
    let audit = system.ctl().run(&["audit"])?.expect(0)?.text();
    ensure!(audit.contains("agent.drain") && audit.contains("agent.resume"), "{audit}");
    system.finish()
}

#[test]
fn a_cordon_survives_the_death_of_the_controller_and_a_restart_of_the_agent() -> Result<()> {
    let mut system = System::plain()?;
    system.ctl().run(&["agent", "cordon", "worker", "--reason", "loud fan"])?.expect(0)?;
    system.controller()?.kill9()?;
    system.start_controller()?;
    system.agent_connected()?;
    let job = system.submit("job.toml", "name = 'j'\n[tasks.a]\nshell = 'true'\n")?;
    let why = reasons(&system, job)?;
    ensure!(why.contains("cordoned") && why.contains("loud fan"), "after the controller's death: {why}");
    system.agent()?.stop()?;
    system.start_agent()?;
    ensure!(worker(&system)?["cordon"]["reason"] == "loud fan", "after the agent's restart: {}", worker(&system)?);
    ensure!(task(&system, job)?["state"] == "queued");
    system.ctl().run(&["agent", "resume", "worker"])?.expect(0)?;
    ensure!(system.ctl().finished(job, LIMIT)?["state"] == "succeeded");
    system.finish()
}

#[test]
fn a_running_agent_takes_up_its_file_again_with_labels_of_an_executable_and_what_runs_goes_on() -> Result<()> {
    let mut system = System::start(Options { agent: "cpus = 2\n".to_owned(), ..Options::default() })?;
    let job = system.submit("job.toml", "name = 'j'\n[tasks.a]\nshell = 'while [ ! -e go ]; do sleep 0.1; done'\n")?;
    running(&system, job)?;
    let script = system.file("labels", "#!/bin/sh\necho zone=a\necho rack=7\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let text = format!("cpus = 1\nlabels_from = '{}'\n[labels]\nrack = '8'\n", script.display());
    system.file("agent.toml", &text)?;
    system.agent()?.signal(Signal::SIGHUP)?;
    wait::until("the new offer to be known", || {
        let agent = worker(&system)?;
        let is_new = agent["capacity"]["cpus"] == 1.0 && agent["labels"]["zone"] == "a";
        Ok(Look::when(is_new && agent["labels"]["rack"] == "8", &agent))
    })?;
    ensure!(worker(&system)?["facts"]["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
    ensure!(task(&system, job)?["attempts"].as_array().map(Vec::len) == Some(1), "{}", task(&system, job)?);
    system.ctl().run(&["cancel", &job.to_string()])?.expect(0)?;
    let placed =
        system.submit("zone.toml", "name = 'z'\n[tasks.a]\nshell = 'true'\nrequires = { labels = ['zone=a'] }\n")?;
    ensure!(system.ctl().finished(placed, LIMIT)?["state"] == "succeeded");
    system.file("agent.toml", "cpus = 'many'\n")?;
    system.agent()?.signal(Signal::SIGHUP)?;
    wait::until("the agent to say what is wrong with its file", || {
        let log = system.agent()?.log();
        Ok(Look::when(log.contains("is no number of processors"), log))
    })?;
    ensure!(worker(&system)?["capacity"]["cpus"] == 1.0, "a file that is wrong changes nothing");
    Ok(())
}

/// What the controller knows of why the agent takes no new work.
fn is_unfit(system: &System, why: &str) -> Result<()> {
    wait::until("the controller to know", || {
        let agent = worker(system)?;
        let unfit = agent["unfit"].as_str().unwrap_or_default();
        Ok(Look::when(if why.is_empty() { unfit.is_empty() } else { unfit.contains(why) }, &agent))
    })
}

#[test]
fn an_agent_without_disk_for_new_work_gets_none_keeps_what_runs_and_everybody_is_told_why() -> Result<()> {
    let mut system = System::start(Options { agent: "reserve = { disk = 0 }\n".to_owned(), ..Options::default() })?;
    let runs = system.submit("runs.toml", FIRST_FOR_EVER)?;
    running(&system, runs)?;
    system.file("agent.toml", "reserve = { disk = '1000TiB' }\n")?;
    system.agent()?.signal(Signal::SIGHUP)?;
    is_unfit(&system, "its disk has less than the 1048576000 MiB free")?;
    let waits = system.submit("waits.toml", "name = 'w'\n[tasks.a]\nshell = 'true'\n")?;
    let why = reasons(&system, waits)?;
    ensure!(why.contains("`worker` takes no new work: its disk has less than"), "{why}");
    ensure!(system.ctl().run(&["agents"])?.text().contains("unfit"), "the table does not say so");
    ensure!(task(&system, runs)?["state"] == "running", "what ran did not go on");
    system.file("agent.toml", "")?;
    system.agent()?.signal(Signal::SIGHUP)?;
    is_unfit(&system, "")?;
    ensure!(system.ctl().finished(waits, LIMIT)?["state"] == "succeeded", "there is disk, and it did not run");
    Ok(())
}

#[test]
fn an_agent_whose_tasks_have_no_user_takes_none_and_one_that_may_not_have_containers_offers_none() -> Result<()> {
    let agent = "run_as = { user = 'no-such-user', users = ['nobody', 'nor-this-one'] }\n".to_owned();
    let mut system = System::start(Options { agent, ..Options::default() })?;
    is_unfit(&system, "no task can run there: the agent's machine has no user `no-such-user`")?;
    let job = system.submit("job.toml", "name = 'j'\n[tasks.a]\nshell = 'true'\n")?;
    let why = reasons(&system, job)?;
    ensure!(why.contains("has no user `no-such-user`"), "{why}");
    ensure!(worker(&system)?["labels"]["muster.containers"].is_null(), "{}", worker(&system)?);
    wait::until("the agent to tell of the other", || {
        let log = system.agent()?.log();
        Ok(Look::when(log.contains("nor-this-one") && !log.contains("name=\"nobody\""), log))
    })
}

#[test]
fn a_limit_of_a_person_holds_at_once_and_is_lifted_again() -> Result<()> {
    let system = System::plain()?;
    system.ctl().run(&["agent", "set", "worker", "--cpus", "1"])?.expect(0)?;
    let job = system.submit("job.toml", "name = 'j'\n[tasks.a]\nshell = 'true'\ncpus = 2\n")?;
    let why = reasons(&system, job)?;
    ensure!(why.contains("has 1 of cpus in all, 2 asked for"), "{why}");
    ensure!(worker(&system)?["offered"]["cpus"] == 4.0, "{}", worker(&system)?);
    system.ctl().run(&["agent", "set", "worker", "--all"])?.expect(0)?;
    ensure!(system.ctl().finished(job, LIMIT)?["state"] == "succeeded");
    system.finish()
}

/// A driver's library with three GPUs, the second of which fell off the bus.
const FAKE_NVML: &str = r#"
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int devices[4];
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { if (i == 1) return 15; *d = &devices[i]; return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strncpy(s, "Fake 9000", n); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { strncpy(s, "GPU-fake-0", n); s[9] += (int *)d - devices; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory *m) { m->total = 8ULL << 30; m->free = m->total; m->used = 0; return 0; }
"#;

#[test]
fn gpus_of_the_driver_are_handed_out_by_index_and_no_two_attempts_share_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (source, library) = (folder.path().join("nvml.c"), folder.path().join("libnvidia-ml.so.1"));
    fs::write(&source, FAKE_NVML)?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
    ensure!(built.success(), "the fake library cannot be built");
    let env = vec![("LD_LIBRARY_PATH".to_owned(), folder.path().display().to_string())];
    let system = System::start(Options { cpus: 16, env, ..Options::default() })?;
    let agent = worker(&system)?;
    let gpus = agent["facts"]["gpus"].as_array().cloned().unwrap_or_default();
    let indices: Vec<_> = gpus.iter().map(|gpu| gpu["index"].to_string()).collect();
    ensure!((indices.join(","), &agent["capacity"]["gpus"]) == ("0,2,3".to_owned(), &3.into()), "{agent}");
    let log = folder.path().join("log");
    let say =
        |what: &str| format!("echo \"{what} $MUSTER_TASK_NAME ${{CUDA_VISIBLE_DEVICES-unset}}\" >> {}", log.display());
    let body = format!("{}; sleep 0.3; {}", say("begins"), say("ends"));
    let text = format!(
        "name = 'g'\n[[tasks]]\nname = 'one'\nshell = '''{body}'''\narray = 9\ncpus = 1\ngpus = 1\n\
         [[tasks]]\nname = 'two'\nshell = '''{body}'''\narray = 3\ncpus = 1\ngpus = 2\n\
         [[tasks]]\nname = 'none'\nshell = '''{body}'''\ncpus = 1\n"
    );
    let job = system.submit("gpus.toml", &text)?;
    ensure!(system.ctl().finished(job, LIMIT)?["state"] == "succeeded");
    let text = fs::read_to_string(&log)?;
    let mut held: BTreeMap<&str, u32> = BTreeMap::new();
    let mut most = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, name, list] = words[..] else { anyhow::bail!("{line}") };
        let given: Vec<&str> = list.split(',').filter(|index| !index.is_empty()).collect();
        let asked = match name {
            "one" => 1,
            "two" => 2,
            _ => 0,
        };
        ensure!(given.len() == asked && given.iter().all(|index| ["0", "2", "3"].contains(index)), "{line}");
        for index in given {
            let users = held.entry(index).or_default();
            if what == "begins" {
                *users += 1
            } else {
                *users -= 1
            }
            ensure!(*users <= 1, "GPU {index} is shared at `{line}`:\n{text}");
        }
        most = most.max(held.values().sum::<u32>());
    }
    ensure!(text.lines().count() == 26 && most >= 2, "{text}");
    system.finish()
}

#[test]
fn who_has_no_terminal_sees_one_frame_of_the_live_screen() -> Result<()> {
    let system = System::plain()?;
    let job = system.submit("job.toml", FIRST_FOR_EVER)?;
    running(&system, job)?;
    let frame = system.ctl().run(&["top"])?.expect(0)?.text();
    for part in ["agents 1", "worker", "connected", &format!("{job}."), "QUEUE", "default", "q quit"] {
        ensure!(frame.contains(part), "no `{part}` in\n{frame}");
    }
    // Only lines that hold a text; a task's job counts, and its agent.
    let filtered = |text: &str| Ok::<_, anyhow::Error>(system.ctl().run(&["top", "--filter", text])?.expect(0)?.text());
    let (both, none) = (filtered("WORKER")?, filtered("nowhere")?);
    ensure!(both.contains("connected") && both.contains(&format!("{job}.")), "{both}");
    ensure!(!none.contains("connected") && !none.contains(&format!("{job}.")), "{none}");
    system.ctl().run(&["cancel", &job.to_string()])?.expect(0)?;
    system.ctl().finished(job, LIMIT)?;
    system.finish()
}

#[test]
fn an_agent_that_is_asked_to_stop_lets_what_runs_end_for_as_long_as_its_file_says() -> Result<()> {
    let mut system = System::start(Options { agent: "drain = '60s'\n".to_owned(), ..Options::default() })?;
    let go = system.folder().join("go");
    let text = format!("name = 'j'\n[tasks.a]\nshell = 'while [ ! -e {} ]; do sleep 0.1; done'\n", go.display());
    let job = system.submit("job.toml", &text)?;
    running(&system, job)?;
    system.agent()?.signal(Signal::SIGINT)?;
    wait::until("the agent to say that it stops", || {
        let agent = worker(&system)?;
        Ok(Look::when(agent["stops"] == true, &agent))
    })?;
    let other = system.submit("other.toml", "name = 'o'\n[tasks.a]\nshell = 'true'\n")?;
    ensure!(reasons(&system, other)?.contains("is stopping"), "{}", reasons(&system, other)?);
    ensure!(task(&system, job)?["state"] == "running", "{}", task(&system, job)?);
    fs::write(&go, "")?;
    let done = system.ctl().finished(job, LIMIT)?;
    ensure!(done["state"] == "succeeded", "{done}");
    ensure!(task(&system, job)?["attempts"].as_array().map(Vec::len) == Some(1), "{}", task(&system, job)?);
    wait::until("the agent to end by itself", || {
        let ended = system.agent()?.ended()?;
        Ok(Look::when(ended.is_some_and(|status| status.success()), format!("{ended:?}")))
    })?;
    Ok(())
}
