//! Tasks in containers, by a real Podman: they are as any other task, and nothing of them is left.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    podman::{ENTRY_IMAGE, IMAGE, Podman},
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::keeper::{keeper, parent};

/// A Muster whose agent runs containers.
struct Yard {
    // Dropped in this order: nobody uses the storage when it goes.
    system: System,
    podman: Podman,
    /// Seen inside by who asks for it.
    open: PathBuf,
    _folder: TempDir,
}

impl Yard {
    /// None: there can be no containers here, which is noted for `test`.
    fn open(test: &str) -> Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix("muster-podman-").tempdir()?;
        let podman = match Podman::make(folder.path())? {
            Ok(podman) => podman,
            Err(why) => {
                skip(test, &why)?;
                return Ok(None);
            }
        };
        let (open, kept) = (folder.path().join("open"), folder.path().join("kept"));
        fs::create_dir(&open)?;
        fs::create_dir(&kept)?;
        fs::write(open.join("data"), "of the machine\n")?;
        let agent = format!(
            "cpus = 4\n[containers]\nengine = 'podman'\npull = 'never'\nimages = ['localhost/*']\nvolumes = [{:?}, {:?}]\n",
            open.display().to_string(),
            format!("{}:ro", kept.display())
        );
        let system = System::start(Options { agent, env: podman.env(), ..Options::default() })?;
        Ok(Some(Self { system, podman, open, _folder: folder }))
    }

    /// Submits and waits for the end; returns the tasks.
    fn run(&self, name: &str, tasks: &str) -> Result<(u64, Vec<Value>)> {
        let job = self.system.submit(&format!("{name}.toml"), &format!("name = \"{name}\"\n{tasks}"))?;
        self.system.ctl().finished(job, wait::LIMIT)?;
        Ok((job, self.tasks(job)?))
    }

    fn tasks(&self, job: u64) -> Result<Vec<Value>> {
        let shown = self.system.ctl().json(&["show", &job.to_string(), "--tasks"])?;
        shown["tasks"].as_array().cloned().with_context(|| format!("no tasks in {shown}"))
    }

    fn output(&self, job: u64, task: &str) -> Result<String> {
        Ok(self.system.ctl().run(&["logs", &format!("{job}.{task}")])?.expect(0)?.text())
    }

    /// The folders of the agent's cgroups, one in each tree; none where it may make none.
    fn cgroups(&self) -> Vec<PathBuf> {
        let noted = fs::read_to_string(self.system.folder().join("agent/run/cgroups")).unwrap_or_default();
        noted.lines().map(Into::into).collect()
    }

    /// Waits until Podman knows of no container any more, and nobody has a process of one.
    fn is_clean(&self) -> Result<()> {
        wait::until("no container", || {
            let left = self.podman.containers()?;
            Ok(Look::when(left.is_empty(), left))
        })?;
        let boxes = fs::read_dir(self.system.folder().join("agent/run/files"))?.flatten();
        let boxes: Vec<_> = boxes.map(|entry| entry.file_name()).collect();
        ensure!(boxes.is_empty(), "folders are left: {boxes:?}");
        Ok(())
    }
}

fn end(task: &Value) -> (&str, &str) {
    let end = &task["attempts"][0]["end"];
    (end["kind"].as_str().unwrap_or("none"), end["reason"].as_str().unwrap_or_default())
}

/// Whether its agent could hold a task to the memory that it asked for.
fn is_held(task: &Value) -> bool {
    task["attempts"][0]["usage"]["unenforced"] == serde_json::json!([])
}

fn task<'a>(tasks: &'a [Value], name: &str) -> Result<&'a Value> {
    tasks.iter().find(|task| task["name"] == name).with_context(|| format!("no task {name} in {tasks:?}"))
}

/// The processes of this machine that have `word` as an argument, in whatever namespace.
fn processes(word: &str) -> Vec<u32> {
    let has_word = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has_word).collect()
}

/// Whether a process is in one of the attempts' cgroups in `folder`.
fn has_member(folder: &Path, pid: u32) -> Result<bool> {
    let slots = fs::read_dir(folder)?.flatten().map(|entry| entry.path().join("cgroup.procs"));
    let texts: Vec<_> = slots.filter_map(|file| fs::read_to_string(file).ok()).collect();
    Ok(texts.iter().flat_map(|text| text.lines()).any(|line| line == pid.to_string()))
}

#[test]
fn a_task_with_an_image_runs_in_a_container_and_is_otherwise_as_any_other() -> Result<()> {
    let Some(yard) = Yard::open("a_task_with_an_image_runs_in_a_container_and_is_otherwise_as_any_other")? else {
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

#[test]
fn a_container_that_cannot_start_says_why_and_is_never_taken_for_the_task() -> Result<()> {
    let Some(yard) = Yard::open("a_container_that_cannot_start_says_why_and_is_never_taken_for_the_task")? else {
        return Ok(());
    };
    let kept = yard.open.with_file_name("kept").display().to_string();
    let table = [
        ("missing", "image = 'localhost/nowhere:1'\nrun = ['true']".to_owned(), "image not known"),
        ("program", format!("image = '{IMAGE}'\nrun = ['nowhere']"), "executable file `nowhere` not found"),
        ("folder", format!("image = '{IMAGE}'\nrun = ['true']\ncwd = '/nowhere'"), "\"/nowhere\" does not exist"),
        ("image", "image = 'docker.io/library/alpine'\nrun = ['true']".to_owned(), "allows: localhost/*"),
        ("volume", format!("image = '{IMAGE}'\nrun = ['true']\nvolumes = ['/etc:/etc:ro']"), "not in a folder that"),
        ("writes", format!("image = '{IMAGE}'\nrun = ['true']\nvolumes = ['{kept}:/x']"), "may only be read"),
    ];
    let list: String = table.iter().map(|(name, text, _)| format!("[[tasks]]\nname = \"{name}\"\n{text}\n")).collect();
    let own = format!("[[tasks]]\nname = \"own\"\nimage = '{IMAGE}'\nshell = 'echo Error: mine >&2; exit 127'\n");
    let killed = format!("[[tasks]]\nname = \"killed\"\nimage = '{IMAGE}'\nshell = 'exit 137'\n");
    let (_, tasks) = yard.run("starts", &format!("{list}{own}{killed}"))?;
    for (name, _, reason) in &table {
        let (kind, why) = end(task(&tasks, name)?);
        ensure!(kind == "not_started" && why.contains(reason), "{name} does not say {reason:?}: {kind}, {why}");
    }
    ensure!(end(task(&tasks, "own")?) == ("exit", ""), "{:?}", end(task(&tasks, "own")?));
    let (kind, why) = end(task(&tasks, "killed")?);
    ensure!(kind == "exit" && why.contains("signal 9, too"), "{kind}, {why}");
    yard.is_clean()?;
    yard.system.finish()
}

#[test]
fn a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives() -> Result<()> {
    let Some(yard) = Yard::open("a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives")? else {
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
        return skip(
            "a_memory_hog_in_a_container_ends_as_oom_and_its_neighbour_lives",
            "memory cannot be limited here",
        );
    }
    ensure!(end(&hog).0 == "oom" && end(&hog).1.contains("its limit of 96 MiB"), "{hog}");
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "the hog did not fail");
    let tasks = yard.tasks(job)?;
    ensure!(end(task(&tasks, "neighbour")?).0 == "succeeded", "{tasks:?}");
    yard.is_clean()?;
    yard.system.finish()
}

#[test]
fn a_container_hears_sigterm_once_and_is_dead_after_its_grace() -> Result<()> {
    let Some(yard) = Yard::open("a_container_hears_sigterm_once_and_is_dead_after_its_grace")? else {
        return Ok(());
    };
    let tasks = format!(
        "[[tasks]]\nname = 'deaf'\nimage = '{IMAGE}'\ngrace = '1s'\n\
         shell = 'trap \"echo asked\" TERM; setsid sleep 47114711 & echo up; while :; do sleep 0.1; done'\n"
    );
    let job = yard.system.submit("deaf.toml", &format!("name = 'deaf'\n{tasks}"))?;
    let member = wait::until("the container to run", || {
        let found = processes("47114711");
        let is_up = yard.output(job, "deaf").is_ok_and(|said| said == "up\n");
        // The words of the script have it, too, and so do those that Podman was told.
        let sleeps = found
            .iter()
            .find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x0047114711\0"));
        Ok(match sleeps.filter(|_| is_up) {
            Some(pid) => Look::Done(*pid),
            None => Look::not_yet(found),
        })
    })?;
    for folder in yard.cgroups() {
        ensure!(has_member(&folder, member)?, "what runs in the container is not in {}", folder.display());
    }

    yard.system.ctl().run(&["cancel", &job.to_string()])?.expect(0)?;
    wait::within(Duration::from_secs(3), "the container's processes to be dead", || {
        let found = processes("47114711");
        Ok(Look::when(found.is_empty(), found))
    })?;
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "cancelled", "it is not cancelled");
    let said = yard.output(job, "deaf")?;
    ensure!(said == "up\nasked\n", "{said:?}");
    yard.is_clean()?;
    yard.system.finish()
}

#[test]
fn containers_outlive_their_agent_and_their_keeper_and_without_its_safe_leave_none() -> Result<()> {
    let Some(mut yard) = Yard::open("containers_outlive_their_agent_and_their_keeper_and_without_its_safe_leave_none")?
    else {
        return Ok(());
    };
    let tasks = format!(
        "[[tasks]]\nname = 'left'\nimage = '{IMAGE}'\non_lost = 'fail'\narray = 3\nrun = ['sleep', '48114811']\n"
    );
    let job = yard.system.submit("left.toml", &format!("name = 'left'\n{tasks}"))?;
    wait::until("the containers to run", || {
        let (found, known) = (processes("48114811").len(), yard.podman.containers()?);
        // Each is Podman, and what it runs.
        Ok(Look::when(found == 6 && known.iter().filter(|line| line.contains("Up")).count() == 3, (found, known)))
    })?;
    // A command beside the task sees what it sees.
    let words = ["exec", "-i", "1.0", "--", "sh", "-c", "cat; test -e /etc/debian_version || echo inside; exit 5"];
    let ran = yard.system.ctl().run_with(&words, b"given\n")?.expect(5)?;
    ensure!(ran.text() == "given\ninside\n", "{ran}");
    let label = yard.podman.labels("muster.agent")?;
    ensure!(label.len() == 1, "they are not marked as those of one agent: {label:?}");
    yard.system.agent()?.kill9()?;
    yard.system.start_agent()?;
    yard.system.agent_connected()?;
    ensure!(processes("48114811").len() == 6, "they ended with their agent, or with the next one");
    let killed = |pid: i32| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    let first = keeper(&yard.system)?;
    yard.system.agent()?.kill9()?;
    // One whose engine was killed, and one that is none of ours.
    yard.podman.create("behind", &format!("muster.agent={}", label[0]))?;
    yard.podman.create("theirs", "muster.agent=other")?;
    killed(first)?;
    yard.system.start_agent()?;
    ensure!(processes("48114811").len() == 6, "they ended with their keeper, or with the next one");
    wait::until("what is nobody's to be removed, and no others", || {
        let known = yard.podman.containers()?;
        Ok(Look::when(known.len() == 4 && !known.iter().any(|line| line.starts_with("behind ")), known))
    })?;
    let second = keeper(&yard.system)?;
    ensure!(first != second, "the keeper lives");
    yard.system.agent()?.kill9()?;
    killed(parent(second)?)?;
    killed(second)?;
    yard.system.start_agent()?;
    let found = processes("48114811");
    ensure!(found.is_empty(), "the next agent runs, and they live: {found:?}");
    ensure!(yard.system.ctl().finished(job, wait::LIMIT)?["state"] == "failed", "they were not lost");
    ensure!(yard.tasks(job)?.iter().all(|task| end(task).0 == "lost"), "{:?}", yard.tasks(job)?);
    wait::until("our containers to be removed, and no others", || {
        let known = yard.podman.containers()?;
        Ok(Look::when(known.len() == 1 && known[0].starts_with("theirs "), known))
    })?;
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
