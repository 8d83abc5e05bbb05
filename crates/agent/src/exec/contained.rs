//! An attempt in a container: its folder, the engine that is its process, and what the engine says of a container that
//! never ran.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_core::{container::Container, spec::TaskSpec};

use super::{Order, env, launch::Launch, os};
use crate::{
    containers::{Engine, Folders, Plan, Seen},
    logs::Mask,
};

/// What an engine says last is kept for people, to this length.
const SAID_MAX: usize = 2048;

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

    /// Whether the container's first process ever was: then the engine ends as it did.
    pub(super) fn has_run(&self) -> bool {
        std::fs::metadata(Plan::pid_file(&self.private)).is_ok_and(|file| file.len() > 0)
    }

    /// Removes what the engine keeps of it, when its processes were killed and the engine's with them.
    pub(super) async fn remove(self) {
        self.engine.remove(&self.name).await;
    }
}

/// What `order` starts: its engine, told what is run in which image. `Err` is for people.
pub(super) fn prepare(
    engine: Option<&Arc<Engine>>,
    order: &Order,
    container: &Container,
    (base, files): (&env::Base, &env::Files<'_>),
    folders: &Folders,
) -> Result<Launch, String> {
    let engine = engine.ok_or("this agent cannot run containers: it found no engine for them when it started")?;
    engine.settings().allow_image(&container.image)?;
    let see = |volume: &muster_core::container::Volume| {
        let real = engine.settings().allow_volume(volume)?;
        Ok(Seen { real, target: PathBuf::from(&volume.target), read_only: volume.read_only })
    };
    let volumes = container.volumes.iter().map(see).collect::<Result<_, String>>()?;
    let plan = Plan {
        order,
        image: &container.image,
        name: &engine.container(order.token),
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

/// What a person should know of an exit code that an engine tells.
pub(super) fn doubt(code: i32) -> Option<String> {
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

    /// Why no container ran, in the engine's words.
    pub(super) fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it did not say why");
        format!("its container did not start: {}", line.trim_start_matches("Error: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
