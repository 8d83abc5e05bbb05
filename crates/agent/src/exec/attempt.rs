//! The life of one attempt from its process's start to its proven end.

use std::{sync::Arc, time::Duration};

use muster_core::{
    record::TaskResult,
    run_as,
    state::End,
    time::{Mono, Timestamp},
    usage::Usage,
};
use tokio::time::sleep;
use tracing::{Span, debug, warn};

use super::{
    ExecEvent, Order,
    confined::Confined,
    contained::{self, Contained, Said},
    control::Control,
    deposit::Deposit,
    ending::{Cause, Stage, Step, Watch},
    os::{Fresh, Leader, Running, Spent, Status, Survivor, end_members},
    outcome,
    pipes::Pipes,
    quota,
    room::{Entry, Room},
    scratch::Folder,
    verdict::{Fate, fate},
};
use crate::{cgroup::Place, containers::Told, logs::Spool};

/// After SIGKILL, for the kernel to do it; what lives then is in a system call that does not end (C10).
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(2);
/// How long a starter's thread waits for the end of what it started: longer than a short task takes
/// on a busy machine, shorter than anybody notices of an order that finds all starters waiting.
const LINGER: Duration = Duration::from_millis(8);
/// After the leader's end, for the rest of its group to die and its pipes to close. Who holds them
/// longer has left the group and must be looked for.
const CLOSE_LIMIT: Duration = Duration::from_millis(20);

/// After the end of a container, for its engine to put away what it kept.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks whether it has.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// Between two tries to kill what survived.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// For one of them: what hangs in the kernel does so for long, and looking for it costs.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// An attempt whose process runs.
pub(super) struct Attempt {
    pub(super) room: Arc<Room>,
    pub(super) order: Arc<Order>,
    pub(super) control: Arc<Control>,
    /// What holds it and counts what it takes.
    pub(super) confined: Confined,
    pub(super) scratch: Option<Folder>,
    pub(super) started: Timestamp,
    /// The same on the clock that limits are counted on.
    pub(super) began: Mono,
    /// From the start to the last word.
    pub(super) span: Span,
    /// What a keeper that comes after us finds of it; none: nobody will go on with it.
    pub(super) deposit: Option<Deposit>,
}

impl Attempt {
    /// Waits a little for the end, on this thread, if nobody else needs it; most short tasks are
    /// over then, for the price of one wake-up. The others are handed to the runtime. Returns what this thread is to
    /// start next.
    pub(super) fn begin(mut self, mut fresh: Fresh, may_linger: bool) -> Option<Entry> {
        let room = Arc::clone(&self.room);
        let mut spool = room.spool(&self.order);
        let is_quick = self.order.spec.container.is_none();
        let patient = is_quick && self.order.spec.timeout.is_none_or(|limit| limit > LINGER * 2);
        if may_linger && patient && !self.confined.is_strict() && fresh.ended_within(LINGER) {
            let finished = fresh.finish(|stream, scratch, len| spool.take(stream, room.clock.wall(), scratch, len));
            let deserted = self.confined.is_deserted();
            if let Some(status) = finished.filter(|_| deserted != Some(false)) {
                let has_output = spool.finish();
                if deserted.is_none() {
                    room.hunter.check_for_strays();
                }
                return self.end_at_once(status, fresh.spent(), has_output);
            }
        }
        self.confined.place.iter_mut().for_each(Place::leave);
        let _context = room.runtime.enter();
        match fresh.watch() {
            Ok(running) => {
                self.deposit = Deposit::make(&self, &running);
                room.track(self.run(running, spool, Stage::default()));
            }
            Err(error) => {
                let has_output = spool.finish();
                let why = format!("its process could not be watched and was killed: {error}");
                room.track(async move { self.lose(why, has_output).await });
            }
        }
        None
    }

    /// Without the runtime, unless there is something that may take long.
    fn end_at_once(mut self, status: Status, spent: Option<Spent>, has_output: Option<bool>) -> Option<Entry> {
        let counts = self.confined.place.as_ref().map(Place::counts);
        let is_killed_for_memory = counts.is_some_and(|counts| counts.oom_kills > 0);
        let is_plain = !is_killed_for_memory
            && self.scratch.as_ref().is_none_or(Folder::is_clean)
            && !self.order.has_inputs
            && !outcome::is_there(&self.room.result_path(&self.order));
        let room = Arc::clone(&self.room);
        if !is_plain {
            // Another thread brings it to its end.
            self.confined.place.iter_mut().for_each(Place::leave);
            let (status, ended) = (Some(status), Some(room.clock.wall()));
            room.track(self.conclude(Dead { status, spent, has_output, ended, ..Dead::default() }));
            return None;
        }
        let usage = Some(Usage { has_output, ..self.confined.settle_at(counts, spent) });
        if let Some(folder) = self.scratch {
            room.scratch.put_empty(folder);
        }
        let end = match status {
            Status::Exit(0) => End::Succeeded,
            Status::Exit(code) => End::Exit(code),
            Status::Signal(number) => End::Signal(number),
        };
        let (token, started, ended) = (self.order.token, self.started, room.clock.wall());
        self.span.record("end", tracing::field::display(end));
        let word = |next| ExecEvent::Ended { token, end, why: None, started, ended, result: None, usage, next };
        room.over_at_once(&self.order, word)
    }

    /// Runs to the end, from where it is, and tells of it, exactly once.
    pub(super) async fn run(mut self, running: Running, spool: Spool, stage: Stage) {
        let Running { mut leader, identity, stdin, stdout, stderr } = running;
        let token = self.order.token;
        if !self.is_adopted() {
            self.room.tell(ExecEvent::Started { token, at: self.started, identity }).await;
        }
        let way = self.deposit.as_ref().and_then(Deposit::way);
        let mut pipes =
            Pipes::new(self.room.clock, stdout, stderr, spool, Said::of(&self.order.spec)).through(token, way);
        if let Some(stdin) = stdin {
            match &self.deposit {
                Some(deposit) => pipes.feed_by(deposit.feed(stdin)),
                None => pipes.feed(stdin, Arc::clone(&self.order.spec)),
            }
        }
        let (cause, step) = Watch::new(&self, stage, &leader).until_exit(&leader, &mut pipes).await;
        let is_settled = step != Step::Killed && self.settle_container(&mut pipes).await;
        let told = self.ask_daemon(is_settled || step == Step::Killed).await;
        let (status, survivors) = self.clear(cause, &mut leader, &mut pipes).await;
        self.control.struck();
        let (is_removed, survivors) = self.part(told.as_ref(), status, &leader, survivors).await;
        // Before its result is delivered and its folder removed, which may take long.
        let ended = Some(self.room.clock.wall());
        // What a daemon's child reads and writes, its client knows nothing of.
        let spent = leader.spent().map(|spent| if told.is_some() { spent.without_disks() } else { spent });
        let (said, has_output) = pipes.finish();
        let is_unknown = status.is_none() && self.deposit.as_ref().is_some_and(|deposit| deposit.is_unknown(&leader));
        drop(leader);
        let is_put_away =
            if told.is_some() { is_removed } else { is_settled && matches!(status, Some(Status::Exit(_))) };
        let contained = self.contained().filter(|_| !is_put_away);
        self.conclude(Dead { cause, status, is_unknown, spent, survivors, said, has_output, ended, lost: None, told })
            .await;
        if let Some(contained) = contained {
            let _told_if_not = contained.remove().await;
        }
    }

    /// Whether an earlier keeper started it.
    fn is_adopted(&self) -> bool {
        self.deposit.as_ref().is_some_and(Deposit::is_adopted)
    }

    pub(super) fn contained(&self) -> Option<Contained> {
        Contained::of(self.room.containers.as_ref(), &self.room.files, &self.order)
    }

    /// Whether the engine of a container that is over has put away what it kept. Nothing of the task is left then; what
    /// still ends are helpers of the engine's, which must not be killed while they remove things.
    async fn settle_container(&self, pipes: &mut Pipes) -> bool {
        if self.order.spec.container.is_none() {
            return true;
        }
        let settled = async {
            pipes.drain().await;
            while self.confined.is_deserted() == Some(false) {
                sleep(SETTLE_PAUSE).await;
            }
        };
        tokio::time::timeout(SETTLE_LIMIT, settled).await.is_ok()
    }

    async fn conclude(mut self, dead: Dead) {
        // What follows may take as long as a disk does, or a controller that is away.
        self.control.struck();
        let ended = dead.ended;
        let (end, mut why, result) = self.judge(&dead).await;
        if let Some(folder) = self.scratch.take() {
            let is_failed = matches!(end, End::Exit(_) | End::Signal(_) | End::Timeout | End::Oom | End::ScratchFull);
            if is_failed && self.order.spec.scratch == run_as::Scratch::KeepOnFailure {
                let kept = self.room.keep_scratch(&self.order, folder).await;
                why = why
                    .into_iter()
                    .map(|why| why.to_string())
                    .chain(kept)
                    .reduce(|a, b| format!("{a}; {b}"))
                    .map(Into::into);
            } else {
                self.room.put_scratch(folder).await;
            }
        }
        self.span.record("end", tracing::field::display(end));
        debug!(token = %self.order.token, %end, "attempt over");
        let room = Arc::clone(&self.room);
        let (token, started, ended) = (self.order.token, self.started, ended.unwrap_or_else(|| room.clock.wall()));
        let counts = self.confined.place.as_ref().map(Place::counts);
        let has_output = dead.has_output;
        let usage = Some(Usage { has_output, ..self.confined.usage(counts.as_ref(), dead.spent) });
        let result = result.filter(|_| end != End::KillFailed);
        let event = ExecEvent::Ended { token, end, why, started, ended, result, usage, next: None };
        if let Some(deposit) = &self.deposit {
            deposit.ended(&event, self.order.task);
        }
        // Only now: who has to find its end once more needs them.
        room.discard_files(&self.order).await;
        if end == End::KillFailed {
            room.over(event).await;
            return self.survive(dead.spent).await;
        }
        if let (Some(place), Some(counts)) = (self.confined.place, counts) {
            place.end(&counts);
        }
        room.over(event).await;
    }

    /// Its end was told, and something of it lives.
    pub(super) async fn survive(self, spent: Option<Spent>) {
        self.outlast().await;
        let room = Arc::clone(&self.room);
        let (token, started, ended) = (self.order.token, self.started, room.clock.wall());
        let (end, why) = (End::Lost, Some("what survived it is dead now".into()));
        let usage = Some(self.confined.settle(spent));
        let event = ExecEvent::Ended { token, end, why, started, ended, result: None, usage, next: None };
        if let Some(deposit) = &self.deposit {
            deposit.ended(&event, self.order.task);
        }
        // Its GPUs are free with its slot.
        room.over(event).await;
    }

    /// It runs and cannot be watched.
    pub(super) async fn lose(self, why: String, has_output: Option<bool>) {
        let survivors = match self.confined.place.as_ref().and_then(Place::slot) {
            Some(slot) => end_members(slot, self.room.clock, KILL_LIMIT).await,
            // Where there are neither cgroups nor jobs, what left its group is to be found by its mark.
            None if cfg!(unix) => self.room.hunter.hunt(self.order.token, None, KILL_LIMIT).await,
            None => Vec::new(),
        };
        let contained = self.contained();
        self.conclude(Dead { lost: Some(why.into()), survivors, has_output, ..Dead::default() }).await;
        if let Some(contained) = contained {
            contained.remove().await;
        }
    }

    /// Kills what survived again and again, until it is dead: whoever hangs in the kernel dies when that ends.
    async fn outlast(&self) {
        loop {
            tokio::time::sleep(AGAIN).await;
            let left = match self.confined.place.as_ref().and_then(Place::slot) {
                Some(slot) => end_members(slot, self.room.clock, LOOK).await,
                None => self.room.hunter.hunt(self.order.token, None, LOOK).await,
            };
            if left.is_empty() {
                return;
            }
        }
    }

    /// Kills what is left of it and takes what is left in its pipes. Returns how the leader ended, and
    /// what could not be killed (A3).
    async fn clear(
        &self,
        cause: Option<Cause>,
        leader: &mut Leader,
        pipes: &mut Pipes,
    ) -> (Option<Status>, Vec<Survivor>) {
        let token = self.order.token;
        leader.kill_group();
        if cause.is_none() && tokio::time::timeout(CLOSE_LIMIT, pipes.drain()).await.is_ok() {
            let status = self.reap(leader).await;
            // Nobody holds its pipes and nobody is in its group: nearly every attempt ends here. One
            // that went into hiding with closed pipes is found by the look for strays.
            let deserted = self.confined.is_deserted();
            if leader.was_alone() && deserted != Some(false) {
                if deserted.is_none() {
                    self.room.hunter.check_for_strays();
                }
                return (status, Vec::new());
            }
            return (status, self.kill_all(leader).await);
        }
        let drain = tokio::time::timeout(KILL_LIMIT, pipes.drain());
        let (survivors, drained) = tokio::join!(self.kill_all(leader), drain);
        if drained.is_err() {
            warn!(%token, "somebody outside the attempt holds its output open; what they write is not kept");
        }
        (self.reap(leader).await, survivors)
    }

    /// How the first process ended; none: it has not, or nobody can tell. What is known of it is known to our heirs first.
    async fn reap(&self, leader: &mut Leader) -> Option<Status> {
        match &self.deposit {
            Some(deposit) => deposit.reap(leader).await,
            None => leader.reap(),
        }
    }

    /// Everybody in its cgroups; without them, everybody who carries its mark.
    pub(super) async fn kill_all(&self, leader: &Leader) -> Vec<Survivor> {
        match self.confined.place.as_ref().and_then(Place::slot) {
            Some(slot) => end_members(slot, self.room.clock, KILL_LIMIT).await,
            None => leader.hunt(&self.room.hunter, self.order.token, KILL_LIMIT).await,
        }
    }

    /// What its end is called.
    async fn judge(&self, dead: &Dead) -> (End, Option<Arc<str>>, Option<TaskResult>) {
        let survivors = &dead.survivors;
        if let Some(why) = dead.lost.as_ref().filter(|_| survivors.is_empty()) {
            return (End::Lost, Some(Arc::clone(why)), None);
        }
        if dead.is_unknown && survivors.is_empty() {
            let why = "it ended, and how is not known: the keeper that started it was killed, and its safe too";
            return (End::Lost, Some(why.into()), None);
        }
        let Some(status) = dead.status.filter(|_| survivors.is_empty()) else {
            let list = survivors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return (End::KillFailed, Some(format!("still alive after SIGKILL: {list}").into()), None);
        };
        let is_told = matches!(&dead.told, Some(Told::State(state)) if state.oom_killed);
        let oom = self.confined.oom(status, is_told);
        if let (None, None, Some(said)) = (dead.cause, &oom, &dead.said) {
            match fate(self.contained().as_ref(), dead.told.as_ref(), status, said) {
                Fate::AsItEnded => {}
                Fate::NeverRan(why) => return (End::NotStarted, Some(why.into()), None),
                Fate::Lost(why) => return (End::Lost, Some(why.into()), None),
            }
        }
        match (dead.cause, status) {
            (Some(Cause::Timeout(limit)), _) => {
                let why = format!("it ran longer than its limit of {limit:?} and was killed");
                (End::Timeout, Some(why.into()), None)
            }
            (Some(Cause::Wish(reason)), _) => (reason.end(), Some(reason.text().into()), None),
            (Some(Cause::ScratchFull(found)), _) => {
                let why = quota::why(found, self.order.spec.scratch_size, &self.room.rules);
                (End::ScratchFull, Some(why.into()), None)
            }
            (Some(Cause::Oom), _) => (End::Oom, oom.map(|oom| oom.why.into()), None),
            (None, Status::Exit(0)) => {
                match outcome::collect(&self.order, &self.room.result_path(&self.order), &*self.room.links.results)
                    .await
                {
                    Ok(result) => (End::Succeeded, oom.map(|oom| oom.why.into()), result),
                    Err(why) => (End::Exit(outcome::BAD_RESULT), Some(why.into()), None),
                }
            }
            (None, status) => match (oom, status) {
                (Some(oom), _) => (oom.end, Some(oom.why.into()), None),
                (None, Status::Exit(code)) => {
                    let why = dead.said.as_ref().and_then(|said| contained::doubt(code, said));
                    (End::Exit(code), why.map(Into::into), None)
                }
                (None, Status::Signal(number)) => (End::Signal(number), None, None),
            },
        }
    }
}

/// What is known of an attempt when it is over.
#[derive(Default)]
struct Dead {
    cause: Option<Cause>,
    status: Option<Status>,
    /// It is dead, and there is nobody who could know its status.
    is_unknown: bool,
    spent: Option<Spent>,
    survivors: Vec<Survivor>,
    /// Of one in a container: what was said last.
    said: Option<Said>,
    /// Whether it wrote anything; none: not known.
    has_output: Option<bool>,
    /// When nothing of it was left; none: now.
    ended: Option<Timestamp>,
    /// It was given up, and why.
    lost: Option<Arc<str>>,
    /// Of one that a daemon ran: what that says.
    told: Option<Told>,
}
