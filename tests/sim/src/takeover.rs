//! Two controllers that both believe that they lead: one is cut off from the store, and another is elected meanwhile.

use muster_core::{
    id::{SessionId, Term},
    mutant,
};

use crate::world::{Coming, Pieces, World};

/// Of the session with the store: what is left of it when the leader is cut off, at most.
const SESSION_US: u64 = 10_000_000;
/// How long a write may be under way.
const LATE_US: u64 = 15_000_000;
/// A leader that does not look at its authority goes on for so long.
const FOREVER_US: u64 = 60_000_000;

impl World {
    /// The leader hears nothing from the store any more, and does not know it yet.
    pub(crate) fn takeover(&mut self) {
        if self.old.is_some() {
            return;
        }
        let Some(controller) = self.controller.take() else { return };
        let term = controller.term;
        self.note(|| format!("the controller of {term} is cut off from its store"));
        self.old = Some(controller);
        // Its own clock gives it less than the store does: the fifth that it keeps as a margin.
        let left = self.rng.within(0, SESSION_US);
        let ends = if mutant::is_on("authority-ignored") { FOREVER_US } else { left * 4 / 5 };
        self.after(ends, Coming::OldEnds { term });
        // A store that was busy ends sessions late; one whose clock is fast ends them early, within that margin.
        let early = self.rng.within(0, left - ends.min(left));
        let late = self.rng.within(0, 2_000_000);
        let wait = if self.rng.chance(50) { left - early } else { left + late };
        self.after(wait, Coming::ControllerStarts);
    }

    /// Whether this is the term of the one that was replaced.
    pub(crate) fn is_old(&self, term: Term) -> bool {
        self.old.as_ref().is_some_and(|old| old.term == term)
    }

    /// Whose connection it is.
    pub(crate) fn term_of(&self, session: SessionId) -> Term {
        let holds = |term: &Term| {
            let all = [&self.controller, &self.old];
            all.into_iter().flatten().any(|c| c.term == *term && c.sessions.contains_key(&session))
        };
        let old = self.old.as_ref().map(|old| old.term).filter(holds);
        old.or_else(|| self.controller.as_ref().map(|controller| controller.term)).unwrap_or(self.term)
    }

    /// Does what a controller of this term does; with the one that was replaced in the leader's place if it is that.
    pub(crate) fn as_whoever(&mut self, term: Term, act: impl FnOnce(&mut Self)) {
        if !self.is_old(term) {
            return act(self);
        }
        let new = self.term;
        self.swap(term);
        act(self);
        self.swap(new);
    }

    fn swap(&mut self, term: Term) {
        std::mem::swap(&mut self.controller, &mut self.old);
        self.term = term;
    }

    /// C2: the store refuses it, at once or when it arrives after long; it may never answer.
    pub(crate) fn commit_of_old(&mut self, term: Term) {
        let pieces = self.old.as_ref().map(|old| old.in_flight.clone()).unwrap_or_default();
        let wait = self.rng.within(0, LATE_US);
        self.after(wait, Coming::LateWrite { term, pieces });
        if self.controller.is_some() && self.rng.chance(50) {
            self.note(|| format!("the store refuses a commit of {term}"));
            self.old_ends(term);
        }
    }

    /// The fence refuses it, whoever leads by then; before that nobody leads, and it changes nothing that was told.
    pub(crate) fn late_write(&mut self, term: Term, pieces: &Pieces) {
        if self.term > term && mutant::is_on("fence-ignored") {
            self.note(|| format!("a write of {term} comes late"));
            self.apply(pieces);
        }
    }

    /// It says no more: its connections break.
    pub(crate) fn old_ends(&mut self, term: Term) {
        if !self.is_old(term) {
            return;
        }
        self.note(|| format!("the controller of {term} stands by"));
        let Some(old) = self.old.take() else { return };
        for (session, agent) in old.sessions {
            if self.agents.get(agent).is_some_and(|machine| machine.session == Some(session)) {
                self.stream_breaks(agent);
            }
        }
    }
}
