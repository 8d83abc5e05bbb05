//! What lasts ends with the right to it: a token that expires or is revoked closes its streams, and the first token those
//! of everybody who had none.

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

/// Stands for the token of those who needed none, which is good until there is one.
pub(super) const NOBODY: &str = "";

/// Of each token with which something was asked, the way to end it. At most as many as there are tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts {
    by_token: Arc<Mutex<BTreeMap<Arc<str>, CancellationToken>>>,
}

impl Cuts {
    /// What a caller sends, until the token `id` is good no more: a service that still listens is told.
    pub(super) fn bind_call(&self, id: &Arc<str>, body: Body) -> Body {
        self.bind(id, body, Side::Call)
    }

    /// What a caller is answered, until the token `id` is good no more.
    pub(super) fn bind_answer(&self, id: &Arc<str>, body: Body) -> Body {
        self.bind(id, body, Side::Answer)
    }

    fn bind(&self, id: &Arc<str>, body: Body, side: Side) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let cut = self.lock().entry(Arc::clone(id)).or_default().clone();
        let why = if **id == *NOBODY {
            "an access token is asked for since a moment ago; ask again with one"
        } else {
            "the access token expired or was revoked meanwhile; ask again with another"
        };
        Body::new(Bound { inner: Some(body), cut: Box::pin(cut.cancelled_owned()), side, why })
    }

    /// Ends what is bound to a token that is good no more. To be spawned.
    pub(super) async fn run(self, view: View, clock: Clock) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (snapshot, now) = (view.load(), clock.wall());
            self.lock().retain(|id, cut| {
                let live = match snapshot.tokens.get(id) {
                    Some(token) => token.is_live(now),
                    None => **id == *NOBODY && snapshot.tokens.is_empty(),
                };
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

/// Whose words a body carries, which says how it ends before its time.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// The caller's: with an error.
    Call,
    /// Ours: with a status.
    Answer,
}

/// A body that ends with a word when it is cut.
struct Bound {
    /// None: cut.
    inner: Option<Body>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    side: Side,
    why: &'static str,
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
        // What fills it is dropped with it, and ends.
        bound.inner = None;
        let status = Status::unauthenticated(bound.why);
        match bound.side {
            Side::Call => Poll::Ready(Some(Err(status))),
            Side::Answer => {
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers)?;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}
