//! The control connection: finds a controller, keeps one stream to it, and turns messages into inputs.
//!
//! Decides nothing: whether a controller is believed is the supervisor's matter. Bulk goes over a
//! connection of its own ([`Bulk`]), because an unread log stream would hold up a heartbeat here.

mod address;
mod backoff;
mod bulk;
mod credential;
pub(crate) mod down;
mod join;
#[cfg(test)]
pub(crate) mod kit;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use muster_common::proto::{
    OLDEST_PROTOCOL, PROTOCOL,
    v1::{self, agent_link_client::AgentLinkClient},
};
use muster_core::id::AgentId;
use rustls::ClientConfig;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::interceptor::InterceptedService;
use tracing::{debug, info, warn};

pub use self::{
    address::Address,
    bulk::Bulk,
    credential::{Credential, CredentialError},
    join::{JoinError, Joiner, Signed, enrol, renew},
};
use self::{
    backoff::Jitter,
    bulk::{Attached, Attachment},
};
use crate::supervisor::Input;

/// For the stream to be opened and for the welcome to come; a controller that takes up a large
/// store needs seconds.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// Messages to the controller that may wait in the stream. Few: what waits before it is coalesced.
const UP_MESSAGES: usize = 4;
/// Events that may wait for the agent's loop; the stream then waits, by HTTP/2 flow control.
const EVENTS: usize = 64;
/// Leases of one message share their specs, which may carry input for stdin.
const MESSAGE_MAX: usize = 64 << 20;

/// What comes of the connection, in order.
#[derive(Debug)]
pub enum Event {
    /// A stream is open; the hello must be its first message.
    Opened(Up),
    /// The controller said something.
    Input(Input),
    /// The stream is gone; another will be opened.
    Closed,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no connection could be made")]
    Connect(#[source] tonic::transport::Error),
    #[error("the controller refused or ended the stream: {} ({:?})", .0.message(), .0.code())]
    Status(#[source] Box<tonic::Status>),
    #[error("the controller ended the stream")]
    Ended,
    #[error("the controller did not welcome us within {} s", GREETING_LIMIT.as_secs())]
    NoWelcome,
    #[error("we left the controller")]
    Left,
    #[error(
        "the controller speaks protocol {spoken} and this agent {OLDEST_PROTOCOL} to {PROTOCOL}; upgrade the {}",
        if *spoken > PROTOCOL { "agent" } else { "controller" }
    )]
    Protocol { spoken: u32 },
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// The way to the controller over one stream.
#[derive(Debug)]
pub struct Up {
    sender: mpsc::Sender<v1::AgentUp>,
    cut: CancellationToken,
    address: Arc<Address>,
    tls: Option<Arc<ClientConfig>>,
    attachment: Arc<watch::Sender<Attachment>>,
    /// As the welcome says; 0: none came yet.
    protocol: Arc<AtomicU32>,
}

impl Up {
    /// Whether the controller speaks this protocol or a newer one.
    pub fn speaks(&self, protocol: u32) -> bool {
        self.protocol.load(Ordering::Relaxed) >= protocol
    }

    /// Sends, and says whether there was room. On a broken stream the message is lost, and
    /// [`Event::Closed`] follows.
    #[must_use = "a message that found no room was not sent"]
    pub fn send(&self, message: v1::agent_up::Message) -> bool {
        let sent = self.sender.try_send(v1::AgentUp { message: Some(message) });
        !matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Whether reports find room. One place is kept for a heartbeat, which must not wait behind them.
    /// A broken stream takes everything and loses it.
    pub fn has_room(&self) -> bool {
        self.sender.capacity() > 1 || self.sender.is_closed()
    }

    /// Waits until [`Up::has_room`], or the stream is broken. Cancel safe.
    pub async fn room(&self) {
        let _room_or_broken = self.sender.reserve_many(2).await;
    }

    /// We were taken in under this number: bulk may begin.
    pub fn attached(&self, agent: AgentId) {
        let attached = Attached::to(Arc::clone(&self.address), self.tls.clone(), agent);
        self.attachment.send_replace(Some(attached));
    }

    /// Ends the stream; the next controller is tried.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

/// The link before it starts.
#[derive(Debug)]
pub struct Link {
    addresses: Vec<Arc<Address>>,
    tls: Option<Arc<ClientConfig>>,
    credential: Credential,
    events: mpsc::Sender<Event>,
    attachment: Arc<watch::Sender<Attachment>>,
    jitter: Jitter,
}

impl Link {
    /// A link to one of these controllers, secured as `tls` says; what will come of it, and its bulk connection.
    pub fn new(addresses: Vec<Address>, tls: Option<Arc<ClientConfig>>) -> (Self, mpsc::Receiver<Event>, Bulk) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let (attachment, watched) = watch::channel(None);
        let addresses = addresses.into_iter().map(Arc::new).collect();
        let (credential, attachment) = (Credential::None, Arc::new(attachment));
        let link = Self { addresses, tls, credential, events, attachment, jitter: Jitter::new() };
        (link, receiver, Bulk::new(watched))
    }

    /// The same, for controllers that ask who we are.
    #[must_use]
    pub fn with(self, credential: Credential) -> Self {
        Self { credential, ..self }
    }

    /// The same with waits that the seed decides, for simulations.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { jitter: Jitter::seeded(seed), ..self }
    }

    /// Looks for a controller and keeps a stream to it until `stop`.
    pub fn start(self, tracker: &TaskTracker, stop: &CancellationToken) {
        let stop = stop.clone();
        tracker.spawn(async move {
            stop.run_until_cancelled(self.run()).await;
        });
    }

    async fn run(mut self) {
        let mut failures = 0_u32;
        for address in self.addresses.clone().iter().cycle() {
            let mut welcomed = false;
            let error = match self.session(address, &mut welcomed).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if self.events.is_closed() {
                return;
            }
            if welcomed {
                failures = 0;
                info!(%address, error = %chain(&error), "the connection to the controller ended");
            } else if failures == 0 {
                warn!(%address, error = %chain(&error), "no controller takes us in; trying on");
            } else {
                debug!(%address, failures, error = %chain(&error), "still no controller takes us in");
            }
            let rounds = failures / u32::try_from(self.addresses.len()).unwrap_or(u32::MAX);
            failures = failures.saturating_add(1);
            tokio::time::sleep(self.jitter.delay(rounds)).await;
        }
    }

    /// One stream from its opening to its end.
    async fn session(&self, address: &Arc<Address>, welcomed: &mut bool) -> Result<std::convert::Infallible, Error> {
        let channel = address.connect(self.tls.as_ref()).await.map_err(Error::Connect)?;
        let channel = InterceptedService::new(channel, self.credential.clone());
        let mut client = AgentLinkClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let (sender, inbox) = mpsc::channel(UP_MESSAGES);
        let cut = CancellationToken::new();
        let (address, tls, attachment) = (address.clone(), self.tls.clone(), self.attachment.clone());
        let protocol = Arc::new(AtomicU32::new(0));
        let up = Up { sender, cut: cut.clone(), address, tls, attachment, protocol: Arc::clone(&protocol) };
        if self.events.send(Event::Opened(up)).await.is_err() {
            return Err(Error::Left);
        }
        let over = cut.run_until_cancelled(self.listen(&mut client, inbox, (welcomed, &protocol))).await;
        self.attachment.send_replace(None);
        let _nobody_listens = self.events.send(Event::Closed).await;
        over.unwrap_or(Err(Error::Left))
    }

    async fn listen(
        &self,
        client: &mut AgentLinkClient<InterceptedService<tonic::transport::Channel, Credential>>,
        inbox: mpsc::Receiver<v1::AgentUp>,
        (welcomed, spoken): (&mut bool, &AtomicU32),
    ) -> Result<std::convert::Infallible, Error> {
        let answer = timeout(GREETING_LIMIT, client.control(ReceiverStream::new(inbox))).await;
        let mut messages = answer.map_err(|_| Error::NoWelcome)??.into_inner();
        loop {
            let message = if *welcomed {
                messages.message().await?
            } else {
                timeout(GREETING_LIMIT, messages.message()).await.map_err(|_| Error::NoWelcome)??
            };
            let Some(message) = message else { return Err(Error::Ended) };
            if let Some(v1::agent_down::Message::Welcome(v1::Welcome { protocol, .. })) = &message.message {
                if !(OLDEST_PROTOCOL..=PROTOCOL).contains(protocol) {
                    return Err(Error::Protocol { spoken: *protocol });
                }
                spoken.store(*protocol, Ordering::Relaxed);
            }
            let Some(input) = down::input(message) else {
                warn!("the controller says something that this build does not know; it is ignored");
                continue;
            };
            *welcomed |= matches!(input, Input::Welcome(_));
            if self.events.send(Event::Input(input)).await.is_err() {
                return Err(Error::Left);
            }
        }
    }
}

/// An error and its causes on one line; tonic's own words alone are "transport error".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
