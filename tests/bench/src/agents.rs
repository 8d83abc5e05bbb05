//! Ten thousand agents: what their heartbeats cost a controller, and how soon they are back when their leader dies.
//!
//! They are the real agent's link, each with a connection of its own, and nothing behind it: they hold no leases.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use muster_agent::{
    link::{Address, Event, Link},
    supervisor::Input,
};
use muster_common::{
    proto::{
        PROTOCOL,
        v1::{self, agent_up::Message},
    },
    wire::link::offer_to_proto,
};
use muster_core::{record::Offer, resources::Request};
use muster_integration::{etcd::Etcd, probe};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    figure::{Figures, Target},
    muster::member,
};

const AGENTS: usize = 10_000;
/// How long heartbeats alone are measured.
const SPAN: Duration = Duration::from_secs(20);
/// For all of them to be there.
const LIMIT: Duration = Duration::from_secs(120);
const SESSION_TTL: Duration = Duration::from_secs(5);

/// All figures of this file.
pub(crate) async fn measure(figures: &mut Figures) {
    if figures.wants(&["agents-cpu", "agents-memory", "agents-back"]) {
        let outcome = agents(figures).await;
        figures.outcome("agents", outcome);
    }
}

async fn agents(figures: &mut Figures) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot open that many connections")?;
    let folder = tempfile::tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    let mut first = member(folder.path(), &etcd, 0, SESSION_TTL, None)?;
    let mut second = member(folder.path(), &etcd, 1, SESSION_TTL, None)?;
    let addresses = [first.address(0)?, second.address(0)?];
    let addresses: Vec<Address> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;

    let herd = Herd::default();
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let began = Instant::now();
    for n in 0..AGENTS {
        let agent = Agent { n, herd: herd.clone(), up: None };
        tracker.spawn(agent.live(addresses.clone(), stop.clone()));
    }
    herd.some_in_term_after(0, AGENTS).await?;
    figures.add("agents-connected", began.elapsed().as_secs_f64(), "s", Target::None);

    // The leader is the one that was first: the second found it leading.
    let leader = first.pid();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, from) = (probe::cpu(leader)?, Instant::now());
    tokio::time::sleep(SPAN).await;
    let share = (probe::cpu(leader)? - before).as_secs_f64() / from.elapsed().as_secs_f64();
    figures.add("agents-cpu", share, "cores", Target::AtMost(0.5));
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let memory = probe::resident(leader)? as f64 / 1e6;
    figures.add("agents-memory", memory, "MB", Target::AtMost(500.0));

    let term = herd.highest_term();
    first.kill9()?;
    let killed = Instant::now();
    herd.some_in_term_after(term, 1).await?;
    figures.add("agents-first-back", killed.elapsed().as_secs_f64(), "s", Target::None);
    herd.some_in_term_after(term, AGENTS / 2).await?;
    figures.add("agents-half-back", killed.elapsed().as_secs_f64(), "s", Target::None);
    herd.some_in_term_after(term, AGENTS).await?;
    figures.add("agents-back", killed.elapsed().as_secs_f64(), "s", Target::AtMost(10.0));
    stop.cancel();
    tracker.close();
    tracker.wait().await;
    second.stop()
}

/// In which term each agent was taken in; none: it has no stream.
#[derive(Clone)]
struct Herd(Arc<Mutex<Vec<Option<u64>>>>);

impl Default for Herd {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(vec![None; AGENTS])))
    }
}

impl Herd {
    fn set(&self, n: usize, term: Option<u64>) {
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = terms.get_mut(n) {
            *slot = term;
        }
    }

    fn count_after(&self, term: u64) -> usize {
        let terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        terms.iter().filter(|slot| slot.is_some_and(|slot| slot > term)).count()
    }

    fn highest_term(&self) -> u64 {
        let terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        terms.iter().flatten().copied().max().unwrap_or(0)
    }

    async fn some_in_term_after(&self, term: u64, wanted: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.count_after(term) {
                there if there >= wanted => return Ok(()),
                there if began.elapsed() > LIMIT => bail!("{there} of {AGENTS} agents are there after {LIMIT:?}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// The link of one agent, and heartbeats.
struct Agent {
    n: usize,
    herd: Herd,
    up: Option<muster_agent::link::Up>,
}

impl Agent {
    async fn live(mut self, addresses: Vec<Address>, stop: CancellationToken) {
        let (link, mut events, _bulk) = Link::new(addresses, None);
        let tracker = TaskTracker::new();
        link.start(&tracker, &stop);
        let mut heartbeat = tokio::time::interval(Duration::from_secs(3600));
        let mut stamp_us = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    None => return,
                    Some(Event::Opened(up)) => {
                        let _sent = up.send(Message::Hello(self.hello()));
                        self.up = Some(up);
                    }
                    Some(Event::Input(Input::Welcome(welcome))) => {
                        self.herd.set(self.n, Some(welcome.term.0));
                        heartbeat = tokio::time::interval(welcome.heartbeat);
                    }
                    Some(Event::Input(_)) => {}
                    Some(Event::Closed) => {
                        self.herd.set(self.n, None);
                        self.up = None;
                    }
                },
                _ = heartbeat.tick() => {
                    stamp_us += 1;
                    if let Some(up) = &self.up {
                        let _sent = up.send(Message::Heartbeat(v1::Heartbeat { stamp_us, load: None }));
                    }
                }
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        let capacity = Request { cpu_milli: 1_000, ..Request::default() };
        let offer = Offer { name: format!("agent-{}", self.n), os: "linux".to_owned(), capacity, ..Offer::default() };
        v1::Hello {
            uid: format!("simulated-{}", self.n),
            offer: Some(offer_to_proto(&offer)),
            protocol: PROTOCOL,
            ..Default::default()
        }
    }
}
