//! `ctl top` on a terminal: however it ends, the terminal is as it was before.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    skip::skip,
    system::System,
    wait::{self, Look},
};
use muster_top::{Picture, View};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Takes another screen, and gives it back.
const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";
/// Shows the cursor again.
const CURSOR: &str = "\u{1b}[?25h";
/// What a test waits to see there.
const FIRST: &str = "q quit";

/// Notes the terminal's modes, runs a program, and notes them again. Whoever runs the tests may be deaf to SIGHUP, as by
/// nohup(1), and those who are started would be, too.
const SCRIPT: &str = r#"stty rows 24 cols 100
stty -g >before
sh -c 'echo $$ >pid.new; mv pid.new pid; exec env --default-signal=HUP "$@"' sh "$@"
echo $? >code.new
stty -g >after
mv code.new code
"#;

/// A program on a terminal of its own, which script(1) makes.
struct Screen {
    script: Child,
    folder: PathBuf,
}

impl Screen {
    fn start(folder: &Path, command: &Command) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("script"), SCRIPT)?;
        let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy());
        let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
        let line = format!("sh ./script {}", words.collect::<Vec<_>>().join(" "));
        let mut script = Command::new("script");
        script.args(["--quiet", "--flush", "--return", "--command", &line, "seen"]).current_dir(folder);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        script.env("TERM", "xterm").env("SHELL", "/bin/sh");
        let script = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("could not start script")?;
        let screen = Self { script, folder: folder.to_owned() };
        screen.shows(FIRST)?;
        Ok(screen)
    }

    /// All that was written to the terminal.
    fn seen(&self) -> String {
        let bytes = fs::read(self.folder.join("seen")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn shows(&self, text: &str) -> Result<()> {
        wait::until(&format!("`{text}` to be on the screen"), || {
            let seen = self.seen();
            Ok(Look::when(seen.contains(text), seen))
        })
    }

    fn press(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.script.stdin.as_mut().context("a terminal")?.write_all(keys)?)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = fs::read_to_string(self.folder.join("pid"))?.trim().parse()?;
        kill(Pid::from_raw(pid), signal).context("could not send a signal to what is on the screen")
    }

    /// Waits for its end, which must leave the terminal as it was. Returns its exit code.
    fn left(mut self) -> Result<i32> {
        let code = wait::until("what is on the screen to end", || {
            let code = fs::read_to_string(self.folder.join("code")).unwrap_or_default();
            Ok(code.trim().parse().map_or_else(|_| Look::NotYet(self.seen()), Look::Done))
        })?;
        let modes = |name: &str| fs::read_to_string(self.folder.join(name));
        ensure!(modes("before")? == modes("after")?, "the terminal has other modes: {:?}", modes("after")?);
        drop(self.script.stdin.take());
        wait::until("script to end", || Ok(Look::when(self.script.try_wait()?.is_some(), "it runs")))?;
        let seen = self.seen();
        let (taken, back, cursor) = (seen.rfind(TAKEN), seen.rfind(GIVEN_BACK), seen.rfind(CURSOR));
        ensure!(taken.is_some() && back > taken, "the screen is not given back: {seen:?}");
        ensure!(cursor > taken, "the cursor stays hidden: {seen:?}");
        Ok(code)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // With its terminal it loses all that runs there.
        let _ended = self.script.kill();
        let _status = self.script.wait();
    }
}

/// Whether terminals can be made here.
fn can_run(test: &str) -> Result<bool> {
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", "stty -g", "/dev/null"]).stdin(Stdio::null());
    let works = script.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Ok(true);
    }
    skip(test, "there is no script(1) that makes terminals")?;
    Ok(false)
}

#[test]
fn whoever_leaves_the_live_screen_or_is_thrown_out_has_the_terminal_as_it_was() -> Result<()> {
    if !can_run("screen::whoever_leaves_the_live_screen_or_is_thrown_out_has_the_terminal_as_it_was")? {
        return Ok(());
    }
    let mut system = System::plain()?;
    let command = system.ctl().command(&["top", "--interval", "100ms"])?;
    let start = |system: &System, name: &str| Screen::start(&system.folder().join(name), &command);
    for (name, keys) in [("q", &b"q"[..]), ("escape", b"\x1b"), ("interrupt", b"\x03")] {
        let mut screen = start(&system, name)?;
        screen.press(keys)?;
        ensure!(screen.left()? == 0, "{name}");
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let screen = start(&system, signal.as_str())?;
        screen.signal(signal)?;
        let code = screen.left()?;
        ensure!(code == 130, "{signal}: exit code {code}");
    }
    // A connection that breaks is told on the screen, which stays until the person has seen it.
    let mut screen = start(&system, "broken")?;
    system.controller()?.kill9()?;
    // A word: spaces that were there before are not written again.
    screen.shows("answer:")?;
    screen.press(b"q")?;
    ensure!(screen.left()? == 0, "after the connection broke");
    Ok(())
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
    let screen = Screen::start(&folder.path().join("panic"), &command)?;
    let seen = folder.path().join("panic/seen");
    ensure!(screen.left()? == 101, "a test that failed");
    let seen = String::from_utf8_lossy(&fs::read(seen)?).into_owned();
    let words = seen.rfind("the look at the cluster broke").context("its words were not seen")?;
    ensure!(seen.find(GIVEN_BACK).is_some_and(|back| back < words), "its words went with the screen: {seen:?}");
    Ok(())
}
