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
    message::{Down, Event, Heard, Hello, Hold, Left, Up, VERSIONS, Welcome},
    scope,
};
use crate::{
    exec::{Alive, Leftover, Order, Swept, guard::Program},
    link::down,
    supervisor::Unusable,
};

/// A keeper that is not there by then will not be. It sweeps what an earlier one left, which may take ten seconds.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks for the socket of one that starts.
const LOOK: Duration = Duration::from_millis(5);
/// So often it is tried to start one apart from us, where that is better; then it must live here.
const APART: u32 = 20;

/// Variables that are for the agent alone: what it proves itself with, and where it tells how it goes.
pub(super) const OWN: [&str; 5] = ["MUSTER_TOKEN", "MUSTER_JOIN", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

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
    /// What nobody here can watch over, since its order cannot be read.
    pub(super) unreadable: Vec<Token>,
    /// What became of the leftovers that did not.
    pub swept: BTreeMap<Token, Swept>,
    /// When leases were last renewed, and for how long that holds.
    pub renewed: Option<(Mono, Duration)>,
    /// What attempts are held to, and what not and why.
    pub enforced: Vec<Enforced>,
    /// Whose output files are being written.
    pub writing: BTreeSet<Token>,
}

/// What an agent knows that comes to a keeper.
#[derive(Clone, Copy)]
pub struct Had<'a> {
    /// Attempts that are not over as far as it knows.
    pub leftovers: &'a [Leftover],
    /// When leases were last renewed, and for how long that holds, if it has renewed them. Asked when there is somebody to be
    /// told, which may take a while.
    pub hold: &'a (dyn Fn() -> Option<(Mono, Duration)> + Sync),
}

/// All that a keeper said first.
#[derive(Default)]
struct Greeting {
    welcome: Welcome,
    orders: Vec<Result<Arc<Order>, Unusable>>,
    words: Vec<Heard>,
}

/// Connects to the keeper that runs, or starts one.
///
/// # Errors
/// See [`Error`].
pub async fn join(config: Config, had: Had<'_>) -> Result<Joined, Error> {
    let failed = |source| Error::Io { folder: config.setup.data.clone(), source };
    let absent = |why: String| Error::Absent { program: config.program.exe.display().to_string(), why };
    let deadline = Instant::now() + JOIN_LIMIT;
    let (mut child, mut starts): (Option<Child>, u32) = (None, 0);
    loop {
        match connect(&config).await {
            Ok(mut line) => match timeout(JOIN_LIMIT, greet(&mut line, had)).await {
                Ok(Ok(greeting)) => return joined(config, line, child, greeting),
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

/// Says who we are, and hears all of the welcome.
async fn greet(line: &mut Line, had: Had<'_>) -> io::Result<Greeting> {
    let leftovers = had.leftovers.iter().map(Left::new).collect();
    let hold = (had.hold)().map(|hold| Hold::new(Some(hold)));
    let hello = Hello { newest: VERSIONS.0, oldest: VERSIONS.1, leftovers, hold };
    line.put(&Down { hello: Some(hello), ..Down::default() });
    line.send()?;
    let mut greeting = Greeting::default();
    loop {
        let holds = line.moves().await?;
        while let Some(Up { welcome, words }) = line.take::<Up>()? {
            let welcome = welcome.unwrap_or_default();
            greeting.words.extend(words);
            greeting.orders.extend(welcome.orders.map(down::orders).into_iter().flatten());
            if !welcome.more {
                return Ok(Greeting { welcome: Welcome { orders: None, ..welcome }, ..greeting });
            }
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

fn joined(config: Config, line: Line, child: Option<Child>, said: Greeting) -> Result<Joined, Error> {
    let Welcome { version, instance, setup, running, swept, hold, writing, limits, refused, enforced, cookie, .. } =
        said.welcome;
    if !refused.is_empty() {
        return Err(Error::Limits(refused));
    }
    if !(VERSIONS.1..=VERSIONS.0).contains(&version) {
        return Err(Error::Version { oldest: VERSIONS.1, newest: VERSIONS.0 });
    }
    let mut swept: BTreeMap<_, _> = swept.iter().map(|found| (Token(found.token), found.swept())).collect();
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for order in said.orders {
        match order {
            Ok(order) => readable.push(order),
            Err(order) => {
                let Unusable { token, task, why } = &order;
                tracing::warn!(job = %task.job, %task, %token, %why, "the keeper has an order that we cannot read");
                // It keeps its room until the keeper, which is told to end it, tells of its end.
                swept.insert(order.token, Swept::Survives);
                unreadable.push(order.token);
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
        words: said.words,
        alive,
        unreadable,
        swept,
        renewed: hold.and_then(|hold| hold.hold()),
        writing: writing.into_iter().map(Token).collect(),
        enforced: enforced.into_iter().map(enforced_from_proto).collect(),
    })
}

#[cfg(test)]
mod tests {
    use muster_common::proto::v1;

    use super::*;
    use crate::link::kit::soon;

    #[tokio::test]
    async fn a_welcome_that_comes_in_parts_is_heard_as_one() {
        let (ours, theirs) = UnixStream::pair().expect("two ends");
        let (mut ours, mut theirs) = (Line::new(ours), Line::new(theirs));
        let leases = |tokens: std::ops::Range<u64>| v1::Leases {
            leases: tokens.map(|token| v1::Lease { token, ..Default::default() }).collect(),
            specs: vec![v1::LeaseSpec::default()],
            term: 0,
        };
        let ended = |token| Heard { event: Some(Event::Withdrawn(token)) };
        let part = |orders, more| Welcome { orders: Some(orders), more, version: 3, ..Welcome::default() };
        for up in [
            Up { welcome: Some(part(leases(1..3), true)), words: Vec::new() },
            Up { welcome: Some(part(leases(3..4), true)), words: vec![ended(8)] },
            Up { welcome: Some(part(leases(4..6), false)), words: vec![ended(9)] },
            Up { welcome: None, words: vec![ended(10)] },
        ] {
            theirs.put(&up);
        }
        theirs.send().expect("there is room");
        let hold = Some((Mono(5), Duration::from_secs(15)));
        let said =
            soon("the welcome", greet(&mut ours, Had { leftovers: &[], hold: &|| hold })).await.expect("it is whole");
        let token = |order: &Result<Arc<Order>, Unusable>| match order {
            Ok(order) => order.token.0,
            Err(unusable) => unusable.token.0,
        };
        assert_eq!(said.orders.iter().map(token).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(said.words, [ended(8), ended(9)]);
        assert_eq!((said.welcome.version, said.welcome.more), (3, false));
        let later = ours.take::<Up>().expect("it is whole").expect("it came");
        assert_eq!(later.words, [ended(10)], "what follows is none of it");
        soon("our words", theirs.moves()).await.expect("they came");
        let hello = theirs.take::<Down>().expect("whole").and_then(|down| down.hello).expect("a hello");
        assert_eq!(hello.hold.and_then(|told| told.hold()), hold);
    }
}
