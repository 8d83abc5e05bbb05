//! Which controllers there are: each keeps a key of its own alive, and reads those of the others.

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, GetOptions, PutOptions};
use muster_common::{clock::Clock, proto::v1};
use prost::Message as _;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{CALL_WITHIN, VERSION};
use crate::etcd::{Error, Etcd};

/// How often the others are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A controller that is gone without a word is shown for so long.
const TTL: Duration = Duration::from_secs(10);

/// One controller's sign of life.
#[derive(Debug)]
pub struct Presence {
    etcd: Arc<Etcd>,
    record: v1::LeaderRecord,
    seen: watch::Sender<Vec<v1::MemberView>>,
}

impl Presence {
    /// Of the controller of this name at this address.
    pub fn new(etcd: Arc<Etcd>, clock: Clock, address: String, name: String) -> Self {
        let release = env!("CARGO_PKG_VERSION").to_owned();
        let record = v1::LeaderRecord { version: VERSION, address, name, since_us: clock.wall().0, release };
        Self { etcd, record, seen: watch::Sender::new(Vec::new()) }
    }

    /// All that live, by name, as they were seen last.
    pub fn members(&self) -> watch::Receiver<Vec<v1::MemberView>> {
        self.seen.subscribe()
    }

    /// Lives until it is cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut session = None;
        let work = async {
            loop {
                // Only shows who is there: what fails is tried again, and the election tells what is wrong.
                if let Err(error) = self.turn(&mut session).await {
                    tracing::debug!(%error, "the other controllers are not seen");
                }
                sleep(LOOK_EVERY).await;
            }
        };
        cancel.run_until_cancelled(work).await;
        if let Some(session) = session {
            super::end_session(&self.etcd, session).await;
        }
    }

    async fn turn(&self, session: &mut Option<i64>) -> Result<(), Error> {
        let lives = match *session {
            Some(session) => super::renew_session(&self.etcd, session, CALL_WITHIN).await?,
            None => false,
        };
        if !lives {
            *session = Some(self.begin().await?);
        }
        let members = self.list().await?;
        // A call of an earlier session that comes late takes the key over, and that session takes it along when it ends.
        if members.iter().all(|member| member.name != self.record.name) {
            *session = None;
        }
        self.seen.send_if_modified(|seen| {
            let is_news = *seen != members;
            *seen = members;
            is_news
        });
        Ok(())
    }

    async fn begin(&self) -> Result<i64, Error> {
        let seconds = i64::try_from(TTL.as_secs()).unwrap_or(i64::MAX);
        let key = format!("{}members/{}", self.etcd.address().prefix(), self.record.name);
        let value = self.record.encode_to_vec();
        let begin = |mut client: Client| {
            let (key, value) = (key.clone(), value.clone());
            async move {
                let session = client.lease_grant(seconds, None).await?.id();
                client.put(key, value, Some(PutOptions::new().with_lease(session))).await?;
                Ok(session)
            }
        };
        self.etcd.call(CALL_WITHIN, begin).await
    }

    async fn list(&self) -> Result<Vec<v1::MemberView>, Error> {
        let prefix = self.etcd.address().prefix();
        let list = |mut client: Client| async move {
            let leader = client.get(format!("{prefix}leader"), None).await?;
            let members = client.get(format!("{prefix}members/"), Some(GetOptions::new().with_prefix())).await?;
            Ok((leader, members))
        };
        let (leader, members) = self.etcd.call(CALL_WITHIN, list).await?;
        let read = |value: &[u8]| v1::LeaderRecord::decode(value).unwrap_or_default();
        let leader = leader.kvs().first().map(|kv| read(kv.value())).unwrap_or_default();
        let view = |record: v1::LeaderRecord| v1::MemberView {
            leads: record.name == leader.name && record.address == leader.address,
            name: record.name,
            address: record.address,
            since_us: record.since_us,
            release: record.release,
        };
        Ok(members.kvs().iter().map(|kv| view(read(kv.value()))).collect())
    }
}
