//! Answers that last end with the right to them: a token that expires or is revoked closes its streams.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::Frame;
use muster_common::clock::Clock;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, Bytes, http::HeaderMap},
};

use crate::view::View;

/// How often it is asked whether the tokens of open answers are good. Five times that is promised.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Of each token with which something was asked, the way to end its answers. At most as many as there are tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts {
    by_token: Arc<Mutex<BTreeMap<Arc<str>, CancellationToken>>>,
}

impl Cuts {
    /// `body`, until the token `id` is good no more.
    pub(super) fn bind(&self, id: &Arc<str>, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let cut = self.lock().entry(Arc::clone(id)).or_default().clone();
        Body::new(Bound { inner: Some(body), cut: Box::pin(cut.cancelled_owned()) })
    }

    /// Ends answers whose token is good no more. To be spawned.
    pub(super) async fn run(self, view: View, clock: Clock) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (snapshot, now) = (view.load(), clock.wall());
            self.lock().retain(|id, cut| {
                let live = snapshot.tokens.get(id).is_some_and(|token| token.is_live(now));
                if !live {
                    cut.cancel();
                }
                live
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, CancellationToken>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that ends with a word when it is cut.
struct Bound {
    /// None: cut.
    inner: Option<Body>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl HttpBody for Bound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let bound = self.as_mut().get_mut();
        let Some(inner) = bound.inner.as_mut() else { return Poll::Ready(None) };
        // First: a stream that always has more must end, too.
        if bound.cut.as_mut().poll(context).is_pending() {
            return Pin::new(inner).poll_frame(context);
        }
        // What fills the answer is dropped with it, and ends.
        bound.inner = None;
        let mut trailers = HeaderMap::new();
        let status =
            Status::unauthenticated("the access token expired or was revoked meanwhile; ask again with another");
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}
