//! Who breaks things: each lane of the plan is a thread that makes one fault after another and undoes it.

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use muster_integration::proxy::Mode;
use nix::sys::signal::Signal;

use crate::{
    cast::{CONTROLLERS, Cast, ETCDS, LEASE_TTL_S, Node, QUOTA_MIB},
    ground::Ground,
    herd::Herd,
    now,
    plan::{Fault, What},
    stage::{Diary, Stop},
    store::{Filled, Store},
    wires::{Wire, Wires},
    work::People,
};

/// So long a leader is looked for before a fault that needs one is given up.
const LEADER_WITHIN: Duration = Duration::from_secs(15);
/// So long it is tried to make room in etcd again.
const FREE_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const COMPACT_EVERY: Duration = Duration::from_millis(200);
/// Longer than a lease, so that it must be renewed during the flood.
const ALONE_MS: u64 = LEASE_TTL_S * 2_000;
/// What fills a disk.
const BALLAST: &str = "ballast";
/// Seconds by which wall clocks jump: half a second, an hour, a day, and back.
const OFFSETS: [&str; 8] = ["+0.5", "-0.5", "+3600", "-3600", "+86400", "-86400", "+0", "+0"];

/// All that it can reach.
pub(crate) struct Nemesis<'a> {
    pub(crate) ground: Arc<Ground>,
    pub(crate) cast: &'a Cast,
    pub(crate) wires: &'a Wires,
    pub(crate) store: &'a Store,
    pub(crate) people: &'a People<'a>,
    pub(crate) diary: &'a Diary,
    pub(crate) stop: &'a Stop,
    pub(crate) has_clocks: bool,
    pub(crate) compactions: AtomicU64,
}

impl Nemesis<'_> {
    /// Makes the faults of one lane, each at its time or as soon as the one before is undone.
    pub(crate) fn lane(&self, began_us: u64, faults: &[Fault]) -> Result<()> {
        for fault in faults {
            let due = began_us + fault.at_ms * 1_000;
            if self.stop.rest(Duration::from_micros(due.saturating_sub(now::us()))) {
                break;
            }
            self.make(*fault).with_context(|| format!("the fault at {fault}"))?;
        }
        Ok(())
    }

    /// X11: history is forgotten five times a second, and connections to the store break now and then by themselves.
    pub(crate) fn compact(&self, until_us: u64) {
        while now::us() < until_us && !self.stop.rest(COMPACT_EVERY) {
            // While etcd is down there is nothing to forget.
            if self.store.compact().is_ok() {
                self.compactions.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn make(&self, fault: Fault) -> Result<()> {
        let lasts = Duration::from_millis(fault.lasts_ms);
        let pick = |n: usize| usize::try_from(fault.pick % n as u64).unwrap_or(0);
        let agent = usize::try_from(fault.pick).unwrap_or(0);
        match fault.what {
            What::KillLeader => self.kill_leader(fault, lasts),
            What::StopLeader => match self.leader() {
                Some(leader) => self.halt(fault, Node::Controller(leader), lasts),
                None => self.nobody(fault),
            },
            What::KillAgent => self.down(fault, Node::Agent(agent), lasts),
            What::KillKeeper => self.kill_keeper(fault, Node::Agent(agent), lasts),
            What::CrashAgent => self.crash(fault, Node::Agent(agent), lasts),
            What::StopAgent => self.halt(fault, Node::Agent(agent), lasts),
            What::CutAgent => self.cut_agent(fault, agent, lasts),
            What::CutStore => self.cut_store(fault, lasts),
            What::KillEtcd => self.down(fault, Node::Etcd(pick(ETCDS)), lasts),
            What::StopEtcd => match self.store.etcd_leader()? {
                Some(leader) => self.halt(fault, Node::Etcd(leader), lasts),
                None => self.nobody(fault),
            },
            What::LoseQuorum => self.lose_quorum(fault, lasts),
            What::FillStore => self.fill_store(fault, lasts),
            What::FillEtcdDisk => self.fill_disk(fault, Node::Etcd(pick(ETCDS)), lasts),
            What::FillAgentDisk => self.fill_disk(fault, Node::Agent(agent), lasts),
            What::FillLogs => self.fill_disk(fault, Node::Controller(0), lasts),
            What::TurnClock => self.turn_clock(fault),
            What::Flood => self.flood(&format!("flood-{}", fault.at_ms), fault.lasts_ms),
            What::Delay | What::Reset => self.disturb(fault, lasts),
        }
    }

    fn note(&self, fault: Fault, text: &str) {
        self.diary.note(fault.what.id(), text);
    }

    /// There was nobody to do it to; that is told, and not counted.
    fn nobody(&self, fault: Fault) -> Result<()> {
        self.diary.note("missed", &format!("{}: nobody led", fault.what.id()));
        Ok(())
    }

    /// Who leads, as soon as somebody does.
    fn leader(&self) -> Option<usize> {
        let until = now::us() + u64::try_from(LEADER_WITHIN.as_micros()).unwrap_or(0);
        while now::us() < until {
            if let Ok(Some(leader)) = self.store.leader() {
                return Some(leader);
            }
            if self.stop.rest(LOOK_EVERY) {
                break;
            }
        }
        None
    }

    fn kill_leader(&self, fault: Fault, lasts: Duration) -> Result<()> {
        match self.leader() {
            Some(leader) => self.down(fault, Node::Controller(leader), lasts),
            None => self.nobody(fault),
        }
    }

    /// SIGKILL; after a while it is started again.
    fn down(&self, fault: Fault, node: Node, lasts: Duration) -> Result<()> {
        self.note(fault, &format!("{} killed for {lasts:?}", node.name()));
        self.cast.kill(node)?;
        self.stop.rest(lasts);
        self.cast.start(&self.ground, node)
    }

    /// What owns the tasks of an agent, which starts it again by itself.
    fn kill_keeper(&self, fault: Fault, node: Node, lasts: Duration) -> Result<()> {
        // The second use of a number: which of several.
        let pick = usize::try_from(fault.lasts_ms).unwrap_or(0);
        match self.ground.kill_one(&node.name(), "keeper", pick)? {
            Some(pid) => self.note(fault, &format!("the keeper of {} killed, process {pid}", node.name())),
            None => self.diary.note("missed", &format!("X3: {} had no keeper", node.name())),
        }
        self.stop.rest(lasts);
        Ok(())
    }

    /// The whole machine.
    fn crash(&self, fault: Fault, node: Node, lasts: Duration) -> Result<()> {
        self.note(fault, &format!("{} and all that ran there killed for {lasts:?}", node.name()));
        self.cast.kill(node)?;
        self.ground.crash(&node.name())?;
        self.stop.rest(lasts);
        self.cast.start(&self.ground, node)
    }

    fn halt(&self, fault: Fault, node: Node, lasts: Duration) -> Result<()> {
        self.note(fault, &format!("{} stopped for {lasts:?}", node.name()));
        self.cast.signal(node, Signal::SIGSTOP)?;
        self.stop.rest(lasts);
        self.cast.signal(node, Signal::SIGCONT)
    }

    fn cut_agent(&self, fault: Fault, agent: usize, lasts: Duration) -> Result<()> {
        // The second use of the pick: which way it is cut.
        let modes = [None, Some(Mode::DropAnswers), Some(Mode::DropQuestions), Some(Mode::Hole)];
        let mode = modes[usize::try_from(fault.lasts_ms % 4).unwrap_or(0)];
        let node = Node::Agent(agent).name();
        let how = mode.map_or("its cable is out".to_owned(), |mode| format!("{mode:?}"));
        self.note(fault, &format!("{node} cut off for {lasts:?}: {how}"));
        let links = || (0..CONTROLLERS).map(|controller| Wire::Link(agent, controller));
        match mode {
            None => self.ground.cable(&node, false)?,
            Some(mode) => links().for_each(|wire| self.wires.set(wire, mode)),
        }
        self.stop.rest(lasts);
        match mode {
            None => self.ground.cable(&node, true),
            Some(_) => {
                links().for_each(|wire| self.wires.mend(wire, true));
                Ok(())
            }
        }
    }

    fn cut_store(&self, fault: Fault, lasts: Duration) -> Result<()> {
        let Some(leader) = self.leader() else { return self.nobody(fault) };
        let many = usize::try_from(fault.pick % 3).unwrap_or(0) + 1;
        let mode =
            [Mode::Hole, Mode::DropAnswers, Mode::DropQuestions][usize::try_from(fault.lasts_ms % 3).unwrap_or(0)];
        self.note(fault, &format!("ctrl{leader} cut off from {many} members of etcd for {lasts:?}: {mode:?}"));
        let wires = || (0..many).map(|etcd| Wire::Store(leader, etcd));
        wires().for_each(|wire| self.wires.set(wire, mode));
        self.stop.rest(lasts);
        wires().for_each(|wire| self.wires.mend(wire, true));
        Ok(())
    }

    fn lose_quorum(&self, fault: Fault, lasts: Duration) -> Result<()> {
        self.note(fault, &format!("all members of etcd killed for {lasts:?}"));
        (0..ETCDS).try_for_each(|n| self.cast.kill(Node::Etcd(n)))?;
        self.stop.rest(lasts);
        (0..ETCDS).try_for_each(|n| self.cast.start(&self.ground, Node::Etcd(n)))
    }

    fn fill_store(&self, fault: Fault, lasts: Duration) -> Result<()> {
        self.note(fault, &format!("etcd filled to its quota for {lasts:?}"));
        let filled = self.store.fill(QUOTA_MIB * 2);
        self.diary.note(
            "told",
            &match &filled {
                Ok(Filled::Full) => "etcd raised its alarm".to_owned(),
                Ok(Filled::NotYet) => "etcd took more than its quota".to_owned(),
                Err(error) => format!("etcd could not be filled: {error:#}"),
            },
        );
        self.stop.rest(lasts);
        if let Err(error) = self.free() {
            // All members must answer for it, and other faults take them away meanwhile; it is done once more at the end.
            self.diary.note("told", &format!("no room was made in etcd: {error:#}"));
        }
        Ok(())
    }

    /// Room in etcd again, as soon as it answers.
    pub(crate) fn free(&self) -> Result<()> {
        let until = now::us() + u64::try_from(FREE_WITHIN.as_micros()).unwrap_or(0);
        loop {
            match self.store.free() {
                Ok(()) => return Ok(()),
                Err(error) if now::us() > until => return Err(error.context("there is no room in etcd again")),
                Err(_) => self.stop.rest(LOOK_EVERY),
            };
        }
    }

    fn fill_disk(&self, fault: Fault, node: Node, lasts: Duration) -> Result<()> {
        let folder = self.cast.data(node)?;
        self.note(fault, &format!("the disk of {} full for {lasts:?}", folder.display()));
        let path = folder.join(BALLAST);
        let filled = fill(&path);
        self.stop.rest(lasts);
        fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
        filled
    }

    fn turn_clock(&self, fault: Fault) -> Result<()> {
        if !self.has_clocks {
            return Ok(());
        }
        let nodes: Vec<_> = Node::daemons().filter(|node| !matches!(node, Node::Etcd(_))).collect();
        let node = nodes[usize::try_from(fault.pick % nodes.len() as u64).unwrap_or(0)];
        let offset = OFFSETS[usize::try_from((fault.pick >> 16) % OFFSETS.len() as u64).unwrap_or(0)];
        self.note(fault, &format!("the wall clock of {} is {offset} s off", node.name()));
        self.cast.set_clock(node, offset)
    }

    /// One wire of any kind is slow, or its connections are reset.
    fn disturb(&self, fault: Fault, lasts: Duration) -> Result<()> {
        let all: Vec<_> = Wire::all().filter(|wire| !matches!(wire, Wire::Link(..) | Wire::Store(..))).collect();
        let wire = all[usize::try_from(fault.pick % all.len() as u64).unwrap_or(0)];
        let mode = match fault.what {
            What::Delay => Mode::Delay(Duration::from_millis(100)),
            _ => Mode::Reset,
        };
        self.note(fault, &format!("{wire:?} for {lasts:?}: {mode:?}"));
        self.wires.set(wire, mode);
        self.stop.rest(lasts);
        self.wires.mend(wire, true);
        Ok(())
    }

    /// X18: a job whose tasks write as much as they can.
    fn flood(&self, key: &str, ms: u64) -> Result<()> {
        self.diary.note(What::Flood.id(), &format!("all tasks of {key} write as much as they can for {ms} ms"));
        self.people.flood(key, ms)
    }

    /// The same while nothing else is broken: then nothing of it may be lost.
    pub(crate) fn flood_alone(&self) -> Result<()> {
        self.flood("alone-flood", ALONE_MS)
    }

    /// X19: many agents attach, lose their leader, and must all be back in time.
    pub(crate) fn herd(&self, agents: usize) -> Result<()> {
        let herd = Herd::start(&self.ground, agents)?;
        let first = herd.came().context("when it was let loose")?;
        let Some(leader) = self.leader() else { bail!("nobody leads, and nothing is broken") };
        let killed_us = now::us();
        self.diary.note("X19", &format!("{agents} agents attached; ctrl{leader} killed"));
        self.cast.kill(Node::Controller(leader))?;
        let back = herd.came().context("after its leader was killed");
        self.cast.start(&self.ground, Node::Controller(leader))?;
        let text = match &back {
            Ok(back) => format!(
                "all back after {} ms, {} in the fullest second; {} in it when they came first",
                (back.at_us - killed_us) / 1_000,
                back.peak,
                first.peak
            ),
            Err(error) => format!("{error:#}"),
        };
        self.diary.note(if back.is_ok() { "told" } else { "herd" }, &text);
        Ok(())
    }

    /// Everything is whole again: what a lane left undone, too.
    pub(crate) fn heal(&self) -> Result<()> {
        self.wires.mend_all(false);
        for node in Node::daemons() {
            self.ground.cable(&node.name(), true)?;
            self.cast.signal(node, Signal::SIGCONT)?;
            self.cast.set_clock(node, "+0")?;
            let ballast = self.cast.data(node)?.join(BALLAST);
            if ballast.exists() {
                fs::remove_file(&ballast).with_context(|| format!("could not remove {}", ballast.display()))?;
            }
            self.cast.start(&self.ground, node)?;
        }
        if self.store.has_ballast().unwrap_or(true) {
            self.free()?;
        }
        Ok(())
    }
}

/// Writes until the disk is full.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path).with_context(|| format!("could not make {}", path.display()))?;
    let chunk = vec![0_u8; 1 << 16];
    loop {
        match file.write_all(&chunk) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => bail!("could not fill {}: {error}", path.display()),
        }
    }
}
