//! `ctl top` on a terminal: however it ends, the terminal is as it was before.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::system::System;
use muster_top::{Picture, View};
use nix::sys::signal::Signal;

use crate::terminal::{Screen, can_run};

/// Takes another screen, and gives it back.
const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";
/// Shows the cursor again.
const CURSOR: &str = "\u{1b}[?25h";
/// What a test waits to see there.
const FIRST: &str = "q quit";

/// Shows it in a folder of its own.
fn show(folder: &Path, command: &Command) -> Result<Screen> {
    Screen::start(folder, command, FIRST)
}

/// Its exit code, when it has given the screen back, and what was seen.
fn gone(screen: Screen) -> Result<(i32, String)> {
    let (code, seen) = screen.left()?;
    let (taken, back, cursor) = (seen.rfind(TAKEN), seen.rfind(GIVEN_BACK), seen.rfind(CURSOR));
    ensure!(taken.is_some() && back > taken, "the screen is not given back: {seen:?}");
    ensure!(cursor > taken, "the cursor stays hidden: {seen:?}");
    Ok((code, seen))
}

#[test]
fn whoever_leaves_the_live_screen_or_is_thrown_out_has_the_terminal_as_it_was() -> Result<()> {
    if !can_run("screen::whoever_leaves_the_live_screen_or_is_thrown_out_has_the_terminal_as_it_was")? {
        return Ok(());
    }
    let mut system = System::plain()?;
    let command = system.ctl().command(&["top", "--interval", "100ms"])?;
    let start = |system: &System, name: &str| show(&system.folder().join(name), &command);
    for (name, keys) in [("q", &b"q"[..]), ("escape", b"\x1b"), ("interrupt", b"\x03")] {
        let mut screen = start(&system, name)?;
        screen.press(keys)?;
        ensure!(gone(screen)?.0 == 0, "{name}");
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let screen = start(&system, signal.as_str())?;
        screen.signal(signal)?;
        let (code, _) = gone(screen)?;
        ensure!(code == 130, "{signal}: exit code {code}");
    }
    // A connection that breaks is told on the screen, which stays until the person has seen it.
    let mut screen = start(&system, "broken")?;
    system.controller()?.kill9()?;
    // A word: spaces that were there before are not written again.
    screen.shows("answer:")?;
    screen.press(b"q")?;
    ensure!(gone(screen)?.0 == 0, "after the connection broke");
    Ok(())
}

#[test]
fn what_was_seen_last_stays_on_the_screen_while_the_controller_is_away() -> Result<()> {
    if !can_run("screen::what_was_seen_last_stays_on_the_screen_while_the_controller_is_away")? {
        return Ok(());
    }
    let mut system = System::plain()?;
    let submit = |system: &System, name: &str| {
        let text = format!("name = '{name}'\n[tasks.a]\ncpus = 0.1\nshell = 'exec sleep 1000'\n");
        system.submit("job.toml", &text)
    };
    submit(&system, "census")?;
    let mut screen = show(&system.folder().join("away"), &system.ctl().command(&["top", "--interval", "100ms"])?)?;
    let is_seen = |now: &str| ["worker", "connected", "1 running", "census"].iter().all(|word| now.contains(word));
    let is_away = |now: &str| now.lines().next().is_some_and(|first| first.contains("does not answer"));
    screen.stands("what runs", |now| is_seen(now) && !is_away(now))?;
    system.controller()?.kill9()?;
    screen.stands("that the controller is away, and the rest", |now| is_seen(now) && is_away(now))?;
    system.start_controller()?;
    screen.stands("that it is back", |now| is_seen(now) && !is_away(now))?;
    submit(&system, "harvest")?;
    screen.stands("what is new", |now| now.contains("harvest") && now.contains("2 running"))?;
    screen.press(b"q")?;
    ensure!(gone(screen)?.0 == 0, "after the controller came back");
    system.finish()
}

#[test]
fn called_by_a_test_this_shows_a_screen_that_panics() {
    if std::env::var_os("SHOW_AND_PANIC").is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let look = async || -> Picture { panic!("the look at the cluster broke") };
    let shown = muster_top::run(Picture::default(), View::default(), look, Duration::from_millis(300), false);
    runtime.block_on(shown).expect("a terminal");
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was_and_its_words_to_be_read() -> Result<()> {
    if !can_run("screen::a_panic_leaves_the_terminal_as_it_was_and_its_words_to_be_read")? {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "screen::called_by_a_test_this_shows_a_screen_that_panics", "--nocapture"]);
    command.env("SHOW_AND_PANIC", "1").env_remove("RUST_BACKTRACE");
    let (code, seen) = gone(show(&folder.path().join("panic"), &command)?)?;
    ensure!(code == 101, "a test that failed");
    let words = seen.rfind("the look at the cluster broke").context("its words were not seen")?;
    ensure!(seen.find(GIVEN_BACK).is_some_and(|back| back < words), "its words went with the screen: {seen:?}");
    Ok(())
}
