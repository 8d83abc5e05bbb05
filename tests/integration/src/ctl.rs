//! One call of the real `ctl`, with a limit.

use std::{
    fmt,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    binaries,
    wait::{self, Look},
};

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Calls `ctl` with one controller address, or with none.
#[derive(Clone)]
pub struct Ctl {
    address: Option<String>,
    env: Vec<(String, String)>,
}

/// What a call ended with.
pub struct Ran {
    /// The exit code; 128 + the number of the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Ctl {
    /// For the controller at `host:port`.
    pub fn of(address: &str) -> Self {
        Self { address: Some(format!("http://{address}")), env: Vec::new() }
    }

    /// For calls that need no controller.
    pub fn alone() -> Self {
        Self { address: None, env: Vec::new() }
    }

    /// One more variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The call itself, not started.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binaries::path("ctl")?);
        command.args(arguments).env_remove("MUSTER_CONTROLLER").env("NO_COLOR", "1").env_remove("RUST_BACKTRACE");
        // Nobody's own settings may decide a test.
        command.env("HOME", "/nonexistent").env_remove("XDG_CONFIG_HOME");
        if let Some(address) = &self.address {
            command.env("MUSTER_CONTROLLER", address);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<Ran> {
        self.run_with(arguments, &[])
    }

    /// Runs it to its end with `stdin`.
    pub fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Result<Ran> {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command.spawn().context("could not start ctl")?, stdin, LIMIT)
            .with_context(|| format!("ctl {arguments:?}"))
    }

    /// Runs it, expects exit code 0, and reads its output as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let ran = self
            .run(&[arguments, &["-o", "json"]].concat())?
            .expect(0)
            .with_context(|| format!("ctl {arguments:?}"))?;
        serde_json::from_slice(&ran.stdout).with_context(|| format!("ctl {arguments:?} printed no JSON:\n{ran}"))
    }

    /// Submits a job file and returns the job's number.
    pub fn submit(&self, file: &Path) -> Result<u64> {
        let file = file.to_str().context("a job file's path is no text")?;
        let reply = self.json(&["submit", file])?;
        reply["job"].as_u64().with_context(|| format!("submit said no job number: {reply}"))
    }

    /// Waits until a job is final, and returns how it stands then.
    pub fn finished(&self, job: u64, limit: Duration) -> Result<Value> {
        wait::within(limit, &format!("job {job} to finish"), || {
            let shown = self.json(&["show", &job.to_string()])?;
            let state = shown["job"]["state"].as_str().unwrap_or_default();
            Ok(match state {
                "succeeded" | "failed" | "cancelled" | "skipped" => Look::Done(shown["job"].clone()),
                _ => Look::not_yet(&shown["job"]),
            })
        })
    }
}

impl Ran {
    /// Fails unless the exit code is this one.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "expected exit code {code}:\n{self}");
        Ok(self)
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4_000;
        let text = self.text();
        let head: String = text.chars().take(SHOWN).collect();
        write!(f, "exit code {}\n--- stdout\n{head}\n--- stderr\n{}", self.code, self.stderr)
    }
}

/// Feeds a process, collects both its streams, and ends it when it takes longer than `limit`.
pub fn finish(mut child: Child, stdin: &[u8], limit: Duration) -> Result<Ran> {
    use std::os::unix::process::ExitStatusExt as _;

    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let writer = child.stdin.take();
    thread::scope(|scope| {
        let stdout = scope.spawn(move || collect(stdout));
        let stderr = scope.spawn(move || collect(stderr));
        // A process that reads nothing may be gone already: then there is nobody to tell.
        scope.spawn(move || writer.map(|mut writer| writer.write_all(stdin)));
        let status = wait::within(limit, "the end of a process", || {
            Ok(child.try_wait()?.map_or(Look::not_yet("it still runs"), Look::Done))
        });
        if status.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let read = |handle: thread::ScopedJoinHandle<'_, Vec<u8>>| handle.join().unwrap_or_default();
        let (stdout, stderr) = (read(stdout), String::from_utf8_lossy(&read(stderr)).into_owned());
        match status {
            Ok(status) => {
                let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
                Ok(Ran { code, stdout, stderr })
            }
            Err(error) => bail!("{error:#}\n--- stdout\n{}\n--- stderr\n{stderr}", String::from_utf8_lossy(&stdout)),
        }
    })
}

fn collect(stream: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error is what there is.
    drop(stream.map(|mut stream| stream.read_to_end(&mut bytes)));
    bytes
}
