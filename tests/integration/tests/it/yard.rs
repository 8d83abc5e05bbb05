//! A whole Muster with an engine of containers of its own, for the tests of both engines.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    docker::Docker,
    engine::Client,
    podman::Podman,
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use serde_json::Value;

use crate::heirs;
use tempfile::TempDir;

/// What runs containers in a test.
pub(crate) enum Engine {
    Podman(Podman),
    Docker(Docker),
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Podman,
    Docker,
}

impl Engine {
    fn make(kind: Kind, folder: &Path) -> Result<Result<Self, String>> {
        Ok(match kind {
            Kind::Podman => Podman::make(folder)?.map(Self::Podman),
            Kind::Docker => Docker::make(folder)?.map(Self::Docker),
        })
    }

    fn env(&self) -> Vec<(String, String)> {
        match self {
            Self::Podman(podman) => podman.env(),
            Self::Docker(docker) => docker.env(),
        }
    }

    /// It, whichever it is.
    pub(crate) fn client(&self) -> &dyn Client {
        match self {
            Self::Podman(podman) => podman,
            Self::Docker(docker) => docker,
        }
    }

    /// Podman, in a test of nothing else.
    pub(crate) fn podman(&self) -> Result<&Podman> {
        match self {
            Self::Podman(podman) => Ok(podman),
            Self::Docker(_) => anyhow::bail!("this is Docker"),
        }
    }

    /// The daemon, in a test of nothing else.
    pub(crate) fn docker(&mut self) -> Result<&mut Docker> {
        match self {
            Self::Docker(docker) => Ok(docker),
            Self::Podman(_) => anyhow::bail!("Podman has no daemon"),
        }
    }
}

/// A Muster whose agent runs containers.
pub(crate) struct Yard {
    // Dropped in this order: nobody uses the storage when it goes.
    pub(crate) system: System,
    pub(crate) engine: Engine,
    /// Seen inside by who asks for it.
    pub(crate) open: PathBuf,
    _folder: TempDir,
}

impl Yard {
    /// None: there can be no containers here, which is noted for `test`.
    pub(crate) fn open(test: &str, kind: Kind) -> Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix("muster-engine-").tempdir()?;
        let engine = match Engine::make(kind, folder.path())? {
            Ok(engine) => engine,
            Err(why) => {
                skip(test, &why)?;
                return Ok(None);
            }
        };
        let (open, kept) = (folder.path().join("open"), folder.path().join("kept"));
        fs::create_dir(&open)?;
        fs::create_dir(&kept)?;
        fs::write(open.join("data"), "of the machine\n")?;
        let agent = format!(
            "cpus = 4\n[containers]\nengine = '{}'\npull = 'never'\nimages = ['localhost/*']\nvolumes = [{:?}, {:?}]\n",
            format!("{kind:?}").to_lowercase(),
            open.display().to_string(),
            format!("{}:ro", kept.display())
        );
        // Engines are slow where processors are emulated, and leases are another test's matter.
        let lease_ttl = Duration::from_secs(60);
        let system = System::start(Options { agent, env: engine.env(), lease_ttl, ..Options::default() })?;
        Ok(Some(Self { system, engine, open, _folder: folder }))
    }

    /// Submits and waits for the end; returns the tasks.
    pub(crate) fn run(&self, name: &str, tasks: &str) -> Result<(u64, Vec<Value>)> {
        let job = self.system.submit(&format!("{name}.toml"), &format!("name = \"{name}\"\n{tasks}"))?;
        self.system.ctl().finished(job, wait::LIMIT)?;
        Ok((job, self.tasks(job)?))
    }

    pub(crate) fn tasks(&self, job: u64) -> Result<Vec<Value>> {
        heirs::tasks(&self.system.ctl(), job)
    }

    pub(crate) fn output(&self, job: u64, task: &str) -> Result<String> {
        Ok(self.system.ctl().run(&["logs", &format!("{job}.{task}")])?.expect(0)?.text())
    }

    /// The folders of the agent's cgroups, one in each tree; none where it may make none.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let noted = fs::read_to_string(self.system.folder().join("agent/run/cgroups")).unwrap_or_default();
        let is_ours = |dir: &PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("muster-"));
        noted.lines().map(PathBuf::from).filter(is_ours).collect()
    }

    /// Waits until the engine knows of no container any more, and nobody has a process of one.
    pub(crate) fn is_clean(&self) -> Result<()> {
        wait::until("no container", || {
            let left = self.engine.client().containers()?;
            Ok(Look::when(left.is_empty(), left))
        })?;
        let boxes = fs::read_dir(self.system.folder().join("agent/run/files"))?.flatten();
        let boxes: Vec<_> = boxes.map(|entry| entry.file_name()).collect();
        ensure!(boxes.is_empty(), "folders are left: {boxes:?}");
        Ok(())
    }
}

pub(crate) fn end(task: &Value) -> (&str, &str) {
    let end = &task["attempts"][0]["end"];
    (end["kind"].as_str().unwrap_or("none"), end["reason"].as_str().unwrap_or_default())
}

/// Whether its agent could hold a task to the memory that it asked for.
pub(crate) fn is_held(task: &Value) -> bool {
    task["attempts"][0]["usage"]["unenforced"] == serde_json::json!([])
}

pub(crate) fn task<'a>(tasks: &'a [Value], name: &str) -> Result<&'a Value> {
    tasks.iter().find(|task| task["name"] == name).with_context(|| format!("no task {name} in {tasks:?}"))
}

/// How long to sleep: a number of seconds that no other test asks for, and no other run of it. Such a process is known by it.
pub(crate) fn seconds() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(10);
    format!("{}{:07}", NEXT.fetch_add(1, Ordering::Relaxed), std::process::id())
}

/// The processes of this machine that have `word` as an argument, in whatever namespace.
pub(crate) fn processes(word: &str) -> Vec<u32> {
    let has_word = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has_word).collect()
}

/// Whether a process is in one of the attempts' cgroups in `folder`, or below it.
pub(crate) fn has_member(folder: &Path, pid: u32) -> Result<bool> {
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let text = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        if text.lines().any(|line| line == pid.to_string()) || has_member(&entry.path(), pid)? {
            return Ok(true);
        }
    }
    Ok(false)
}
