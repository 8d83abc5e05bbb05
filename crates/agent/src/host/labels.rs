//! Labels from an executable of the operator: `key=value` lines, within a limit of time and of size.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use muster_core::validate;
use tokio::{io::AsyncReadExt as _, time::sleep};

/// It may ask a cloud's metadata service, and no more.
const LIMIT: Duration = Duration::from_secs(10);
const OUTPUT_MAX: u64 = 64 << 10;
const LABELS_MAX: usize = 256;
const TEXT_MAX: usize = 256;

/// Why there are no labels from it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot start {program}; it must be an executable file")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} did not end within {} s and was killed", LIMIT.as_secs())]
    Slow { program: String },
    #[error("{program} ended with {status}; its labels do not count")]
    Failed { program: String, status: String },
    #[error("line {line} of what {program} wrote {problem}")]
    Line { program: String, line: usize, problem: String },
}

/// Runs `program` and takes what it writes.
///
/// # Errors
/// It cannot be run, failed, took too long, or wrote something else.
pub(super) async fn of(program: &Path) -> Result<BTreeMap<String, String>, Error> {
    unless(sleep(LIMIT), program).await
}

/// The same, unless it takes until `late` ends.
async fn unless(late: impl Future<Output = ()>, program: &Path) -> Result<BTreeMap<String, String>, Error> {
    let name = || program.display().to_string();
    let start = |source| Error::Start { program: name(), source };
    #[expect(clippy::disallowed_methods, reason = "no attempt: the operator's own program, bounded here")]
    let mut command = tokio::process::Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().map_err(start)?;
    let mut output = child.stdout.take().ok_or_else(|| start(std::io::Error::other("it has no output")))?;
    let work = async {
        let mut bytes = Vec::new();
        (&mut output).take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
        // What is too much is not waited for.
        drop(output);
        Ok::<_, std::io::Error>((bytes, child.wait().await?))
    };
    let ended = tokio::select! {
        ended = work => Some(ended),
        () = late => None,
    };
    let Some(ended) = ended else {
        kill_group(&child);
        return Err(Error::Slow { program: name() });
    };
    let (bytes, status) = ended.map_err(start)?;
    if bytes.len() as u64 > OUTPUT_MAX {
        let problem = format!("is past {OUTPUT_MAX} bytes, which is the most that is read");
        return Err(Error::Line { program: name(), line: bytes.split(|byte| *byte == b'\n').count(), problem });
    }
    if !status.success() {
        return Err(Error::Failed { program: name(), status: status.to_string() });
    }
    parse(&String::from_utf8_lossy(&bytes)).map_err(|(line, problem)| Error::Line { program: name(), line, problem })
}

/// It may have started others.
#[cfg(unix)]
fn kill_group(child: &tokio::process::Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It is not reaped yet, so that its number is still its own.
        let _gone_already =
            nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(not(unix))]
fn kill_group(_child: &tokio::process::Child) {}

/// `key=value` lines; empty ones and those that begin with `#` say nothing.
fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, String)> {
    let mut labels = BTreeMap::new();
    for (line, n) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            return Err((n, "is no label; write key=value".to_owned()));
        };
        // What no job could name.
        validate::label_key(key).map_err(|problem| (n, format!("is no label: {problem}")))?;
        if value.len() > TEXT_MAX || value.contains(char::is_control) {
            return Err((n, format!("has a value that cannot be; up to {TEXT_MAX} printable bytes are accepted")));
        }
        labels.insert(key.to_owned(), value.to_owned());
        if labels.len() > LABELS_MAX {
            return Err((n, format!("is one label too many; at most {LABELS_MAX} are accepted")));
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use crate::link::kit::soon;

    #[test]
    fn lines_are_labels_and_what_is_none_is_told_with_its_line() {
        let good = parse("# where we are\nzone = a\n\nrack=\npath=a=b\n").expect("it is right");
        let pairs: Vec<_> = good.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("path", "a=b"), ("rack", ""), ("zone", "a")]);
        let long = format!("a=b\n{}=x", "k".repeat(300));
        let many: String = (0..300).map(|n| format!("k{n}=v\n")).collect();
        for (text, line, word) in [
            ("zone", 1, "write key=value"),
            ("a=b\n=c", 2, "needs a key"),
            ("a=b\na b=c", 2, "`a b` holds ' '"),
            ("aws:zone=c", 1, "holds ':'"),
            (long.as_str(), 2, "300 bytes"),
            (many.as_str(), 257, "at most 256"),
            ("a=\u{7}b", 1, "printable"),
        ] {
            let (at, problem) = parse(text).expect_err("it is wrong");
            assert!(at == line && problem.contains(word), "{text}: {at}, {problem}");
        }
    }

    #[cfg(unix)]
    fn script(folder: &Path, text: &str) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let file = folder.join("labels");
        std::fs::write(&file, text).expect("it is written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("it may run");
        file
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn an_executable_is_run_and_what_goes_wrong_with_it_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = async |text: &str| of(&script(folder.path(), text)).await.map_err(|error| error.to_string());
        let good = run("#!/bin/sh\necho zone=a; echo noise >&2\n").await.expect("it is right");
        assert_eq!(good.get("zone").map(String::as_str), Some("a"));
        assert!(run("#!/bin/sh\necho zone=a; exit 3\n").await.expect_err("it failed").contains("exit status: 3"));
        assert!(run("#!/bin/sh\necho what\n").await.expect_err("no label").contains("line 1"));
        assert!(run("#!/bin/sh\nyes a=b\n").await.expect_err("too much").contains("past 65536 bytes"));
        let none = of(&folder.path().join("none")).await.expect_err("it is not there");
        assert!(none.to_string().starts_with("cannot start"), "{none}");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn one_that_does_not_end_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let text = format!("#!/bin/sh\nsleep 600 &\necho $! >{0}.new; mv {0}.new {0}; wait\n", pid.display());
        let file = script(folder.path(), &text);
        let (late, is_late) = tokio::sync::oneshot::channel::<()>();
        let asked = tokio::spawn(async move { unless(async move { _ = is_late.await }, &file).await });
        let until = async |what: &str, is_so: &dyn Fn() -> bool| {
            soon(what, async {
                while !is_so() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        };
        until("it to run", &|| pid.exists()).await;
        late.send(()).expect("it runs");
        let error = asked.await.expect("it ends").expect_err("it took too long").to_string();
        assert!(error.contains("did not end within 10 s and was killed"), "{error}");
        let pid = std::fs::read_to_string(pid).expect("it was written");
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        };
        until("what it started to be dead", &|| !lives()).await;
    }
}
