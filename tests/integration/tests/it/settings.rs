//! What the agent's file says of tasks holds for real ones, which another process starts: the keeper, and the one after it.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;

use crate::{
    heirs::{Keepers, tasks},
    keeper,
};

const AGENT: &str = r#"
cpus = 8
gpus = 2
pass_env = ["PASSED_ON"]
log_limit = "50kB"
log_rate = "1kB"
log_rate_max = "100kB"
scratch_size = "1MiB"
[run_as]
user = "daemon"
users = ["nobody"]
"#;

const JOB: &str = r#"
name = "settings"

[[tasks]]
name = "anybody"
shell = 'id -un; echo "${PASSED_ON-unset} ${NOT_PASSED-unset} $CUDA_VISIBLE_DEVICES."'

[[tasks]]
name = "named"
run_as = "nobody"
shell = 'id -un'

[[tasks]]
name = "stranger"
run_as = "bin"
shell = 'id -un'

[[tasks]]
name = "talks"
shell = 'head -c 100000 /dev/zero | tr "\0" x'

[[tasks]]
name = "loud"
log_rate = "10MB"
shell = 'head -c 100000 /dev/zero | tr "\0" x'

[[tasks]]
name = "louder"
log_rate = "10MB"
output_limit = "10MB"
shell = 'head -c 1000000 /dev/zero | tr "\0" x'

[[tasks]]
name = "fills"
scratch = "private"
grace = "1s"
shell = 'dd if=/dev/zero of=file bs=1048576 count=8 2>/dev/null; exec sleep 1000'

[[tasks]]
name = "gpu"
gpus = 1
shell = 'echo "$CUDA_VISIBLE_DEVICES $MUSTER_GPUS"'
"#;

/// Has a GPU for as long as a keeper takes to die.
const HOLDS: &str = "name = 'holds'\n[[tasks]]\nname = 'a'\ngpus = 1\n\
                     shell = 'echo $CUDA_VISIBLE_DEVICES; exec sleep 1000'\n";

/// What a task wrote, when it ends in `end` or is of these many bytes at least.
fn output(ctl: &Ctl, task: &str, is_all: impl Fn(&str) -> bool) -> Result<String> {
    wait::until(&format!("the output of {task}"), || {
        let text = ctl.run(&["logs", task])?.expect(0)?.text();
        Ok(if is_all(&text) { Look::Done(text) } else { Look::NotYet(text) })
    })
}

/// What a person says of a machine is so for a job of all kinds. `free` is the GPU that nobody has.
fn check(system: &System, free: &str) -> Result<()> {
    let (ctl, job) = (system.ctl(), system.submit("settings.toml", JOB)?);
    ctl.finished(job, wait::LIMIT)?;
    let tasks = tasks(&ctl, job)?;
    let end = |name: &str| -> Result<Value> {
        let task = tasks.iter().find(|task| task["name"] == name).with_context(|| format!("no task {name}"))?;
        Ok(task["attempts"][0]["end"].clone())
    };
    let lines = |name: &str, count: usize| {
        output(&ctl, &format!("{job}.{name}"), |text| text.lines().count() >= count && text.ends_with('\n'))
    };
    let text = lines("anybody", 2)?;
    ensure!(text == "daemon\nyes unset .\n", "{text}");
    let text = lines("named", 1)?;
    ensure!(text == "nobody\n", "{text}");
    let stranger = end("stranger")?;
    ensure!(stranger["kind"] == "not_started" && stranger.to_string().contains("bin"), "{stranger}");
    // At a rate it is more the longer it takes, and never all.
    for (name, least, most) in [("talks", 1, 30_000), ("loud", 45_000, 55_000), ("louder", 100_000, 950_000)] {
        ensure!(end(name)?["kind"] == "succeeded", "{name}: {}", end(name)?);
        let kept = output(&ctl, &format!("{job}.{name}"), |text| text.len() >= least)?.len();
        ensure!(kept <= most, "{kept} bytes of {name} are kept");
    }
    let fills = end("fills")?;
    ensure!(fills["kind"] == "scratch_full" && fills.to_string().contains("1 MiB"), "{fills}");
    let text = lines("gpu", 1)?;
    ensure!(text == format!("{free} {free}\n"), "{text:?}, and {free} is free");
    Ok(())
}

#[test]
fn what_an_agents_file_says_of_tasks_holds_in_its_keeper_and_in_the_next_one() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return skip("settings::what_an_agents_file_says_of_tasks_holds_in_its_keeper_and_in_the_next_one", "not root");
    }
    let env = [("PASSED_ON", "yes"), ("NOT_PASSED", "no")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let system = System::start(Options { agent: AGENT.to_owned(), env: env.to_vec(), ..Options::default() })?;
    // Others than root must come to the folders that are theirs.
    fs::set_permissions(system.folder(), fs::Permissions::from_mode(0o755))?;
    let (ctl, job) = (system.ctl(), system.submit("holds.toml", HOLDS)?);
    let held = output(&ctl, &format!("{job}.0"), |text| text.ends_with('\n'))?;
    let free = match held.trim() {
        "0" => "1",
        "1" => "0",
        other => anyhow::bail!("there is no GPU {other}"),
    };
    check(&system, free)?;
    Keepers::of(&system)?.kill(&system)?;
    check(&system, free)?;
    ensure!(tasks(&ctl, job)?[0]["state"] == "running", "what held a GPU has ended");
    ctl.run(&["cancel", &job.to_string()])?.expect(0)?;
    ctl.finished(job, wait::LIMIT)?;
    system.finish()
}

/// Runs until the file is there, and then says what was passed on to it.
fn says_what_it_has(gate: &std::path::Path) -> String {
    let shell = format!("echo begun; until test -e {}; do sleep 0.05; done; echo $PASSED_ON $LANG", gate.display());
    format!("name = 'says'\n[[tasks]]\nname = 'a'\nshell = '{shell}'\n")
}

#[test]
fn a_variable_that_is_passed_on_has_its_new_value_when_the_work_of_before_is_over() -> Result<()> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let env = vec![pair("PASSED_ON", "old"), pair("LANG", "C")];
    let agent = "cpus = 4\npass_env = ['PASSED_ON']\n".to_owned();
    let mut system = System::start(Options { agent, env, ..Options::default() })?;
    let (ctl, gate) = (system.ctl(), system.folder().join("gate"));
    let before = system.submit("says.toml", &says_what_it_has(&gate))?;
    output(&ctl, &before.to_string(), |text| text == "begun\n")?;
    let keeper = keeper::keeper(&system)?;

    system.set_variables(&[pair("PASSED_ON", "new"), pair("LANG", "C.UTF-8")]);
    system.agent()?.stop()?;
    system.start_agent()?;
    ensure!(keeper::keeper(&system)? == keeper, "the keeper has work and was replaced");
    fs::write(&gate, "")?;
    ctl.finished(before, wait::LIMIT)?;
    let text = output(&ctl, &before.to_string(), |text| text.lines().count() == 2)?;
    ensure!(text == "begun\nold C\n", "{text}");
    wait::until("another keeper", || {
        let now = keeper::keeper(&system)?;
        Ok(Look::when(now != keeper, now))
    })?;
    let after = system.submit("says.toml", &says_what_it_has(&gate))?;
    ctl.finished(after, wait::LIMIT)?;
    let text = output(&ctl, &after.to_string(), |text| text.lines().count() == 2)?;
    ensure!(text == "begun\nnew C.UTF-8\n", "{text}");

    // With the same ones it is the keeper that the next agent wants.
    fs::remove_file(&gate)?;
    let again = system.submit("says.toml", &says_what_it_has(&gate))?;
    output(&ctl, &again.to_string(), |text| text == "begun\n")?;
    system.agent()?.kill9()?;
    system.start_agent()?;
    let log = system.agent()?.log();
    let answers: Vec<_> = log.lines().filter(|line| line.contains("the keeper answers")).collect();
    ensure!(answers.last().is_some_and(|line| line.contains("orders=1") && line.contains("is_other=false")), "{log}");
    fs::write(&gate, "")?;
    ctl.finished(again, wait::LIMIT)?;
    system.finish()
}
