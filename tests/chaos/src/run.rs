//! A run from its beginning to its end: the cluster, its work, its faults, peace again, and the verdict.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use muster_integration::wait::{self, Look};
use serde_json::json;

use crate::{
    cast::{AGENTS, CONTROLLERS, Cast, Node, Settings, capacity},
    checker::{self, History, Verdict},
    ground::Ground,
    nemesis::Nemesis,
    now,
    plan::Plan,
    stage::{Diary, Stop},
    store::Store,
    watch,
    wires::Wires,
    work::People,
};

/// Of each run, what is not faults: the start, the peace after them, and the last reads.
const AROUND_S: u64 = 30;
const WINDOW_LEAST_S: u64 = 20;
/// How long all jobs may take to end once everything is whole.
const PEACE: Duration = Duration::from_secs(60);
/// People who hand in work, and their pause between two jobs.
const PEOPLE: usize = 3;
const PAUSE_MS: u64 = 900;

/// What a person asked for.
pub(crate) struct Order {
    pub(crate) minutes: u64,
    pub(crate) seed: u64,
    pub(crate) herd: usize,
    pub(crate) is_quiet: bool,
    pub(crate) settings: Settings,
}

/// What a run came to, beyond the checker's verdict.
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) compactions: u64,
    pub(crate) refused: u64,
}

/// Runs it all in `folder`; everything that was written stays there.
pub(crate) fn run(order: Order, folder: &Path, stop: &Stop) -> Result<Outcome> {
    let window_s = (order.minutes * 60).saturating_sub(AROUND_S).max(WINDOW_LEAST_S);
    let plan = Plan::of(order.seed, window_s);
    fs::write(folder.join("schedule"), plan.to_string()).context("could not write the schedule")?;
    if !order.is_quiet {
        eprintln!("schedule of seed {}, {window_s} s of faults:\n{plan}", order.seed);
    }
    let nodes: Vec<_> = Node::all().map(|node| (node.name(), node.address())).collect();
    let mut ground = Ground::make(folder, &nodes)?;
    let has_clocks = order.settings.faketime.is_some();
    let cast = Cast::new(&mut ground, folder, order.settings)?;
    let ground = Arc::new(ground);
    let wires = Wires::lay(&ground)?;
    let store = Store::new(Arc::clone(&ground));
    let diary = Diary::open(&folder.join("faults.jsonl"))?;
    let people = people(&ground, folder, stop)?;
    let nemesis = Nemesis {
        ground: Arc::clone(&ground),
        cast: &cast,
        wires: &wires,
        store: &store,
        people: &people,
        diary: &diary,
        stop,
        has_clocks,
        compactions: AtomicU64::new(0),
    };
    raise(&cast, &ground, &store, &people).context("the cluster could not be started")?;
    wires.mend_all(true);
    let play =
        Play { people: &people, nemesis: &nemesis, plan: &plan, folder, seed: order.seed, herd: order.herd, window_s };
    play.act()?;
    let verdict = checker::check(&History::read(folder)?);
    Ok(Outcome { verdict, compactions: nemesis.compactions.into_inner(), refused: people.refused.into_inner() })
}

fn people<'a>(ground: &'a Ground, folder: &Path, stop: &'a Stop) -> Result<People<'a>> {
    let witness = folder.join("witness");
    fs::create_dir_all(&witness).context("could not make the witness's folder")?;
    File::create(witness.join("lines")).context("could not make the witness file")?;
    let log = File::create(folder.join("people.jsonl")).context("could not make the people's log")?;
    let agents: serde_json::Map<_, _> = (0..AGENTS).map(|n| (Node::Agent(n).name(), json!(capacity(n)))).collect();
    fs::write(folder.join("agents.json"), json!(agents).to_string()).context("could not write agents.json")?;
    Ok(People { ground, log: Mutex::new(log), witness, stop, refused: AtomicU64::new(0) })
}

/// Starts everybody; returns when all agents are connected.
fn raise(cast: &Cast, ground: &Ground, store: &Store, people: &People<'_>) -> Result<()> {
    let etcds = Node::daemons().filter(|node| matches!(node, Node::Etcd(_)));
    etcds.into_iter().try_for_each(|node| cast.start(ground, node))?;
    wait::until("etcd to answer", || Ok(store.answers().map_or_else(Look::not_yet, Look::Done)))?;
    Node::daemons().filter(|node| !matches!(node, Node::Etcd(_))).try_for_each(|node| cast.start(ground, node))?;
    connected(people)
}

fn connected(people: &People<'_>) -> Result<()> {
    wait::until("all agents to be connected", || {
        let ran = people.ctl(0, &["status", "-o", "json"], &[])?;
        let status: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
        let seen = (status["agents"]["connected"].as_u64(), status["controllers"].as_array().map(Vec::len));
        Ok(Look::when(seen == (Some(AGENTS as u64), Some(CONTROLLERS)), ran.to_string()))
    })
}

/// Everybody at work.
struct Play<'a> {
    people: &'a People<'a>,
    nemesis: &'a Nemesis<'a>,
    plan: &'a Plan,
    folder: &'a Path,
    seed: u64,
    herd: usize,
    window_s: u64,
}

impl Play<'_> {
    fn act(&self) -> Result<()> {
        let began_us = now::us();
        let until_us = began_us + self.window_s * 1_000_000;
        let (people, nemesis) = (self.people, self.nemesis);
        // Those who look go on until all is over; those who work and those who break end by themselves.
        let looked = Stop::default();
        thread::scope(|scope| {
            let polls = scope.spawn(|| watch::jobs(people, self.folder, &looked));
            let falls = scope.spawn(|| watch::programs(nemesis.cast, &nemesis.ground, nemesis.diary, &looked));
            let mut acts: Vec<_> = (0..PEOPLE)
                .map(|who| scope.spawn(move || people.hand_in(who, self.seed, until_us, PAUSE_MS)))
                .collect();
            acts.push(scope.spawn(move || people.tick(until_us)));
            scope.spawn(move || nemesis.compact(until_us));
            let lanes: Vec<_> =
                self.plan.lanes.values().map(|faults| scope.spawn(move || nemesis.lane(began_us, faults))).collect();
            let broke = joined(lanes);
            let healed = nemesis.heal();
            let worked = joined(acts);
            // Not beside the other faults: it is about the agents alone.
            let is_wanted = self.herd > 0 && !people.stop.is_asked();
            let herded = if is_wanted { nemesis.herd(self.herd) } else { Ok(()) };
            let ended = watch::until_over(people, self.folder, PEACE, people.stop).and_then(|()| self.flood());
            looked.ask();
            broke.and(healed).and(worked).and(herded).and(ended).and(joined(vec![polls, falls]))
        })
    }
}

impl Play<'_> {
    /// When all else is over, too: what is lost then is lost because of it.
    fn flood(&self) -> Result<()> {
        if self.people.stop.is_asked() {
            return Ok(());
        }
        connected(self.people)?;
        self.nemesis.flood_alone()?;
        watch::until_over(self.people, self.folder, PEACE, self.people.stop)?;
        watch::floods(self.people, self.folder)
    }
}

/// The first error of all.
fn joined(threads: Vec<thread::ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    let ends: Vec<_> =
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread died")))).collect();
    ends.into_iter().collect()
}

/// A folder of its own for one run.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("muster-chaos-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    Ok(folder)
}
