//! Finds and kills what is left of attempts, on one thread that serves all of them with one look at `/proc`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::{id::Token, time::Mono};
use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use tracing::warn;

use super::{
    IsLive, Survivor, proc,
    proc::{Scan, Seen},
    unix::{kill_exactly, signal_exactly},
};

/// Between two looks while somebody still lives; a kill takes effect within about a millisecond.
const PAUSE: Duration = Duration::from_millis(5);
/// The same when the last look found nobody new: each one reads all of `/proc`, and who hangs in the kernel may do so for
/// hours.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// After an attempt that seemed to leave nothing, before strays are looked for: many ends share one look.
const STRAYS_AFTER: Duration = Duration::from_secs(1);
/// Looks that may be repeated because a process showed no environment; some have none for good.
const UNSURE_MAX: u8 = 2;

/// The handle; cheap to clone. The thread ends with the last handle.
#[derive(Clone)]
pub(crate) struct Hunter {
    clock: Clock,
    instance: Arc<str>,
    orders: SyncSender<Order>,
    stray_check: Arc<AtomicBool>,
}

enum Order {
    Hunt(Quarry),
    /// Something ended by itself; strays may be about.
    Strays,
}

struct Quarry {
    cookies: Vec<Arc<str>>,
    whom: Whom,
    /// Its group is the attempt's; only while it is not reaped.
    leader: Option<i32>,
    deadline: Mono,
    unsure: u8,
    /// Who was found last.
    found: Vec<i32>,
    answer: oneshot::Sender<Vec<Survivor>>,
}

#[derive(Clone, Copy)]
enum Whom {
    Attempt(Token),
    /// Everybody with one of the cookies.
    All,
    /// Those of them whose attempt is nobody's business.
    Strays,
}

impl Hunter {
    /// Starts the thread. `instance` marks our processes.
    pub(crate) fn start(clock: Clock, instance: Arc<str>, is_live: IsLive) -> std::io::Result<Self> {
        // A full channel makes the asker wait: each attempt asks once, so this is never reached.
        let (orders, inbox) = sync_channel(4096);
        let stray_check = Arc::new(AtomicBool::new(false));
        let thread =
            Thread { clock, instance: Arc::clone(&instance), is_live, inbox, stray_check: Arc::clone(&stray_check) };
        std::thread::Builder::new().name("muster-hunt".into()).spawn(move || thread.run())?;
        Ok(Self { clock, instance, orders, stray_check })
    }

    /// Kills every process of an attempt and answers when none is left, or with those that live
    /// after `limit`. `leader` must not be reaped before the answer.
    pub(crate) async fn hunt(&self, token: Token, leader: Option<i32>, limit: Duration) -> Vec<Survivor> {
        self.ask(vec![Arc::clone(&self.instance)], Whom::Attempt(token), leader, limit).await
    }

    /// The same for everybody who carries one of `cookies`.
    pub(crate) async fn hunt_instances(&self, cookies: Vec<Arc<str>>, limit: Duration) -> Vec<Survivor> {
        self.ask(cookies, Whom::All, None, limit).await
    }

    /// The same for everybody whose attempt is not live.
    pub(crate) async fn hunt_strays(&self, limit: Duration) -> Vec<Survivor> {
        self.ask(vec![Arc::clone(&self.instance)], Whom::Strays, None, limit).await
    }

    async fn ask(&self, cookies: Vec<Arc<str>>, whom: Whom, leader: Option<i32>, limit: Duration) -> Vec<Survivor> {
        let deadline = self.clock.mono().after(limit);
        let (answer, hears) = oneshot::channel();
        let quarry = Quarry { cookies, whom, leader, deadline, unsure: 0, found: Vec::new(), answer };
        if self.orders.send(Order::Hunt(quarry)).is_err() {
            return Vec::new();
        }
        hears.await.unwrap_or_default()
    }

    /// An attempt ended by itself and its pipes are closed: look for strays some time soon.
    pub(crate) fn check_for_strays(&self) {
        if !self.stray_check.swap(true, Ordering::Relaxed) {
            let _full_means_awake = self.orders.try_send(Order::Strays);
        }
    }
}

struct Thread {
    clock: Clock,
    instance: Arc<str>,
    is_live: IsLive,
    inbox: Receiver<Order>,
    stray_check: Arc<AtomicBool>,
}

impl Thread {
    fn run(self) {
        let mut hunted: Vec<Quarry> = Vec::new();
        let mut strays_at: Option<Mono> = None;
        let mut pause = PAUSE;
        loop {
            let wait = match (hunted.is_empty(), strays_at) {
                (false, _) => Some(pause),
                (true, Some(at)) => Some(at.since(self.clock.mono())),
                (true, None) => None,
            };
            let order = match wait {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => self.inbox.recv_timeout(wait),
            };
            match order {
                Ok(order) => self.take(order, &mut hunted, &mut strays_at),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(order) = self.inbox.try_recv() {
                self.take(order, &mut hunted, &mut strays_at);
            }
            let changed;
            (hunted, changed) = self.round(hunted);
            pause = if changed { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
            if strays_at.is_some_and(|at| at <= self.clock.mono()) {
                self.stray_check.store(false, Ordering::Relaxed);
                strays_at = self.kill_strays().then(|| self.clock.mono().after(STRAYS_AFTER));
            }
        }
    }

    fn take(&self, order: Order, hunted: &mut Vec<Quarry>, strays_at: &mut Option<Mono>) {
        match order {
            Order::Hunt(quarry) => hunted.push(quarry),
            Order::Strays => *strays_at = Some(self.clock.mono().after(STRAYS_AFTER)),
        }
    }

    /// One look for all; those of whom nothing is left are answered. Whether another one soon is worth it.
    fn round(&self, hunted: Vec<Quarry>) -> (Vec<Quarry>, bool) {
        if hunted.is_empty() {
            return (hunted, true);
        }
        let groups: BTreeSet<&[Arc<str>]> = hunted.iter().map(|quarry| quarry.cookies.as_slice()).collect();
        let scans: Vec<(Vec<Arc<str>>, Scan)> = groups
            .into_iter()
            .map(|cookies| (cookies.to_vec(), proc::scan(&cookies.iter().map(AsRef::as_ref).collect::<Vec<_>>())))
            .collect();
        let now = self.clock.mono();
        let (mut left, mut changed) = (Vec::new(), false);
        for mut quarry in hunted {
            let Some((_, scan)) = scans.iter().find(|(cookies, _)| *cookies == quarry.cookies) else { continue };
            let found = match quarry.whom {
                Whom::Attempt(token) => scan.of_attempt(token.0, quarry.leader),
                Whom::All => scan.of_any(),
                Whom::Strays => scan.of_strays(|token| (self.is_live)(Token(token))),
            };
            if found.is_empty() && (!scan.unsure || quarry.unsure >= UNSURE_MAX) {
                let _asker_left = quarry.answer.send(Vec::new());
            } else if now >= quarry.deadline {
                let _asker_left = quarry.answer.send(found.into_iter().map(survivor).collect());
            } else {
                quarry.unsure += u8::from(found.is_empty());
                kill_all(&found);
                let pids: Vec<i32> = found.iter().map(|seen| seen.stat.pid).collect();
                changed |= pids.is_empty() || pids != quarry.found;
                quarry.found = pids;
                left.push(quarry);
            }
        }
        (left, changed)
    }

    /// Whether there were any: then a second look is due.
    fn kill_strays(&self) -> bool {
        let scan = proc::scan(&[&self.instance]);
        let stray = |seen: &&Seen| matches!(seen.marked, Some(Some(token)) if !(self.is_live)(Token(token)));
        let strays: Vec<&Seen> = scan.seen.iter().filter(stray).collect();
        for seen in &strays {
            let token = seen.marked.flatten().unwrap_or_default();
            warn!(pid = seen.stat.pid, name = %seen.stat.name, token, "a process outlived its attempt and is killed");
        }
        kill_all(&strays);
        !strays.is_empty()
    }
}

fn survivor(seen: &Seen) -> Survivor {
    let token = seen.marked.flatten().map(Token);
    Survivor { pid: seen.stat.pid.unsigned_abs(), name: seen.stat.name.clone(), token }
}

fn kill_all(found: &[&Seen]) {
    for seen in found {
        kill_exactly(seen.stat.pid, seen.stat.start);
    }
}

/// Whoever has a variable of ours in the environment, in whatever container.
pub(crate) struct Marked {
    variable: [String; 1],
    /// How they are asked to end.
    signal: Signal,
    /// By number and start: who was.
    asked: BTreeSet<(i32, u64)>,
}

impl Marked {
    /// Of `variable`, a name with its value. On a terminal, which hangs up, they are asked by SIGHUP, and by SIGTERM otherwise.
    pub(crate) fn new(variable: &str, is_on_terminal: bool) -> Self {
        let signal = if is_on_terminal { Signal::SIGHUP } else { Signal::SIGTERM };
        Self { variable: [variable.to_owned()], signal, asked: BTreeSet::new() }
    }

    /// Asks each of them, and each that hangs on them, once. Returns how many are there.
    pub(crate) fn ask(&mut self) -> usize {
        let scan = proc::scan_for(&self.variable);
        let found = scan.of_any();
        for seen in &found {
            if self.asked.insert((seen.stat.pid, seen.stat.start)) {
                signal_exactly(seen.stat.pid, seen.stat.start, self.signal);
            }
        }
        found.len()
    }

    /// Kills each of them, and returns how many are there still.
    pub(crate) fn kill(&mut self) -> usize {
        let scan = proc::scan_for(&self.variable);
        let found = scan.of_any();
        kill_all(&found);
        found.len()
    }
}

/// For the guard, which has no threads: kills everybody with the cookie until `looks` looks in a
/// row find nobody. Returns how many still lived when `limit` was over.
pub(crate) fn sweep_blocking(clock: Clock, cookie: &str, looks: u32, limit: Duration) -> usize {
    let deadline = clock.mono().after(limit);
    let mut clean = 0;
    loop {
        let scan = proc::scan(&[cookie]);
        let found = scan.of_any();
        clean = if found.is_empty() { clean + 1 } else { 0 };
        // C10: one that cannot be killed must not keep us for ever.
        if clean == looks || clock.mono() >= deadline {
            return found.len();
        }
        kill_all(&found);
        std::thread::sleep(PAUSE * 4);
    }
}
