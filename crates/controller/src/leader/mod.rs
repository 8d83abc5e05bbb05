//! Who leads: one key in etcd that lives as long as its leader's session does.
//!
//! L1: a controller leads only after a first renewal, and no longer than its own clock allows since a renewal that was
//! answered was sent. The create-revision of the key is what every write is fenced by (C2).

mod presence;

use std::{sync::Arc, time::Duration};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use muster_common::{clock::Clock, proto::v1};
use muster_core::time::Mono;
use prost::Message as _;
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::presence::Presence;
use crate::{
    etcd::{Error, Etcd},
    store::Authority,
};

/// Version of the record under the key.
const VERSION: u32 = 1;
/// How often those who do not lead look whether somebody does. The bound of a hand-over after a clean stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A look or a try to lead may take this long; then it is made again.
const CALL_WITHIN: Duration = Duration::from_secs(5);

/// Who leads, as far as was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Where it is reached: a URL.
    pub address: String,
    /// What it is called.
    pub name: String,
    /// The create-revision of its key.
    pub revision: i64,
}

/// One who would lead.
#[derive(Debug)]
pub struct Candidate {
    etcd: Arc<Etcd>,
    clock: Clock,
    address: String,
    name: String,
    /// Of the session.
    ttl: Duration,
    seen: watch::Sender<Option<Leader>>,
}

/// A leadership. Dropped without [`Leadership::resign`], it passes with its session.
#[derive(Debug)]
pub struct Leadership {
    /// The key that every write names.
    pub key: String,
    /// Its create-revision.
    pub revision: i64,
    /// Whether it still holds.
    pub authority: Authority,
    etcd: Arc<Etcd>,
    session: i64,
    /// Its keeper ends with it.
    stop: DropGuard,
    keeper: JoinHandle<()>,
}

impl Candidate {
    /// `address`: where others reach this controller, a URL. `ttl`: of the session, at least a second.
    pub fn new(etcd: Arc<Etcd>, clock: Clock, address: String, name: String, ttl: Duration) -> Self {
        Self { etcd, clock, address, name, ttl, seen: watch::Sender::new(None) }
    }

    /// Who leads; told at each change that is seen while this one campaigns or leads.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.seen.subscribe()
    }

    /// Waits until this one leads. Etcd that is away is waited for. Cancel safe: a session that was begun ends by itself.
    ///
    /// # Errors
    /// Etcd refuses for a reason that does not pass.
    pub async fn campaign(&self) -> Result<Leadership, Error> {
        let mut complained = false;
        loop {
            match self.attempt().await {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => complained = false,
                Err(error @ (Error::Away(_) | Error::NoSpace | Error::NoSession)) => {
                    self.seen.send_replace(None);
                    if !std::mem::replace(&mut complained, true) {
                        tracing::warn!(%error, "nobody can be elected until etcd answers");
                    }
                }
                Err(error) => return Err(error),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn key(&self) -> String {
        format!("{}leader", self.etcd.address().prefix())
    }

    /// Looks, and tries to lead if nobody does.
    async fn attempt(&self) -> Result<Option<Leadership>, Error> {
        let key = self.key();
        if let Some(leader) = look(&self.etcd, &key).await? {
            self.saw(Some(leader));
            return Ok(None);
        }
        self.saw(None);
        let seconds = i64::try_from(self.ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let sent = self.clock.mono();
        let grant = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let session = self.etcd.call(CALL_WITHIN, grant).await?.id();
        let lost = |etcd: Arc<Etcd>| async move { end_session(&etcd, session).await };
        let Some(leader) = self.take(&key, session).await? else {
            lost(Arc::clone(&self.etcd)).await;
            return Ok(None);
        };
        let authority = Authority::new(self.clock, sent.after(self.held_for()));
        let stop = CancellationToken::new();
        let keeper = Keeper {
            etcd: Arc::clone(&self.etcd),
            clock: self.clock,
            session,
            authority: authority.clone(),
            every: self.ttl / 4,
            held_for: self.held_for(),
        };
        // L1: the first renewal shows that etcd's leader knows the session.
        if !keeper.renew().await? {
            lost(Arc::clone(&self.etcd)).await;
            return Ok(None);
        }
        let keeper = tokio::spawn(keeper.run(stop.clone()));
        let stop = stop.drop_guard();
        let revision = leader.revision;
        self.saw(Some(leader));
        Ok(Some(Leadership { key, revision, authority, etcd: Arc::clone(&self.etcd), session, stop, keeper }))
    }

    /// How long after a renewal was sent it is believed in: less than etcd does, which counts from later.
    fn held_for(&self) -> Duration {
        self.ttl - self.ttl / 5
    }

    /// Makes the key, unless it is there.
    async fn take(&self, key: &str, session: i64) -> Result<Option<Leader>, Error> {
        let record = v1::LeaderRecord {
            version: VERSION,
            address: self.address.clone(),
            name: self.name.clone(),
            since_us: self.clock.wall().0,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let value = record.encode_to_vec();
        let make = |mut client: Client| {
            let absent = Compare::create_revision(key, CompareOp::Equal, 0);
            let put = TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(session)));
            let txn = Txn::new().when([absent]).and_then([put]).or_else([TxnOp::get(key, None)]);
            async move { client.txn(txn).await }
        };
        let reply = self.etcd.call(CALL_WITHIN, make).await?;
        if reply.succeeded() {
            let revision = reply.header().map_or(0, etcd_client::ResponseHeader::revision);
            return Ok(Some(Leader { address: self.address.clone(), name: self.name.clone(), revision }));
        }
        // An earlier try, of which no answer came, may have made it.
        let there = reply.op_responses().into_iter().find_map(|reply| match reply {
            TxnOpResponse::Get(reply) => reply.kvs().first().cloned(),
            _ => None,
        });
        let own = there.filter(|there| there.lease() == session);
        Ok(own.map(|own| Leader {
            address: self.address.clone(),
            name: self.name.clone(),
            revision: own.create_revision(),
        }))
    }

    fn saw(&self, leader: Option<Leader>) {
        self.seen.send_if_modified(|seen| {
            let is_news = *seen != leader;
            *seen = leader;
            is_news
        });
    }
}

/// Who leads now.
async fn look(etcd: &Etcd, key: &str) -> Result<Option<Leader>, Error> {
    let get = |mut client: Client| async move { client.get(key, None).await };
    let reply = etcd.call(CALL_WITHIN, get).await?;
    let Some(there) = reply.kvs().first() else { return Ok(None) };
    let record = v1::LeaderRecord::decode(there.value())
        .map_err(|error| Error::Refused(format!("what stands under {key} was not written by Muster: {error}")))?;
    Ok(Some(Leader { address: record.address, name: record.name, revision: there.create_revision() }))
}

/// Renews a session; whether etcd still knows it.
async fn renew_session(etcd: &Etcd, session: i64, within: Duration) -> Result<bool, Error> {
    let renew = |mut client: Client| async move {
        // A stream of its own each time: a broken one is never mended by the library.
        let (mut keeper, mut answers) = client.lease_keep_alive(session).await?;
        keeper.keep_alive().await?;
        Ok(answers.message().await?.is_some_and(|answer| answer.ttl() > 0))
    };
    etcd.call(within, renew).await
}

/// Ends a session and with it what it holds; what cannot be ended passes by itself.
async fn end_session(etcd: &Etcd, session: i64) {
    let revoke = |mut client: Client| async move { client.lease_revoke(session).await };
    if let Err(error) = etcd.call(CALL_WITHIN, revoke).await {
        tracing::debug!(%error, "a session ends by itself");
    }
}

/// Renews a session for as long as it can.
struct Keeper {
    etcd: Arc<Etcd>,
    clock: Clock,
    session: i64,
    authority: Authority,
    every: Duration,
    held_for: Duration,
}

impl Keeper {
    /// Whether etcd still knows the session. Renews the authority from when the question was sent.
    async fn renew(&self) -> Result<bool, Error> {
        let sent = self.clock.mono();
        let left = self.authority.until().since(sent).max(Duration::from_millis(1));
        if !renew_session(&self.etcd, self.session, left).await? {
            return Ok(false);
        }
        self.authority.extend(sent.after(self.held_for));
        Ok(true)
    }

    async fn run(self, stop: CancellationToken) {
        loop {
            if stop.run_until_cancelled(sleep(self.every)).await.is_none() {
                return;
            }
            match stop.run_until_cancelled(self.renew()).await {
                None => return,
                Some(Ok(true)) => {}
                Some(Ok(false)) => {
                    tracing::warn!("etcd has ended the session");
                    break;
                }
                Some(Err(error)) => tracing::warn!(%error, "the session was not renewed"),
            }
            if !self.authority.holds() {
                break;
            }
        }
        self.authority.lose();
    }
}

impl Leadership {
    /// Until when it holds, unless it is renewed.
    pub fn until(&self) -> Mono {
        self.authority.until()
    }

    /// Gives it up at once, so that another may lead.
    pub async fn resign(self) {
        self.authority.lose();
        drop(self.stop);
        if self.keeper.await.is_err() {
            tracing::error!("the keeper of the session died");
        }
        end_session(&self.etcd, self.session).await;
    }
}
