//! Docker: whether the daemon of this machine can put containers below an attempt's cgroups, and what it says of them.
//!
//! Its client is the attempt's process; the container is the daemon's child. So nothing holds it but the cgroups that the
//! daemon is told, and the daemon alone knows whether it ever ran.

use std::{io, time::Duration};

use serde::Deserialize;
use tracing::info;

use super::{
    Pull, Settings,
    engine::{Engine, LOOK_LIMIT, last_line},
};
use crate::cgroup::{self, Enforce};

/// The oldest version that is told when to fetch an image.
const OLDEST: (u32, u32) = (20, 10);
/// For what a daemon knows of one container.
const TELL_LIMIT: Duration = Duration::from_secs(20);
/// What tells the client which daemon it speaks with, and as whom with registries.
pub(super) const ENVIRONMENT: &[&str] = &[
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "DOCKER_API_VERSION",
    "DOCKER_CONTENT_TRUST",
    "DOCKER_CONTENT_TRUST_SERVER",
];
/// Removes the container that is named next, with the volumes that its image asked for.
pub(super) const REMOVE: &[&str] = &["rm", "--force", "--volumes"];
/// With a terminal no keys that anybody types leave a command behind that runs on unseen. None at all cannot be said: an
/// empty list means the usual ones, of which Ctrl-P is a shell's.
pub(super) const NO_DETACH: &str = "--detach-keys=ctrl-@,ctrl-@,ctrl-@,ctrl-@";
/// What every container is run with. It is kept until it was asked how it ended.
pub(super) const RUN: &[&str] = &[
    // Its output comes through the client: nothing is kept twice.
    "--log-driver=none",
    // Whoever runs health checks may be late to hear of an end.
    "--no-healthcheck",
];
/// What calls itself so has its containers in a virtual machine.
const ELSEWHERE: &str = "Docker Desktop";
/// Where a socket of this machine is.
const SOCKET: &str = "unix://";

/// What a daemon says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Info {
    #[serde(rename = "OSType")]
    system: String,
    cgroup_driver: String,
    cgroup_version: String,
    security_options: Option<Vec<String>>,
    kernel_version: String,
    operating_system: String,
}

/// What a daemon says of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct State {
    pub(crate) running: bool,
    #[serde(rename = "OOMKilled")]
    pub(crate) oom_killed: bool,
    pub(crate) exit_code: i32,
    pub(crate) error: String,
    started_at: String,
}

/// What can be learnt of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// This.
    State(State),
    /// There is none.
    Absent,
    /// Nothing, and why.
    Nothing(String),
}

impl State {
    /// Whether its first process ever was.
    pub(crate) fn has_run(&self) -> bool {
        // Zero of the daemon's clock is the first year.
        !self.started_at.is_empty() && !self.started_at.starts_with("0001-")
    }
}

impl Told {
    /// Whether nothing of it can run, now or later, if nobody is starting it.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::State(state) => !state.running,
            Self::Absent => true,
            Self::Nothing(_) => false,
        }
    }

    /// The same of a container that ran until we ended it, just before the daemon was asked.
    pub(crate) fn before_it_was_ended(self) -> Self {
        match self {
            Self::State(state) => Self::State(State { running: true, ..state }),
            other => other,
        }
    }
}

impl Engine {
    /// What the daemon knows of a container.
    pub(crate) async fn tell(&self, name: &str) -> Told {
        match self.run(&["container", "inspect", "--format={{json .State}}", name], TELL_LIMIT).await {
            Ok(output) if output.status.success() => match serde_json::from_slice(&output.stdout) {
                Ok(state) => Told::State(state),
                Err(error) => Told::Nothing(format!("its words are not understood: {error}")),
            },
            Ok(output) if is_unknown(&output.stderr) => Told::Absent,
            Ok(output) => Told::Nothing(last_line(&output.stderr)),
            Err(error) => Told::Nothing(error.to_string()),
        }
    }
}

/// Whether a daemon says that it has no such container.
pub(super) fn is_unknown(stderr: &[u8]) -> bool {
    String::from_utf8_lossy(stderr).to_lowercase().contains("no such container")
}

/// Whether it can be used; `Err` is for people.
pub(super) async fn look(engine: Engine, enforce: Enforce) -> Result<Engine, String> {
    #[cfg(unix)]
    refuse_user(nix::unistd::Uid::effective())?;
    refuse_settings(engine.settings(), enforce)?;
    let endpoint = ask(&engine, &["context", "inspect", "--format={{.Endpoints.docker.Host}}"]).await?;
    let socket = endpoint.strip_prefix(SOCKET).ok_or_else(|| {
        format!(
            "its daemon is at {endpoint}, where containers would run out of our hands; only one at {SOCKET}… is used"
        )
    })?;
    let versions = ask(&engine, &["version", "--format={{.Client.Version}} {{.Server.Version}}"]).await?;
    for version in versions.split_whitespace() {
        refuse_version(version)?;
    }
    let info = ask(&engine, &["info", "--format={{json .}}"]).await?;
    let info: Info =
        serde_json::from_str(&info).map_err(|error| format!("`docker info` is not understood: {error}"))?;
    refuse_daemon(&info)?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    refuse_machine(&info, release.map_err(|error| format!("this kernel's release cannot be read: {error}"))?.trim())?;
    let (version, place) = cgroup::place()?;
    refuse_cgroups(&info, version)?;
    refuse_stranger(socket).await?;
    info!(versions, cgroups = %place.display(), "containers are run by docker");
    Ok(engine)
}

async fn ask(engine: &Engine, words: &[&str]) -> Result<String, String> {
    let shown = words[0];
    let failed = |error: io::Error| format!("`docker {shown}`: {error}");
    let told = engine.run(words, LOOK_LIMIT).await.map_err(failed)?;
    if !told.status.success() {
        return Err(format!("`docker {shown}` failed: {}", last_line(&told.stderr)));
    }
    Ok(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

/// Whoever may speak with the daemon is not yet who may end what it starts, which is root's.
#[cfg(unix)]
fn refuse_user(user: nix::unistd::Uid) -> Result<(), String> {
    if user.is_root() {
        return Ok(());
    }
    Err(format!(
        "the agent is user {user}, and what Docker starts is root's, which it could neither hold to limits nor end; start it \
         as root, or use Podman"
    ))
}

fn refuse_settings(settings: &Settings, enforce: Enforce) -> Result<(), String> {
    if enforce == Enforce::Off {
        return Err(
            "the agent uses no cgroups (`limits.enforce = \"off\"`), and nothing else holds what Docker starts".into(),
        );
    }
    if settings.pull == Pull::Newer {
        return Err("`pull = \"newer\"` is Podman's; Docker knows \"missing\", \"never\" and \"always\"".into());
    }
    Ok(())
}

fn refuse_version(version: &str) -> Result<(), String> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        return Err(format!("docker {version} is too old; {}.{} or later is needed", OLDEST.0, OLDEST.1));
    }
    Ok(())
}

fn refuse_daemon(info: &Info) -> Result<(), String> {
    if info.system != "linux" {
        return Err(format!("its containers are of `{}`, not of Linux", info.system));
    }
    if info.security_options.iter().flatten().any(|option| option.contains("rootless")) {
        return Err("its daemon runs without root, so that it can put nothing into the agent's cgroups".into());
    }
    if info.cgroup_driver != "cgroupfs" {
        return Err(format!(
            "its cgroup driver is `{}`, which puts containers into cgroups of its own alone; say \
             \"exec-opts\": [\"native.cgroupdriver=cgroupfs\"] in its daemon.json, or use Podman",
            info.cgroup_driver
        ));
    }
    Ok(())
}

/// Somebody else may listen at a socket of this machine and pass everything on to another one, where nothing of ours holds
/// anybody. `release` is that of our kernel.
fn refuse_machine(info: &Info, release: &str) -> Result<(), String> {
    if info.operating_system == ELSEWHERE {
        return Err(format!(
            "it is {ELSEWHERE}, whose containers are in a virtual machine; install Docker itself, or use Podman"
        ));
    }
    let (theirs, own) = (&info.kernel_version, whole_release(release));
    if *theirs == own {
        return Ok(());
    }
    Err(format!(
        "its daemon is on another machine: that has Linux {theirs}, and this one has {own}; use one on this machine, or Podman"
    ))
}

/// A kernel's release as Docker writes it: with three numbers, also where there are two.
fn whole_release(release: &str) -> String {
    let is_digit = |c: char| c.is_ascii_digit();
    let rest = release.trim_start_matches(is_digit).strip_prefix('.').map(|rest| rest.trim_start_matches(is_digit));
    match rest {
        Some(rest) if !rest.strip_prefix('.').is_some_and(|rest| rest.starts_with(is_digit)) => {
            format!("{}.0{rest}", release.strip_suffix(rest).unwrap_or(release))
        }
        _ => release.to_owned(),
    }
}

/// What holds its containers must be what holds attempts.
fn refuse_cgroups(info: &Info, version: u8) -> Result<(), String> {
    let theirs = &info.cgroup_version;
    if *theirs == version.to_string() {
        return Ok(());
    }
    Err(format!("it uses cgroups of version {theirs}, and those of version {version} hold attempts here; use Podman"))
}

/// Whoever listens must know processes and cgroups by the names that we know them by.
#[cfg(unix)]
async fn refuse_stranger(socket: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("its socket {socket} cannot be used: {error}");
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(failed)?;
    let elsewhere = || Err(format!("whoever listens at {socket} sees other processes or cgroups than this agent does"));
    let Some(pid) = stream.peer_cred().map_err(failed)?.pid().filter(|pid| *pid > 0) else { return elsewhere() };
    for space in ["pid", "cgroup"] {
        let (theirs, own) = (format!("/proc/{pid}/ns/{space}"), format!("/proc/self/ns/{space}"));
        let (theirs, own) = (std::fs::read_link(theirs).map_err(failed)?, std::fs::read_link(own).map_err(failed)?);
        if theirs != own {
            return elsewhere();
        }
    }
    Ok(())
}

#[cfg(not(unix))]
async fn refuse_stranger(_socket: &str) -> Result<(), String> {
    Err("this system has no such sockets".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(change: impl FnOnce(&mut Info)) -> Result<(), String> {
        let text = r#"{"ID":"x","OSType":"linux","CgroupDriver":"cgroupfs","CgroupVersion":"1","SecurityOptions":["name=seccomp"]}"#;
        let mut info = serde_json::from_str(text).expect("it is right");
        change(&mut info);
        refuse_daemon(&info)
    }

    #[test]
    fn a_daemon_that_cannot_be_told_where_its_containers_are_is_refused_with_a_way_out() {
        assert_eq!(info(|_| ()), Ok(()));
        let why = info(|info| info.cgroup_driver = "systemd".into()).expect_err("it is refused");
        assert!(why.contains("native.cgroupdriver=cgroupfs") && why.contains("or use Podman"), "{why}");
        let why = info(|info| info.security_options = Some(vec!["name=rootless".into()])).expect_err("it is refused");
        assert!(why.contains("without root"), "{why}");
        let why = info(|info| info.system = "windows".into()).expect_err("it is refused");
        assert!(why.contains("`windows`"), "{why}");
    }

    #[test]
    fn a_daemon_of_another_machine_behind_a_socket_of_this_one_is_refused() {
        let told = |kernel: &str, system: &str| {
            let text = format!(r#"{{"KernelVersion":{kernel:?},"OperatingSystem":{system:?}}}"#);
            let info = serde_json::from_str(&text).expect("it is right");
            refuse_machine(&info, "6.1.0-56-amd64")
        };
        assert_eq!(told("6.1.0-56-amd64", "Debian GNU/Linux 12"), Ok(()));
        let why = told("6.10.14-linuxkit", "Alpine Linux").expect_err("it is refused");
        assert!(why.contains("has Linux 6.10.14-linuxkit, and this one has 6.1.0-56-amd64"), "{why}");
        assert!(told("", "").is_err());
        let why = told("6.1.0-56-amd64", "Docker Desktop").expect_err("it is refused");
        assert!(why.contains("in a virtual machine"), "{why}");
        for (release, whole) in [
            ("6.1.0", "6.1.0"),
            ("6.1", "6.1.0"),
            ("6.12-rc3", "6.12.0-rc3"),
            ("5.15.90.1-x", "5.15.90.1-x"),
            ("6", "6"),
        ] {
            assert_eq!(whole_release(release), whole);
        }
    }

    #[test]
    fn a_daemon_that_uses_other_cgroups_than_attempts_is_refused() {
        let told = |version: &str| Info { cgroup_version: version.into(), ..Info::default() };
        assert_eq!(refuse_cgroups(&told("1"), 1), Ok(()));
        assert_eq!(refuse_cgroups(&told("2"), 2), Ok(()));
        let why = refuse_cgroups(&told("2"), 1).expect_err("it is refused");
        assert!(why.contains("cgroups of version 2, and those of version 1 hold attempts"), "{why}");
        assert!(refuse_cgroups(&told(""), 2).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn an_agent_that_could_not_end_what_docker_starts_has_none() {
        use nix::unistd::Uid;
        assert_eq!(refuse_user(Uid::from_raw(0)), Ok(()));
        let why = refuse_user(Uid::from_raw(1000)).expect_err("it is refused");
        assert!(why.contains("the agent is user 1000") && why.contains("as root, or use Podman"), "{why}");
    }

    #[test]
    fn what_docker_has_not_is_refused_at_the_start() {
        let newer = Settings { pull: Pull::Newer, ..Settings::default() };
        assert!(refuse_settings(&newer, Enforce::Auto).is_err_and(|why| why.contains("is Podman's")));
        assert!(refuse_settings(&Settings::default(), Enforce::Off).is_err_and(|why| why.contains("no cgroups")));
        assert_eq!(refuse_settings(&Settings::default(), Enforce::Required), Ok(()));
        for (version, is_good) in
            [("20.10.24+dfsg1", true), ("28.2.2", true), ("20.09", false), ("1.13.1", false), ("", false)]
        {
            assert_eq!(refuse_version(version).is_ok(), is_good, "{version}");
        }
    }

    #[test]
    fn what_is_said_of_a_container_tells_whether_it_ever_ran() {
        let state = |text: &str| serde_json::from_str::<State>(text).expect("it is right");
        let never = state(
            r#"{"Status":"created","Running":false,"ExitCode":127,"Error":"no","StartedAt":"0001-01-01T00:00:00Z"}"#,
        );
        assert!(!never.has_run() && Told::State(never.clone()).is_over());
        assert_eq!((never.exit_code, &*never.error), (127, "no"));
        let ran = state(r#"{"Running":true,"OOMKilled":true,"ExitCode":0,"StartedAt":"2026-11-22T04:35:37.1Z"}"#);
        assert!(ran.has_run() && ran.oom_killed && !Told::State(ran).is_over());
        assert!(Told::Absent.is_over() && !Told::Nothing("gone".into()).is_over());
        assert!(
            is_unknown(b"Error: No such container: x\n")
                && is_unknown(b"Error response from daemon: no such container\n")
        );
    }
}
