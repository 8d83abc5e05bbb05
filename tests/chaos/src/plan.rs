//! Which faults are made, and when: decided by the seed alone, before anything starts.

use std::{collections::BTreeMap, fmt};

use crate::{
    cast::{AGENTS, LEASE_TTL_S, SESSION_TTL_S},
    dice::Dice,
};

/// The numbers below are for faults of this long: what is left of two minutes.
const SMOKE_WINDOW_S: u64 = 90;

/// What breaks; the numbers are those of the chaos matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// X1: SIGKILL of the controller that leads.
    KillLeader,
    /// X2: SIGSTOP of it, then SIGCONT.
    StopLeader,
    /// X3: SIGKILL of an agent; its guard lives.
    KillAgent,
    /// X3: SIGKILL of an agent's keeper; the agent lives.
    KillKeeper,
    /// X4: an agent's machine is gone with all that ran there.
    CrashAgent,
    /// X5: SIGSTOP of an agent, longer than its leases live.
    StopAgent,
    /// X6: an agent is cut off.
    CutAgent,
    /// X7: a controller is cut off from some members of etcd or all.
    CutStore,
    /// X8: SIGKILL of a member of etcd.
    KillEtcd,
    /// X9: SIGSTOP of the member that leads etcd.
    StopEtcd,
    /// X10: all members of etcd are killed.
    LoseQuorum,
    /// X12: etcd's file is full.
    FillStore,
    /// X14: a disk is full: of a member of etcd, of an agent, of the logs.
    FillEtcdDisk,
    FillAgentDisk,
    FillLogs,
    /// X16: a wall clock jumps.
    TurnClock,
    /// X18: many tasks write as much as they can at one time.
    Flood,
    /// A wire is slow, or every connection on it is reset; not in the matrix, but part of X24.
    Delay,
    Reset,
}

impl What {
    /// Its id in the matrix.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::KillLeader => "X1",
            Self::StopLeader => "X2",
            Self::KillAgent | Self::KillKeeper => "X3",
            Self::CrashAgent => "X4",
            Self::StopAgent => "X5",
            Self::CutAgent => "X6",
            Self::CutStore => "X7",
            Self::KillEtcd => "X8",
            Self::StopEtcd => "X9",
            Self::LoseQuorum => "X10",
            Self::FillStore => "X12",
            Self::FillEtcdDisk | Self::FillAgentDisk | Self::FillLogs => "X14",
            Self::TurnClock => "X16",
            Self::Flood => "X18",
            Self::Delay => "delay",
            Self::Reset => "reset",
        }
    }
}

/// Faults of one lane follow each other; lanes run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    Kills,
    Stalls,
    Etcd,
    /// One for each group of agents, so that no agent suffers two faults at once.
    Agents(usize),
    Clocks,
    Wires,
    Floods,
}

/// Groups of agents.
const GROUPS: [&[usize]; 3] = [&[0, 1], &[2, 3], &[4]];

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) at_ms: u64,
    pub(crate) what: What,
    /// For whatever is left to choose when it happens: which member, which way.
    pub(crate) pick: u64,
    pub(crate) lasts_ms: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at_ms, self.lasts_ms);
        write!(
            f,
            "{:>3}.{:03} s  {:<5} {:?}, {}.{:03} s",
            at / 1000,
            at % 1000,
            self.what.id(),
            self.what,
            lasts / 1000,
            lasts % 1000
        )
    }
}

/// All faults of a run.
pub(crate) struct Plan {
    pub(crate) lanes: BTreeMap<Lane, Vec<Fault>>,
}

/// What, how often in the smoke's window, and how long at least and at most.
type Row = (What, u64, u64, u64);

const TTL_MS: u64 = SESSION_TTL_S * 1000;
const LEASE_MS: u64 = LEASE_TTL_S * 1000;

const KILLS: &[Row] = &[(What::KillLeader, 10, 300, 1_500)];
const STALLS: &[Row] = &[(What::StopLeader, 5, TTL_MS / 2, TTL_MS * 5), (What::CutStore, 5, 1_000, 5_000)];
const ETCD: &[Row] = &[
    (What::KillEtcd, 5, 500, 2_500),
    (What::StopEtcd, 3, 2_000, 5_000),
    (What::LoseQuorum, 1, 5_000, 6_000),
    (What::FillStore, 1, 1_000, 2_000),
    (What::FillEtcdDisk, 1, 2_000, 3_000),
];
const AGENT: &[Row] = &[
    (What::KillAgent, 3, 200, 2_000),
    (What::KillKeeper, 5, 100, 500),
    (What::CrashAgent, 5, 500, 7_000),
    (What::StopAgent, 5, LEASE_MS + 2_000, LEASE_MS * 3),
    (What::CutAgent, 10, 1_000, 8_000),
    (What::FillAgentDisk, 1, 2_000, 4_000),
];
const CLOCKS: &[Row] = &[(What::TurnClock, 20, 0, 0)];
const WIRES: &[Row] = &[(What::Delay, 4, 1_000, 4_000), (What::Reset, 6, 10, 200), (What::FillLogs, 1, 2_000, 4_000)];
const FLOODS: &[Row] = &[(What::Flood, 3, 2_000, 4_000)];

impl Plan {
    /// For faults that begin within `window_s`.
    pub(crate) fn of(seed: u64, window_s: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let mut lanes = BTreeMap::new();
        for (lane, rows) in [
            (Lane::Kills, KILLS),
            (Lane::Stalls, STALLS),
            (Lane::Etcd, ETCD),
            (Lane::Clocks, CLOCKS),
            (Lane::Wires, WIRES),
        ] {
            let whats = drawn(&mut dice, rows, window_s);
            lanes.insert(lane, spread(&mut dice, whats, window_s));
        }
        let mut groups: [Vec<Fault>; GROUPS.len()] = Default::default();
        for (turn, mut fault) in drawn(&mut dice, AGENT, window_s).into_iter().enumerate() {
            // Each agent gets its share; a group of two gets twice that of one.
            let agent = turn % AGENTS;
            let group = GROUPS.iter().position(|group| group.contains(&agent)).unwrap_or(0);
            fault.pick = agent as u64;
            groups[group].push(fault);
        }
        for (n, whats) in groups.into_iter().enumerate() {
            lanes.insert(Lane::Agents(n), spread(&mut dice, whats, window_s));
        }
        let floods = drawn(&mut dice, FLOODS, window_s);
        lanes.insert(Lane::Floods, spread(&mut dice, floods, window_s));
        Self { lanes }
    }

    /// How many of each are planned.
    #[cfg(test)]
    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for fault in self.lanes.values().flatten() {
            *counts.entry(fault.what.id()).or_default() += 1;
        }
        counts
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<_> = self.lanes.values().flatten().collect();
        all.sort_by_key(|fault| fault.at_ms);
        all.into_iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}

/// The faults of one lane in a random order, as many as the window asks for.
fn drawn(dice: &mut Dice, rows: &[Row], window_s: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (what, often, least, most) in rows {
        let count = (often * window_s).div_ceil(SMOKE_WINDOW_S);
        let one = |_| Fault { at_ms: 0, what: *what, pick: dice.draw(), lasts_ms: dice.between(*least, *most) };
        faults.extend((0..count).map(one));
    }
    dice.shuffle(&mut faults);
    faults
}

/// Over the window, each somewhere in the first half of its slot, so that most of it is left for the fault itself.
fn spread(dice: &mut Dice, mut faults: Vec<Fault>, window_s: u64) -> Vec<Fault> {
    let slot = window_s * 1000 / (faults.len().max(1) as u64);
    for (n, fault) in faults.iter_mut().enumerate() {
        fault.at_ms = n as u64 * slot + dice.between(0, slot / 2);
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_minutes_hold_the_numbers_of_the_smoke() {
        let counts = Plan::of(7, SMOKE_WINDOW_S).counts();
        for (id, least) in [
            ("X1", 10),
            ("X2", 5),
            ("X3", 8),
            ("X4", 5),
            ("X5", 5),
            ("X6", 10),
            ("X7", 5),
            ("X8", 5),
            ("X9", 3),
            ("X10", 1),
            ("X12", 1),
            ("X14", 3),
            ("X16", 20),
            ("X18", 3),
        ] {
            assert!(counts[id] >= least, "{id}: {counts:?}");
        }
    }

    #[test]
    fn the_seed_decides_the_plan() {
        assert_eq!(Plan::of(7, SMOKE_WINDOW_S).to_string(), Plan::of(7, SMOKE_WINDOW_S).to_string());
        assert_ne!(Plan::of(7, SMOKE_WINDOW_S).to_string(), Plan::of(8, SMOKE_WINDOW_S).to_string());
    }

    #[test]
    fn faults_of_a_lane_are_in_order_and_within_the_window() {
        for lane in Plan::of(3, SMOKE_WINDOW_S).lanes.values() {
            assert!(lane.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
            assert!(lane.iter().all(|fault| fault.at_ms < SMOKE_WINDOW_S * 1_000));
        }
    }
}
