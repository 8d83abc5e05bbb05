//! `ctl exec -t`: a command beside a task has the terminal of whoever called ctl, and gives it back.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    system::System,
    wait::{self, Look},
};
use nix::sys::signal::Signal;

use crate::{
    exec::held,
    terminal::{Screen, can_run},
};

/// What the shell in the task asks with.
const PROMPT: &str = "ready> ";
/// It, beside the first task of the job.
const SHELL: &[&str] = &["exec", "-it", "held.first", "--", "env", "PS1=ready> ", "sh"];

/// A shell in the task, on a terminal of its own.
fn shell(system: &System, name: &str) -> Result<Screen> {
    Screen::start(&system.folder().join(name), &system.ctl().command(SHELL)?, PROMPT)
}

/// The same, which tells its number.
fn numbered(system: &System, name: &str) -> Result<(Screen, String)> {
    let mut screen = shell(system, name)?;
    screen.press(b"echo num''ber $$.\r")?;
    let pid = wait::until("the shell to tell its number", || {
        let seen = screen.seen();
        let told = seen.split("number ").nth(1).and_then(|rest| rest.split_once('.'));
        Ok(told.map_or_else(|| Look::not_yet(&seen), |(pid, _)| Look::Done(pid.to_owned())))
    })?;
    Ok((screen, pid))
}

fn is_dead(pid: &str, after: &str) -> Result<()> {
    wait::until(&format!("the shell in the task to end after {after}"), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Who was to ask how it ended may be dead.
        let is_dead = stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'));
        Ok(Look::when(is_dead, stat))
    })
}

#[test]
fn a_shell_in_a_task_has_the_keys_the_size_and_the_kind_of_the_callers_terminal() -> Result<()> {
    let test = "interactive::a_shell_in_a_task_has_the_keys_the_size_and_the_kind_of_the_callers_terminal";
    if !can_run(test)? {
        return Ok(());
    }
    let system = System::plain()?;
    let gate = held(&system)?;
    let mut screen = shell(&system, "keys")?;
    let modes = screen.stty(&["-a"])?;
    ensure!(modes.contains("-icanon") && modes.contains("-isig") && modes.contains("-echo "), "{modes}");
    // A letter is taken back, and the line is echoed once: by the terminal there.
    screen.press(b"echo $COLOUR-$TERN\x7fM; stty size; test -t 0 && test -t 1 && test -t 2 && echo all th''ree\r")?;
    screen.shows("all three")?;
    let seen = screen.seen();
    ensure!(seen.contains("red-xterm\r\n24 100\r\n") && seen.matches("$COLOUR").count() == 1, "{seen:?}");
    // Another size, while somebody looks for it.
    screen.press(b"until stty size | grep -q '33 90'; do sleep 0.05; done; echo is res''ized\r")?;
    screen.stty(&["rows", "33", "cols", "90"])?;
    screen.shows("is resized")?;
    // Ctrl-C is for what is in front there, neither for the shell nor for us.
    screen.press(b"sh -c 'echo has st\"\"arted; exec sleep 1000'\r")?;
    screen.shows("has started")?;
    screen.press(b"\x03")?;
    screen.press(b"echo ended by $?.\r")?;
    screen.shows("ended by 130.")?;
    // And job control: stopped, told of, and gone on with.
    screen.press(b"sh -c 'echo has be\"\"gun; read line'\r")?;
    screen.shows("has begun")?;
    screen.press(b"\x1a")?;
    screen.shows("Stopped")?;
    screen.press(b"fg && echo went on to the e''nd\r")?;
    // The line that it waits for.
    screen.press(b"\r")?;
    screen.shows("went on to the end")?;
    screen.press(b"exit 7\r")?;
    let (code, seen) = screen.left()?;
    ensure!(code == 7, "exit code {code}: {seen:?}");
    fs::write(gate, "")?;
    system.ctl().finished(1, wait::LIMIT)?;
    system.finish()
}

#[test]
fn however_it_ends_the_callers_terminal_is_as_it_was_and_nothing_is_left_in_the_task() -> Result<()> {
    let test = "interactive::however_it_ends_the_callers_terminal_is_as_it_was_and_nothing_is_left_in_the_task";
    if !can_run(test)? {
        return Ok(());
    }
    let mut system = System::plain()?;
    let _gate = held(&system)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let (screen, pid) = numbered(&system, signal.as_str())?;
        screen.signal(signal)?;
        let (code, seen) = screen.left()?;
        ensure!(code == 130, "{signal}: exit code {code}: {seen:?}");
        is_dead(&pid, signal.as_str())?;
    }
    // What is refused is told when the terminal is as it was.
    let mut refused = system.ctl().command(&["exec", "-it", "held.later", "--", "sh"])?;
    let (code, seen) = Screen::start(&system.folder().join("refused"), &refused, "is waiting")?.left()?;
    ensure!(code == 5, "refused: exit code {code}: {seen:?}");
    refused = system.ctl().command(&["exec", "-it", "held.first", "--", "no-such-program"])?;
    let (code, seen) = Screen::start(&system.folder().join("unknown"), &refused, "was not found in PATH")?.left()?;
    ensure!(code == 126, "not started: exit code {code}: {seen:?}");
    // An agent that dies hangs up, and a connection that breaks does.
    let (screen, pid) = numbered(&system, "agent")?;
    system.agent()?.kill9()?;
    let (code, seen) = screen.left()?;
    ensure!(code != 0 && seen.contains("error:"), "the agent died: exit code {code}: {seen:?}");
    is_dead(&pid, "its agent's death")?;
    system.start_agent()?;
    system.agent_connected()?;
    let (screen, pid) = numbered(&system, "controller")?;
    system.controller()?.kill9()?;
    let (code, seen) = screen.left()?;
    ensure!(code != 0 && seen.contains("error:"), "the controller died: exit code {code}: {seen:?}");
    is_dead(&pid, "the controller's death")
}

#[test]
fn who_has_no_terminal_may_give_one_that_shows_and_none_that_reads() -> Result<()> {
    let system = System::plain()?;
    let _gate = held(&system)?;
    let script = "test -t 0 && test -t 1 && stty size; cat; exit 4";
    let ran = system.ctl().run(&["exec", "-t", "held.first", "--", "sh", "-c", script])?.expect(4)?;
    ensure!(ran.text() == "24 80\r\n", "{ran}");
    let ran = system.ctl().run(&["exec", "-it", "held.first", "--", "sh"])?.expect(2)?;
    ensure!(ran.stderr.contains("standard input is no terminal") && ran.stderr.contains("next: leave out"), "{ran}");
    let audit = system.ctl().json(&["audit"])?;
    let records = audit["records"].as_array().context("no records")?;
    ensure!(
        records.iter().any(|record| record["action"] == "exec" && record["detail"] == format!("sh -c {script}")),
        "{audit}"
    );
    Ok(())
}
