//! The engine of this machine: which one we can use, and how it is called.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use muster_core::id::Token;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Choice, Settings, docker, podman};
use crate::{cgroup::Enforce, exec::beside::Asked};

/// For the first words of an engine, which may have to make its folders.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// What of the agent's own environment is for every engine.
const ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// There is no engine where one is demanded.
#[derive(Debug, thiserror::Error)]
#[error("containers must be run here (`engine = \"{kind}\"`), and cannot be: {why}")]
pub struct Error {
    kind: Kind,
    why: String,
}

/// Engines that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Makes a container as a child of its own, where it was started.
    Podman,
    /// Has a daemon make it, in cgroups that it is told.
    Docker,
}

impl Kind {
    /// Its program, and the value of our label, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    /// What of the agent's own environment tells it where it keeps what.
    fn environment(self) -> &'static [&'static str] {
        match self {
            Self::Podman => podman::ENVIRONMENT,
            Self::Docker => docker::ENVIRONMENT,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an agent found, and what a keeper is told of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) program: PathBuf,
    /// What makes the containers, if not what the engine would take by itself.
    pub(super) runtime: Option<String>,
    pub(super) settings: Settings,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    pub(super) found: Found,
    /// Whose containers are ours.
    owner: Arc<str>,
    environment: Vec<(OsString, OsString)>,
    /// `nofile=soft:hard`: what every attempt here is held to.
    limits: Vec<String>,
}

impl Engine {
    /// Looks for it. `owner` marks what is ours: stable for the agent's folder.
    ///
    /// # Errors
    /// It is demanded and cannot be used.
    pub async fn find(settings: Settings, owner: &str, enforce: Enforce) -> Result<Option<Arc<Self>>, Error> {
        if !cfg!(target_os = "linux") {
            return Ok(None);
        }
        let (kinds, is_demanded): (&[Kind], bool) = match settings.engine {
            Choice::Off => (&[], false),
            Choice::Auto => (&[Kind::Podman, Kind::Docker], false),
            Choice::Podman => (&[Kind::Podman], true),
            Choice::Docker => (&[Kind::Docker], true),
        };
        for kind in kinds {
            let kind = *kind;
            let Some(engine) = Self::of(kind, settings.clone(), owner) else {
                if is_demanded {
                    let why = format!("there is no `{kind}` in the agent's PATH; install it");
                    return Err(Error { kind, why });
                }
                continue;
            };
            let found = match kind {
                Kind::Podman => podman::look(engine).await,
                Kind::Docker => docker::look(engine, enforce).await,
            };
            match found {
                Ok(engine) => return Ok(Some(Arc::new(engine))),
                Err(why) if is_demanded => return Err(Error { kind, why }),
                Err(why) => warn!(why, "this agent runs no containers by {kind}"),
            }
        }
        Ok(None)
    }

    /// For the keeper of whoever found it.
    #[cfg(unix)]
    pub(crate) fn to_text(&self) -> String {
        // Plain texts and words: there is nothing that JSON could not say.
        serde_json::to_string(&self.found).unwrap_or_default()
    }

    /// The reverse of [`Engine::to_text`]. Nothing is looked for: whoever goes on with containers can do that only by the one
    /// that made them, and waits for nobody first. If it is gone, each attempt says so.
    #[cfg(unix)]
    pub(crate) fn of_text(text: &str, owner: &str) -> serde_json::Result<Arc<Self>> {
        Ok(Arc::new(Self::with(serde_json::from_str(text)?, owner)))
    }

    fn of(kind: Kind, settings: Settings, owner: &str) -> Option<Self> {
        let program = on_path(kind.name())?;
        Some(Self::with(Found { kind, program, runtime: None, settings }, owner))
    }

    pub(super) fn with(found: Found, owner: &str) -> Self {
        let names = ENVIRONMENT.iter().chain(found.kind.environment());
        let environment = names.filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?))).collect();
        Self { found, owner: owner.into(), environment, limits: own_limits() }
    }

    /// Which one it is.
    pub(crate) fn kind(&self) -> Kind {
        self.found.kind
    }

    /// The value of our label, for people.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    pub(crate) fn program(&self) -> &Path {
        &self.found.program
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.found.settings
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn limits(&self) -> &[String] {
        &self.limits
    }

    /// The environment of the engine itself, of which the container sees nothing.
    pub(crate) fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// What comes before all other arguments.
    pub(crate) fn first_words(&self) -> Vec<OsString> {
        self.found.runtime.iter().map(|runtime| format!("--runtime={runtime}").into()).collect()
    }

    /// What marks the containers of `owner`.
    pub(crate) fn label(owner: &str) -> String {
        format!("muster.agent={owner}")
    }

    /// What runs a command in the container of an attempt, with `mark` in its environment. With a terminal it is to be started
    /// on one, which it hands on.
    pub(crate) fn exec(&self, token: Token, asked: &Asked, mark: &str) -> Vec<String> {
        let words = self.first_words().into_iter().map(|word| word.to_string_lossy().into_owned());
        let call = ["exec".to_owned(), "--interactive".to_owned(), format!("--env={mark}")];
        let terminal = asked.terminal.iter().flat_map(|terminal| {
            let keys = match self.kind() {
                Kind::Podman => podman::NO_DETACH,
                Kind::Docker => docker::NO_DETACH,
            };
            let name = (!terminal.name.is_empty()).then(|| format!("--env=TERM={}", terminal.name));
            ["--tty".to_owned(), keys.to_owned()].into_iter().chain(name)
        });
        let program = self.program().to_string_lossy().into_owned();
        let all = std::iter::once(program).chain(words).chain(call).chain(terminal);
        all.chain([self.container(token)]).chain(asked.command.iter().cloned()).collect()
    }

    /// The name of the container of an attempt, unlike that of any other container of this machine.
    pub(crate) fn container(&self, token: Token) -> String {
        format!("{}{token}", self.prefix())
    }

    /// The reverse of [`Engine::container`].
    pub(super) fn token_of(&self, container: &str) -> Option<Token> {
        container.strip_prefix(&self.prefix())?.parse().ok().map(Token)
    }

    fn prefix(&self) -> String {
        let owner: String = self.owner.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        format!("muster-{owner}-")
    }

    pub(super) async fn run(&self, words: &[&str], limit: Duration) -> io::Result<Output> {
        #[expect(
            clippy::disallowed_methods,
            reason = "a question to the engine, no attempt: it runs nothing of a task"
        )]
        let mut command = tokio::process::Command::new(self.program());
        command.args(self.first_words()).args(words).env_clear().envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        match tokio::time::timeout(limit, command.output()).await {
            Ok(output) => output,
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("it gave no answer in {} s", limit.as_secs())))
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn scripted(kind: Kind, settings: Settings, owner: &str, limits: &[&str]) -> Self {
        let limits = limits.iter().map(ToString::to_string).collect();
        let found = Found { kind, program: Path::new("/nowhere").join(kind.name()), runtime: None, settings };
        Self { found, owner: owner.into(), environment: Vec::new(), limits }
    }
}

/// The last thing that somebody said, for people.
pub(super) fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
}

pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    // A keeper is told its name as a text.
    let is_it = |file: &PathBuf| file.is_absolute() && file.to_str().is_some() && file.is_file();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(is_it)
}

/// What the processes of this agent may have. An engine that raises it for a container fails where the agent may not.
#[cfg(unix)]
fn own_limits() -> Vec<String> {
    use nix::sys::resource::{Resource, getrlimit};
    let most =
        std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse::<u64>().ok());
    let one = |name: &str, resource, most: u64| {
        let (soft, hard) = getrlimit(resource).ok()?;
        Some(format!("{name}={}:{}", soft.min(most), hard.min(most)))
    };
    // Podman holds itself to as many processes as there are numbers for.
    [one("nofile", Resource::RLIMIT_NOFILE, u64::MAX), one("nproc", Resource::RLIMIT_NPROC, most.unwrap_or(32_768))]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(not(unix))]
fn own_limits() -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::beside::{Size, Terminal};

    #[test]
    fn a_command_in_a_container_gets_a_terminal_only_if_it_asks_for_one() {
        let told = |kind, terminal| {
            let asked = Asked { command: ["sh".to_owned(), "-l".to_owned()].into(), terminal };
            Engine::scripted(kind, Settings::default(), "owner", &[]).exec(Token(9), &asked, "M=1").join(" ")
        };
        let named = |name: &str| Some(Terminal { name: name.into(), size: Size { columns: 80, rows: 24 } });
        assert_eq!(told(Kind::Podman, None), "/nowhere/podman exec --interactive --env=M=1 muster-owner-9 sh -l");
        assert_eq!(
            told(Kind::Podman, named("xterm")),
            "/nowhere/podman exec --interactive --env=M=1 --tty --detach-keys= --env=TERM=xterm muster-owner-9 sh -l"
        );
        assert_eq!(
            told(Kind::Docker, named("")),
            "/nowhere/docker exec --interactive --env=M=1 --tty --detach-keys=ctrl-@,ctrl-@,ctrl-@,ctrl-@ muster-owner-9 sh -l"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_keeper_has_the_engine_that_its_agent_found_whatever_is_to_be_found_by_now() {
        for (kind, runtime, words) in
            [(Kind::Podman, Some("crun"), vec!["--runtime=crun"]), (Kind::Docker, None, Vec::new())]
        {
            let settings = Settings { network: "none".into(), ..Settings::default() };
            let mut engine = Engine::scripted(kind, settings.clone(), "owner", &[]);
            engine.found.runtime = runtime.map(str::to_owned);
            let again = Engine::of_text(&engine.to_text(), "owner").expect("it was told");
            assert_eq!((again.kind(), again.program()), (kind, engine.program()));
            assert_eq!(
                (again.first_words(), again.settings(), again.owner()),
                (words.into_iter().map(OsString::from).collect(), &settings, "owner")
            );
        }
        assert!(Engine::of_text("", "owner").is_err());
    }
}
