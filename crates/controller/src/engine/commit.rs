//! One commit after another: what it carries, and what is let go when it is confirmed (C1).

use std::{collections::BTreeSet, future, pin::Pin, sync::Arc};

use muster_core::{
    event::{Answer, Effect},
    id::JobId,
    record::Key,
};
use tracing::Span;

use crate::{
    engine::{Engine, Error, handle::Reply},
    store::{Batch, Outcome},
    view::{Snapshot, Update},
};

/// What waits for a commit.
pub(super) enum Held {
    /// What a caller is told.
    Answer(Reply<Answer>, Result<Answer, Error>, Span),
    /// What must be done.
    Effects(Vec<Effect>),
}

/// The commit that is under way.
pub(super) struct InFlight {
    outcome: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    update: Update,
}

impl InFlight {
    /// Waits for the outcome of the commit, if there is one, and else for ever. Cancel safe.
    pub(super) async fn outcome(in_flight: &mut Option<Self>) -> Outcome {
        match in_flight {
            Some(commit) => commit.outcome.as_mut().await,
            None => future::pending().await,
        }
    }
}

impl Engine {
    /// Starts the next commit if there is something to commit and none is under way.
    pub(super) fn begin_commit(&mut self) {
        let Some(keys) = self.gate.begin() else {
            if self.gate.is_idle() && !self.jobs.is_empty() {
                // Counts that time alone changed: nothing is stored of them.
                let update = self.update(Vec::new());
                self.publish(update);
            }
            return;
        };
        let (batch, pieces) = self.batch(keys);
        let update = self.update(pieces);
        let (store, term) = (Arc::clone(&self.parts.store), self.term);
        let outcome = Box::pin(async move { store.commit(term, batch).await });
        self.in_flight = Some(InFlight { outcome, update });
    }

    /// The commit under way is durable: show it, answer, act.
    pub(super) fn confirmed(&mut self) {
        if let Some(commit) = self.in_flight.take() {
            self.publish(commit.update);
        }
        let mut effects = Vec::new();
        for held in self.gate.confirmed() {
            release(held, &mut effects);
        }
        self.parts.sessions.deliver(effects);
    }

    /// What was decided and not committed never happened; say so to all who wait for it.
    pub(super) fn refuse_held(&mut self, why: &str) {
        self.in_flight = None;
        for held in self.gate.broken() {
            match held {
                // A caller that went away wants no answer.
                Held::Answer(reply, ..) => _ = reply.send(Err(Error::Unavailable(why.to_owned()))),
                // C1: what follows from a change that may not have been made does not follow.
                Held::Effects(_) => {}
            }
        }
    }

    fn batch(&self, keys: BTreeSet<Key>) -> (Batch, Vec<(Key, Option<muster_core::record::Piece>)>) {
        let mut batch = Batch::default();
        let mut pieces = Vec::with_capacity(keys.len());
        for key in keys {
            let piece = self.cluster.piece(&key);
            match &piece {
                Some(piece) => batch.puts.push((key.clone(), piece.clone())),
                None => batch.deletes.push(key.clone()),
            }
            pieces.push((key, piece));
        }
        (batch, pieces)
    }

    fn update(&mut self, pieces: Vec<(Key, Option<muster_core::record::Piece>)>) -> Update {
        let jobs = std::mem::take(&mut self.jobs);
        Update { pieces, summaries: jobs.into_iter().map(|job| (job, self.cluster.summary(job))).collect() }
    }

    fn publish(&self, update: Update) {
        log_finished(&self.parts.view.load(), &update);
        self.parts.view.publish(update);
    }
}

/// Lets go of what a confirmed commit held.
pub(super) fn release(held: Held, effects: &mut Vec<Effect>) {
    match held {
        Held::Answer(reply, answer, span) => {
            if let Ok(Answer::Submitted { job, duplicate: false, .. }) = &answer {
                tracing::info!(parent: &span, %job, "job submitted");
            }
            // A caller that went away asks again.
            let _ = reply.send(answer);
        }
        Held::Effects(more) if effects.is_empty() => *effects = more,
        Held::Effects(more) => effects.extend(more),
    }
}

fn log_finished(before: &Snapshot, update: &Update) {
    let finished = update.summaries.iter().filter_map(|(job, summary)| Some((*job, summary.as_ref()?)));
    for (job, summary) in finished.filter(|(_, summary)| summary.state.is_final()) {
        if !was_finished(before, job) {
            let seconds = summary.finished.since(summary.started).as_secs_f64();
            tracing::info!(%job, state = %summary.state, tasks = summary.tally.total(), seconds, "job finished");
        }
    }
}

fn was_finished(snapshot: &Snapshot, job: JobId) -> bool {
    snapshot.job(job).is_some_and(|job| job.summary.state.is_final())
}
