//! An attempt in a container: its folder, the engine that is its process, and what the engine says of a container that
//! never ran.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_core::{container::Container, spec::TaskSpec};

use super::{Order, confined::Confined, env, launch::Launch, os};
use crate::{
    containers::{Engine, Folders, Kind, Plan, Removal, Seen, Told},
    logs::Mask,
};

/// What an engine says last is kept for people, to this length.
const SAID_MAX: usize = 2048;

/// How a container ends whose program the kernel could not load: an exit code that tasks have, too.
const UNLOADED: i32 = 1;

/// An attempt whose process is an engine.
pub(super) struct Contained {
    engine: Arc<Engine>,
    private: PathBuf,
    name: String,
}

impl Contained {
    /// Of an attempt of `order`, if it is in a container.
    pub(super) fn of(engine: Option<&Arc<Engine>>, files: &Path, order: &Order) -> Option<Self> {
        let engine = engine.filter(|_| order.spec.container.is_some())?;
        let private = Folders::of(files, order.token).private;
        Some(Self { engine: Arc::clone(engine), private, name: engine.container(order.token) })
    }

    /// Whether a daemon made it, which alone knows what became of it.
    pub(super) fn has_daemon(&self) -> bool {
        self.engine.kind() == Kind::Docker
    }

    /// What that knows.
    pub(super) async fn tell(&self) -> Told {
        self.engine.tell(&self.name).await
    }

    /// Whether the container's first process ever was, where no daemon knows it: then the engine ends as it did.
    pub(super) fn has_run(&self) -> bool {
        std::fs::metadata(Plan::pid_file(&self.private)).is_ok_and(|file| file.len() > 0)
    }

    /// Removes what the engine keeps of it, when its processes were killed and the engine's with them.
    pub(super) async fn remove(&self) -> Removal {
        self.engine.remove(&self.name).await
    }

    /// Does that later, without being waited for: a daemon may be making it still.
    pub(super) fn remove_later(&self) {
        self.engine.remove_later(self.name.clone());
    }
}

/// Whether a daemon makes the container of `order`.
#[cfg(unix)]
pub(super) fn has_daemon(engine: Option<&Arc<Engine>>, order: &Order) -> bool {
    order.spec.container.is_some() && engine.is_some_and(|engine| engine.kind() == Kind::Docker)
}

/// What `order` starts: its engine, told what is run in which image. `Err` is for people.
pub(super) fn prepare(
    engine: Option<&Arc<Engine>>,
    order: &Order,
    container: &Container,
    (base, files): (&env::Base, &env::Files<'_>),
    (folders, confined): (&Folders, &mut Confined),
) -> Result<Launch, String> {
    let engine = engine.ok_or("this agent cannot run containers: it found no engine for them when it started")?;
    engine.settings().allow_image(&container.image)?;
    let see = |volume: &muster_core::container::Volume| {
        let real = engine.settings().allow_volume(volume)?;
        Ok(Seen { real, target: PathBuf::from(&volume.target), read_only: volume.read_only })
    };
    let volumes = container.volumes.iter().map(see).collect::<Result<_, String>>()?;
    let cgroup = (engine.kind() == Kind::Docker).then(|| confined.shelter()).transpose()?;
    let plan = Plan {
        order,
        image: &container.image,
        name: &engine.container(order.token),
        cgroup: cgroup.as_deref(),
        private: &folders.private,
        shared: &folders.shared,
        volumes,
        variables: base.inside(order, files, &folders.scratch)?,
    };
    let arguments = plan.arguments(engine)?;
    let mut program = os::Program::new(engine.program(), OsStr::new(engine.name()));
    engine.first_words().iter().chain(&arguments).for_each(|word| program.argument(word));
    for (name, value) in engine.environment() {
        program.variable(name, value);
    }
    base.mark(&mut program, order);
    program.folder(&folders.private);
    Ok(Launch::of(program, folders.private.clone(), &order.spec))
}

/// What a person should know of an exit code that an engine tells, when this was `said` last.
pub(super) fn doubt(code: i32, said: &Said) -> Option<String> {
    if code == UNLOADED {
        return said
            .unloaded()
            .map(|line| format!("its program could not be loaded, if this is its engine's word: {line}"));
    }
    let signal = code.checked_sub(128).filter(|signal| (1..=64).contains(signal))?;
    Some(format!("its container ended with {code}, by which engines tell the end by signal {signal}, too"))
}

/// The end of what was said on stderr, while it is not known whether a container ran.
#[derive(Debug, Default)]
pub(super) struct Said(Vec<u8>);

impl Said {
    /// For an attempt of `spec`, if anybody may ask.
    pub(super) fn of(spec: &TaskSpec) -> Option<Self> {
        spec.container.as_ref().map(|_| Self::default())
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let over = self.0.len().saturating_sub(SAID_MAX);
        self.0.drain(..over);
    }

    /// What is secret is not told either.
    pub(super) fn hide(mut self, mask: Option<&Mask>) -> Self {
        if let Some(mask) = mask {
            self.0 = mask.whole(&self.0);
        }
        self
    }

    /// What an engine says of a program that the kernel could not load, which it cannot tell by an exit code: it is the
    /// container's first process by then.
    fn unloaded(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        // crun's words with Podman around them, and runc's.
        let is_told = line.contains("\"msg\":\"exec container process ")
            || line.starts_with("exec container process ")
            || line.starts_with("exec /")
                && (line.ends_with(": exec format error") || line.ends_with(": no such file or directory"));
        is_told.then(|| line.to_owned())
    }

    /// Why no container ran, in the engine's words.
    pub(super) fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        // Docker's client says more behind it.
        let told = lines().rev().find_map(|line| line.strip_prefix("docker: "));
        let line = told.or_else(|| lines().next_back()).unwrap_or("it did not say why");
        let line =
            ["Error: ", "Error response from daemon: "].iter().fold(line, |line, word| line.trim_start_matches(word));
        format!("its container did not start: {line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_kernel_could_not_load_is_told_by_the_last_words_alone() {
        let doubt = |code, words: &str| {
            let mut said = Said::default();
            said.add(words.as_bytes());
            doubt(code, &said)
        };
        let crun = r#"{"msg":"exec container process (missing dynamic library?) `/bin/x`: No such file or directory","level":"error"}"#;
        for words in
            [&format!("{crun}\n"), "exec /bin/x: exec format error\n", "exec /x: no such file or directory\n\n"]
        {
            let why = doubt(1, words).expect("it is told");
            assert!(why.contains("could not be loaded, if this is its engine's word: ") && why.ends_with(words.trim()));
            assert_eq!(doubt(2, words), None);
            assert_eq!(doubt(1, &format!("{words}a line of the task's\n")), None);
        }
        assert_eq!(doubt(1, ""), None);
        assert!(doubt(137, "").is_some_and(|why| why.contains("signal 9")));
    }

    #[test]
    fn the_last_words_of_an_engine_are_the_reason_however_much_it_said() {
        let mut said = Said::default();
        assert_eq!(said.reason(), "its container did not start: it did not say why");
        for _ in 0..1000 {
            said.add(b"Trying to pull...\n");
        }
        said.add("Error: initializing source \u{fffd}: no such image\n\n".as_bytes());
        assert_eq!(said.reason(), "its container did not start: initializing source \u{fffd}: no such image");
        assert!(said.0.len() <= SAID_MAX);
        said.add(b"docker: Error response from daemon: No such image: x:1.\nSee 'docker run --help'.\n");
        assert_eq!(said.reason(), "its container did not start: No such image: x:1.");
    }
}
