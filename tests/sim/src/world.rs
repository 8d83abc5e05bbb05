//! The world: one clock, one queue of things to come, and a seed that decides what goes wrong. Every step
//! is followed by every invariant.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use muster_core::{
    cluster::check::check,
    event::{Event, Target, What},
    id::{JobId, SessionId, Term, Token},
    record::{Key, Piece},
    resources::Request,
    spec::JobSpec,
    time::{Mono, Now, Timestamp},
};

use crate::{
    agent::Agent,
    clocks::Clock,
    controller::{Caller, Controller},
    network::Message,
    rng::Rng,
    witness::Witness,
    workload,
};

/// Faults come for this long; then the world heals and must finish all that was promised.
const FAULTS_US: u64 = 60_000_000;
/// What is promised must be finished this long after the last fault.
const HEAL_US: u64 = 400_000_000;
/// What the wall clock shows when the world begins.
const EPOCH_US: u64 = 1_000_000_000_000;
/// How wrong the time of day may be: of controllers, whose hours decide when a task starts, and of agents.
const CONTROLLERS_OFF_US: u64 = 2_000_000;
const AGENTS_OFF_US: u64 = 3_600_000_000;
const AGENTS: usize = 3;
const JOBS: usize = 5;

/// What a commit carries.
pub(crate) type Pieces = Vec<(Key, Option<Piece>)>;

/// Something to come.
#[derive(Debug)]
pub(crate) enum Coming {
    /// A message reaches a controller over a connection of one of its lives.
    Up { term: Term, agent: usize, session: SessionId, message: Event },
    /// A message reaches an agent.
    Down { agent: usize, life: u64, session: SessionId, message: Message },
    /// The commit in flight becomes true, or breaks.
    Commit { term: Term },
    /// An agent's daemon tries to connect.
    Connect { agent: usize, life: u64 },
    /// An agent's daemon starts.
    AgentStarts { agent: usize },
    /// An agent's clock ticks.
    AgentTick { agent: usize, life: u64 },
    /// A process ends by itself.
    ProcessEnds { agent: usize, token: Token },
    /// What a sweep after the agent's death kills is dead.
    Guard { agent: usize },
    /// A keeper without its daemon looks at the clock.
    Fence { agent: usize, life: u64 },
    /// A client calls, or calls again.
    Call { job: usize },
    /// A person cancels or retries something.
    Person,
    /// A person cordons, drains, limits or resumes an agent.
    Operator,
    /// A controller starts.
    ControllerStarts,
    /// The controller's clock ticks.
    ControllerTick { term: Term },
    /// What one that was replaced has sent reaches the store, after long.
    LateWrite { term: Term, pieces: Pieces },
    /// The authority of one that was replaced passes.
    OldEnds { term: Term },
    /// Something goes wrong.
    Fault,
}

/// One simulated installation.
pub struct World {
    pub(crate) now: Now,
    pub(crate) rng: Rng,
    pub(crate) queue: BTreeMap<(u64, u64), Coming>,
    sequence: u64,
    pub(crate) store: BTreeMap<Key, Piece>,
    pub(crate) term: Term,
    pub(crate) controller: Option<Controller>,
    /// One that believes that it leads, and whose commits etcd refuses.
    pub(crate) old: Option<Controller>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) jobs: Vec<(Arc<JobSpec>, Option<JobId>)>,
    /// What was seen.
    pub witness: Witness,
    /// Lines for people, if asked for.
    pub trace: Option<String>,
    pub(crate) hash: u64,
    pub(crate) faults: u64,
    steps: u64,
}

/// What became of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Steps taken.
    pub steps: u64,
    /// Faults made.
    pub faults: u64,
    /// Jobs promised.
    pub promised: usize,
    /// Equal for equal runs.
    pub hash: u64,
    /// What went against an invariant; empty: nothing.
    pub violations: Vec<String>,
    /// What happened, if it was asked for.
    pub trace: String,
}

/// Runs the world of one seed to its end.
pub fn run(seed: u64, traced: bool) -> Outcome {
    let mut world = World::new(seed, traced);
    world.begin();
    let mut finished = false;
    while let Some(((at, _), coming)) = world.queue.pop_first() {
        world.advance(at);
        world.steps += 1;
        world.step(coming);
        world.inspect();
        if !world.witness.violations.is_empty() || world.now.mono.0 > FAULTS_US + HEAL_US {
            break;
        }
        if world.is_healed() && world.is_done() {
            finished = true;
            break;
        }
    }
    if !finished {
        world.judge_liveness();
    }
    world.witness.audited(&world.store);
    Outcome {
        steps: world.steps,
        faults: world.faults,
        promised: world.witness.promised(),
        hash: world.hash,
        violations: world.witness.violations,
        trace: world.trace.unwrap_or_default(),
    }
}

impl World {
    fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let agents = (0..AGENTS)
            .map(|n| {
                let memory = workload::SATED * 5 / 4;
                let capacity = Request { cpu_milli: rng.within(2, 4) * 1000, memory, ..Request::default() };
                Agent::new(n, capacity, Clock::any(&mut rng, AGENTS_OFF_US))
            })
            .collect();
        let now = Now { wall: Timestamp(EPOCH_US), mono: Mono(0) };
        let jobs = (0..JOBS).map(|n| (Arc::new(workload::job(&mut rng, n, now.wall)), None)).collect();
        Self {
            now,
            rng,
            queue: BTreeMap::new(),
            sequence: 0,
            store: BTreeMap::new(),
            term: Term(0),
            controller: None,
            old: None,
            agents,
            jobs,
            witness: Witness::default(),
            trace: traced.then(String::new),
            hash: 0xcbf2_9ce4_8422_2325,
            faults: 0,
            steps: 0,
        }
    }

    fn begin(&mut self) {
        self.after(0, Coming::ControllerStarts);
        for agent in 0..self.agents.len() {
            let wait = self.rng.within(0, 500_000);
            self.after(wait, Coming::AgentStarts { agent });
        }
        for job in 0..self.jobs.len() {
            let wait = self.rng.within(0, 20_000_000);
            self.after(wait, Coming::Call { job });
        }
        for _ in 0..self.rng.within(0, 4) {
            let wait = self.rng.within(1_000_000, FAULTS_US);
            self.after(wait, Coming::Person);
        }
        for _ in 0..self.rng.within(0, 10) {
            let wait = self.rng.within(0, FAULTS_US);
            self.after(wait, Coming::Fault);
        }
        for _ in 0..self.rng.within(0, 6) {
            let wait = self.rng.within(0, FAULTS_US);
            self.after(wait, Coming::Operator);
        }
        self.after(FAULTS_US + 1, Coming::Operator);
    }

    /// What the clock of an agent's machine shows.
    pub(crate) fn time_of(&self, agent: usize) -> Now {
        self.agents.get(agent).map_or(self.now, |machine| machine.clock.read(self.now))
    }

    /// Puts something `wait` microseconds ahead.
    pub(crate) fn after(&mut self, wait: u64, coming: Coming) {
        self.at(self.now.mono.0.saturating_add(wait), coming);
    }

    pub(crate) fn at(&mut self, at: u64, coming: Coming) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now.mono.0), self.sequence), coming);
    }

    fn advance(&mut self, at: u64) {
        let passed = at.saturating_sub(self.now.mono.0);
        self.now.mono = Mono(at);
        self.now.wall = Timestamp(self.now.wall.0 + passed);
        if self.is_healed() {
            // Somebody set the clock right.
            self.now.wall = Timestamp(EPOCH_US + at);
        }
    }

    /// Notes what happens: for the hash always, for people if asked.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        for byte in line.bytes().chain(self.now.mono.0.to_le_bytes()) {
            // FNV-1a.
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if let Some(trace) = &mut self.trace {
            let at = self.now.mono.0;
            let _ = writeln!(trace, "{:>4}.{:06} {line}", at / 1_000_000, at % 1_000_000);
        }
    }

    /// Whether faults are over.
    pub(crate) fn is_healed(&self) -> bool {
        self.now.mono.0 > FAULTS_US
    }

    fn step(&mut self, coming: Coming) {
        match coming {
            Coming::Up { term, agent, session, message } => {
                self.as_whoever(term, |world| world.up(term, agent, session, message));
            }
            Coming::Down { agent, life, session, message } => self.down(agent, life, session, message),
            Coming::Commit { term } if self.is_old(term) => self.commit_of_old(term),
            Coming::Commit { term } => self.commit(term),
            Coming::Connect { agent, life } => self.connect(agent, life),
            Coming::AgentStarts { agent } => self.agent_starts(agent),
            Coming::AgentTick { agent, life } => self.agent_tick(agent, life),
            Coming::ProcessEnds { agent, token } => self.process_ends(agent, token),
            Coming::Guard { agent } => self.guard(agent),
            Coming::Fence { agent, life } => self.fence(agent, life),
            Coming::Call { job } => self.call(job),
            Coming::Person => self.person(),
            Coming::Operator => self.operator(),
            Coming::ControllerStarts => self.controller_starts(),
            Coming::ControllerTick { term } => self.as_whoever(term, |world| world.controller_tick(term)),
            Coming::LateWrite { term, pieces } => self.late_write(term, &pieces),
            Coming::OldEnds { term } => self.old_ends(term),
            Coming::Fault => self.fault(),
        }
    }

    /// All invariants that can be seen from here.
    fn inspect(&mut self) {
        if let Some(controller) = &self.controller {
            for wrong in check(&controller.cluster, controller.time(self.now)) {
                self.witness.violations.push(wrong);
            }
        }
        for (agent, number) in self.agents.iter().zip(0..) {
            if !agent.taken().fits(&agent.capacity) {
                self.witness.violations.push(format!("S3: agent {number} runs {:?}", agent.taken()));
            }
        }
    }

    fn is_done(&self) -> bool {
        let Some(controller) = &self.controller else { return false };
        let finished = |job: JobId| controller.cluster.summary(job).is_some_and(|summary| summary.state.is_final());
        let quiet = self.agents.iter().all(|agent| agent.processes.is_empty() && agent.daemon.is_some());
        self.old.is_none()
            && controller.is_idle()
            && quiet
            && self.jobs.iter().all(|(_, job)| job.is_some_and(finished))
    }

    fn judge_liveness(&mut self) {
        if !self.witness.violations.is_empty() {
            return;
        }
        self.note_what_is_open();
        match &self.controller {
            Some(controller) => {
                let cluster = &controller.cluster;
                let finished = |job| cluster.summary(job).is_some_and(|summary| summary.state.is_final());
                self.witness.unfinished(finished);
                if self.jobs.iter().any(|(_, job)| job.is_none()) {
                    self.witness.violations.push("L1: a submission was never answered".to_owned());
                }
            }
            None => self.witness.violations.push("L2: nobody leads".to_owned()),
        }
    }

    /// For the trace: why what is open is open, by the product's own words.
    fn note_what_is_open(&mut self) {
        let Some(controller) = &self.controller else { return };
        let known: Vec<JobId> = self.jobs.iter().filter_map(|(_, job)| *job).collect();
        let mut lines = Vec::new();
        for job in known {
            let told = controller.cluster.explain(controller.time(self.now), Target::Job(job)).unwrap_or_default();
            for open in told.answers {
                if !open.state.is_final() {
                    let why: Vec<&str> = open.reasons.iter().map(|reason| reason.text.as_str()).collect();
                    lines.push(format!("open: {} x{} is {}: {}", open.task, open.count, open.state, why.join("; ")));
                }
            }
        }
        for line in lines {
            self.note(|| line);
        }
    }

    // --- the controller

    fn controller_starts(&mut self) {
        if self.controller.is_some() {
            return;
        }
        self.term = Term(self.term.0 + 1);
        let clock = Clock::any(&mut self.rng, CONTROLLERS_OFF_US);
        match Controller::start(self.term, &self.store, clock, self.now) {
            Ok(controller) => self.controller = Some(controller),
            Err(error) => self.witness.violations.push(format!("K1: the store cannot be taken up: {error}")),
        }
        let term = self.term;
        self.note(|| format!("controller of term {term} starts"));
        self.after(100_000, Coming::ControllerTick { term });
    }

    fn controller_tick(&mut self, term: Term) {
        if self.controller.as_ref().is_none_or(|controller| controller.term != term) {
            return;
        }
        self.event(Event::Tick, Caller::Nobody);
        self.after(250_000, Coming::ControllerTick { term });
    }

    /// An event reaches the controller that is there, if one is.
    pub(crate) fn event(&mut self, event: Event, caller: Caller) {
        let now = self.now;
        let Some(controller) = &mut self.controller else { return };
        let mut free = controller.handle(now, event, caller);
        // Rounds are held now and then, as a busy engine does.
        if self.rng.chance(70) {
            free.extend(controller.handle(now, Event::Round, Caller::Nobody));
        }
        free.into_iter().for_each(|held| self.release(held));
        self.begin_commit();
    }

    pub(crate) fn begin_commit(&mut self) {
        let Some(controller) = &mut self.controller else { return };
        if controller.begin() {
            let term = controller.term;
            let slow = if self.rng.chance(3) { 3_000_000 } else { 5_000 };
            let wait = self.rng.within(100, slow);
            self.after(wait, Coming::Commit { term });
        }
    }

    pub(crate) fn commit(&mut self, term: Term) {
        let Some(controller) = self.controller.as_ref().filter(|controller| controller.term == term) else { return };
        let pieces = controller.in_flight.clone();
        if !self.is_healed() && self.rng.chance(1) && self.rng.chance(30) {
            // C3: the outcome is unknown; the memory is thrown away.
            let applied = self.rng.chance(50);
            if applied {
                self.apply(&pieces);
            }
            self.faults += 1;
            self.note(|| format!("the commit's outcome is unknown, applied: {applied}"));
            self.controller_dies(1_000);
            return;
        }
        self.apply(&pieces);
        self.note(|| format!("committed {:?}", pieces.iter().map(|(key, _)| key).collect::<Vec<_>>()));
        let held = self.controller.as_mut().map(Controller::confirmed).unwrap_or_default();
        for held in held {
            // A controller may die between any two effects.
            if !self.is_healed() && self.rng.chance(1) && self.rng.chance(10) {
                self.faults += 1;
                self.note(|| "the controller dies between two effects".to_owned());
                self.controller_dies(500_000);
                return;
            }
            self.release(held);
        }
        self.begin_commit();
    }

    pub(crate) fn apply(&mut self, pieces: &[(Key, Option<Piece>)]) {
        self.witness.cordons_hold(pieces, &self.store);
        for (key, piece) in pieces {
            self.witness.committed(key, self.store.get(key), piece.as_ref());
            match piece {
                Some(piece) => self.store.insert(key.clone(), piece.clone()),
                None => self.store.remove(key),
            };
        }
        self.witness.commit_is_over();
    }

    /// The controller is gone; its connections break, and another starts within `wait`.
    pub(crate) fn controller_dies(&mut self, wait: u64) {
        let Some(controller) = self.controller.take() else { return };
        for agent in controller.sessions.values() {
            self.stream_breaks(*agent);
        }
        let wait = self.rng.within(0, wait);
        self.after(wait, Coming::ControllerStarts);
    }

    /// A report as it travels: at least once.
    pub(crate) fn is_report(event: &Event) -> bool {
        matches!(event, Event::Report { report, .. } if !matches!(report.what, What::Started { .. }))
    }
}
