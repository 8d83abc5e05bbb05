//! A controller among others: it leads or stands by, for as long as it runs.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use muster_common::{clock::Clock, proto::v1};
use muster_core::id::Term;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    Doors, elect, ended, explain_end,
    lead::{About, Lead},
    listen, open_logs, prepare, secure,
    standing::Standing,
};
use crate::{
    config::{Cluster, Config},
    engine::{Ended, StartError},
    etcd::{Access, Address, Etcd},
    grpc::Door,
    identity::{Authority, Own},
    leader::{Candidate, Leadership, Presence},
    store,
};

/// After a leadership that could not begin, so that a store that is away is not asked without pause.
const PAUSE: Duration = Duration::from_secs(1);
/// While nobody has made an authority yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Told to those who call one that stops; they find another.
const STOPPING: &str = "the controller is stopping";
/// Told to those who call while nobody leads; their programs try again.
const NOBODY: &str = "no controller leads right now; one is being elected, try again";

/// A controller of a cluster at work.
#[derive(Debug)]
pub struct Member {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it speaks there: `http` or `https`.
    pub scheme: &'static str,
    /// Where its logs are.
    pub data_dir: PathBuf,
    /// Where its store is.
    pub store: String,
    doors: Doors,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Starts a member; returns when it listens. Who leads is decided after that.
///
/// # Errors
/// In words for people: what is in the way, and what to do about it.
pub async fn start(config: Config) -> anyhow::Result<Member> {
    let cluster = config.cluster.clone();
    let address: Address = cluster.store.as_deref().unwrap_or_default().parse()?;
    let access = access(&cluster)?;
    let clock = Clock::system();
    secure::check(&config)?;
    let listener = listen(config.listen)?;
    let addr = listener.local_addr().context("the socket has no address")?;
    let data_dir = prepare(&config.data_dir)?;
    let etcd = Arc::new(Etcd::new(address, &access));
    let own = advertised(&cluster, addr, secure::scheme(&config))?;
    let name = cluster.name.clone().unwrap_or_else(|| own.clone());
    let identity = secure::own(&config, &name, &own, addr, clock)?;
    let door = Door::closed(NOBODY).showing(identity.clone());
    door.wait(NOBODY);
    let doors = Doors::open(listener, door, identity.clone());
    let candidate = Candidate::new(Arc::clone(&etcd), clock, own.clone(), name, cluster.session_ttl);
    let standing = watch::Sender::new(Standing::Waits(NOBODY.to_owned()));
    Ok(Member::run(Seat { addr, data_dir, own, config, clock, etcd, candidate, identity, standing }, doors, None))
}

/// A place among the controllers of an etcd.
pub(super) struct Seat {
    pub(super) addr: SocketAddr,
    pub(super) data_dir: PathBuf,
    /// Where others reach this controller.
    pub(super) own: String,
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) etcd: Arc<Etcd>,
    pub(super) candidate: Candidate,
    /// Who it is; none: all speak plain text.
    pub(super) identity: Option<Arc<Own>>,
    /// Told what becomes of it.
    pub(super) standing: watch::Sender<Standing>,
}

/// A leadership that was won before its controller had its place.
pub(super) struct First {
    pub(super) leadership: Leadership,
    /// Told once it leads.
    pub(super) tell: oneshot::Sender<Term>,
}

/// Where others reach this controller.
pub(super) fn advertised(cluster: &Cluster, addr: SocketAddr, scheme: &str) -> anyhow::Result<String> {
    match &cluster.advertise {
        Some(url) if is_url(url, scheme) => Ok(url.clone()),
        Some(url) => bail!("`{url}` is no URL for --advertise; write it like {scheme}://HOST:PORT"),
        None if addr.ip().is_unspecified() => {
            bail!(
                "it listens on {addr}, which names no machine: say where others reach it, --advertise {scheme}://HOST:PORT"
            )
        }
        None => Ok(format!("{scheme}://{addr}")),
    }
}

fn is_url(url: &str, scheme: &str) -> bool {
    url.split_once("://").is_some_and(|(found, host)| found == scheme && !host.is_empty())
}

/// Looks for the authority in the store until it is there, whoever leads: a standby answers in its name, too.
async fn learn(own: Arc<Own>, etcd: Arc<Etcd>, data_dir: PathBuf, stop: CancellationToken) {
    let work = async {
        while own.ready().is_none() {
            match store::etcd::authority(&etcd).await {
                Ok(None) => {}
                Ok(Some(record)) => {
                    let taken = Authority::of_record(&record).and_then(|authority| own.take(authority));
                    if let Err(error) = taken {
                        let error = format!("{:#}", anyhow::Error::new(error));
                        tracing::error!(error, "the authority in the store cannot be used");
                    }
                }
                Err(error) => tracing::debug!(%error, "the authority cannot be looked for"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if let Err(error) = secure::publish(&own, &data_dir) {
            tracing::warn!(error = format!("{error:#}"), "people do not find the authority's certificate");
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Reads the files that the configuration names.
pub(super) fn access(cluster: &Cluster) -> anyhow::Result<Access> {
    let read = |path: &Option<PathBuf>, what: &str| match path {
        None => Ok(None),
        Some(path) => {
            std::fs::read(path).map(Some).with_context(|| format!("cannot read {what} in {}", path.display()))
        }
    };
    let password = read(&cluster.password_file, "etcd's password")?;
    let user = match (&cluster.user, password) {
        (None, None) => None,
        (Some(name), Some(password)) => {
            let password = String::from_utf8(password).context("etcd's password is not UTF-8")?;
            Some((name.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
        }
        _ => bail!("`etcd_user` and `etcd_password_file` belong together; set both or none"),
    };
    let certificate = read(&cluster.certificate, "the certificate for etcd")?;
    let identity = match (certificate, read(&cluster.key, "the key for etcd")?) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => bail!("`etcd_certificate` and `etcd_key` belong together; set both or none"),
    };
    Ok(Access { user, ca: read(&cluster.ca, "the certificate of etcd's authority")?, identity })
}

impl Member {
    /// Begins to stand by, or to lead if that is won already.
    pub(super) fn run(seat: Seat, doors: Doors, first: Option<First>) -> Self {
        let Seat { addr, data_dir, own, config, clock, etcd, candidate, identity, standing } = seat;
        let (store, stop) = (etcd.address().to_string(), CancellationToken::new());
        let name = config.cluster.name.clone().unwrap_or_else(|| own.clone());
        if let Some(identity) = &identity {
            tokio::spawn(learn(Arc::clone(identity), Arc::clone(&etcd), data_dir.clone(), stop.clone()));
        }
        let presence = Presence::new(Arc::clone(&etcd), clock, own.clone(), name);
        let members = presence.members();
        tokio::spawn(presence.run(stop.clone()));
        let (door, folder, scheme) = (doors.door.clone(), data_dir.clone(), secure::scheme(&config));
        let seen = standing.subscribe();
        let turns = Turns {
            config,
            clock,
            data_dir: folder,
            etcd,
            candidate,
            members,
            door,
            own,
            identity,
            standing,
            stop: stop.clone(),
        };
        let task = tokio::spawn(turns.run(first));
        Self { addr, scheme, data_dir, store, doors, standing: seen, stop, task }
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

    /// Stops cleanly: what was decided is committed, and another may lead at once.
    pub async fn stop(self) {
        self.stop.cancel();
        self.doors.door.close(STOPPING);
        if !self.task.is_finished()
            && let Ok(Err(error)) = self.task.await
        {
            tracing::error!(error = format!("{error:#}"), "it did not end well");
        }
        self.doors.shut().await;
        tracing::info!("stopped");
    }
}

/// Standing by and leading in turn.
struct Turns {
    config: Config,
    clock: Clock,
    data_dir: PathBuf,
    etcd: Arc<Etcd>,
    candidate: Candidate,
    members: watch::Receiver<Vec<v1::MemberView>>,
    door: Door,
    /// Where others reach this controller.
    own: String,
    /// Who it is; none: all speak plain text.
    identity: Option<Arc<Own>>,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
}

impl Turns {
    /// Until it is stopped.
    ///
    /// # Errors
    /// What waiting does not mend: a store that is damaged or newer, etcd that refuses us.
    async fn run(self, first: Option<First>) -> anyhow::Result<()> {
        let stop = self.stop.clone();
        if let Some(First { leadership, tell }) = first {
            let led = self.lead(&leadership, Some(tell)).await;
            self.shut();
            leadership.resign().await;
            led?;
        }
        while !stop.is_cancelled() {
            let elected = tokio::select! {
                elected = stop.run_until_cancelled(self.candidate.campaign()) => elected,
                () = self.show_leader() => None,
            };
            let Some(elected) = elected else { return Ok(()) };
            let leadership = elected.context("this controller cannot stand for election")?;
            tracing::info!(term = leadership.revision, "elected");
            let led = self.lead(&leadership, None).await;
            self.shut();
            leadership.resign().await;
            led?;
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Nobody leads here now: callers wait for who does next, but not for a controller that stops.
    fn shut(&self) {
        if self.stop.is_cancelled() {
            self.door.close(STOPPING);
        } else {
            self.nobody();
        }
    }

    fn nobody(&self) {
        self.door.wait(NOBODY);
        self.standing.send_replace(Standing::Waits(NOBODY.to_owned()));
    }

    /// Opens the door to whoever leads, for as long as it is polled.
    async fn show_leader(&self) {
        let mut leader = self.candidate.leader();
        loop {
            let seen = leader.borrow_and_update().clone();
            match seen {
                None => self.nobody(),
                // Ours, from before a restart: its session will end.
                Some(leader) if leader.address == self.own => self.nobody(),
                Some(leader) => {
                    tracing::info!(leader = leader.name, at = leader.address, "another controller leads");
                    if let Err(error) = self.door.forward_to(&leader.address) {
                        tracing::error!(%error, at = leader.address, "calls cannot be passed on to the leader");
                        self.door.close(&error.to_string());
                    }
                    self.standing.send_replace(Standing::StandsBy(leader.address));
                }
            }
            if leader.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// From the first look into the store to the end of the leadership.
    async fn lead(&self, leadership: &Leadership, tell: Option<oneshot::Sender<Term>>) -> anyhow::Result<()> {
        let authority = leadership.authority.clone();
        let store = Arc::new(elect::store(&self.etcd, leadership, self.config.cluster.budget));
        let upkeep = CancellationToken::new();
        let _ends_with_us = upkeep.clone().drop_guard();
        tokio::spawn(Arc::clone(&store).upkeep(self.clock, upkeep));
        let logs = open_logs(&self.data_dir, &self.config, self.clock).await?;
        let about = About {
            store: self.etcd.address().to_string(),
            data_dir: self.data_dir.clone(),
            members: self.members.clone(),
            own: self.identity.clone(),
            promotions: None,
        };
        let mut lead = match Lead::begin(&self.door, store, logs, &self.config, self.clock, about).await {
            Ok(lead) => lead,
            Err(error) if passes(&error) => {
                tracing::warn!(error = format!("{error:#}"), "the leadership could not begin; another try follows");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        tracing::info!(term = %lead.handle.term(), "this controller leads");
        self.standing.send_replace(Standing::Leads(lead.handle.clone()));
        // Nobody may want to know any more.
        let _told = tell.map(|tell| tell.send(lead.handle.term()));
        let ended = tokio::select! {
            () = self.stop.cancelled() => None,
            () = authority.lost() => {
                tracing::warn!("the session with etcd is lost; another controller may lead");
                None
            }
            ended = lead.ended() => Some(ended),
        };
        self.shut();
        lead.end().await;
        match ended {
            None | Some(Ok(Ended::Fenced | Ended::Stopped)) => Ok(()),
            Some(Ok(Ended::Broken(StartError::Store(error)))) if error.may_pass() || is_deposed(&error) => Ok(()),
            Some(ended) => Err(explain_end(ended)),
        }
    }
}

fn is_deposed(error: &store::Error) -> bool {
    matches!(error, store::Error::Deposed)
}

fn passes(error: &anyhow::Error) -> bool {
    let store = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(StartError::Store(error)) => Some(error),
        _ => None,
    });
    secure::passes(error) || store.is_some_and(|error| error.may_pass() || is_deposed(error))
}
