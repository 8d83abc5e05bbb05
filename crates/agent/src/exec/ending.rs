//! Waits for the end of one attempt, and brings it about when its time is over or somebody wants it.

use std::{pin::Pin, time::Duration};

use muster_core::time::Mono;
use tokio::time::{Sleep, sleep};

use super::{
    KillReason,
    attempt::{Attempt, KILL_LIMIT},
    os::{Leader, strike_members, terminate_strays},
    pipes::Pipes,
    quota::Quota,
};
use crate::cgroup::{Place, Slot};

/// Between two looks at whether a part of an attempt was killed for want of memory.
const LOOK: Duration = Duration::from_secs(1);

/// Why we are ending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Timeout(Duration),
    Wish(KillReason),
    /// The kernel killed a part of it for want of memory.
    Oom,
    /// So many bytes lay in its scratch folder.
    ScratchFull(u64),
}

/// How far the ending of an attempt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) cause: Option<Cause>,
    pub(super) step: Step,
    /// When the next step is due.
    pub(super) due: Option<Mono>,
}

/// Waits for the end of a process, and brings it about: SIGTERM, grace, SIGKILL.
pub(super) struct Watch<'a> {
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Step {
    #[default]
    Runs,
    /// SIGTERM was sent.
    Asked,
    /// SIGKILL was sent.
    Killed,
}

impl<'a> Watch<'a> {
    /// Goes on at `stage`; a limit counts from the start of the process, whoever watched it then.
    pub(super) fn new(attempt: &'a Attempt, stage: Stage, leader: &Leader) -> Self {
        let Stage { cause, step, due } = stage;
        let quota = attempt.room.quota(&attempt.order, attempt.scratch.as_ref());
        let mut watch = Self { attempt, cause, step, timer: None, look: None, quota };
        watch.look_later();
        match (due, attempt.order.spec.timeout) {
            (Some(due), _) => watch.timer_at(due),
            (None, Some(limit)) if step == Step::Runs => watch.timer_at(attempt.began.after(limit)),
            (None, _) => {}
        }
        if step == Step::Killed {
            watch.strike(leader);
        }
        watch
    }

    /// Returns when the leader is dead, or [`KILL_LIMIT`] after it was killed.
    pub(super) async fn until_exit(mut self, leader: &Leader, pipes: &mut Pipes) -> (Option<Cause>, Step) {
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
                () = pipes.pump(), if pipes.is_busy() => {}
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
                self.strike(leader);
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
            self.strike(leader);
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

    /// Kills it. The client of a daemon lives until the limit is over: it ends when the container is dead, and then all of
    /// its output was handed on.
    fn strike(&self, leader: &Leader) {
        let slot = self.attempt.confined.place.as_ref().and_then(Place::slot);
        if !slot.is_some_and(Slot::kill_sheltered) {
            leader.kill_group();
            // Now, and not when it was seen dead: whoever watches over leases is told that everybody is struck.
            slot.into_iter().for_each(strike_members);
        }
        self.attempt.control.struck();
    }

    fn ask(&mut self, leader: &Leader) {
        leader.terminate();
        // An engine hands it on to the container's first process, which must not hear it twice.
        let is_contained = self.attempt.order.spec.container.is_some();
        if let Some(slot) = self.attempt.confined.place.as_ref().and_then(Place::slot).filter(|_| !is_contained) {
            terminate_strays(slot, leader);
        }
        self.step = Step::Asked;
    }

    fn due_in(&mut self, wait: Duration) {
        self.due_at(self.attempt.room.clock.mono().after(wait));
    }

    fn due_at(&mut self, at: Mono) {
        self.timer_at(at);
        if let Some(deposit) = &self.attempt.deposit {
            deposit.stage(Stage { cause: self.cause, step: self.step, due: Some(at) });
        }
    }

    fn timer_at(&mut self, at: Mono) {
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
