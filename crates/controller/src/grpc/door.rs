//! Where a call goes: to the services of this process while it leads, to the leader while another does (L2), else back.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use muster_common::tls::{self, Dial};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, Bytes, Service, StdError, http},
    service::Routes,
    transport::{Channel, Endpoint},
};

use super::{
    guard::{self, Guard},
    peer::{self, FORWARDED},
};
use crate::{engine::Handle, identity::Own};

/// A leader that does not answer a ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(3);
const PING_WITHIN: Duration = Duration::from_secs(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Connections to the leader, used in turn. One carries no more calls at one time than a server allows (`STREAMS`), and
/// each agent here holds two of them open; the next call would wait for one of those to end.
const LANES: usize = 32;
/// What may be under way on one of them to us, unread: as much as its calls may have, so that who does not read his own holds
/// up nobody else's.
const LANE_WINDOW: u32 = super::STREAMS * super::STREAM_WINDOW;
/// Calls that get a connection of their own: what goes up in them is read by a command that may never read, and the leader
/// lets only so much be under way on one connection.
const ALONE: [&str; 2] = ["Exec", "ExecTerminal"];
/// On every answer of a leader's services to a forwarded call: where to go next time.
const LEADER: &str = "muster-leader";

/// A leader that answered this lately is not asked whether it is there.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How often a leader that cannot be reached is looked for again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// While a leader is elected, calls wait for it this long: they go on the moment that there is one, instead of after a
/// pause that each of ten thousand agents chose for itself. Less than agents wait for their welcome.
const HELD_FOR: Duration = Duration::from_secs(8);

/// The one way in for everybody. Clones share it.
#[derive(Clone)]
pub struct Door {
    way: Arc<watch::Sender<Arc<Way>>>,
    /// Who this controller is to the one that leads; none: all speak plain text.
    own: Option<Arc<Own>>,
}

/// Where it leads.
pub(super) enum Way {
    /// Nowhere, and why.
    Closed(String),
    /// Nowhere yet, and why: it will not be long.
    Soon(String),
    /// To our own services, while their engine runs.
    Here(Box<(Guard, Routes)>, Handle),
    /// To another controller.
    There(Remote),
}

/// The controller that leads, and the way to it.
pub(super) struct Remote {
    url: String,
    /// `HOST:PORT` of it.
    host: String,
    /// Makes a connection, which is connected when it is first used.
    lane: Box<dyn Fn() -> Channel + Send + Sync>,
    lanes: Vec<Channel>,
    turn: AtomicUsize,
    /// Whether it was there when somebody last knew, and when that was.
    seen: Mutex<Option<(Instant, bool)>>,
    /// Held by the one who looks.
    looks: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &**self.way.borrow() {
            Way::Closed(_) => "Door(closed)",
            Way::Soon(_) => "Door(soon)",
            Way::Here(..) => "Door(here)",
            Way::There(..) => "Door(there)",
        })
    }
}

impl Door {
    /// Everybody is told why it is closed.
    pub fn closed(why: &str) -> Self {
        Self { way: Arc::new(watch::Sender::new(Arc::new(Way::Closed(why.to_owned())))), own: None }
    }

    /// The same, which shows `own` to other controllers.
    #[must_use]
    pub fn showing(self, own: Option<Arc<Own>>) -> Self {
        Self { own, ..self }
    }

    /// Closes it; calls that are open go on.
    pub fn close(&self, why: &str) {
        self.lead(Way::Closed(why.to_owned()));
    }

    /// Lets those who call wait a while: somebody will lead soon. They are told why when that takes too long.
    pub fn wait(&self, why: &str) {
        self.lead(Way::Soon(why.to_owned()));
    }

    /// Leads to the controller at `url` from now on.
    ///
    /// # Errors
    /// It is no URL, or asks for what this controller does not speak.
    pub fn forward_to(&self, url: &str) -> Result<(), BadLeader> {
        if matches!(&**self.way.borrow(), Way::There(there) if there.url == url) {
            return Ok(());
        }
        let bare = match (url.split_once("://"), &self.own) {
            (Some(("http", rest)), None) | (Some(("https", rest)), Some(_)) => rest,
            (Some(("https", _)), None) => return Err(BadLeader::Secure),
            (Some(("http", _)), Some(_)) => return Err(BadLeader::Plain),
            _ => return Err(BadLeader::NoUrl),
        };
        // What secures the connection is ours, and not the library's: it is told of a plain one.
        let endpoint = Endpoint::from_shared(format!("http://{bare}"))
            .map_err(|_| BadLeader::NoUrl)?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(super::STREAM_WINDOW)
            .initial_connection_window_size(LANE_WINDOW);
        let authority = endpoint.uri().authority().map(ToString::to_string).unwrap_or_default();
        let has_port = endpoint.uri().port().is_some();
        let host = if has_port { authority } else { format!("{authority}:{}", muster_common::DEFAULT_PORT) };
        let (own, to) = (self.own.clone(), host.clone());
        let lane = Box::new(move || match &own {
            None => Dial::new(vec![to.clone()], None).open_lazily(&endpoint),
            Some(own) => endpoint.connect_with_connector_lazy(Secured { own: Arc::clone(own), host: to.clone() }),
        });
        let lanes = (0..LANES).map(|_| lane()).collect();
        let (turn, seen, looks) = (AtomicUsize::new(0), Mutex::default(), tokio::sync::Mutex::default());
        self.lead(Way::There(Remote { url: url.to_owned(), host, lane, lanes, turn, seen, looks }));
        Ok(())
    }

    pub(super) fn lead(&self, way: Way) {
        self.way.send_replace(Arc::new(way));
    }

    pub(super) fn way(&self) -> Arc<Way> {
        Arc::clone(&self.way.borrow())
    }

    /// Tells of each change.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Way>> {
        self.way.subscribe()
    }

    /// Where it leads, once that is decided and the leader is there. A leader that died is waited for like one that
    /// is elected: its successor takes its place here.
    async fn reachable(&self) -> Arc<Way> {
        let mut changes = self.changes();
        let found = async {
            loop {
                let way = Arc::clone(&changes.borrow_and_update());
                let open = async {
                    match &*way {
                        Way::Closed(_) | Way::Here(..) => {}
                        Way::There(leader) => {
                            while !leader.is_reachable().await {
                                tokio::time::sleep(LOOK_EVERY).await;
                            }
                        }
                        Way::Soon(_) => std::future::pending().await,
                    }
                };
                let is_open = tokio::select! {
                    () = open => true,
                    _ = changes.changed() => false,
                };
                if is_open {
                    return way;
                }
            }
        };
        timeout(HELD_FOR, found).await.unwrap_or_else(|_| self.way())
    }
}

impl<B> Service<http::Request<B>> for Door
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let door = self.clone();
        let mut request = request.map(Body::new);
        let secured = if door.own.is_some() { peer::Secured::Yes } else { peer::Secured::No };
        peer::establish(&mut request, secured);
        Box::pin(async move {
            Ok(match &*door.reachable().await {
                Way::Closed(why) | Way::Soon(why) => Status::unavailable(why.clone()).into_http(),
                Way::Here(here, _) => here.0.call(here.1.clone(), request).await,
                Way::There(leader) => leader.forward(request).await,
            })
        })
    }
}

/// Why calls cannot be passed on to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLeader {
    /// See its text.
    #[error("the leader's address is no URL; set --advertise on it")]
    NoUrl,
    /// See its text.
    #[error("the leader speaks TLS and this controller does not; start all controllers with --tls, or none")]
    Secure,
    /// See its text.
    #[error("this controller speaks TLS and the leader does not; start all controllers with --tls, or none")]
    Plain,
}

/// Connects to another controller and shows our certificate.
#[derive(Clone)]
struct Secured {
    own: Arc<Own>,
    host: String,
}

impl Service<http::Uri> for Secured {
    type Response = TokioIo<tls::Stream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let Self { own, host } = self.clone();
        Box::pin(async move {
            let ready = own.when_ready().await;
            tls::connect(&host, Some(&ready.client)).await.map(TokioIo::new)
        })
    }
}

impl Remote {
    /// Whether it can be connected to, or answered a moment ago. One looks, and all who ask meanwhile hear what it found:
    /// ten thousand held calls that each looked for a dead leader would leave nothing to elect another with.
    async fn is_reachable(&self) -> bool {
        if let Some(there) = self.known() {
            return there;
        }
        let _one_looks = self.looks.lock().await;
        if let Some(there) = self.known() {
            return there;
        }
        let there = matches!(timeout(CONNECT_WITHIN, TcpStream::connect(&self.host)).await, Ok(Ok(_)));
        self.learn(Some(there));
        there
    }

    /// What was seen so lately that it counts.
    fn known(&self) -> Option<bool> {
        let (at, there) = (*self.seen.lock().unwrap_or_else(PoisonError::into_inner))?;
        let lately = if there { TRUSTED_FOR } else { LOOK_EVERY };
        (at.elapsed() < lately).then_some(there)
    }

    fn learn(&self, there: Option<bool>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = there.map(|there| (Instant::now(), there));
    }

    fn lane_of(&self, path: &str) -> Channel {
        let is_alone = path.rsplit('/').next().is_some_and(|call| ALONE.contains(&call));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.lanes.len().max(1);
        let shared = self.lanes.get(turn).filter(|_| !is_alone);
        shared.cloned().unwrap_or_else(|| (self.lane)())
    }

    /// Passes a call on as it is, and its answer back; both flow while they come.
    async fn forward(&self, mut request: http::Request<Body>) -> http::Response<Body> {
        let url = &self.url;
        if request.headers().contains_key(FORWARDED) {
            let text = format!("this controller does not lead any more; {url} does, as far as it knows");
            return Status::unavailable(text).into_http();
        }
        guard::stamp(&mut request);
        peer::introduce(&mut request);
        let mut channel = self.lane_of(request.uri().path());
        let ready = poll_fn(|context| Service::<http::Request<Body>>::poll_ready(&mut channel, context)).await;
        let answer = match ready {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        // A call that failed says little of its leader: the next one looks.
        self.learn(answer.is_ok().then_some(true));
        match answer {
            Ok(mut response) => {
                if let Ok(leader) = http::HeaderValue::from_str(url) {
                    response.headers_mut().insert(LEADER, leader);
                }
                response
            }
            Err(error) => {
                let text = format!("{url} leads, and cannot be reached from here: {error}");
                Status::unavailable(text).into_http()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn one_of_many_held_calls_looks_for_the_leader() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = Door::closed("");
        door.forward_to(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let calls: Vec<_> = (0..500).map(|_| door.clone()).collect();
        futures::future::join_all(calls.iter().map(Door::reachable)).await;
        let mut looks = 0;
        while timeout(Duration::from_millis(100), listener.accept()).await.is_ok() {
            looks += 1;
        }
        assert_eq!(looks, 1, "connections to the leader");
    }

    #[tokio::test]
    async fn a_command_beside_a_task_has_a_connection_to_the_leader_for_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = Door::closed("");
        door.forward_to(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let way = door.way();
        let Way::There(leader) = &*way else { panic!("it leads elsewhere") };
        let request =
            |call: &str| http::Request::builder().uri(format!("/muster.v1.X/{call}")).body(Body::empty()).unwrap();
        // More than connections are shared among, so that sharing them would show.
        let commands = (0..=LANES).map(|n| leader.forward(request(ALONE[n % 2])));
        let others = (0..=LANES).map(|_| leader.forward(request("Submit")));
        let answers = futures::future::join(futures::future::join_all(commands), futures::future::join_all(others));
        let mut open = Vec::new();
        let accept = async {
            for _ in 0..LANES + 1 + LANES {
                open.push(listener.accept().await.unwrap());
            }
        };
        tokio::select! {
            _ = answers => panic!("nobody answers"),
            met = timeout(Duration::from_secs(60), accept) => met.expect("a connection for each command"),
        }
    }

    #[tokio::test]
    async fn a_held_call_goes_on_with_the_next_leader_while_the_last_one_does_not_answer() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (gone, here_url) = (format!("http://{gone}"), format!("http://{}", here.local_addr().unwrap()));
        let door = Door::closed("");
        door.forward_to(&gone).unwrap();
        let held = tokio::spawn({
            let door = door.clone();
            async move {
                match &*door.reachable().await {
                    Way::There(leader) => leader.url.clone(),
                    _ => "elsewhere".to_owned(),
                }
            }
        });
        tokio::task::yield_now().await;
        assert!(!held.is_finished(), "nobody is there");
        door.forward_to(&here_url).unwrap();
        assert_eq!(held.await.unwrap(), here_url);
    }
}
