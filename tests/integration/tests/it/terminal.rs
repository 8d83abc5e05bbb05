//! Programs on terminals of their own, with somebody who presses keys and looks.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    skip::skip,
    wait::{self, Look},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Notes the terminal's modes, runs a program, and notes them again. Whoever runs the tests may be deaf to SIGHUP, as by
/// nohup(1), and those who are started would be, too.
const SCRIPT: &str = r#"stty rows 24 cols 100
tty >device
stty -g >before
sh -c 'echo $$ >pid.new; mv pid.new pid; exec env --default-signal=HUP "$@"' sh "$@"
echo $? >code.new
stty -g >after
mv code.new code
"#;

/// What the script says.
const LINES: usize = 24;
const COLUMNS: usize = 100;

/// A program on a terminal of its own, which script(1) makes.
pub(crate) struct Screen {
    script: Child,
    folder: PathBuf,
}

impl Screen {
    /// Starts it and waits until `first` is to be seen.
    pub(crate) fn start(folder: &Path, command: &Command, first: &str) -> Result<Self> {
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
        screen.shows(first)?;
        Ok(screen)
    }

    /// All that was written to the terminal.
    pub(crate) fn seen(&self) -> String {
        let bytes = fs::read(self.folder.join("seen")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn shows(&self, text: &str) -> Result<()> {
        wait::until(&format!("`{text}` to be on the screen"), || {
            let seen = self.seen();
            Ok(Look::when(seen.contains(text), seen))
        })
    }

    /// Waits until what stands on the screen now is as `is_so` says.
    pub(crate) fn stands(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<()> {
        wait::until(&format!("the screen to show {what}"), || {
            let now = standing(&self.seen());
            Ok(if is_so(&now) { Look::Done(()) } else { Look::NotYet(now) })
        })
    }

    pub(crate) fn press(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.script.stdin.as_mut().context("a terminal")?.write_all(keys)?)
    }

    /// What stty(1) does with the terminal, from outside.
    pub(crate) fn stty(&self, words: &[&str]) -> Result<String> {
        let device = fs::read_to_string(self.folder.join("device"))?;
        let done = Command::new("stty").args(["-F", device.trim()]).args(words).output()?;
        ensure!(done.status.success(), "stty {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = fs::read_to_string(self.folder.join("pid"))?.trim().parse()?;
        kill(Pid::from_raw(pid), signal).context("could not send a signal to what is on the screen")
    }

    /// Waits for its end, which must leave the terminal as it was. Returns its exit code and all that was to be seen.
    pub(crate) fn left(mut self) -> Result<(i32, String)> {
        let code = wait::until("what is on the screen to end", || {
            let code = fs::read_to_string(self.folder.join("code")).unwrap_or_default();
            Ok(code.trim().parse().map_or_else(|_| Look::NotYet(self.seen()), Look::Done))
        })?;
        let modes = |name: &str| fs::read_to_string(self.folder.join(name));
        ensure!(modes("before")? == modes("after")?, "the terminal has other modes: {:?}", modes("after")?);
        drop(self.script.stdin.take());
        wait::until("script to end", || Ok(Look::when(self.script.try_wait()?.is_some(), "it runs")))?;
        Ok((code, self.seen()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // With its terminal it loses all that runs there.
        let _ended = self.script.kill();
        let _status = self.script.wait();
    }
}

/// What stands on a screen after all this was written to it, as far as programs go that write each line in its place.
fn standing(written: &str) -> String {
    let mut glass = vec![[' '; COLUMNS]; LINES];
    let (mut line, mut column) = (0, 0);
    let mut written = written.chars();
    while let Some(c) = written.next() {
        if c != '\u{1b}' {
            if let Some(cell) = glass.get_mut(line).and_then(|line| line.get_mut(column)) {
                *cell = c;
            }
            column += 1;
            continue;
        }
        // `ESC [`, parameters, and one letter that says what they are of.
        let _bracket = written.next();
        let mut parameters = String::new();
        let letter = written.by_ref().find(|c| {
            let is_last = ('@'..='~').contains(c);
            parameters.extend((!is_last).then_some(*c));
            is_last
        });
        match letter {
            Some('H') => {
                let mut places = parameters.split(';').map(|place| place.parse().unwrap_or(1_usize) - 1);
                (line, column) = (places.next().unwrap_or(0), places.next().unwrap_or(0));
            }
            // The other screen is taken, which is empty, or all of one is wiped.
            Some('h' | 'J') if matches!(&*parameters, "?1049" | "2") => glass = vec![[' '; COLUMNS]; LINES],
            _ => {}
        }
    }
    let lines = glass.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned() + "\n");
    lines.collect()
}

#[test]
fn what_stands_on_a_screen_is_what_was_written_there_last() {
    let written = "sh noise\r\n\u{1b}[?1049h\u{1b}[?25l\u{1b}[1;1Hold words\u{1b}[2;3H\u{1b}[31mx\u{1b}[0m\u{1b}[1;5Hline\u{1b}[1;9H ";
    assert_eq!(standing(written).trim_end(), "old line\n  x");
}

/// Whether terminals can be made here.
pub(crate) fn can_run(test: &str) -> Result<bool> {
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", "stty -g", "/dev/null"]).stdin(Stdio::null());
    let works = script.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Ok(true);
    }
    skip(test, "there is no script(1) that makes terminals")?;
    Ok(false)
}
