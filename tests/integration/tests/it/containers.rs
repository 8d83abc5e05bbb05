//! Tasks in containers, by a real Podman and by a real Docker: they are as any other task, and nothing of them is left.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    images::{ENTRY_IMAGE, IMAGE, MARK},
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;

use crate::{
    heirs::all_run,
    keeper::{keeper, parent},
    yard::{Kind, Yard, end, has_member, is_held, processes, seconds, task},
};

#[test]
fn a_task_with_an_image_runs_in_a_container_and_is_otherwise_as_any_other() -> Result<()> {
    as_any_other("a_task_with_an_image_runs_in_a_container_and_is_otherwise_as_any_other", Kind::Podman)
}

#[test]
fn with_docker_a_task_with_an_image_runs_in_a_container_and_is_otherwise_as_any_other() -> Result<()> {
    as_any_other("with_docker_a_task_with_an_image_runs_in_a_container_and_is_otherwise_as_any_other", Kind::Docker)
}

#[test]
fn a_container_that_cannot_start_says_why_and_is_never_taken_for_the_task() -> Result<()> {
    cannot_start("a_container_that_cannot_start_says_why_and_is_never_taken_for_the_task", Kind::Podman)
}

#[test]
fn with_docker_a_container_that_cannot_start_says_why_and_is_never_taken_for_the_task() -> Result<()> {
    cannot_start("with_docker_a_container_that_cannot_start_says_why_and_is_never_taken_for_the_task", Kind::Docker)
}

#[test]
fn a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives() -> Result<()> {
    memory_hog("a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives", Kind::Podman)
}

#[test]
fn with_docker_a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives() -> Result<()> {
    memory_hog("with_docker_a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives", Kind::Docker)
}

#[test]
fn a_container_hears_sigterm_once_and_is_dead_after_its_grace() -> Result<()> {
    deaf("a_container_hears_sigterm_once_and_is_dead_after_its_grace", Kind::Podman)
}

#[test]
fn with_docker_a_container_hears_sigterm_once_and_is_dead_after_its_grace() -> Result<()> {
    deaf("with_docker_a_container_hears_sigterm_once_and_is_dead_after_its_grace", Kind::Docker)
}

#[test]
fn containers_outlive_their_agent_and_their_keeper_and_without_its_safe_leave_none() -> Result<()> {
    outlive("containers_outlive_their_agent_and_their_keeper_and_without_its_safe_leave_none", Kind::Podman)
}

#[test]
fn with_docker_containers_outlive_their_agent_and_their_keeper_and_without_its_safe_leave_none() -> Result<()> {
    outlive("with_docker_containers_outlive_their_agent_and_their_keeper_and_without_its_safe_leave_none", Kind::Docker)
}

#[test]
fn a_keeper_goes_on_with_the_engine_of_its_agent_when_none_can_be_found_any_more() -> Result<()> {
    let test = "a_keeper_goes_on_with_the_engine_of_its_agent_when_none_can_be_found_any_more";
    let Some(yard) = Yard::open(test, Kind::Podman)? else {
        return Ok(());
    };
    let open = yard.open.display().to_string();
    let tasks = format!(
        "[[tasks]]\nname = 'a'\nimage = '{IMAGE}'\nvolumes = ['{open}:/seen']\n\
         shell = 'touch /seen/runs; while [ ! -e /seen/gate ]; do sleep 0.1; done; exit 7'\n"
    );
    let job = yard.system.submit("a.toml", &format!("name = 'a'\n{tasks}"))?;
    let runs = || Ok(Look::when(yard.open.join("runs").exists(), "no word of it"));
    wait::until("the container to run", runs)?;
    all_run(&yard.system.ctl(), job, 1)?;
    yard.engine.podman()?.hide()?;
    let first = keeper(&yard.system)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL)?;
    let (_, tasks) = yard.run("next", &format!("[[tasks]]\nname = 'b'\nimage = '{IMAGE}'\nrun = ['true']\n"))?;
    ensure!(end(task(&tasks, "b")?).0 == "succeeded", "{tasks:?}");
    ensure!(keeper(&yard.system)? != first, "the keeper lives");
    fs::write(yard.open.join("gate"), "")?;
    yard.system.ctl().finished(job, wait::LIMIT)?;
    let tasks = yard.tasks(job)?;
    ensure!(task(&tasks, "a")?["attempts"][0]["end"]["exit_code"] == 7, "{tasks:?}");
    yard.is_clean()?;
    yard.system.finish()
}

#[test]
fn where_nobody_can_run_containers_a_task_with_an_image_waits_and_is_told_so() -> Result<()> {
    let agent = "[containers]\nengine = 'off'\n".to_owned();
    let system = System::start(Options { agent, ..Options::default() })?;
    let job = system.submit("waits.toml", "name = 'w'\n[[tasks]]\nname = 'a'\nimage = 'alpine'\nrun = ['true']\n")?;
    let told = system.ctl().run(&["explain", &format!("{job}.a")])?.expect(0)?.text();
    ensure!(told.contains("agent `worker`: cannot run containers"), "{told}");
    let ran = system.ctl().run(&["run", "--", "true"])?;
    ran.expect(0)?;
    system.finish()
}

fn as_any_other(test: &str, kind: Kind) -> Result<()> {
    let Some(yard) = Yard::open(test, kind)? else {
        return Ok(());
    };
    let open = yard.open.display();
    let tasks = format!(
        r#"
[defaults]
image = "{IMAGE}"

[[tasks]]
name = "first"
shell = 'echo "[$(pwd)] [$A] [$B] [$(cat)] [$HOME] [$(cat /seen/data)]"; touch "$MUSTER_SCRATCH/x"; echo "{{\"n\": 5}}" > "$MUSTER_SCRATCH/r" && mv "$MUSTER_SCRATCH/r" "$MUSTER_RESULT"; touch /seen/no 2>/dev/null || echo only read'
env = {{ A = 'two "words"', B = "two\nlines", LD_PRELOAD = "/nowhere.so" }}
stdin = "from stdin"
volumes = ["{open}:/seen:ro"]

[[tasks]]
name = "second"
run = ["cat", "/work/../etc/passwd"]

[[tasks]]
name = "third"
memory = "64MiB"
shell = 'cat "$MUSTER_INPUTS"; pwd; ls /; touch /seen/made; exit 7'
cwd = "/tmp"
volumes = ["{open}:/seen"]
after = ["first"]

[[tasks]]
name = "fourth"
image = "{ENTRY_IMAGE}"
run = ["echo", "plain"]

[[tasks]]
name = "join"
"#
    );
    let (job, tasks) = yard.run("all", &tasks)?;
    let ctl = yard.system.ctl();
    ensure!(end(task(&tasks, "first")?).0 == "succeeded", "{tasks:#?}");
    let said = yard.output(job, "first")?;
    let expected = "[/work] [two \"words\"] [two\nlines] [from stdin] [/] [of the machine]\nonly read\n";
    ensure!(said == expected, "{said:?}");
    let result = ctl.run(&["result", &format!("{job}.first")])?.expect(0)?.text();
    ensure!(serde_json::from_str::<Value>(&result)? == serde_json::json!({ "n": 5 }), "{result}");
    ensure!(end(task(&tasks, "second")?).0 == "exit", "the machine's files are seen: {tasks:#?}");
    let third = task(&tasks, "third")?;
    ensure!(third["attempts"][0]["end"]["exit_code"] == 7, "{third}");
    let said = yard.output(job, "third")?;
    ensure!(said.contains("\"n\"") && said.contains("/tmp\n") && said.contains("work\n"), "{said:?}");
    ensure!(yard.open.join("made").exists(), "nothing was written through the volume");
    ensure!(yard.output(job, "fourth")? == "plain\n", "{}", yard.output(job, "fourth")?);
    ensure!(end(task(&tasks, "join")?).0 == "succeeded", "{tasks:#?}");
    let usage = &third["attempts"][0]["usage"];
    let peak = usage["memory_peak_bytes"].as_u64();
    ensure!(!is_held(third) || peak.is_some_and(|peak| (100_000..64 << 20).contains(&peak)), "{usage}");
    yard.is_clean()?;
    yard.system.finish()
}

fn cannot_start(test: &str, kind: Kind) -> Result<()> {
    let Some(yard) = Yard::open(test, kind)? else {
        return Ok(());
    };
    let kept = yard.open.with_file_name("kept").display().to_string();
    // Docker makes a folder that is not there.
    let [missing, program, cwd, folder] = match kind {
        Kind::Podman => {
            ["image not known", "executable file `nowhere` not found", "/nowhere", "\"/nowhere\" does not exist"]
        }
        Kind::Docker => ["No such image", "executable file not found in $PATH", "/bin/sh", "/bin/sh"],
    };
    let table = [
        ("missing", "image = 'localhost/nowhere:1'\nrun = ['true']".to_owned(), missing),
        ("program", format!("image = '{IMAGE}'\nrun = ['nowhere']"), program),
        ("folder", format!("image = '{IMAGE}'\nrun = ['true']\ncwd = '{cwd}'"), folder),
        ("image", "image = 'docker.io/library/alpine'\nrun = ['true']".to_owned(), "allows: localhost/*"),
        ("volume", format!("image = '{IMAGE}'\nrun = ['true']\nvolumes = ['/etc:/etc:ro']"), "not in a folder that"),
        ("writes", format!("image = '{IMAGE}'\nrun = ['true']\nvolumes = ['{kept}:/x']"), "may only be read"),
    ];
    let list: String = table.iter().map(|(name, text, _)| format!("[[tasks]]\nname = \"{name}\"\n{text}\n")).collect();
    let own = format!("[[tasks]]\nname = \"own\"\nimage = '{IMAGE}'\nshell = 'echo Error: mine >&2; exit 127'\n");
    let killed = format!("[[tasks]]\nname = \"killed\"\nimage = '{IMAGE}'\nshell = 'exit 137'\n");
    let odd = format!("[[tasks]]\nname = \"odd\"\nimage = '{IMAGE}'\nrun = ['unloadable']\n");
    let (_, tasks) = yard.run("starts", &format!("{list}{own}{killed}{odd}"))?;
    for (name, _, reason) in &table {
        let (kind, why) = end(task(&tasks, name)?);
        ensure!(kind == "not_started" && why.contains(reason), "{name} does not say {reason:?}: {kind}, {why}");
    }
    ensure!(end(task(&tasks, "own")?) == ("exit", ""), "{:?}", end(task(&tasks, "own")?));
    let (kind, why) = end(task(&tasks, "killed")?);
    ensure!(kind == "exit" && why.contains("signal 9, too"), "{kind}, {why}");
    let (kind, why) = end(task(&tasks, "odd")?);
    ensure!(kind == "exit" && why.contains("could not be loaded"), "{kind}, {why}");
    yard.is_clean()?;
    yard.system.finish()
}

fn memory_hog(test: &str, kind: Kind) -> Result<()> {
    let Some(yard) = Yard::open(test, kind)? else {
        return Ok(());
    };
    let gate = yard.open.join("gate");
    let tasks = format!(
        "[defaults]\nimage = '{IMAGE}'\nmemory = '96MiB'\n\
         [[tasks]]\nname = 'neighbour'\nshell = 'while [ ! -e /seen/gate ]; do sleep 0.1; done'\nvolumes = ['{}:/seen:ro']\n\
         [[tasks]]\nname = 'hog'\nshell = 'head -c 400000000 /dev/zero | tail >/dev/null'\n",
        yard.open.display()
    );
    let job = yard.system.submit("hog.toml", &format!("name = 'hog'\n{tasks}"))?;
    let hog = wait::until("the hog's end", || {
        let tasks = yard.tasks(job)?;
        let (hog, neighbour) = (task(&tasks, "hog")?, task(&tasks, "neighbour")?);
        ensure!(neighbour["state"] != "failed", "the neighbour died: {neighbour}");
        Ok(if end(hog).0 == "none" { Look::not_yet(hog) } else { Look::Done(hog.clone()) })
    })?;
    fs::write(&gate, "")?;
    if !is_held(&hog) {
        return skip(test, "memory cannot be limited here");
    }
    ensure!(end(&hog).0 == "oom" && end(&hog).1.contains("its limit of 96 MiB"), "{hog}");
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "the hog did not fail");
    let tasks = yard.tasks(job)?;
    ensure!(end(task(&tasks, "neighbour")?).0 == "succeeded", "{tasks:?}");
    yard.is_clean()?;
    yard.system.finish()
}

fn deaf(test: &str, kind: Kind) -> Result<()> {
    let Some(yard) = Yard::open(test, kind)? else {
        return Ok(());
    };
    // An engine hands the signal on in its own time, and nothing is to be started by a shell that is about to be killed.
    let (sleep, grace) = (seconds(), wait::slower(3));
    let tasks = format!(
        "[[tasks]]\nname = 'deaf'\nimage = '{IMAGE}'\ngrace = '{grace}s'\n\
         shell = 'trap \"echo asked\" TERM; setsid sleep {sleep} & echo up; while :; do wait; done'\n"
    );
    let job = yard.system.submit("deaf.toml", &format!("name = 'deaf'\n{tasks}"))?;
    let member = wait::until("the container to run", || {
        let found = processes(&sleep);
        let is_up = yard.output(job, "deaf").is_ok_and(|said| said == "up\n");
        // The words of the script have it, too, and so do those that Podman was told.
        let sleeps = found
            .iter()
            .find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0")));
        Ok(match sleeps.filter(|_| is_up) {
            Some(pid) => Look::Done(*pid),
            None => Look::not_yet(found),
        })
    })?;
    for folder in yard.cgroups() {
        ensure!(has_member(&folder, member)?, "what runs in the container is not in {}", folder.display());
    }
    let text = fs::read_to_string(format!("/proc/{member}/cgroup"))?;
    // Version 2 alone: a daemon's limits for its container are there only if nobody stands in the cgroup above.
    if let (Kind::Docker, [one]) = (kind, &*text.lines().collect::<Vec<_>>()) {
        let own = one.strip_prefix("0::/").with_context(|| format!("no cgroup of version 2: {one}"))?;
        let controllers = fs::read_to_string(Path::new("/sys/fs/cgroup").join(own).join("cgroup.controllers"))?;
        ensure!(controllers.contains("memory"), "a container's own cgroup has no limits: {controllers:?}");
    }

    yard.system.ctl().run(&["cancel", &job.to_string()])?.expect(0)?;
    wait::until("the container's processes to be dead", || {
        let found = processes(&sleep);
        Ok(Look::when(found.is_empty(), found))
    })?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "cancelled", "it is not cancelled");
    let said = yard.output(job, "deaf")?;
    ensure!(said == "up\nasked\n", "{said:?}");
    yard.is_clean()?;
    yard.system.finish()
}

/// A command beside a task ends when nobody waits for it any more, even if it is deaf; what it had left behind when it ended
/// by itself stays.
fn what_visits_ends_with_its_caller(yard: &Yard) -> Result<()> {
    let ctl = yard.system.ctl();
    let (stays, ends) = (seconds(), seconds());
    ctl.run(&["exec", "1.0", "--", "sh", "-c", &format!("sleep {stays} >/dev/null 2>&1 & true")])?.expect(0)?;
    for option in ["-i", "-t"] {
        let text = format!("trap '' TERM HUP; sleep {ends} & while :; do sleep 0.1; done");
        let mut command = ctl.command(&["exec", option, "1.0", "--", "sh", "-c", &text])?;
        let mut caller = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let runs = wait::until("the command to run", || {
            let found = processes(&ends);
            Ok(Look::when(!found.is_empty(), found))
        });
        caller.kill()?;
        caller.wait()?;
        runs?;
        wait::until("the command to end in the container", || {
            let found = processes(&ends);
            Ok(Look::when(found.is_empty(), found))
        })?;
    }
    ensure!(processes(&stays).len() == 1, "one that nobody left was ended");
    Ok(())
}

fn outlive(test: &str, kind: Kind) -> Result<()> {
    let Some(mut yard) = Yard::open(test, kind)? else {
        return Ok(());
    };
    let sleep = seconds();
    let tasks = format!(
        "[[tasks]]\nname = 'left'\nimage = '{IMAGE}'\non_lost = 'fail'\narray = 3\nrun = ['sleep', '{sleep}']\n"
    );
    let job = yard.system.submit("left.toml", &format!("name = 'left'\n{tasks}"))?;
    wait::until("the containers to run", || {
        let (found, known) = (processes(&sleep).len(), yard.engine.client().containers()?);
        // Each is Podman, and what it runs.
        Ok(Look::when(found == 6 && known.iter().filter(|line| line.contains("Up")).count() == 3, (found, known)))
    })?;
    // A command beside the task sees what it sees.
    let seen = yard.open.join("data");
    let look = format!("cat; test -e {MARK} && ! test -e {} && echo inside; exit 5", seen.display());
    let words = ["exec", "-i", "1.0", "--", "sh", "-c", &look];
    let ran = yard.system.ctl().run_with(&words, b"given\n")?.expect(5)?;
    ensure!(ran.text() == "given\ninside\n", "{ran}");
    // On a terminal, if it is to have one.
    let words = ["exec", "-t", "1.0", "--", "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo $TERM; exit 5"];
    let ran = yard.system.ctl().env("TERM", "of-ours").run(&words)?.expect(5)?;
    ensure!(ran.text() == "of-ours\r\n", "{ran}");
    what_visits_ends_with_its_caller(&yard)?;
    let label = yard.engine.client().labels("muster.agent")?;
    ensure!(label.len() == 1, "they are not marked as those of one agent: {label:?}");
    yard.system.agent()?.kill9()?;
    yard.system.start_agent()?;
    yard.system.agent_connected()?;
    ensure!(processes(&sleep).len() == 6, "they ended with their agent, or with the next one");
    let killed = |pid: i32| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    let first = keeper(&yard.system)?;
    yard.system.agent()?.kill9()?;
    // One whose engine was killed, and one that is none of ours.
    yard.engine.client().create("behind", &format!("muster.agent={}", label[0]))?;
    yard.engine.client().create("theirs", "muster.agent=other")?;
    killed(first)?;
    yard.system.start_agent()?;
    ensure!(processes(&sleep).len() == 6, "they ended with their keeper, or with the next one");
    wait::until("what is nobody's to be removed, and no others", || {
        let known = yard.engine.client().containers()?;
        Ok(Look::when(known.len() == 4 && !known.iter().any(|line| line.starts_with("behind ")), known))
    })?;
    let second = keeper(&yard.system)?;
    ensure!(first != second, "the keeper lives");
    yard.system.agent()?.kill9()?;
    killed(parent(second)?)?;
    killed(second)?;
    yard.system.start_agent()?;
    let found = processes(&sleep);
    ensure!(found.is_empty(), "the next agent runs, and they live: {found:?}");
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "they were not lost");
    ensure!(yard.tasks(job)?.iter().all(|task| end(task).0 == "lost"), "{:?}", yard.tasks(job)?);
    wait::until("our containers to be removed, and no others", || {
        let known = yard.engine.client().containers()?;
        Ok(Look::when(known.len() == 1 && known[0].starts_with("theirs "), known))
    })?;
    yard.system.finish()
}
