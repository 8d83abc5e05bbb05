//! To lead a store that nobody uses yet, for who brings records there.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use muster_common::clock::Clock;
use tokio::time::timeout;

use crate::{
    etcd::Etcd,
    leader::{Candidate, Leadership},
    store::{
        Authority,
        etcd::{EtcdStore, Fence},
    },
};

/// Beyond a session's own time, after which one that died with an earlier try is over.
const ELECTED_WITHIN: Duration = Duration::from_secs(10);

/// Leads, or says who does.
pub(super) async fn elect(candidate: &Candidate, own: &str, session_ttl: Duration) -> anyhow::Result<Leadership> {
    let mut seen = candidate.leader();
    let other = async {
        loop {
            let leader = seen.borrow_and_update().clone();
            if let Some(leader) = leader.filter(|leader| leader.address != own) {
                return leader;
            }
            if seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let elected = async {
        tokio::select! {
            biased;
            elected = candidate.campaign() => elected.context("etcd does not let this installation in"),
            other = other => bail!(
                "{} at {} leads there; stop it, or choose another place (a path after the address keeps installations apart)",
                other.name,
                other.address
            ),
        }
    };
    let within = ELECTED_WITHIN + session_ttl;
    timeout(within, elected).await.with_context(|| format!("etcd does not answer, or not within {within:?}"))?
}

/// Leads as soon as whoever does has ended.
pub(super) async fn wait(candidate: &Candidate, session_ttl: Duration) -> anyhow::Result<Leadership> {
    let within = ELECTED_WITHIN + session_ttl;
    let elected = timeout(within, candidate.campaign()).await;
    elected
        .with_context(|| format!("another controller leads there, or etcd does not answer within {within:?}"))?
        .map_err(Into::into)
}

/// The store to look into; whatever it would write is refused.
pub(super) fn reader(etcd: &Arc<Etcd>, clock: Clock) -> EtcdStore {
    let authority = Authority::new(clock, clock.mono().after(ELECTED_WITHIN));
    // No key was ever made at this revision.
    let fence = Fence { key: format!("{}leader", etcd.address().prefix()), revision: -1, authority };
    EtcdStore::new(Arc::clone(etcd), fence, 0)
}

/// The store that this leadership may write.
pub(super) fn store(etcd: &Arc<Etcd>, leadership: &Leadership, budget: u64) -> EtcdStore {
    let fence =
        Fence { key: leadership.key.clone(), revision: leadership.revision, authority: leadership.authority.clone() };
    EtcdStore::new(Arc::clone(etcd), fence, budget)
}
