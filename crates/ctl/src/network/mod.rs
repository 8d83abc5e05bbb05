//! The real doors, the real link of agents and the real client of people, over a simulated network and clock (turmoil).
//!
//! Below the sockets nothing is real, above them nothing is simulated but what an attempt does.

mod agent;
mod herd;
mod people;
mod tests;

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use muster_common::{
    clock::Clock,
    tls::{Network, Reached, Wire},
};
use muster_controller::{
    app::{self, Config},
    grpc::Listener,
    logs::{self, LogStore},
    store::memory::Memory,
};
use muster_core::time::Timestamp;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use turmoil::{Builder, Sim};

const CONTROLLER: &str = "controller";
const PORT: u16 = 7717;
/// What every wall clock says when a simulation begins.
const EPOCH: Timestamp = Timestamp(1_790_000_000_000_000);
/// Of simulated time; a test that is not over by then has failed.
const LIMIT: Duration = Duration::from_secs(600);

/// The network that is not there.
struct Simulated(World);

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Simulated")
    }
}

impl Network for Simulated {
    fn reach<'a>(&'a self, host: &'a str) -> Reached<'a> {
        Box::pin(async move {
            // The machine of a program that died refuses at once; turmoil's keeps who knocks waiting.
            if self.0.lock().down {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(Box::new(turmoil::net::TcpStream::connect(host).await?) as Wire)
        })
    }
}

/// A listener that notes when somebody came.
struct Gate {
    listener: turmoil::net::TcpListener,
    world: World,
}

impl Listener for Gate {
    async fn accept(&self) -> io::Result<(Wire, SocketAddr)> {
        let (stream, remote) = self.listener.accept().await?;
        self.world.lock().came.push(now());
        Ok((Box::new(stream), remote))
    }
}

/// One attempt that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    agent: String,
    task: String,
    attempt: u32,
    began: Duration,
    /// None: it runs.
    ended: Option<Duration>,
    /// Its agent ended it before its time.
    killed: bool,
}

/// What survives a crash, and what is seen from outside. Clones share it.
#[derive(Clone)]
struct World {
    seed: u64,
    store: Memory,
    folder: Arc<TempDir>,
    seen: Arc<Mutex<Seen>>,
}

/// What an outsider saw.
#[derive(Debug, Default)]
struct Seen {
    /// When connections were made to the controller.
    came: Vec<Duration>,
    runs: Vec<Run>,
    /// The controller's program does not run.
    down: bool,
}

/// Simulated time since the beginning.
fn now() -> Duration {
    turmoil::sim_elapsed().expect("inside a simulation")
}

impl World {
    fn new(seed: u64) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        Self { seed, store: Memory::default(), folder, seen: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panicked")
    }

    /// The clocks of the machine that asks.
    fn clock(&self) -> Clock {
        Clock::simulated(EPOCH.after(now()))
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// A network of this seed with a controller on it.
    fn sim(&self) -> Sim<'static> {
        let mut sim = Builder::new()
            .rng_seed(self.seed)
            .simulation_duration(LIMIT)
            .tick_duration(Duration::from_millis(10))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .tcp_capacity(4096)
            .build();
        let world = self.clone();
        sim.host(CONTROLLER, move || {
            let world = world.clone();
            async move { Ok(world.control().await?) }
        });
        sim
    }

    async fn control(self) -> anyhow::Result<()> {
        let (clock, config) = (self.clock(), Config::default());
        let objects = logs::local_objects(&self.path("objects"))?;
        let logs = LogStore::open(objects, logs::Config::default(), clock).await?;
        let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
        let gate = Gate { listener, world: self.clone() };
        app::run_on((Arc::new(self.store), logs), gate, &config, clock, CancellationToken::new()).await
    }

    /// The runs of one task, oldest first.
    fn runs(&self, task: &str) -> Vec<Run> {
        self.lock().runs.iter().filter(|run| run.task == task).cloned().collect()
    }

    /// Fails if two runs of one task were there at one time (A1).
    fn check_no_overlap(&self) {
        let seen = self.lock();
        for (n, one) in seen.runs.iter().enumerate() {
            for other in seen.runs[n + 1..].iter().filter(|other| other.task == one.task) {
                let over = one.ended.is_some_and(|ended| ended <= other.began);
                assert!(over, "seed {}: {one:?} and {other:?} ran at one time", self.seed);
            }
        }
    }
}

/// Goes on until it is `crash`, ends the controller without a word, and starts it again at `bounce`.
fn crash(sim: &mut Sim<'_>, world: &World, (crash, bounce): (Duration, Duration)) {
    let until = |sim: &mut Sim<'_>, at| {
        while sim.elapsed() < at {
            sim.step().unwrap_or_else(|error| panic!("seed {}: {error}", world.seed));
        }
    };
    until(sim, crash);
    world.lock().down = true;
    sim.crash(CONTROLLER);
    until(sim, bounce);
    world.lock().down = false;
    sim.bounce(CONTROLLER);
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}
