//! The process that owns what runs, so that the agent may restart, crash or be upgraded and nothing of it is lost.
//!
//! It starts, feeds, watches and ends processes and writes their output; it knows no network. One agent at a time speaks
//! with it over a socket in the data folder. It never decides what is run, and never ends before its work does.

mod book;
mod client;
mod deliver;
mod desk;
mod draft;
mod heir;
mod join;
mod line;
pub(crate) mod message;
pub(crate) mod orders;
mod pump;
mod rejoin;
mod scope;
mod serve;

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use clap::Parser;
use muster_common::{clock::Clock, telemetry, tls};
use nix::unistd::Uid;

use self::heir::Heir;
pub use self::{
    client::{Client, Wire},
    join::{Config, Error, Had, Joined, join},
};
use crate::{
    cgroup::Enforce,
    containers::Engine,
    exec::{self, Exec, guard::Program, os},
    logs::{self, Spools},
};

/// A path to a socket that is longer is refused by the system; the shorter way through an open folder is taken then.
const PATH_MAX: usize = 100;

/// What a keeper works with. An agent that wants something else replaces it as soon as nothing runs.
#[derive(Clone, Debug, Parser)]
#[command(name = "muster-agent keeper", version)]
pub struct Setup {
    /// The agent's own folder
    #[arg(long)]
    pub data: PathBuf,
    /// What the agent is called
    #[arg(long)]
    pub name: String,
    /// Bytes of output kept for one attempt whose task says nothing
    #[arg(long)]
    pub log_limit: u64,
    /// Bytes of output of all attempts together that the controller does not have yet
    #[arg(long)]
    pub log_quota: u64,
    /// Bytes of output kept for one attempt in a second whose task says nothing
    #[arg(long)]
    pub log_rate: Option<u64>,
    /// The most that a task gets of that
    #[arg(long)]
    pub log_rate_max: Option<u64>,
    /// Bytes that may lie in the scratch folder of a task that does not say
    #[arg(long)]
    pub scratch_size: Option<u64>,
    /// Whether attempts must be held to their limits
    #[arg(long)]
    pub limits: Enforce,
    /// Whom tasks run as that name nobody
    #[arg(long)]
    pub user: Option<String>,
    /// Whom tasks may name besides, with commas between them
    #[arg(long)]
    pub users: Option<String>,
    /// Variables of the agent's environment that tasks get, with commas between them
    #[arg(long, default_value = "")]
    pub pass_env: String,
    /// What becomes the guard
    #[arg(long)]
    pub guard: String,
    /// The number of the agent's data folder, by which its containers are known
    #[arg(long)]
    pub owner: String,
    /// What runs containers, and what is allowed of them, as JSON; nothing runs any without it
    #[arg(long)]
    pub containers: Option<String>,
}

impl Setup {
    fn args(&self) -> Vec<OsString> {
        let pairs: [(&str, OsString); 7] = [
            ("--owner", self.owner.clone().into()),
            ("--name", self.name.clone().into()),
            ("--log-limit", self.log_limit.to_string().into()),
            ("--log-quota", self.log_quota.to_string().into()),
            ("--limits", self.limits.to_string().into()),
            ("--pass-env", self.pass_env.clone().into()),
            ("--guard", self.guard.clone().into()),
        ];
        let who = [("--user", &self.user), ("--users", &self.users), ("--containers", &self.containers)];
        let who = who.into_iter().filter_map(|(flag, value)| Some((flag, OsString::from(value.as_ref()?))));
        let sizes = [
            ("--log-rate", self.log_rate),
            ("--log-rate-max", self.log_rate_max),
            ("--scratch-size", self.scratch_size),
        ];
        let sizes = sizes.into_iter().filter_map(|(flag, size)| Some((flag, size?.to_string().into())));
        // In one word: a value may begin as a flag does.
        let word = |(flag, value): (&str, OsString)| {
            let mut word = OsString::from(flag);
            word.push("=");
            word.push(value);
            word
        };
        let data = ["--data".into(), self.data.clone().into_os_string()];
        data.into_iter().chain(pairs.into_iter().chain(who).chain(sizes).map(word)).collect()
    }

    /// As whom tasks run.
    fn rules(&self) -> exec::Rules {
        let names = |text: &String| text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let users = self.users.as_ref().map(names);
        let (user, pass_env) = (self.user.clone(), names(&self.pass_env));
        exec::Rules { user, users, pass_env, scratch_size: self.scratch_size }
    }

    /// What tells one program with its settings from another: the program's own file counts, for that is what an upgrade
    /// replaces, and so do the values that tasks have of our environment.
    fn fingerprint(&self, program: &Path) -> String {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(program).map(|file| (file.len(), file.mtime(), file.mtime_nsec()));
        let Self { name, log_limit, log_quota, log_rate, log_rate_max, limits, containers, .. } = self;
        let rates = (log_rate, log_rate_max);
        let (version, rules) = (env!("CARGO_PKG_VERSION"), self.rules());
        let environment = hashed(&self.owner, &self.environment());
        format!(
            "{version} {:?} {name} {log_limit} {log_quota} {rates:?} {limits} {rules:?} {containers:?} {environment}",
            file.ok()
        )
    }

    /// What tasks and the engine have of this process's environment.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        // Who cannot read what runs containers ends by that.
        let engine = engine_of(self).ok().flatten();
        let engine = engine.map(|engine| engine.environment().to_vec()).unwrap_or_default();
        // What is for the agent alone no keeper has.
        let passed = self.rules().pass_env.into_iter().filter(|name| !join::OWN.contains(&name.as_str()));
        let passed = passed.filter_map(|name| std::env::var_os(&name).map(|value| (name.into(), value)));
        os::base_environment(None).into_iter().chain(engine).chain(passed).collect()
    }

    fn socket(&self) -> PathBuf {
        self.data.join("run").join("keeper.sock")
    }

    fn lock(&self) -> PathBuf {
        self.data.join("run").join("keeper.lock")
    }
}

/// The whole life of the keeper process; `args` are those behind the word that makes a program one. Its standard input is
/// the line to the safe that started it.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let setup = Setup::parse_from([OsString::from("keeper")].into_iter().chain(args));
    match run(setup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-agent keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(setup: Setup) -> anyhow::Result<()> {
    os::ignore_signals().context("cannot be deaf to signals that are meant for others")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let telemetry = telemetry::init(telemetry::Options::daemon("muster-agent"))?;
        let worked = keep(setup).await;
        telemetry.shutdown().await;
        worked
    })
}

async fn keep(setup: Setup) -> anyhow::Result<()> {
    let heir = Heir::begin().context("a keeper is started by its safe, which an agent starts")?;
    let clock = clock();
    let logs = logs::Config {
        data_dir: setup.data.clone(),
        attempt_limit: setup.log_limit,
        total_limit: setup.log_quota,
        rate: setup.log_rate,
        rate_max: setup.log_rate_max,
    };
    let spools = Spools::to_write(&logs).context("cannot use the output spool")?;
    let deliveries = Arc::new(deliver::Deliveries::default());
    let links = exec::Links {
        inputs: Arc::new(deliver::Fetched),
        results: Arc::<deliver::Deliveries>::clone(&deliveries),
        spools: spools.clone(),
    };
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    let fingerprint = setup.fingerprint(&exe);
    // By the way to what runs, as the safe starts us: after an upgrade its name is another program's, or nobody's.
    let guard = Program { exe: "/proc/self/exe".into(), args: vec![setup.guard.clone().into()] };
    let engine = engine_of(&setup)?;
    let config = exec::Config {
        containers: engine.clone(),
        data_dir: setup.data.clone(),
        agent: setup.name.as_str().into(),
        clock,
        path: None,
        enforce: setup.limits,
        rules: setup.rules(),
        guard: Some(guard),
        estate: Some(heir.estate.clone()),
    };
    let socket = setup.socket();
    let listen = || serve::listen(&socket).with_context(|| format!("cannot listen at {}", socket.display()));
    // Groups of a keeper that died are ended here, but for those of its heir: nothing else lives yet that could be in one.
    let (exec, events) = match Exec::new(config, links).await {
        Ok(both) => both,
        // The agent is the one to say so, for a person looks there.
        Err(exec::Error::Limits(why)) => return Ok(serve::refuse(listen()?, &socket, &why.to_string()).await?),
        Err(error) => return Err(error.into()),
    };
    let desk = desk::Desk::new(clock, exec, spools.clone(), Arc::clone(&deliveries), fingerprint);
    let safe = heir.estate.safe.clone();
    let desk = heir.take_up(desk);
    if let Some(engine) = engine {
        engine.remove_leftovers(desk.exec().is_live());
    }
    let listener = listen()?;
    safe.ready();
    tracing::info!(data = %setup.data.display(), "the keeper is there");
    serve::serve(desk, listener, serve::Ears { clock, socket, events, spools, deliveries }).await?;
    tracing::info!("the keeper has ended");
    Ok(())
}

/// A proxy's address may have a password in it, so values are told to nobody; nor can they be guessed by who does not know
/// the number of the data folder.
fn hashed(owner: &str, variables: &[(OsString, OsString)]) -> String {
    tls::hash(format!("{owner} {variables:?}").as_bytes())
}

/// What runs containers.
fn engine_of(setup: &Setup) -> anyhow::Result<Option<Arc<Engine>>> {
    let engine = setup.containers.as_ref().map(|text| Engine::of_text(text, &setup.owner));
    engine.transpose().context("cannot read what runs containers")
}

/// A clock that agent and keeper share: what the one says in it, the other understands.
pub(crate) fn clock() -> Clock {
    Clock::system_at(os::running_for())
}

/// Does something with a socket's path, or with a short one that leads there.
fn at_short_path<T>(path: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return work(path) };
    if path.as_os_str().len() <= PATH_MAX {
        return work(path);
    }
    let folder = File::open(folder)?;
    work(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

/// Only our own user may be at the other end.
fn check_peer(line: &line::Line) -> io::Result<()> {
    let (peer, own) = (line.peer()?, Uid::effective().as_raw());
    if peer == own || peer == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {peer} is not {own}, whose work this is")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_of_a_variable_is_another_setting_and_is_told_to_nobody() {
        let with = |owner: &str, value: &str| hashed(owner, &[("HTTP_PROXY".into(), value.into())]);
        let one = with("folder", "http://me:secret@proxy");
        assert_eq!(one, with("folder", "http://me:secret@proxy"));
        assert!(one != with("folder", "http://proxy") && one != with("other", "http://me:secret@proxy"));
        assert!(!one.contains("secret") && !one.contains("PROXY"), "{one}");
    }
}
