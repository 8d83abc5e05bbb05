//! What etcd needs besides reads and writes: to forget old revisions, and to be watched before it is full.

use std::{sync::Arc, time::Duration};

use etcd_client::{AlarmAction, AlarmType, Client};
use muster_common::clock::Clock;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::EtcdStore;
use crate::{etcd, store::Gauge};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Old revisions are kept for this long; nobody needs them, and a store that keeps all of them is full in hours.
const COMPACT_EVERY: Duration = Duration::from_secs(60);
const WITHIN: Duration = Duration::from_secs(5);

impl EtcdStore {
    /// Looks after etcd until it is cancelled. To be spawned once.
    pub async fn upkeep(self: Arc<Self>, clock: Clock, cancel: CancellationToken) {
        let work = async {
            let mut due = clock.mono().after(COMPACT_EVERY);
            // Compacted at the next turn, so that what is being read page by page stays readable.
            let mut revision = None;
            loop {
                let gauge = self.look(clock).await;
                self.gauge.store(Arc::new(gauge));
                if clock.mono() >= due && self.fence.authority.holds() {
                    due = clock.mono().after(COMPACT_EVERY);
                    let head = self.state.lock().await.head;
                    if let Some(revision) = std::mem::replace(&mut revision, head) {
                        self.compact(revision).await;
                    }
                }
                sleep(LOOK_EVERY).await;
            }
        };
        cancel.run_until_cancelled(work).await;
    }

    async fn compact(&self, revision: i64) {
        let compact = |mut client: Client| async move { client.compact(revision, None).await };
        match self.etcd.call(WITHIN, compact).await {
            Ok(_) => tracing::debug!(revision, "old revisions are forgotten"),
            // Somebody else did it, or will.
            Err(error) => tracing::debug!(%error, revision, "old revisions are kept for now"),
        }
    }

    /// How it is now.
    async fn look(&self, clock: Clock) -> Gauge {
        let key = self.prefixed("head");
        let asked = clock.mono();
        let get = |mut client: Client| {
            let key = key.clone();
            async move { client.get(key, None).await }
        };
        let mut problems = Vec::new();
        if let Err(error) = self.etcd.call(WITHIN, get).await {
            problems.push(error.to_string());
            return Gauge { problems, limit: self.budget, ..Gauge::default() };
        }
        let latency = clock.mono().since(asked);
        let status = |mut client: Client| async move { client.status().await };
        let bytes = match self.etcd.call(WITHIN, status).await {
            Ok(status) => u64::try_from(status.raft_used_db_size()).unwrap_or(0),
            // With users and passwords only its root may ask.
            Err(etcd::Error::Denied(_)) => 0,
            Err(error) => {
                problems.push(error.to_string());
                0
            }
        };
        let alarms = |mut client: Client| async move { client.alarm(AlarmAction::Get, AlarmType::None, None).await };
        match self.etcd.call(WITHIN, alarms).await {
            Ok(reply) => problems.extend(reply.alarms().iter().map(|member| {
                let what = match member.alarm() {
                    AlarmType::Nospace => etcd::Error::NoSpace.to_string(),
                    AlarmType::Corrupt => "its data is corrupt (CORRUPT); restore it from a backup".to_owned(),
                    AlarmType::None => "an alarm that has no name".to_owned(),
                };
                format!("etcd member {:x}: {what}", member.member_id())
            })),
            Err(etcd::Error::Denied(_)) => {}
            Err(error) => problems.push(error.to_string()),
        }
        Gauge { bytes, limit: self.budget, latency: Some(latency), problems }
    }
}
