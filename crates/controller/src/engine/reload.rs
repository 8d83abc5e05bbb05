//! From the store into memory: at the start, and again whenever nobody knows what the store holds (C3).

use std::{pin::pin, time::Duration};

use muster_core::{audit, cluster::Cluster, event::Step, id::Term, time::Now};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{
        Ended, Parts, StartError,
        turn::{Engine, TURN},
    },
    store::Loaded,
    view::{Snapshot, Update},
};

/// Before the second loading; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long callers wait for the store to come back, before they are told.
const PATIENCE: Duration = Duration::from_secs(3);

/// All that is known, and what must be committed of it.
pub(super) struct Taken {
    pub(super) term: Term,
    pub(super) cluster: Cluster,
    pub(super) step: Step,
}

/// Loads everything and shows it in the view.
pub(super) async fn take_up(parts: &Parts) -> Result<Taken, StartError> {
    let loaded = parts.store.load().await?;
    let (config, now) = (parts.config.clone(), parts.clock.now());
    let pieces = loaded.pieces.len();
    let build = tokio::task::spawn_blocking(move || {
        let mut snapshot = Snapshot::default();
        let taken = build(loaded, config, now, &mut snapshot)?;
        Ok::<_, StartError>((taken, snapshot))
    });
    let (taken, snapshot) = build.await??;
    let jobs = snapshot.jobs.len();
    parts.view.replace(snapshot);
    tracing::info!(term = %taken.term, pieces, jobs, "state loaded");
    Ok(taken)
}

impl Engine {
    /// C3: nobody knows what the store holds, so neither do we. Agents come back and say what they run.
    ///
    /// A store that is away is tried for as long as it takes: nothing but a person makes room on a full disk, and until
    /// then the view still tells what was true. Who wants something done is told why it cannot be.
    pub(super) async fn reload(&mut self, why: &str, cancel: &CancellationToken) -> Result<(), Ended> {
        tracing::warn!(why, "the outcome of a commit is unknown; the state is loaded again");
        self.drop_memory("the store did not confirm; ask again, with the same key");
        let (mut why, mut pause) = (why.to_owned(), FIRST_PAUSE);
        let patience = Instant::now() + PATIENCE;
        loop {
            let parts = self.parts.clone();
            let error = match self.meanwhile(&why, patience, take_up(&parts)).await? {
                Ok(taken) => {
                    self.adopt(taken);
                    return Ok(());
                }
                Err(error) if error.may_pass() => error,
                Err(error) => return Err(Ended::Broken(error)),
            };
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            why = cause.as_ref().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
            tracing::warn!(why, pause_ms = pause.as_millis(), "the store cannot be loaded yet");
            let sleeping = cancel.run_until_cancelled(tokio::time::sleep(pause));
            if self.meanwhile(&why, patience, sleeping).await?.is_none() {
                return Err(Ended::Stopped);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// `work` to its end. Callers wait for it too, but not past `patience`: from then on they are told why they would.
    async fn meanwhile<T>(&mut self, why: &str, patience: Instant, work: impl Future<Output = T>) -> Result<T, Ended> {
        let mut work = pin!(work);
        let mut messages = Vec::new();
        loop {
            let late = async {
                sleep_until(patience).await;
                self.inbox.recv_many(&mut messages, TURN).await
            };
            let count = tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                count = late => count,
            };
            if count == 0 {
                return Err(Ended::Stopped);
            }
            messages.drain(..).for_each(|message| message.refuse(why));
        }
    }
}

fn build(
    loaded: Loaded,
    config: muster_core::cluster::Config,
    now: Now,
    snapshot: &mut Snapshot,
) -> Result<Taken, StartError> {
    // One pass feeds both, so that a large store is in memory once.
    let pieces = loaded.pieces.into_iter().inspect(|(key, piece)| snapshot.put(key.clone(), piece.clone()));
    let (cluster, step) = Cluster::recover(config, pieces, now)?;
    // No reason to stand still, but a person must look.
    if let Err(broken) = audit::verify(snapshot.audit.values().flat_map(|block| &block.records)) {
        tracing::error!(%broken, "the audit log in the store is not as it was written; `ctl audit --verify` tells");
    }
    let summaries = snapshot.jobs.keys().map(|id| (*id, cluster.summary(*id))).collect();
    snapshot.apply(Update { pieces: Vec::new(), summaries });
    Ok(Taken { term: loaded.term, cluster, step })
}
