//! The life of one attempt from its process's start to its proven end.

use std::{pin::Pin, sync::Arc, time::Duration};

use muster_core::{
    record::TaskResult,
    run_as,
    state::End,
    time::{Mono, Timestamp},
};
use tokio::time::{Sleep, sleep};
use tracing::{Span, debug, warn};

use super::{
    ExecEvent, KillReason, Order,
    confined::Confined,
    contained::{self, Contained, Said},
    control::Control,
    os::{Fresh, Leader, Running, Spent, Status, Survivor, end_members, terminate_members},
    outcome,
    pipes::Pipes,
    quota::{self, Quota},
    room::{Entry, Room},
    scratch::Folder,
};
use crate::{cgroup::Place, logs::Spool};

/// After SIGKILL, for the kernel to do it; what lives then is in a system call that does not end (C10).
const KILL_LIMIT: Duration = Duration::from_secs(2);
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
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at whether a part of an attempt was killed for want of memory.
const LOOK: Duration = Duration::from_secs(1);

/// An attempt whose process runs.
pub(super) struct Attempt {
    pub(super) room: Arc<Room>,
    pub(super) order: Arc<Order>,
    pub(super) control: Arc<Control>,
    /// What holds it and counts what it takes.
    pub(super) confined: Confined,
    pub(super) scratch: Option<Folder>,
    pub(super) started: Timestamp,
    /// From the start to the last word.
    pub(super) span: Span,
}

/// Why we are ending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Timeout(Duration),
    Wish(KillReason),
    /// The kernel killed a part of it for want of memory.
    Oom,
    /// So many bytes lay in its scratch folder.
    ScratchFull(u64),
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
                spool.finish();
                if deserted.is_none() {
                    room.hunter.check_for_strays();
                }
                return self.end_at_once(status, fresh.spent());
            }
        }
        self.confined.place.iter_mut().for_each(Place::leave);
        let _context = room.runtime.enter();
        match fresh.watch() {
            Ok(running) => room.track(self.run(running, spool)),
            Err(error) => {
                spool.finish();
                let why = format!("its process could not be watched and was killed: {error}");
                room.track(async move { self.lose(why).await });
            }
        }
        None
    }

    /// Without the runtime, unless there is something that may take long.
    fn end_at_once(mut self, status: Status, spent: Option<Spent>) -> Option<Entry> {
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
            room.track(self.conclude(Dead { status: Some(status), spent, ..Dead::default() }));
            return None;
        }
        let usage = Some(self.confined.settle_at(counts, spent));
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

    /// Runs to the end and tells of it, exactly once.
    async fn run(self, running: Running, spool: Spool) {
        let Running { mut leader, identity, stdin, stdout, stderr } = running;
        let token = self.order.token;
        self.room.tell(ExecEvent::Started { token, at: self.started, identity }).await;
        let mut pipes = Pipes::new(self.room.clock, stdout, stderr, spool, Said::of(&self.order.spec));
        if let Some(stdin) = stdin {
            pipes.feed(stdin, Arc::clone(&self.order.spec));
        }
        let (cause, step) = Watch::new(&self).until_exit(&leader, &mut pipes).await;
        let is_settled = step != Step::Killed && self.settle_container(&mut pipes).await;
        let (status, survivors) = self.clear(cause, &mut leader, &mut pipes).await;
        let (spent, said) = (leader.spent(), pipes.finish());
        drop(leader);
        let is_put_away = is_settled && matches!(status, Some(Status::Exit(_)));
        let contained = self.contained().filter(|_| !is_put_away);
        self.conclude(Dead { cause, status, spent, survivors, said }).await;
        if let Some(contained) = contained {
            contained.remove().await;
        }
    }

    fn contained(&self) -> Option<Contained> {
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
        let (end, mut why, result) = self.judge(&dead).await;
        self.room.discard_files(&self.order).await;
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
        let (token, started) = (self.order.token, self.started);
        if end != End::KillFailed {
            let (usage, ended) = (Some(self.confined.settle(dead.spent)), room.clock.wall());
            return room.over(ExecEvent::Ended { token, end, why, started, ended, result, usage, next: None }).await;
        }
        let counts = self.confined.place.as_ref().map(Place::counts);
        let usage = Some(self.confined.usage(counts.as_ref(), dead.spent));
        let ended = room.clock.wall();
        room.over(ExecEvent::Ended { token, end, why, started, ended, result: None, usage, next: None }).await;
        self.outlast().await;
        let (end, why, ended) = (End::Lost, Some("what survived it is dead now".into()), room.clock.wall());
        let usage = Some(self.confined.settle(dead.spent));
        room.tell(ExecEvent::Ended { token, end, why, started, ended, result: None, usage, next: None }).await;
    }

    /// It runs and cannot be watched.
    async fn lose(self, why: String) {
        let survivors = match self.confined.place.as_ref().and_then(Place::slot) {
            Some(slot) => end_members(slot, self.room.clock, KILL_LIMIT).await,
            None => Vec::new(),
        };
        if !survivors.is_empty() {
            return self.conclude(Dead { survivors, ..Dead::default() }).await;
        }
        let (token, end, why, started) = (self.order.token, End::Lost, Some(why.into()), self.started);
        let (usage, ended) = (Some(self.confined.settle(None)), self.room.clock.wall());
        let event = ExecEvent::Ended { token, end, why, started, ended, result: None, usage, next: None };
        self.room.over(event).await;
    }

    /// Kills what survived again and again, until it is dead: whoever hangs in the kernel dies when that ends.
    async fn outlast(&self) {
        loop {
            tokio::time::sleep(AGAIN).await;
            let left = match self.confined.place.as_ref().and_then(Place::slot) {
                Some(slot) => end_members(slot, self.room.clock, KILL_LIMIT).await,
                None => self.room.hunter.hunt(self.order.token, None, KILL_LIMIT).await,
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
            let status = leader.reap();
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
        (leader.reap(), survivors)
    }

    /// Everybody in its cgroups; without them, everybody who carries its mark.
    async fn kill_all(&self, leader: &Leader) -> Vec<Survivor> {
        match self.confined.place.as_ref().and_then(Place::slot) {
            Some(slot) => end_members(slot, self.room.clock, KILL_LIMIT).await,
            None => leader.hunt(&self.room.hunter, self.order.token, KILL_LIMIT).await,
        }
    }

    /// What its end is called.
    async fn judge(&self, dead: &Dead) -> (End, Option<Arc<str>>, Option<TaskResult>) {
        let survivors = &dead.survivors;
        let Some(status) = dead.status.filter(|_| survivors.is_empty()) else {
            let list = survivors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return (End::KillFailed, Some(format!("still alive after SIGKILL: {list}").into()), None);
        };
        let oom = self.confined.oom(status);
        if let (None, None, Some(said)) = (dead.cause, &oom, &dead.said)
            && self.contained().is_some_and(|contained| !contained.has_run())
        {
            return (End::NotStarted, Some(said.reason().into()), None);
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
                    let why = dead.said.as_ref().and_then(|_| contained::doubt(code));
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
    spent: Option<Spent>,
    survivors: Vec<Survivor>,
    /// Of one in a container: what was said last.
    said: Option<Said>,
}

/// Waits for the end of a process, and brings it about: SIGTERM, grace, SIGKILL.
struct Watch<'a> {
    attempt: &'a Attempt,
    cause: Option<Cause>,
    step: Step,
    /// When the next step is due; a timer only where there is a limit.
    timer: Option<(Mono, Pin<Box<Sleep>>)>,
    /// When the next look is due at whether a part of it was killed for want of memory; only where the kernel does not
    /// kill the rest itself.
    look: Option<(Mono, Pin<Box<Sleep>>)>,
    quota: Quota,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Runs,
    /// SIGTERM was sent.
    Asked,
    /// SIGKILL was sent.
    Killed,
}

impl<'a> Watch<'a> {
    fn new(attempt: &'a Attempt) -> Self {
        let quota = attempt.room.quota(&attempt.order, attempt.scratch.as_ref());
        let mut watch = Self { attempt, cause: None, step: Step::Runs, timer: None, look: None, quota };
        watch.look_later();
        if let Some(limit) = attempt.order.spec.timeout {
            watch.due_in(limit);
        }
        watch
    }

    /// Returns when the leader is dead, or [`KILL_LIMIT`] after it was killed.
    async fn until_exit(mut self, leader: &Leader, pipes: &mut Pipes) -> (Option<Cause>, Step) {
        loop {
            self.heed_wish(leader);
            tokio::select! {
                biased;
                () = leader.exited() => return (self.cause, self.step),
                () = self.attempt.control.changed() => {}
                () = wait(&mut self.look) => self.look_at_memory(leader),
                () = wait(&mut self.timer) => {
                    if self.advance(leader) {
                        return (self.cause, self.step);
                    }
                }
                found = self.quota.passed(), if self.step == Step::Runs => self.stop(leader, Cause::ScratchFull(found)),
                () = pipes.pump(), if pipes.is_open() => {}
            }
        }
    }

    /// A wish may come at any time, and a later one may be in more of a hurry.
    fn heed_wish(&mut self, leader: &Leader) {
        let Some(wish) = self.attempt.control.wish() else { return };
        if self.step == Step::Runs {
            self.cause = Some(Cause::Wish(wish.reason));
            self.ask(leader);
            self.due_at(wish.by);
        } else if self.step == Step::Asked && self.timer.as_ref().is_none_or(|(at, _)| wish.by < *at) {
            self.due_at(wish.by);
        }
    }

    /// The timer is over. Whether there is nothing more that we can do.
    fn advance(&mut self, leader: &Leader) -> bool {
        match self.step {
            Step::Runs => {
                let limit = self.attempt.order.spec.timeout.unwrap_or_default();
                self.stop(leader, Cause::Timeout(limit));
            }
            Step::Asked => {
                self.attempt.confined.place.iter().for_each(Place::lift_io);
                leader.kill_group();
                self.step = Step::Killed;
                self.due_in(KILL_LIMIT);
            }
            Step::Killed => return true,
        }
        false
    }

    /// Asks it to end, and leaves it its grace.
    fn stop(&mut self, leader: &Leader, cause: Cause) {
        self.cause = Some(cause);
        self.ask(leader);
        self.due_in(self.attempt.order.spec.grace);
    }

    /// Half of an attempt that lost a part for want of memory is ended, as version 2 does it by itself.
    fn look_at_memory(&mut self, leader: &Leader) {
        let killed = self.attempt.confined.place.as_ref().is_some_and(|place| place.oom_kills() > 0);
        if killed && self.step == Step::Runs {
            self.cause = Some(Cause::Oom);
            leader.kill_group();
            self.step = Step::Killed;
            self.due_in(KILL_LIMIT);
        }
        self.look_later();
    }

    fn look_later(&mut self) {
        let watched =
            self.step == Step::Runs && self.attempt.confined.place.as_ref().is_some_and(Place::kills_one_by_one);
        self.look = watched.then(|| (self.attempt.room.clock.mono(), Box::pin(sleep(LOOK))));
    }

    fn ask(&mut self, leader: &Leader) {
        leader.terminate();
        // An engine hands it on to the container's first process, which must not hear it twice.
        let is_contained = self.attempt.order.spec.container.is_some();
        if let Some(slot) = self.attempt.confined.place.as_ref().and_then(Place::slot).filter(|_| !is_contained) {
            terminate_members(slot);
        }
        self.step = Step::Asked;
    }

    fn due_in(&mut self, wait: Duration) {
        self.due_at(self.attempt.room.clock.mono().after(wait));
    }

    fn due_at(&mut self, at: Mono) {
        let wait = at.since(self.attempt.room.clock.mono());
        self.timer = Some((at, Box::pin(sleep(wait))));
    }
}

async fn wait(timer: &mut Option<(Mono, Pin<Box<Sleep>>)>) {
    match timer {
        Some((_, sleep)) => sleep.as_mut().await,
        None => std::future::pending().await,
    }
}
