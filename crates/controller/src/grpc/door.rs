//! Where a call goes: to the services of this process while it leads, to the leader while another does (L2), else back.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, Bytes, Service, StdError, http},
    service::Routes,
    transport::{Channel, Endpoint},
};

use crate::engine::Handle;

/// A leader that does not answer a ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(3);
const PING_WITHIN: Duration = Duration::from_secs(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// On a call that was forwarded once: two that take each other for the leader do not play ball.
const FORWARDED: &str = "muster-forwarded-by";
/// On every answer of a leader's services to a forwarded call: where to go next time.
const LEADER: &str = "muster-leader";

/// The one way in for everybody. Clones share it.
#[derive(Clone)]
pub struct Door {
    way: Arc<ArcSwap<Way>>,
    changed: Arc<Notify>,
}

/// Where it leads.
pub(super) enum Way {
    /// Nowhere, and why.
    Closed(String),
    /// To our own services, while their engine runs.
    Here(Box<Routes>, Handle),
    /// To another controller.
    There(String, Channel),
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &**self.way.load() {
            Way::Closed(_) => "Door(closed)",
            Way::Here(..) => "Door(here)",
            Way::There(..) => "Door(there)",
        })
    }
}

impl Door {
    /// Everybody is told why it is closed.
    pub fn closed(why: &str) -> Self {
        Self { way: Arc::new(ArcSwap::from_pointee(Way::Closed(why.to_owned()))), changed: Arc::default() }
    }

    /// Closes it; calls that are open go on.
    pub fn close(&self, why: &str) {
        self.lead(Way::Closed(why.to_owned()));
    }

    /// Leads to the controller at `url` from now on.
    ///
    /// # Errors
    /// It is no URL.
    pub fn forward_to(&self, url: &str) -> Result<(), tonic::transport::Error> {
        if matches!(&**self.way.load(), Way::There(there, _) if there == url) {
            return Ok(());
        }
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(super::STREAM_WINDOW)
            .initial_connection_window_size(super::CONNECTION_WINDOW);
        self.lead(Way::There(url.to_owned(), endpoint.connect_lazy()));
        Ok(())
    }

    pub(super) fn lead(&self, way: Way) {
        self.way.store(Arc::new(way));
        self.changed.notify_one();
    }

    pub(super) fn way(&self) -> Arc<Way> {
        self.way.load_full()
    }

    /// Waits until it leads elsewhere. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
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
        let way = self.way();
        let request = request.map(Body::new);
        Box::pin(async move {
            Ok(match &*way {
                Way::Closed(why) => Status::unavailable(why.clone()).into_http(),
                Way::Here(routes, _) => match (**routes).clone().call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                Way::There(url, channel) => forward(url, channel.clone(), request).await,
            })
        })
    }
}

/// Passes a call on as it is, and its answer back; both flow while they come.
async fn forward(url: &str, mut channel: Channel, mut request: http::Request<Body>) -> http::Response<Body> {
    if request.headers().contains_key(FORWARDED) {
        let text = format!("this controller does not lead any more; {url} does, as far as it knows");
        return Status::unavailable(text).into_http();
    }
    request.headers_mut().insert(FORWARDED, http::HeaderValue::from_static("1"));
    let away = |error: tonic::transport::Error| {
        Status::unavailable(format!("{url} leads, and cannot be reached from here: {error}")).into_http()
    };
    if let Err(error) =
        std::future::poll_fn(|context| Service::<http::Request<Body>>::poll_ready(&mut channel, context)).await
    {
        return away(error);
    }
    match channel.call(request).await {
        Ok(mut response) => {
            if let Ok(leader) = http::HeaderValue::from_str(url) {
                response.headers_mut().insert(LEADER, leader);
            }
            response
        }
        Err(error) => away(error),
    }
}
