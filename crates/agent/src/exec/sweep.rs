//! Ends what earlier agents and keepers left, says what became of their attempts, and goes on with what cannot be ended.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use muster_core::{id::Token, state::End, time::Timestamp};
use tokio::time::sleep;
use tracing::warn;

use super::{
    Exec, ExecEvent, Leftover, Swept,
    attempt::{AGAIN, LOOK},
    os::{self, Survivor},
    room::Room,
};
use crate::host;

/// What an earlier agent left must be dead by then.
const LIMIT: Duration = Duration::from_secs(10);

impl Exec {
    /// Kills whatever earlier agents on this data folder left, verified: by their instance cookies
    /// (kept in `run/`) and by the identities in `leftovers`. Answers in the order of `leftovers`. What survives is killed
    /// again and again, and its end is told when it is dead.
    pub async fn sweep(&self, leftovers: &[Leftover]) -> Vec<Swept> {
        let earlier = self.instances.earlier.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for identity in leftovers.iter().filter_map(|leftover| leftover.identity.as_ref()) {
            os::kill_identity(identity);
        }
        let mut survivors = self.room.hunter.hunt_instances(earlier.clone(), LIMIT).await;
        if survivors.is_empty() {
            self.instances.forget_earlier();
        } else {
            let list = survivors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            warn!(processes = %list, "processes of an earlier agent cannot be killed");
        }
        if self.instances.has_strays.load(Ordering::Relaxed) {
            survivors.extend(self.room.hunter.hunt_strays(LOOK).await);
        }
        let found: Vec<bool> = leftovers.iter().map(|leftover| survives(leftover, &survivors)).collect();
        let left = leftovers.iter().zip(&found).filter(|(_, survives)| **survives);
        let left: Vec<Leftover> = left.map(|(leftover, _)| leftover.clone()).collect();
        if !left.is_empty() {
            let room = Arc::clone(&self.room);
            self.room.track(outlast(room, earlier, left));
        }
        found.into_iter().map(|survives| if survives { Swept::Survives } else { Swept::Dead }).collect()
    }
}

/// A3: whether anything of it may live: its first process, another with its mark, or one of which nobody can say whose it is.
fn survives(leftover: &Leftover, survivors: &[Survivor]) -> bool {
    leftover.identity.as_ref().is_some_and(os::kill_identity)
        || survivors.iter().any(|survivor| survivor.token.is_none_or(|token| token == leftover.token))
}

/// Kills what survived a sweep again and again, and tells of each attempt when nothing of it is left.
async fn outlast(room: Arc<Room>, earlier: Vec<Arc<str>>, mut left: Vec<Leftover>) {
    while !left.is_empty() {
        sleep(AGAIN).await;
        let mut survivors = room.hunter.hunt_instances(earlier.clone(), LOOK).await;
        survivors.extend(room.hunter.hunt_strays(LOOK).await);
        let (still, gone): (Vec<_>, Vec<_>) = left.into_iter().partition(|leftover| survives(leftover, &survivors));
        left = still;
        for Leftover { token, .. } in gone {
            let (end, why) = (End::Lost, Some("what survived it is dead now".into()));
            let (started, ended) = (Timestamp(0), room.clock.wall());
            room.over(ExecEvent::Ended { token, end, why, started, ended, result: None, usage: None, next: None })
                .await;
        }
    }
}

/// What survived an earlier instance still has the GPUs that it was given. `found` is in the order of `leftovers`.
pub(crate) fn gpus_of_survivors(leftovers: &[Leftover], found: &[Swept]) -> Vec<(Token, Vec<u32>)> {
    let survivors = leftovers.iter().zip(found).filter(|(_, found)| **found == Swept::Survives);
    survivors.filter_map(|(left, _)| Some((left.token, host::of_process(left.identity.as_ref()?.pid)))).collect()
}
