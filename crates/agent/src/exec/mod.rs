//! Owns every process that the agent starts: starts, feeds, watches and ends it, and says so only when it is dead.

#[cfg(unix)]
mod adopt;
mod attempt;
pub mod beside;
mod confined;
mod contained;
mod control;
#[cfg(unix)]
pub(crate) mod deposit;
#[cfg(windows)]
#[path = "deposit_absent.rs"]
mod deposit;
mod ending;
mod env;
mod estate;
pub mod guard;
mod launch;
mod offers;
mod order;
pub(crate) mod os;
mod outcome;
mod pipes;
mod pool;
mod quota;
mod room;
mod rules;
mod scratch;
mod start;
mod sweep;
mod transfer;
mod verdict;

pub use estate::Estate;
pub use order::{Alive, ExecEvent, KillReason, Leftover, Order, ProcessIdentity, Swept};
#[cfg(unix)]
pub(crate) use os::kill_members;
pub use rules::Rules;
pub(crate) use sweep::gpus_of_survivors;
#[cfg(unix)]
pub(crate) use transfer::fetch_inputs;
pub use transfer::{Inputs, Results, TransferError};

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::{id::Token, record::Enforced, spec::Command, time::Mono};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::{pool::Pool, room::Room, scratch::Scratch};
use crate::{
    cgroup::{self, Enforce, Groups},
    containers::{Engine, Folders, Kind},
};

/// Events that may wait for the supervisor; then attempts wait to tell theirs.
const EVENTS: usize = 4096;
/// Threads for waiting and copying. Apart from the agent's own, so that a slow disk delays no heartbeat.
const WATCHERS: usize = 2;
/// For the threads to leave their cgroups when the agent stops.
const CGROUPS_LIMIT: Duration = Duration::from_secs(2);
/// For the last attempts to end when the agent stops; they were told before.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How `exec` works on this machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's folder; `run/` in it is ours.
    pub data_dir: PathBuf,
    /// The agent's name, for `MUSTER_AGENT`.
    pub agent: Arc<str>,
    /// The clock of the program.
    pub clock: Clock,
    /// The `PATH` of tasks that set none; none: the system's usual folders.
    pub path: Option<std::ffi::OsString>,
    /// Whether attempts must be held to their limits.
    pub enforce: Enforce,
    /// As whom tasks run, and what they see of our environment.
    pub rules: Rules,
    /// What runs containers; none: nothing does.
    pub containers: Option<Arc<Engine>>,
    /// How to start the guard: a program that becomes [`guard::main`]; none: no guard (tests only).
    pub guard: Option<guard::Program>,
    /// What outlives us, and what was left to us; then the guard is only for when that is dead.
    pub estate: Option<Estate>,
}

/// What `exec` needs from other rooms.
#[derive(Clone)]
pub struct Links {
    /// For `MUSTER_INPUTS`.
    pub inputs: Arc<dyn Inputs>,
    /// For results past 64 KiB.
    pub results: Arc<dyn Results>,
    /// Where output goes.
    pub spools: crate::logs::Spools,
}

/// Why `exec` cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file of ours cannot be used.
    #[error("failed to prepare {path}; the agent needs to write there", path = .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Limits cannot be enforced as demanded.
    #[error(transparent)]
    Limits(#[from] cgroup::Error),
    /// The machine gives us no threads.
    #[error("failed to start the threads that watch processes")]
    Threads(#[source] io::Error),
    /// The guard did not start.
    #[error("failed to start the guard process `{program}`: {why}")]
    Guard {
        /// What was started.
        program: String,
        /// What went wrong.
        why: String,
    },
}

/// The handle; cheap to clone. The threads end with [`Exec::stop`], or with the last handle.
#[derive(Clone)]
pub struct Exec {
    room: Arc<Room>,
    instances: Arc<Instances>,
    threads: Arc<Threads>,
}

/// The cookies of this run of the agent and of those before it that may have left something.
struct Instances {
    file: PathBuf,
    own: Arc<str>,
    earlier: Mutex<Vec<Arc<str>>>,
    /// Of an earlier keeper with the same cookie something was left that could not be ended.
    has_strays: AtomicBool,
}

struct Threads {
    pool: Arc<Pool<(Arc<Order>, Arc<control::Control>)>>,
    runtime: Mutex<Option<Runtime>>,
    stop: CancellationToken,
    /// The task that keeps the guard alive; it ends within a limit of its own.
    guard: TaskTracker,
    /// What the guard is told: until when attempts may live if nothing more is heard of us.
    lease_ends: watch::Sender<Option<Mono>>,
    groups: Groups,
}

impl Exec {
    /// Prepares the folders and starts the guard and the threads. Events wait for room in the channel.
    pub async fn new(config: Config, links: Links) -> Result<(Self, mpsc::Receiver<ExecEvent>), Error> {
        os::prepare_self();
        let run = config.data_dir.join("run");
        let files = run.join("files");
        let broken = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Folder { path, source }
        };
        let scratch = take_folders(&config, &run, &files)?;
        if let Some(missing) = os::missing_rights() {
            info!(missing, "what tasks cannot ask for here");
        }
        let instances = Instances::begin(run.join("instances"), config.estate.as_ref()).map_err(broken(&run))?;
        // Before there is a runtime, which must not be dropped here.
        let kept = Estate::slots_of(config.estate.as_ref());
        let is_shared = config.containers.as_ref().is_some_and(|engine| engine.kind() == Kind::Docker);
        let groups = Groups::open(config.enforce, &instances.own, &run, &kept, is_shared)?;
        info!(limits = groups.report(), "what attempts are held to");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WATCHERS)
            .max_blocking_threads(8)
            .thread_name("muster-exec")
            .enable_all()
            .build()
            .map_err(Error::Threads)?;
        let threads = Threads {
            pool: Arc::new(Pool::new()),
            runtime: Mutex::default(),
            stop: CancellationToken::new(),
            guard: TaskTracker::new(),
            lease_ends: watch::Sender::new(None),
            groups: groups.clone(),
        };
        let live = Arc::new(room::Live::default());
        let is_live = {
            let live = Arc::clone(&live);
            Arc::new(move |token| live.contains(token))
        };
        let (events, inbox) = mpsc::channel(EVENTS);
        let room = Arc::new(Room {
            clock: config.clock,
            base: env::Base::new(
                config.path.as_deref(),
                &config.rules.pass_env,
                config.agent,
                Arc::clone(&instances.own),
            ),
            rules: config.rules,
            links,
            scratch: Arc::new(scratch),
            files,
            events,
            live,
            offers: offers::Offers::default(),
            hunter: os::Hunter::start(config.clock, Arc::clone(&instances.own), is_live).map_err(Error::Threads)?,
            groups,
            containers: config.containers,
            estate: config.estate,
            pool: Arc::clone(&threads.pool),
            runtime: runtime.handle().clone(),
            tracker: TaskTracker::new(),
        });
        *threads.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        let exec = Self { room, instances: Arc::new(instances), threads: Arc::new(threads) };
        exec.begin(config.guard).await?;
        Ok((exec, inbox))
    }

    /// What attempts are held to here, and what not and why.
    pub fn enforced(&self) -> Vec<Enforced> {
        self.threads.groups.enforced()
    }

    async fn begin(&self, guard: Option<guard::Program>) -> Result<(), Error> {
        if let Some(program) = guard.filter(|_| cfg!(unix)) {
            let (own, stop) = (Arc::clone(&self.instances.own), self.threads.stop.clone());
            let watched = guard::Watched {
                program,
                instance: own,
                clock: self.room.clock,
                lease_ends: self.threads.lease_ends.subscribe(),
            };
            self.have_guarded(watched, stop).await?;
        }
        let room = Arc::downgrade(&self.room);
        let work = move |(order, control)| {
            let mut next = Some((order, control));
            while let Some((order, control)) = next {
                next = room.upgrade().and_then(|room| room.launch(order, control));
            }
        };
        self.threads.pool.start(starters(), work).map_err(Error::Threads)
    }

    /// By the safe, as long as there is one; else by a process of its own.
    async fn have_guarded(&self, watched: guard::Watched, stop: CancellationToken) -> Result<(), Error> {
        #[cfg(unix)]
        if let Some(estate) = &self.room.estate {
            let safe = estate.safe.clone();
            // Not on our own threads, which may wait for a disk: leases that are renewed must be told whatever that does.
            self.threads.guard.spawn(guard::keep_by_safe(safe, watched, stop));
            return Ok(());
        }
        let (first, cookie) = (watched.program.clone(), Arc::clone(&watched.instance));
        // On our own threads: the runtime that starts a child is the one that may wait for it.
        let started = self.room.runtime.spawn(async move { guard::start(&first, &cookie).await }).await;
        let guard = started.map_err(|error| Error::Threads(io::Error::other(error)))??;
        self.threads.guard.spawn_on(guard::keep(guard, watched, stop), &self.room.runtime);
        Ok(())
    }

    /// This machine has these GPUs now; `kept` are those of attempts that go on from an earlier instance.
    pub fn offer_gpus(&self, all: &[u32], kept: impl IntoIterator<Item = (Token, Vec<u32>)>) {
        let mut gpus = self.room.base.gpus.lock();
        gpus.set(all.iter().copied());
        kept.into_iter().for_each(|(token, given)| gpus.keep(token, given));
    }

    /// Tells which attempts are not over; when nobody can tell any more, none is taken for over.
    pub(crate) fn is_live(&self) -> impl Fn(Token) -> bool + Send + Sync + use<> {
        let room = Arc::downgrade(&self.room);
        move |token| room.upgrade().is_none_or(|room| room.live.contains(token))
    }

    /// These are those of attempts that go on from an earlier instance.
    #[cfg(unix)]
    pub(crate) fn keep_gpus(&self, kept: impl IntoIterator<Item = (Token, Vec<u32>)>) {
        let mut gpus = self.room.base.gpus.lock();
        kept.into_iter().for_each(|(token, given)| gpus.keep(token, given));
    }

    /// Runs one attempt. Never blocks; a start that fails is an [`ExecEvent::Ended`] too. An order
    /// whose token is live already is ignored.
    pub fn start(&self, order: Arc<Order>) {
        let Some(control) = self.room.live.add(order.token) else {
            warn!(token = %order.token, "an order came twice; it runs once");
            return;
        };
        let room = Arc::clone(&self.room);
        if order.spec.command == Command::Empty {
            self.room.track(async move { room.acknowledge(&order).await });
        } else if order.has_inputs {
            self.room.track(room.fetch_then_start(order, control));
        } else {
            room.enqueue(order, control);
        }
    }

    /// Ends one attempt: SIGTERM, `grace`, SIGKILL, verified. Without effect when it is over or
    /// unknown. May be said again: the first reason and the shortest grace count.
    pub fn kill(&self, token: Token, reason: KillReason, grace: Duration) {
        if let Some(control) = self.room.live.get(token) {
            control.kill(reason, self.room.clock.mono().after(grace));
        }
    }

    /// Whether everybody in an attempt is dead or was sent SIGKILL, of which its [`ExecEvent::Ended`] may tell much later.
    #[cfg(unix)]
    pub(crate) fn is_struck(&self, token: Token) -> bool {
        self.room.live.get(token).is_none_or(|control| control.is_struck())
    }

    /// Lets `order` begin, until `until`, in the place of the next attempt that ends and asked for the same: without
    /// being told, and before the events of that end are read. It has no inputs to fetch.
    pub fn offer(&self, order: Arc<Order>, until: Mono) {
        self.room.offers.add(order, until);
    }

    /// Starts an offered order now, as [`Exec::start`] does, unless it was begun.
    pub fn claim(&self, token: Token) {
        if let Some(order) = self.room.offers.take(token) {
            self.start(order);
        }
    }

    /// Takes an offer back; [`ExecEvent::Withdrawn`] says so, unless it was begun.
    pub fn withdraw(&self, token: Token) {
        if self.room.offers.take(token).is_some() {
            self.room.tell_at_once(ExecEvent::Withdrawn { token });
        }
    }

    /// Takes all offers back, without a word: whoever made them is gone. Those that are not named were begun.
    pub fn drop_offers(&self) -> Vec<Token> {
        self.room.offers.take_all()
    }

    /// The mark that all our processes carry.
    pub fn instance(&self) -> &str {
        &self.instances.own
    }

    /// What attempts are held to here, and what not and why.
    #[cfg(unix)]
    pub(crate) fn limits(&self) -> String {
        self.threads.groups.report()
    }

    /// A1: what runs may go on until then without another word from us; none: without end. Past it the guard ends all
    /// that we started, since we are frozen. Cheap when nothing changed.
    pub fn hold_until(&self, ends: Option<Mono>) {
        self.threads.lease_ends.send_if_modified(|told| std::mem::replace(told, ends) != ends);
    }

    /// Ends the threads and the guard. The supervisor has killed what ran; this waits for the last of it.
    pub async fn stop(&self) {
        self.threads.pool.close();
        self.room.tracker.close();
        if tokio::time::timeout(STOP_LIMIT, self.room.tracker.wait()).await.is_err() {
            warn!("some attempts did not end; the guard will kill what they left");
        }
        if self.room.estate.is_some() {
            // The safe does it, too, but only when we are gone.
            self.room.hunter.hunt_instances(vec![Arc::clone(&self.instances.own)], guard::SWEEP_LIMIT).await;
        }
        // The guard last: it kills whatever there still is.
        self.threads.stop.cancel();
        self.threads.guard.close();
        self.threads.guard.wait().await;
        self.threads.end();
        let groups = self.threads.groups.clone();
        let _done = tokio::task::spawn_blocking(move || groups.close(CGROUPS_LIMIT)).await;
    }
}

impl Threads {
    fn end(&self) {
        self.pool.close();
        self.stop.cancel();
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
        // Nothing is left of them after a stop; else the threads are about to leave.
        self.groups.close(CGROUPS_LIMIT / 2);
    }
}

impl Instances {
    /// Notes a new cookie, or that of our estate, beside those that are not swept yet, before anything is started under it.
    fn begin(file: PathBuf, estate: Option<&Estate>) -> io::Result<Self> {
        let own: Arc<str> = match estate {
            Some(estate) => Arc::clone(&estate.cookie),
            None => uuid::Uuid::new_v4().simple().to_string().into(),
        };
        let before = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let others = before.lines().filter(|line| !line.is_empty() && **line != *own);
        let earlier: Vec<Arc<str>> = others.map(Into::into).collect();
        let lines: String = earlier.iter().chain([&own]).map(|cookie| format!("{cookie}\n")).collect();
        // Always so for an heir, which must come even where the disk is full.
        if lines != before {
            write_whole(&file, &lines)?;
        }
        Ok(Self { file, own, earlier: Mutex::new(earlier), has_strays: AtomicBool::new(false) })
    }

    fn forget_earlier(&self) {
        self.earlier.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(error) = write_whole(&self.file, &format!("{}\n", self.own)) {
            warn!(%error, "could not shorten the list of earlier instances; they are looked for again next time");
        }
    }
}

/// Makes the folders, empty but for what goes on.
fn take_folders(config: &Config, run: &Path, files: &Path) -> Result<Scratch, Error> {
    let broken = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Folder { path, source }
    };
    let heir = config.estate.as_ref().filter(|estate| estate.is_heir);
    match heir {
        // Among them are those of attempts that go on, and of orders that are on their way to us.
        Some(_) => std::fs::create_dir_all(files),
        None => Folders::empty(files),
    }
    .map_err(broken(files))?;
    let (scratch, kept) = (run.join("scratch"), config.data_dir.join("kept"));
    let way = [&run.to_owned(), &files.to_owned(), &scratch, &kept];
    let none = BTreeSet::new();
    let used = heir.map_or(&none, |heir| &heir.folders);
    let folders = Scratch::new(scratch.clone(), kept.clone(), used).map_err(broken(run))?;
    os::open_way(&config.data_dir, &way).map_err(broken(&config.data_dir))?;
    Ok(folders)
}

/// All of it or, after a crash, what was there before.
fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let next = file.with_extension("next");
    std::fs::write(&next, text)?;
    std::fs::rename(&next, file)
}

/// Twice as many as can load programs at once: a thread that loads one mostly waits, for the disk or
/// for its turn.
fn starters() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).saturating_mul(2).clamp(4, 16)
}
