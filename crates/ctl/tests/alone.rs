//! `ctl run` and `ctl dev` with no controller anywhere: a whole Muster in one process, with real tasks.

#[cfg(test)]
#[expect(dead_code, reason = "the scripted controller of the other tests is not asked here")]
mod support;

use std::{fs, path::Path, process::Stdio};

use support::{ctl, file, ran};

/// ctl that keeps its temporary folders in `dir`.
fn run_in(dir: &Path, args: &[&str]) -> support::Ran {
    ran(ctl(args).env("TMPDIR", dir))
}

#[cfg(unix)]
#[test]
fn a_command_runs_here_with_its_own_streams_and_exit_code_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let table = [
        ("echo out; echo err >&2", 0, "out\n"),
        ("printf no-newline; exit 3", 3, "no-newline"),
        ("kill -9 $$", 137, ""),
        ("pwd", 0, concat!(env!("CARGO_MANIFEST_DIR"), "\n")),
    ];
    for (script, code, out) in table {
        let answer = run_in(dir.path(), &["run", "--", "sh", "-c", script]);
        assert_eq!((answer.code, answer.out.as_str()), (Some(code), out), "{script}: {}", answer.err);
        assert!(!answer.err.contains("WARN") && !answer.err.contains("ERROR"), "{script}: {}", answer.err);
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_command_that_is_not_there_ends_with_126_and_is_named() {
    let answer = ran(&mut ctl(&["run", "--", "no-such-program-anywhere"]));
    assert_eq!(answer.code, Some(126), "{}", answer.err);
    assert!(answer.err.contains("no-such-program-anywhere"), "{}", answer.err);
}

#[cfg(unix)]
#[test]
fn a_job_file_runs_here_in_order_and_prints_ends_summary_and_result() {
    let (_dir, path) = file(
        r#"
name = "small"
[[tasks]]
name = "part"
array = { range = [0, 2] }
shell = 'echo "$MUSTER_INDEX" > "$MUSTER_RESULT"'
[[tasks]]
name = "sum"
after = ["part"]
shell = 'cp "$MUSTER_INPUTS" "$MUSTER_RESULT"'
"#,
    );
    let answer = ran(&mut ctl(&["run", &path]));
    assert_eq!(answer.code, Some(0), "{}\n{}", answer.out, answer.err);
    let lines: Vec<_> = answer.out.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("1.part[")).count(), 3, "{}", answer.out);
    assert!(lines[3].starts_with("1.sum succeeded ("), "{}", answer.out);
    assert!(lines[4].starts_with("job 1 small succeeded: 4 succeeded in "), "{}", answer.out);
    let result: serde_json::Value = serde_json::from_str(&lines[5..].join("\n")).unwrap();
    assert_eq!(result["part"], serde_json::json!([0, 1, 2]), "{result}");
}

#[cfg(unix)]
#[test]
fn a_failed_task_is_told_and_ends_with_1() {
    let (_dir, path) = file(
        "name = \"bad\"\n[[tasks]]\nname = \"a\"\nshell = \"exit 3\"\n[[tasks]]\nname = \"b\"\nafter = [\"a\"]\nrun = [\"true\"]\n",
    );
    let answer = ran(&mut ctl(&["run", &path]));
    assert_eq!(answer.code, Some(1), "{}\n{}", answer.out, answer.err);
    assert!(answer.out.contains("1.a failed: exit code 3"), "{}", answer.out);
    assert!(answer.out.contains("1.b skipped: "), "{}", answer.out);
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_kept_shows_its_work_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    assert_eq!(ran(&mut ctl(&["run", "--data", data, "--", "echo", "kept"])).code, Some(0));
    let (mut dev, url) = dev(&["dev", "--data", data, "--listen", "127.0.0.1:0"]);
    let list = ran(&mut ctl(&["list", "--controller", &url]));
    assert!(list.out.contains("echo") && list.out.contains("succeeded"), "{}{}", list.out, list.err);
    assert_eq!(ran(&mut ctl(&["logs", "1", "--controller", &url])).out, "kept\n");
    let answer = ran(&mut ctl(&["run", "--controller", &url, "--", "sh", "-c", "echo two; exit 4"]));
    assert_eq!((answer.code, answer.out.as_str()), (Some(4), "two\n"), "{}", answer.err);
    interrupt(&dev);
    assert_eq!(dev.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn ctrl_c_cancels_the_job_and_its_teardown_still_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (started, cleaned) = (dir.path().join("started"), dir.path().join("cleaned"));
    let text = format!(
        "name = \"long\"\n[[tasks]]\nname = \"work\"\nshell = \"touch {}; exec sleep 1000\"\n\
         [[tasks]]\nname = \"tidy\"\nrole = \"teardown\"\nshell = \"touch {}\"\n",
        started.display(),
        cleaned.display()
    );
    let (_file, path) = file(&text);
    let mut command = ctl(&["run", &path]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    support::until("the task runs", || started.exists());
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(cleaned.exists(), "{text}");
    assert!(text.contains("1.work cancelled") && text.contains("1.tidy succeeded"), "{text}");
}

#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    kill(Pid::from_raw(child.id().try_into().expect("a process id is small")), Signal::SIGINT).expect("it lives");
}

/// A `ctl dev` that listens, and where.
#[cfg(unix)]
fn dev(args: &[&str]) -> (std::process::Child, String) {
    use std::io::{BufRead as _, BufReader};
    let mut child = ctl(args).stdout(Stdio::piped()).spawn().expect("ctl starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("ctl says where it listens");
    let url = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    (child, url)
}
