//! From the store into memory: at the start, and again whenever nobody knows what the store holds (C3).

use std::time::Duration;

use muster_core::{cluster::Cluster, event::Step, id::Term, time::Now};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Ended, Parts, StartError},
    store::Loaded,
    view::{Snapshot, Update},
};

/// Loadings before the engine gives up; with the pauses between them about half a minute, after
/// which agents have ended their work and a supervisor had better start us anew.
const TRIES: u32 = 12;

/// Before the second loading; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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

/// `take_up` until it succeeds, within limits. Not cancel safe, but everything it does may be repeated.
pub(super) async fn take_up_again(parts: &Parts, cancel: &CancellationToken) -> Result<Taken, Ended> {
    let mut pause = FIRST_PAUSE;
    for left in (0..TRIES).rev() {
        match take_up(parts).await {
            Ok(taken) => return Ok(taken),
            Err(error) if left > 0 && error.may_pass() => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, pause_ms = pause.as_millis(), left, "the store cannot be loaded yet");
            }
            Err(error) => return Err(Ended::Broken(error)),
        }
        if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Err(Ended::Stopped);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Err(Ended::Stopped)
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
    let summaries = snapshot.jobs.keys().map(|id| (*id, cluster.summary(*id))).collect();
    snapshot.apply(Update { pieces: Vec::new(), summaries });
    Ok(Taken { term: loaded.term, cluster, step })
}
