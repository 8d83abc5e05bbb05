//! What a person gets wrong: every problem at once, with its place, exit code 2, and nothing submitted.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    binaries,
    ctl::Ctl,
    daemon::Daemon,
    skip::skip,
    system::System,
    wait::{self, Look},
};

/// (what is wrong, the job file, what the message must name)
const WRONG: &[(&str, &str, &[&str])] = &[
    ("an unknown key", "name = \"x\"\n[[tasks]]\nname = \"a\"\nruns = [\"true\"]\n", &["runs", "run"]),
    ("a wrong type", "name = \"x\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\ncpus = \"many\"\n", &["cpus"]),
    (
        "a cycle",
        "name = \"x\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\nafter = [\"b\"]\n[[tasks]]\nname = \"b\"\nrun = [\"true\"]\nafter = [\"a\"]\n",
        &["a -> b -> a"],
    ),
    (
        "an unknown dependency",
        "name = \"x\"\n[[tasks]]\nname = \"alpha\"\nrun = [\"true\"]\nafter = [\"alhpa2\"]\n",
        &["alhpa2"],
    ),
    ("an empty name", "name = \"\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n", &["name"]),
    ("a negative time", "name = \"x\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\ntimeout = -1\n", &["timeout"]),
    ("an array of zero", "name = \"x\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\narray = 0\n", &["array"]),
    ("no tasks", "name = \"x\"\n", &["tasks"]),
    ("broken TOML", "name = \"x\n", &["1"]),
];

#[test]
fn a_wrong_job_file_is_refused_with_its_place_and_nothing_is_submitted() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    for (what, text, words) in WRONG {
        let file = system.file("wrong.toml", text)?;
        let path = file.to_string_lossy().into_owned();
        for command in ["submit", "run", "validate"] {
            let ran = ctl.run(&[command, &path])?.expect(2)?;
            let said = format!("{}{}", ran.text(), ran.stderr);
            for word in *words {
                ensure!(said.contains(word), "{what}: `ctl {command}` does not name {word:?}:\n{ran}");
            }
            ensure!(said.contains("wrong.toml:"), "{what}: `ctl {command}` does not say where:\n{ran}");
        }
    }
    let jobs = ctl.json(&["list"])?;
    ensure!(jobs["jobs"].as_array().is_some_and(Vec::is_empty), "something was submitted: {jobs}");
    system.finish()
}

#[test]
fn every_problem_of_a_file_is_told_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("many.toml");
    std::fs::write(
        &file,
        "name = \"\"\n[[tasks]]\nname = \"a\"\nruns = [\"true\"]\ncpus = \"many\"\nafter = [\"nobody\"]\n",
    )?;
    let ran = Ctl::alone().run(&["validate", &file.to_string_lossy()])?.expect(2)?;
    let said = format!("{}{}", ran.text(), ran.stderr);
    for word in ["runs", "cpus"] {
        ensure!(said.contains(word), "{word:?} is not named:\n{ran}");
    }
    Ok(())
}

#[test]
fn a_wrong_command_line_exits_with_2_and_work_that_is_not_there_with_3() -> Result<()> {
    let system = System::plain()?;
    let ctl = system.ctl();
    let calls: &[(&[&str], i32)] = &[
        (&["frobnicate"], 2),
        (&["list", "--no-such-flag"], 2),
        (&["submit", "/nonexistent/job.toml"], 2),
        (&["show", "4711"], 3),
        (&["logs", "4711.0"], 3),
        (&["cancel", "nobody-knows-this"], 3),
    ];
    for (arguments, code) in calls {
        let ran = ctl.run(arguments)?.expect(*code)?;
        ensure!(!ran.stderr.trim().is_empty(), "ctl {arguments:?} fails without a word");
        ensure!(!ran.stderr.contains("panicked"), "ctl {arguments:?} panics:\n{ran}");
    }
    system.finish()
}

#[test]
fn no_controller_is_an_answer_of_its_own() -> Result<()> {
    // A port of which nobody listens: bound, read, and closed again.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ran = Ctl::of(&format!("127.0.0.1:{port}")).run(&["list"])?.expect(4)?;
    ensure!(ran.stderr.contains(&port.to_string()), "it does not say where it looked:\n{ran}");
    Ok(())
}

#[test]
fn run_ends_with_the_code_of_its_command() -> Result<()> {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        Ctl::alone().run(&["run", "--", "sh", "-c", script])?.expect(code)?;
    }
    Ctl::alone().run(&["run", "--", "/nonexistent/program"])?.expect(126)?;
    Ok(())
}

#[test]
fn a_controller_that_cannot_be_one_of_several_says_why_and_what_to_write() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let wrong: &[(&[&str], &str)] = &[
        (&["--store", "http://a:2379"], "etcd://host-a:2379"),
        (&["--store", "etcd://a", "--listen", "0.0.0.0:0", "--insecure"], "--advertise http://HOST:PORT"),
        (&["--store", "etcd://a", "--listen", "0.0.0.0:0", "--tls"], "--advertise https://HOST:PORT"),
        (&["--store", "etcd://a", "--tls", "--advertise", "http://a:7717"], "https://HOST:PORT"),
        (&["--store", "etcd://a", "--advertise", "a:7717"], "http://HOST:PORT"),
    ];
    for (arguments, word) in wrong {
        let mut command = Command::new(binaries::path("muster-controller")?);
        command.args(["--listen", "127.0.0.1:0"].iter().filter(|_| !arguments.contains(&"--listen")));
        let output =
            command.args(*arguments).arg("--data").arg(folder.path()).output().context("could not start it")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(word), "{arguments:?}: {}: {said}", output.status);
        ensure!(!said.contains("panicked"), "{said}");
    }
    Ok(())
}

/// How an agent ends that does not start, and what it says. What it writes stands in `folder`.
fn refused(arguments: &[&str], folder: &Path) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(binaries::path("muster-agent")?);
    let mut agent =
        Daemon::start("refused", command.args(["--controller", "http://127.0.0.1:1"]).args(arguments), folder)?;
    let status = wait::until("the agent to end by itself", || {
        Ok(agent.ended()?.map_or_else(|| Look::not_yet(agent.log()), Look::Done))
    })?;
    Ok((status.code(), agent.log()))
}

#[test]
fn an_agent_on_a_folder_that_was_copied_from_another_machine_does_not_start_until_it_is_told_to() -> Result<()> {
    if std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().len() != 32 {
        let name =
            "refusals::an_agent_on_a_folder_that_was_copied_from_another_machine_does_not_start_until_it_is_told_to";
        return skip(name, "this machine has no /etc/machine-id");
    }
    let mut system = System::plain()?;
    let folder = system.folder().join("agent");
    system.agent()?.interrupt()?;
    let known = std::fs::read_to_string(folder.join("agent-machine"))?;
    let id = std::fs::read_to_string("/etc/machine-id")?;
    ensure!(known.trim().len() == 64 && !known.contains(id.trim()), "{known}");
    std::fs::write(folder.join("agent-machine"), "another\n")?;

    let (code, said) = refused(&["--data", &folder.to_string_lossy()], system.folder())?;
    ensure!(code == Some(1), "{code:?}: {said}");
    for part in [&*folder.to_string_lossy(), "another machine", "empty the folder", "--adopt-data"] {
        ensure!(said.contains(part), "{part:?} is not said: {said}");
    }
    system.set_variables(&[("MUSTER_ADOPT_DATA".to_owned(), "1".to_owned())]);
    system.start_agent()?;
    ensure!(std::fs::read_to_string(folder.join("agent-machine"))? == known, "it is not this machine's by now");
    let agents = system.ctl().json(&["agents"])?;
    ensure!(agents["agents"].as_array().is_some_and(|agents| agents.len() == 1), "it is another agent: {agents}");
    system.finish()
}

#[test]
fn an_agent_that_nobody_could_name_or_ask_for_does_not_start_and_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, "name = '-x'\nlabels = { 'a b' = 'c' }\nresources = { memory = 1 }\n")?;
    let file = file.to_string_lossy();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--name", ""], 2, &["the name of an agent is empty"]),
        (&["--name=-x"], 2, &["must start with a letter"]),
        (&["--name", "a b"], 2, &["`a b` holds ' '"]),
        (&["--label", "a b=c"], 2, &["the key `a b` holds ' '"]),
        (&["--resource", "gpus=1"], 2, &["write `gpus` beside"]),
        (&["--config", &file], 1, &["line 1", "`-x` must start", "line 2", "line 3"]),
    ];
    for (n, (arguments, wanted, parts)) in cases.iter().enumerate() {
        let place = folder.path().join(n.to_string());
        std::fs::create_dir(&place)?;
        let data = place.join("agent");
        let (code, said) = refused(&[&["--data", &data.to_string_lossy()], *arguments].concat(), &place)?;
        ensure!(code == Some(*wanted), "{arguments:?} ({code:?}): {said}");
        for part in *parts {
            ensure!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
        }
    }
    Ok(())
}
