//! What an engine is told so that it runs one attempt, and nothing of it outside of what holds the attempt.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use muster_core::spec::Command;

use super::{Engine, Kind, docker, podman};
use crate::exec::Order;

/// A longer line in a file of variables breaks some readers.
const LINE_MAX: usize = 32 * 1024;

/// A folder of the machine and where it is seen inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) real: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// One attempt in a container, all of it allowed.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) order: &'a Order,
    pub(crate) image: &'a str,
    /// What the engine calls the container.
    pub(crate) name: &'a str,
    /// Of the attempt, for an engine that must be told where the container is to be.
    pub(crate) cgroup: Option<&'a Path>,
    /// Of the attempt, not seen inside: files for the engine.
    pub(crate) private: &'a Path,
    /// Of the attempt, seen inside at the same place.
    pub(crate) shared: &'a Path,
    pub(crate) volumes: Vec<Seen>,
    /// `NAME=value`.
    pub(crate) variables: Vec<OsString>,
}

impl Plan<'_> {
    /// Where the engine writes the number of the container's first process, once there is one.
    pub(crate) fn pid_file(private: &Path) -> PathBuf {
        private.join("pid")
    }

    /// The engine's arguments; what is too long for them is written to files. `Err` is for people.
    pub(crate) fn arguments(&self, engine: &Engine) -> Result<Vec<OsString>, String> {
        let (lines, odd) = lines_of(&self.variables);
        let file = self.private.join("env");
        fs::write(&file, lines).map_err(|error| format!("its variables could not be written: {error}"))?;
        let mut all = self.fixed(engine);
        let mut pair = |flag: &str, value: &OsStr| {
            let mut word = OsString::from(flag);
            word.push(value);
            all.push(word);
        };
        pair("--name=", self.name.as_ref());
        match engine.kind() {
            Kind::Podman => pair("--pidfile=", Self::pid_file(self.private).as_ref()),
            Kind::Docker => {
                let cgroup = self.cgroup.ok_or("it has no cgroup, and nothing else holds what Docker starts")?;
                pair("--cgroup-parent=", cgroup.as_ref());
            }
        }
        pair("--env-file=", file.as_ref());
        for variable in odd {
            pair("--env=", variable);
        }
        // Only this attempt sees its own folder, also where labels decide who sees what.
        pair("--volume=", &mounted(self.shared, self.shared, "rw,Z")?);
        for seen in &self.volumes {
            pair("--volume=", &mounted(&seen.real, &seen.target, if seen.read_only { "ro" } else { "rw" })?);
        }
        for limit in engine.limits() {
            pair("--ulimit=", limit.as_ref());
        }
        if let Some(cwd) = &self.order.spec.cwd {
            pair("--workdir=", cwd.as_ref());
        }
        // What is run is what the task says, and not an argument of something else.
        all.push("--entrypoint=".into());
        all.push(self.image.into());
        match &self.order.spec.command {
            Command::Empty => return Err("the task has no command".into()),
            Command::Argv(argv) => all.extend(argv.iter().map(OsString::from)),
            Command::Shell(text) => all.extend(["/bin/sh", "-c", text].map(OsString::from)),
        }
        if all.iter().any(|word| word.as_encoded_bytes().contains(&0)) {
            return Err("a word of the command has a zero byte, which no program can be given".into());
        }
        Ok(all)
    }

    fn fixed(&self, engine: &Engine) -> Vec<OsString> {
        let (order, settings) = (self.order, engine.settings());
        let (own, network) = match (engine.kind(), &*settings.network) {
            (Kind::Podman, network) => (podman::RUN, network),
            (Kind::Docker, "private") => (docker::RUN, "bridge"),
            (Kind::Docker, network) => (docker::RUN, network),
        };
        // Podman hands on whatever it has; a client of a daemon asks for it.
        let is_fed = order.spec.stdin.as_ref().is_some_and(|stdin| !stdin.is_empty());
        let stdin = (is_fed && engine.kind() == Kind::Docker).then_some("--interactive");
        let words = ["run"].iter().chain(own).copied().chain(stdin).map(OsString::from);
        let settled = [
            format!("--pull={}", settings.pull.word()).into(),
            format!("--network={network}").into(),
            format!("--label={}", Engine::label(engine.owner())).into(),
            format!("--label=muster.task={}", order.task).into(),
            format!("--label=muster.attempt={}", order.attempt).into(),
        ];
        words.chain(settled).collect()
    }
}

fn mounted(real: &Path, target: &Path, how: &str) -> Result<OsString, String> {
    let mut text = OsString::new();
    for path in [real, target] {
        if path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b':' | b',' | b'\n')) {
            return Err(format!(
                "{} cannot be seen in a container: its name has `:`, `,` or a new line",
                path.display()
            ));
        }
        text.push(path);
        text.push(":");
    }
    text.push(how);
    Ok(text)
}

/// The variables as lines of a file, which other users cannot read; and those that no line can be made of, which must
/// be said on the command line.
fn lines_of(variables: &[OsString]) -> (Vec<u8>, Vec<&OsStr>) {
    let (mut lines, mut odd) = (Vec::new(), Vec::new());
    for variable in variables {
        let bytes = variable.as_encoded_bytes();
        let value = bytes.splitn(2, |byte| *byte == b'=').nth(1).unwrap_or_default();
        let is_plain = bytes.len() < LINE_MAX
            && bytes.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
            && !bytes.iter().any(u8::is_ascii_control)
            // Some readers take quotes away, and space at the ends.
            && ![value.first(), value.last()].into_iter().flatten().any(|byte| matches!(byte, b'"' | b'\'' | b' '))
            && !bytes.contains(&b'#')
            && std::str::from_utf8(bytes).is_ok();
        if is_plain {
            lines.extend_from_slice(bytes);
            lines.push(b'\n');
        } else {
            odd.push(variable.as_os_str());
        }
    }
    (lines, odd)
}

#[cfg(test)]
mod tests {
    use muster_core::{
        id::{JobId, TaskId},
        spec::TaskSpec,
    };

    use super::*;
    use crate::containers::Settings;

    fn order(spec: TaskSpec) -> Order {
        Order::plain(9, TaskId::new(JobId(5), 7), 2, spec)
    }

    fn arguments(spec: TaskSpec, variables: &[&str], volumes: Vec<Seen>) -> Result<(Vec<String>, String), String> {
        let engine = Engine::scripted(Kind::Podman, Settings::default(), "owner", &["nofile=1:2"]);
        told(&engine, spec, variables, volumes)
    }

    fn told(
        engine: &Engine,
        spec: TaskSpec,
        variables: &[&str],
        volumes: Vec<Seen>,
    ) -> Result<(Vec<String>, String), String> {
        let folder = tempfile::tempdir().expect("a folder");
        let order = order(spec);
        let plan = Plan {
            order: &order,
            image: "tool:1",
            name: "muster-x-9",
            cgroup: Some(Path::new("/muster-a/3")),
            private: folder.path(),
            shared: Path::new("/box"),
            volumes,
            variables: variables.iter().map(OsString::from).collect(),
        };
        let words = plan.arguments(engine)?;
        let file = fs::read_to_string(folder.path().join("env")).expect("it was written");
        let own = folder.path().display().to_string();
        Ok((words.into_iter().map(|word| word.into_string().unwrap().replace(&own, "/own")).collect(), file))
    }

    fn argv(words: &[&str]) -> Command {
        Command::Argv(words.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_command_follows_the_image_and_nothing_of_it_is_a_flag() {
        let spec = TaskSpec { command: argv(&["--rm", "-v", "/:/"]), cwd: Some("/w".into()), ..TaskSpec::default() };
        let volumes = vec![Seen { real: "/data".into(), target: "/in".into(), read_only: true }];
        let (words, file) = arguments(spec, &["A=b c", "B="], volumes).expect("it is right");
        let expected = [
            "run",
            "--rm",
            "--cgroups=disabled",
            "--log-driver=passthrough",
            "--no-healthcheck",
            "--systemd=false",
            "--http-proxy=false",
            "--pull=missing",
            "--network=host",
            "--label=muster.agent=owner",
            "--label=muster.task=5.7",
            "--label=muster.attempt=2",
            "--name=muster-x-9",
            "--pidfile=/own/pid",
            "--env-file=/own/env",
            "--volume=/box:/box:rw,Z",
            "--volume=/data:/in:ro",
            "--ulimit=nofile=1:2",
            "--workdir=/w",
            "--entrypoint=",
            "tool:1",
            "--rm",
            "-v",
            "/:/",
        ];
        assert_eq!(words, expected);
        assert_eq!(file, "A=b c\nB=\n");
    }

    #[test]
    fn docker_is_told_where_the_container_is_to_be_and_no_word_that_is_podmans() {
        let spec = TaskSpec { command: argv(&["a"]), stdin: Some("x".into()), ..TaskSpec::default() };
        let settings = Settings { network: "private".into(), ..Settings::default() };
        let engine = Engine::scripted(Kind::Docker, settings, "owner", &["nofile=1:2"]);
        let (words, file) = told(&engine, spec, &["A=b"], Vec::new()).expect("it is right");
        let expected = [
            "run",
            "--log-driver=none",
            "--no-healthcheck",
            "--interactive",
            "--pull=missing",
            "--network=bridge",
            "--label=muster.agent=owner",
            "--label=muster.task=5.7",
            "--label=muster.attempt=2",
            "--name=muster-x-9",
            "--cgroup-parent=/muster-a/3",
            "--env-file=/own/env",
            "--volume=/box:/box:rw,Z",
            "--ulimit=nofile=1:2",
            "--entrypoint=",
            "tool:1",
            "a",
        ];
        assert_eq!(words, expected);
        assert_eq!(file, "A=b\n");
    }

    #[test]
    fn a_script_is_for_the_shell_of_the_image() {
        let spec = TaskSpec { command: Command::Shell("echo $A".into()), ..TaskSpec::default() };
        let (words, _) = arguments(spec, &[], Vec::new()).expect("it is right");
        assert_eq!(words[words.len() - 4..], ["tool:1", "/bin/sh", "-c", "echo $A"]);
    }

    #[test]
    fn what_no_line_can_hold_is_said_on_the_command_line() {
        let long = format!("LONG={}", "x".repeat(LINE_MAX));
        let all = ["A=1", "B=two\nlines", "C=\"q\"", "D= s", "#E=1", "F*=1", &long, "G=a=b", "H=x # y"];
        let spec = || TaskSpec { command: argv(&["true"]), ..TaskSpec::default() };
        let (words, file) = arguments(spec(), &all, Vec::new()).expect("it is right");
        let said: Vec<_> = words.iter().filter_map(|word| word.strip_prefix("--env=")).collect();
        assert_eq!(said, ["B=two\nlines", "C=\"q\"", "D= s", "#E=1", &long, "H=x # y"]);
        assert_eq!(file, "A=1\nF*=1\nG=a=b\n");
    }

    #[test]
    fn a_place_that_would_be_read_as_two_is_refused() {
        let spec = TaskSpec { command: argv(&["true"]), ..TaskSpec::default() };
        let volumes = vec![Seen { real: "/a:b".into(), target: "/in".into(), read_only: true }];
        assert!(arguments(spec, &[], volumes).expect_err("it is refused").contains("cannot be seen in a container"));
        let zero = TaskSpec { command: argv(&["a\0b"]), ..TaskSpec::default() };
        assert!(arguments(zero, &[], Vec::new()).expect_err("it is refused").contains("zero byte"));
    }
}
