//! How an agent comes to its keeper: the one that runs already, or a new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use muster_common::wire::facts::enforced_from_proto;
use muster_core::{
    id::Token,
    record::Enforced,
    time::{Mono, Timestamp},
};
use tokio::{
    net::UnixStream,
    process::Child,
    time::{Instant, sleep, timeout},
};
use tracing::info;

use super::{
    Setup,
    line::Line,
    message::{Down, Event, Heard, Hello, Left, Up, VERSIONS, Welcome},
    scope,
};
use crate::{
    exec::{Alive, Leftover, Order, Swept, guard::Program},
    link::down,
};

/// A keeper that is not there by then will not be. It sweeps what an earlier one left, which may take ten seconds.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks for the socket of one that starts.
const LOOK: Duration = Duration::from_millis(5);
/// So often it is tried to start one apart from us, where that is better; then it must live here.
const APART: u32 = 20;

/// Variables that are for the agent alone: what it proves itself with, and where it tells how it goes.
const OWN: [&str; 5] = ["MUSTER_TOKEN", "MUSTER_JOIN", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// How an agent finds or starts its keeper.
#[derive(Clone, Debug)]
pub struct Config {
    /// What becomes one.
    pub program: Program,
    /// What it works with.
    pub setup: Setup,
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be started, or spoken with.
    #[error("failed to reach the keeper of {folder}", folder = .folder.display())]
    Io {
        /// The data folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It started and was not there in time, or ended at once.
    #[error("the keeper `{program}` is not there: {why}; its own words are on the agent's standard error")]
    Absent {
        /// What was started.
        program: String,
        /// What went wrong.
        why: String,
    },
    /// It cannot hold attempts to their limits, as its settings demand.
    #[error("{0}")]
    Limits(String),
    /// It is too old or too new.
    #[error("the keeper that runs speaks none of the versions {oldest} to {newest}; stop it when its tasks have ended")]
    Version {
        /// The oldest of ours.
        oldest: u32,
        /// The newest of ours.
        newest: u32,
    },
}

/// A keeper that answered.
pub struct Joined {
    pub(super) config: Config,
    pub(super) line: Line,
    /// If it is our child.
    pub(super) child: Option<Child>,
    pub(super) instance: String,
    /// The same for all that go on with one another's work.
    pub(super) cookie: String,
    /// Whether it is another program than we would start.
    pub(super) is_other: bool,
    pub(super) words: Vec<Heard>,
    /// What outlived the agent that started it.
    pub alive: Vec<Alive>,
    /// What became of the leftovers that did not.
    pub swept: BTreeMap<Token, Swept>,
    /// When leases were last renewed, and for how long that holds.
    pub renewed: Option<(Mono, Duration)>,
    /// What attempts are held to, and what not and why.
    pub enforced: Vec<Enforced>,
    /// Whose output files are being written.
    pub writing: BTreeSet<Token>,
}

/// Connects to the keeper that runs, or starts one. `leftovers` are attempts that are not over as far as we know.
///
/// # Errors
/// See [`Error`].
pub async fn join(config: Config, leftovers: &[Leftover]) -> Result<Joined, Error> {
    let failed = |source| Error::Io { folder: config.setup.data.clone(), source };
    let absent = |why: String| Error::Absent { program: config.program.exe.display().to_string(), why };
    let deadline = Instant::now() + JOIN_LIMIT;
    let (mut child, mut starts): (Option<Child>, u32) = (None, 0);
    loop {
        match connect(&config).await {
            Ok(mut line) => match timeout(JOIN_LIMIT, greet(&mut line, leftovers)).await {
                Ok(Ok(up)) => return joined(config, line, child, up),
                // It ended just then; or it is one that waits no longer.
                Ok(Err(error)) if is_gone(&error) => {}
                Ok(Err(error)) => return Err(failed(error)),
                Err(_) => return Err(absent("it does not answer".into())),
            },
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        if Instant::now() >= deadline {
            return Err(absent(format!("it was not ready within {} s", JOIN_LIMIT.as_secs())));
        }
        let has_ended = match &mut child {
            // Another one may have the lock for a moment still: then ours has ended, and the next one is tried.
            Some(running) => running.try_wait().map_err(failed)?.is_some(),
            None => true,
        };
        // Only a safe starts another keeper when one died, and whoever has the lock will answer.
        if has_ended && !is_held(&config.setup.lock()) {
            if child.is_some() {
                sleep(LOOK * 20).await;
            }
            let started = start(&config, starts < APART);
            let started = if started.is_err() { start(&config, false) } else { started };
            child = Some(started.map_err(|error| absent(error.to_string()))?);
            starts += 1;
        }
        sleep(LOOK).await;
    }
}

/// Whether anybody works with the folder.
fn is_held(lock: &Path) -> bool {
    let file = File::open(lock);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | UnexpectedEof | BrokenPipe)
}

async fn connect(config: &Config) -> io::Result<Line> {
    let path = config.setup.socket();
    let stream = super::at_short_path(&path, |path| {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    })?;
    let line = Line::new(stream);
    super::check_peer(&line)?;
    Ok(line)
}

fn start(config: &Config, is_apart: bool) -> io::Result<Child> {
    let mut command = scope::command(&config.program, is_apart);
    command.args(config.setup.args());
    for name in OWN {
        command.env_remove(name);
    }
    // Not where we are: that folder may be taken away while it runs.
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn()
}

async fn greet(line: &mut Line, leftovers: &[Leftover]) -> io::Result<Up> {
    let leftovers = leftovers.iter().map(Left::new).collect();
    let hello = Hello { newest: VERSIONS.0, oldest: VERSIONS.1, leftovers };
    line.put(&Down { hello: Some(hello), ..Down::default() });
    line.send()?;
    loop {
        let holds = line.moves().await?;
        if let Some(up) = line.take::<Up>()? {
            return Ok(up);
        }
        if !holds {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

impl Joined {
    /// Whose output files are still written, or may begin to be at any moment: all whose end was not told.
    pub(crate) fn written(&self) -> BTreeSet<Token> {
        let over = |heard: &Heard| match &heard.event {
            Some(Event::Ended(ended)) => ended.report.as_ref().map(|report| Token(report.token)),
            _ => None,
        };
        let over: BTreeSet<Token> = self.words.iter().filter_map(over).collect();
        let alive = self.alive.iter().map(|alive| alive.order.token).filter(|token| !over.contains(token));
        alive.chain(self.writing.iter().copied()).collect()
    }
}

fn joined(config: Config, line: Line, child: Option<Child>, up: Up) -> Result<Joined, Error> {
    let Welcome { version, instance, setup, orders, running, swept, hold, writing, limits, refused, enforced, cookie } =
        up.welcome.unwrap_or_default();
    if !refused.is_empty() {
        return Err(Error::Limits(refused));
    }
    if !(VERSIONS.1..=VERSIONS.0).contains(&version) {
        return Err(Error::Version { oldest: VERSIONS.1, newest: VERSIONS.0 });
    }
    let mut swept: BTreeMap<_, _> = swept.iter().map(|found| (Token(found.token), found.swept())).collect();
    let mut readable = Vec::new();
    for order in down::orders(orders.unwrap_or_default()) {
        match order {
            Ok(order) => readable.push(order),
            Err(order) => {
                tracing::warn!(token = %order.token, why = %order.why, "the keeper has an order that we cannot read");
                // It keeps its room, and the keeper tells of its end.
                swept.insert(order.token, Swept::Survives);
            }
        }
    }
    let mut processes: BTreeMap<Token, _> = running
        .into_iter()
        .filter_map(|started| Some((Token(started.token), (Timestamp(started.at_us), started.process?.identity()))))
        .collect();
    let alive = |order: Arc<Order>| Alive { process: processes.remove(&order.token), order };
    let alive: Vec<Alive> = readable.into_iter().map(alive).collect();
    let is_other = setup != config.setup.fingerprint(&config.program.exe);
    if is_other && !alive.is_empty() {
        tracing::warn!(
            attempts = alive.len(),
            "what runs has a keeper of another program or with other settings, which count for new tasks, too, until nothing runs"
        );
    }
    info!(orders = alive.len(), started = child.is_some(), is_other, limits, "the keeper answers");
    Ok(Joined {
        is_other,
        config,
        line,
        child,
        instance,
        cookie,
        words: up.words,
        alive,
        swept,
        renewed: hold.and_then(|hold| hold.hold()),
        writing: writing.into_iter().map(Token).collect(),
        enforced: enforced.into_iter().map(enforced_from_proto).collect(),
    })
}
