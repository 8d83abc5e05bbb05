//! An installation moves from its own store to etcd, in the process that runs it.
//!
//! The bulk is copied while work goes on; then calls wait while the rest is copied, read back and made to count. What
//! decides is one transaction in etcd, which takes away the mark that the copy is unfinished. Before it, the own store
//! holds a mark that it may have moved; after it, that it has. Whoever starts on the own store between the two asks
//! etcd. So there is one installation at every moment, whenever this process dies.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use muster_common::{clock::Clock, proto::v1, wire::record};
use muster_core::{id::Term, time::micros};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Doors, Ready, Running, begin,
    cluster::{self, Member},
    elect, embedded_in, ended,
    standing::Standing,
};
use crate::{
    config::Config,
    etcd::{Address, Etcd},
    grpc::{Promotion, Refused},
    leader::{Candidate, Leadership},
    store::{Error, Records, Store as _, embedded::Embedded, etcd::EtcdStore},
};

/// For the first leadership in etcd to begin; callers wait no longer either.
const LEADS_WITHIN: Duration = Duration::from_secs(30);

/// A controller that has a store of its own, and may move to one that several share.
#[derive(Debug)]
pub struct Installation {
    /// Where it listens.
    pub addr: std::net::SocketAddr,
    /// What it speaks there: `http` or `https`.
    pub scheme: &'static str,
    /// Where its data is.
    pub data_dir: std::path::PathBuf,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Installation {
    /// Starts it; returns when it listens and schedules.
    ///
    /// # Errors
    /// In words for people: what is in the way, and what to do about it.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let (sender, promotions) = mpsc::channel(1);
        let running = begin(config, Some(sender)).await?;
        let (addr, scheme) = (running.addr, running.scheme);
        let (data_dir, stop) = (running.data_dir.clone(), CancellationToken::new());
        let (told, standing) = watch::channel(Standing::Leads(running.handle.clone()));
        let task = tokio::spawn(drive(running, promotions, told, stop.clone()));
        Ok(Self { addr, scheme, data_dir, standing, stop, task })
    }

    /// How it stands, from now on.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Waits until it cannot go on by itself. Cancel safe.
    ///
    /// # Errors
    /// Why.
    pub async fn failed(&mut self) -> anyhow::Error {
        ended(&mut self.task).await
    }

    /// Stops cleanly, a move that is under way after its end.
    pub async fn stop(self) {
        self.stop.cancel();
        if !self.task.is_finished()
            && let Ok(Err(error)) = self.task.await
        {
            tracing::error!(error = format!("{error:#}"), "it did not end well");
        }
    }
}

/// Runs on the own store, and in etcd from when it has moved.
async fn drive(
    mut running: Running,
    mut promotions: mpsc::Receiver<Promotion>,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut member = loop {
        let promotion = tokio::select! {
            () = stop.cancelled() => {
                running.stop().await;
                return Ok(());
            }
            error = running.failed() => {
                running.stop().await;
                return Err(error);
            }
            Some(promotion) = promotions.recv() => promotion,
        };
        match Box::pin(promote(running, promotion, &standing)).await? {
            Now::Stayed(again) => {
                standing.send_replace(Standing::Leads(again.handle.clone()));
                running = *again;
            }
            Now::Moved(member) => break member,
        }
    };
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        error = member.failed() => Some(error),
    };
    member.stop().await;
    failed.map_or(Ok(()), Err)
}

/// Where the installation is after a wish to move it.
enum Now {
    Stayed(Box<Running>),
    Moved(Member),
}

/// Moves, or says why not and goes on.
///
/// # Errors
/// Neither is known to be true, or it can go on nowhere; the next start finds out.
async fn promote(running: Running, promotion: Promotion, standing: &watch::Sender<Standing>) -> anyhow::Result<Now> {
    let Promotion { to, reply } = promotion;
    tracing::info!(to, "the installation is to move");
    let (target, before) = match prepare(&running, &to).await {
        Ok(prepared) => prepared,
        Err(error) => {
            refuse(reply, &error);
            return Ok(Now::Stayed(Box::new(running)));
        }
    };
    let held_from = running.ready.clock.mono();
    running.doors.door.wait("the installation is moving to etcd and goes on there in a moment; try again");
    standing.send_replace(Standing::Waits(format!("moves to {to}")));
    let left = running.leave().await;
    match finish(&target, &left.ready.store, &before).await {
        Ok(records) => {
            let (from, clock) = (embedded_in(&left.ready.data_dir), left.ready.clock);
            let (tell, told) = oneshot::channel();
            let member = go_on(target, left, tell, standing.clone()).await;
            let term = timeout(LEADS_WITHIN, told).await.ok().and_then(Result::ok);
            let held_us = micros(clock.mono().since(held_from));
            answer(reply, term, &member, records, (held_us, from));
            Ok(Now::Moved(member))
        }
        Err(Unmoved::Stays(error)) => {
            target.leadership.resign().await;
            let running = left.resume().await.context("it could not move, and not go on either")?;
            refuse(reply, &error);
            Ok(Now::Stayed(Box::new(running)))
        }
        Err(Unmoved::Unknown(error)) => {
            let error = error.context(format!(
                "whether the installation has moved to {to} is not known; start it again on its folder: it asks etcd"
            ));
            refuse(reply, &error);
            left.end().await;
            Err(error)
        }
    }
}

/// Goes on in etcd, under the leadership that made the copy.
async fn go_on(target: Target, left: Left, tell: oneshot::Sender<Term>, standing: watch::Sender<Standing>) -> Member {
    let Left { ready, doors } = left;
    if let Err(error) = ready.store.mark_moved(Some(target.mark(true))).await {
        // Its first mark makes the next start ask etcd, which tells.
        tracing::warn!(%error, "the old store's mark cannot be written");
    }
    ready.store.close().await;
    let Target { config, etcd, candidate, own, leadership, .. } = target;
    let first = cluster::First { leadership, tell };
    let Ready { addr, data_dir, clock, identity, .. } = ready;
    let seat = cluster::Seat { addr, data_dir, own, config, clock, etcd, candidate, identity, standing };
    Member::run(seat, doors, Some(first))
}

fn refuse(reply: oneshot::Sender<Result<v1::PromoteReply, Refused>>, error: &anyhow::Error) {
    let may_pass = error.chain().any(|cause| cause.downcast_ref().is_some_and(Error::may_pass));
    let why = format!("it did not move, and goes on where it is: {error:#}");
    tracing::warn!(why, "the installation did not move");
    // Who asked may have gone; the log says it too.
    drop(reply.send(Err(Refused { why, may_pass })));
}

fn answer(
    reply: oneshot::Sender<Result<v1::PromoteReply, Refused>>,
    term: Option<Term>,
    member: &Member,
    records: u64,
    (held_us, from): (u64, String),
) {
    let store = member.store.clone();
    let answer = match term {
        Some(term) => {
            tracing::info!(store, %term, records, held_us, "the installation has moved");
            Ok(v1::PromoteReply { records, term: term.0, store, held_us, from })
        }
        None => Err(Refused {
            why: format!("it has moved to {store}, but does not lead there yet; `ctl status` and its log say more"),
            may_pass: true,
        }),
    };
    drop(reply.send(answer));
}

/// A controller that does not lead for the moment.
struct Left {
    ready: Ready,
    doors: Doors,
}

impl Running {
    fn about(&self) -> String {
        embedded_in(&self.data_dir)
    }

    /// Ends its leadership; the store stays open, and the door is the caller's.
    async fn leave(self) -> Left {
        let Self { ready, doors, lead, .. } = self;
        lead.leave().await;
        Left { ready, doors }
    }
}

impl Left {
    /// Leads again where it was.
    async fn resume(self) -> anyhow::Result<Running> {
        match self.ready.lead(&self.doors.door).await {
            Ok(lead) => Ok(self.ready.running(self.doors, lead)),
            Err(error) => {
                self.end().await;
                Err(error)
            }
        }
    }

    async fn end(self) {
        self.doors.door.close("the controller is stopping");
        self.ready.store.close().await;
        self.doors.shut().await;
    }
}

/// Where it moves to, and the right to write there.
struct Target {
    config: Config,
    etcd: Arc<Etcd>,
    candidate: Candidate,
    own: String,
    leadership: Leadership,
    store: EtcdStore,
    origin: v1::OriginRecord,
}

impl Target {
    fn mark(&self, done: bool) -> v1::MoveRecord {
        let to = self.etcd.address().to_string();
        let (id, at_us) = (self.origin.id.clone(), self.origin.at_us);
        v1::MoveRecord { version: record::VERSION, id, to, done, at_us }
    }
}

/// Looks whether it can move, and copies what there is, while work goes on.
async fn prepare(running: &Running, to: &str) -> anyhow::Result<(Target, Records)> {
    let mut config = running.ready.config.clone();
    config.cluster.store = Some(to.to_owned());
    let address: Address = to.parse()?;
    let own = cluster::advertised(&config.cluster, running.addr, running.scheme)?;
    let name = config.cluster.name.clone().unwrap_or_else(|| own.clone());
    let etcd = Arc::new(Etcd::new(address, &cluster::access(&config.cluster)?));
    let ttl = config.cluster.session_ttl;
    let candidate = Candidate::new(Arc::clone(&etcd), running.ready.clock, own.clone(), name, ttl);
    let leadership = elect::elect(&candidate, &own, ttl).await?;
    let store = elect::store(&etcd, &leadership, config.cluster.budget);
    let origin = v1::OriginRecord {
        version: record::VERSION,
        copying: true,
        id: uuid::Uuid::new_v4().to_string(),
        from: running.about(),
        at_us: running.ready.clock.wall().0,
        term_floor: running.term().0,
    };
    let target = Target { config, etcd, candidate, own, leadership, store, origin };
    let copied = async {
        target.store.begin_copy(&target.origin).await?;
        let records = running.ready.store.snapshot().await?;
        target.store.copy(&Records::default().changes(&records)).await?;
        Ok::<_, Error>(records)
    };
    match copied.await {
        Ok(records) => Ok((target, records)),
        Err(error) => {
            if !matches!(error, Error::Occupied { .. }) {
                clean(&target).await;
            }
            target.leadership.resign().await;
            Err(error.into())
        }
    }
}

/// Takes away what was copied; what cannot be is unfinished and refused by everybody.
async fn clean(target: &Target) {
    if let Err(error) = target.store.undo_copy().await {
        tracing::warn!(%error, "the unfinished copy in etcd stays; no controller takes it up, and another try cleans it");
    }
}

/// Why it did not move.
enum Unmoved {
    /// The own store is the one that counts.
    Stays(anyhow::Error),
    /// Nobody knows.
    Unknown(anyhow::Error),
}

/// The rest, while nothing changes: copied, read back, made to count. How many records there are.
async fn finish(target: &Target, own: &Embedded, before: &Records) -> Result<u64, Unmoved> {
    let copied = async {
        let records = own.snapshot().await?;
        target.store.copy(&before.changes(&records)).await?;
        target.store.verify_copy(&records).await?;
        own.mark_moved(Some(target.mark(false))).await?;
        Ok::<_, Error>(records)
    };
    let records = match copied.await {
        Ok(records) => records,
        Err(error) => return Err(stay(target, own, error).await),
    };
    // No term of the old store is met again.
    let origin = v1::OriginRecord { term_floor: records.term.0, ..target.origin.clone() };
    let Err(error) = target.store.finish_copy(&origin).await else { return Ok(records.all.len() as u64) };
    match target.store.origin().await {
        Ok(Some(found)) if found.id == origin.id && !found.copying => Ok(records.all.len() as u64),
        // What was sent can still come: until it is undone nobody knows.
        Ok(_) => Err(stay(target, own, error).await),
        Err(_) => Err(Unmoved::Unknown(error.into())),
    }
}

/// Back to the own store, which must not be marked any more.
async fn stay(target: &Target, own: &Embedded, error: Error) -> Unmoved {
    let undone = async {
        target.store.undo_copy().await?;
        match target.store.origin().await? {
            None => own.mark_moved(None).await,
            Some(_) => Err(Error::Closed),
        }
    };
    match undone.await {
        Ok(()) => Unmoved::Stays(error.into()),
        Err(undoing) => Unmoved::Unknown(anyhow::Error::new(error).context(undoing.to_string())),
    }
}

/// A store whose mark says that it may have moved: finds out, in etcd, and makes it so.
///
/// # Errors
/// It has moved, or etcd cannot be asked.
pub(super) async fn resolve(
    own: &Embedded,
    mark: &v1::MoveRecord,
    config: &Config,
    clock: Clock,
) -> anyhow::Result<()> {
    let to = &mark.to;
    let etcd = Arc::new(Etcd::new(to.parse()?, &cluster::access(&config.cluster)?));
    let asking =
        || format!("this installation was moving to {to} when its controller ended, and etcd must say whether it has");
    let has_moved = |origin: &Option<v1::OriginRecord>| {
        origin.as_ref().is_some_and(|origin| origin.id == mark.id && !origin.copying)
    };
    let mut origin = elect::reader(&etcd, clock).origin().await.with_context(asking)?;
    if origin.as_ref().is_some_and(|origin| origin.id == mark.id && origin.copying) {
        // What the dead process sent may still arrive: as soon as another leads, it counts no more.
        let name = "an undone move".to_owned();
        let ttl = config.cluster.session_ttl;
        let candidate = Candidate::new(Arc::clone(&etcd), clock, "http://promote.invalid".to_owned(), name, ttl);
        let leadership = elect::wait(&candidate, ttl).await.with_context(asking)?;
        let store = elect::store(&etcd, &leadership, 0);
        let undone = store.undo_copy().await;
        origin = store.origin().await.with_context(asking)?;
        leadership.resign().await;
        undone.with_context(asking)?;
    }
    if has_moved(&origin) {
        own.mark_moved(Some(v1::MoveRecord { done: true, ..mark.clone() })).await?;
        return Ok(());
    }
    tracing::warn!(to, "the installation did not move; it goes on with its own store");
    Ok(own.mark_moved(None).await?)
}
