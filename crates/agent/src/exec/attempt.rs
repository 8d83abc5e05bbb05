//! The life of one attempt from its process's start to its proven end.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_core::{
    record::TaskResult,
    state::End,
    time::{Mono, Timestamp},
};
use tokio::{
    sync::Notify,
    time::{Sleep, sleep},
};
use tracing::{Span, debug, warn};

use super::{
    ExecEvent, KillReason, Order,
    os::{Fresh, Leader, Running, Status, Survivor},
    outcome,
    pipes::Pipes,
    room::{Entry, Room},
    scratch::Scratch,
};
use crate::logs::Spool;

/// After SIGKILL, for the kernel to do it; what lives then is in a system call that does not end (C10).
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// How long a starter's thread waits for the end of what it started: longer than a short task takes
/// on a busy machine, shorter than anybody notices of an order that finds all starters waiting.
const LINGER: Duration = Duration::from_millis(8);
/// After the leader's end, for the rest of its group to die and its pipes to close. Who holds them
/// longer has left the group and must be looked for.
const CLOSE_LIMIT: Duration = Duration::from_millis(20);

/// Somebody's wish that an attempt end.
#[derive(Default)]
pub(super) struct Control {
    wish: Mutex<Option<Wish>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The first one counts.
    pub(super) reason: KillReason,
    /// When it must be dead; the earliest counts.
    pub(super) by: Mono,
}

impl Control {
    pub(super) fn kill(&self, reason: KillReason, by: Mono) {
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        *wish = Some(wish.map_or(Wish { reason, by }, |old| Wish { reason: old.reason, by: old.by.min(by) }));
        drop(wish);
        self.changed.notify_one();
    }

    pub(super) fn wish(&self) -> Option<Wish> {
        *self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a wish. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// An attempt whose process runs.
pub(super) struct Attempt {
    pub(super) room: Arc<Room>,
    pub(super) order: Arc<Order>,
    pub(super) control: Arc<Control>,
    pub(super) scratch: Option<PathBuf>,
    pub(super) started: Timestamp,
    /// From the start to the last word.
    pub(super) span: Span,
}

/// Why we are ending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Timeout(Duration),
    Wish(KillReason),
}

impl Attempt {
    /// Waits a little for the end, on this thread, if nobody else needs it; most short tasks are
    /// over then, for the price of one wake-up. The others are handed to the runtime. Returns what this thread is to
    /// start next.
    pub(super) fn begin(self, mut fresh: Fresh, may_linger: bool) -> Option<Entry> {
        let room = Arc::clone(&self.room);
        let mut spool = room.spool(&self.order);
        let patient = self.order.spec.timeout.is_none_or(|limit| limit > LINGER * 2);
        if may_linger && patient && fresh.ended_within(LINGER) {
            let finished = fresh.finish(|stream, scratch, len| spool.take(stream, room.clock.wall(), scratch, len));
            if let Some(status) = finished {
                spool.finish();
                room.hunter.check_for_strays();
                return self.end_at_once(status);
            }
        }
        let _context = room.runtime.enter();
        match fresh.watch() {
            Ok(running) => room.track(self.run(running, spool)),
            Err(error) => {
                spool.finish();
                let why = format!("its process could not be watched and was killed: {error}");
                room.track(async move { self.tell(End::Lost, Some(why.into()), None).await });
            }
        }
        None
    }

    /// Without the runtime, unless there is something that may take long.
    fn end_at_once(self, status: Status) -> Option<Entry> {
        let is_plain = self.scratch.as_deref().is_none_or(Scratch::is_empty)
            && !self.order.has_inputs
            && !outcome::is_there(&self.room.result_path(self.order.token));
        let room = Arc::clone(&self.room);
        if !is_plain {
            room.track(self.conclude(None, Some(status), Vec::new()));
            return None;
        }
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
        let word = |next| ExecEvent::Ended { token, end, why: None, started, ended, result: None, next };
        room.over_at_once(&self.order, word)
    }

    /// Runs to the end and tells of it, exactly once.
    async fn run(self, running: Running, spool: Spool) {
        let Running { mut leader, identity, stdin, stdout, stderr } = running;
        let token = self.order.token;
        self.room.tell(ExecEvent::Started { token, at: self.started, identity }).await;
        let mut pipes = Pipes::new(self.room.clock, stdout, stderr, spool);
        if let Some(stdin) = stdin {
            pipes.feed(stdin, Arc::clone(&self.order.spec));
        }
        let cause = Watch::new(&self).until_exit(&leader, &mut pipes).await;
        let (status, survivors) = self.clear(cause, &mut leader, &mut pipes).await;
        pipes.finish();
        drop(leader);
        self.conclude(cause, status, survivors).await;
    }

    async fn conclude(self, cause: Option<Cause>, status: Option<Status>, survivors: Vec<Survivor>) {
        let (end, why, result) = self.judge(cause, status, &survivors).await;
        self.room.discard_files(&self.order).await;
        if let Some(folder) = self.scratch.clone() {
            self.room.put_scratch(folder).await;
        }
        self.tell(end, why, result).await;
    }

    async fn tell(self, end: End, why: Option<Arc<str>>, result: Option<TaskResult>) {
        let (token, ended) = (self.order.token, self.room.clock.wall());
        self.span.record("end", tracing::field::display(end));
        debug!(%token, %end, "attempt over");
        let started = self.started;
        self.room.over(ExecEvent::Ended { token, end, why, started, ended, result, next: None }).await;
    }

    /// Kills what is left of it and takes what is left in its pipes. Returns how the leader ended, and
    /// what could not be killed (A3).
    async fn clear(
        &self,
        cause: Option<Cause>,
        leader: &mut Leader,
        pipes: &mut Pipes,
    ) -> (Option<Status>, Vec<Survivor>) {
        let (hunter, token) = (&self.room.hunter, self.order.token);
        leader.kill_group();
        if cause.is_none() && tokio::time::timeout(CLOSE_LIMIT, pipes.drain()).await.is_ok() {
            let status = leader.reap();
            // Nobody holds its pipes and nobody is in its group: nearly every attempt ends here. One
            // that went into hiding with closed pipes is found by the look for strays.
            if leader.was_alone() {
                hunter.check_for_strays();
                return (status, Vec::new());
            }
            return (status, leader.hunt(hunter, token, KILL_LIMIT).await);
        }
        let drain = tokio::time::timeout(KILL_LIMIT, pipes.drain());
        let (survivors, drained) = tokio::join!(leader.hunt(hunter, token, KILL_LIMIT), drain);
        if drained.is_err() {
            warn!(%token, "somebody outside the attempt holds its output open; what they write is not kept");
        }
        (leader.reap(), survivors)
    }

    /// What its end is called.
    async fn judge(
        &self,
        cause: Option<Cause>,
        status: Option<Status>,
        survivors: &[Survivor],
    ) -> (End, Option<Arc<str>>, Option<TaskResult>) {
        let Some(status) = status.filter(|_| survivors.is_empty()) else {
            let list = survivors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return (End::KillFailed, Some(format!("still alive after SIGKILL: {list}").into()), None);
        };
        match (cause, status) {
            (Some(Cause::Timeout(limit)), _) => {
                let why = format!("it ran longer than its limit of {limit:?} and was killed");
                (End::Timeout, Some(why.into()), None)
            }
            (Some(Cause::Wish(reason)), _) => (reason.end(), Some(reason.text().into()), None),
            (None, Status::Exit(0)) => {
                match outcome::collect(&self.order, &self.room.result_path(self.order.token), &*self.room.links.results)
                    .await
                {
                    Ok(result) => (End::Succeeded, None, result),
                    Err(why) => (End::Exit(outcome::BAD_RESULT), Some(why.into()), None),
                }
            }
            (None, Status::Exit(code)) => (End::Exit(code), None, None),
            (None, Status::Signal(number)) => (End::Signal(number), None, None),
        }
    }
}

/// Waits for the end of a process, and brings it about: SIGTERM, grace, SIGKILL.
struct Watch<'a> {
    attempt: &'a Attempt,
    cause: Option<Cause>,
    step: Step,
    /// When the next step is due; a timer only where there is a limit.
    timer: Option<(Mono, Pin<Box<Sleep>>)>,
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
        let mut watch = Self { attempt, cause: None, step: Step::Runs, timer: None };
        if let Some(limit) = attempt.order.spec.timeout {
            watch.due_in(limit);
        }
        watch
    }

    /// Returns when the leader is dead, or [`KILL_LIMIT`] after it was killed.
    async fn until_exit(mut self, leader: &Leader, pipes: &mut Pipes) -> Option<Cause> {
        loop {
            self.heed_wish(leader);
            tokio::select! {
                biased;
                () = leader.exited() => return self.cause,
                () = self.attempt.control.changed() => {}
                () = wait(&mut self.timer) => {
                    if self.advance(leader) {
                        return self.cause;
                    }
                }
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
                let spec = &self.attempt.order.spec;
                self.cause = Some(Cause::Timeout(spec.timeout.unwrap_or_default()));
                self.ask(leader);
                self.due_in(spec.grace);
            }
            Step::Asked => {
                leader.kill_group();
                self.step = Step::Killed;
                self.due_in(KILL_LIMIT);
            }
            Step::Killed => return true,
        }
        false
    }

    fn ask(&mut self, leader: &Leader) {
        leader.terminate();
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
