//! Where a call came from: the address, and the machine that proved itself.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use muster_core::access::Who;
use tonic::{
    codegen::http::{HeaderValue, Request},
    transport::server::TcpConnectInfo,
};

use crate::grpc::peer::Peer;

/// On a call that another controller passes on: the address that it came from, for people to read.
const FROM: &str = "muster-forwarded-from";
/// Addresses are shorter.
const FROM_MAX: usize = 64;

/// Where a call came from.
pub(super) struct Origin {
    address: Option<SocketAddr>,
    from: Option<String>,
    peer: Option<Peer>,
}

impl Origin {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let text =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let peer = request.extensions().get::<Peer>().cloned();
        let address = request.extensions().get::<TcpConnectInfo>().and_then(|info| info.remote_addr);
        Self { address, from: text(FROM).filter(|from| from.len() <= FROM_MAX), peer }
    }

    /// The machine, if one proved itself.
    pub(super) fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// The machine, if one proved itself.
    pub(super) fn machine(&self) -> Option<Who> {
        self.peer.as_ref().map(|peer| match peer {
            Peer::Agent(name) => Who::Agent(name.as_str().into()),
            Peer::Controller(name) => Who::Controller(name.as_str().into()),
        })
    }

    /// The address of the connection itself: what its other end says of others counts for nothing.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }

    /// For people: what was said, and what is known.
    pub(super) fn text(&self) -> Arc<str> {
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        match &self.from {
            Some(from) => format!("{from} through {address}").into(),
            None => address.into(),
        }
    }
}

/// Says on a call that is passed on where it came from. What its sender said of that is not passed on.
pub(in crate::grpc) fn stamp<B>(request: &mut Request<B>) {
    let address = Origin::of(request).address;
    let headers = request.headers_mut();
    headers.remove(FROM);
    if let Some(value) = address.and_then(|address| HeaderValue::from_str(&address.to_string()).ok()) {
        headers.insert(FROM, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sender_says_of_itself_is_not_passed_on() {
        let mut forged = Request::new(());
        forged.headers_mut().insert(FROM, HeaderValue::from_static("10.9.9.9:1"));
        stamp(&mut forged);
        assert!(forged.headers().is_empty(), "{:?}", forged.headers());
        let mut honest = Request::new(());
        let remote_addr = Some("10.0.0.1:7".parse().unwrap());
        honest.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr });
        stamp(&mut honest);
        assert_eq!(honest.headers()[FROM], "10.0.0.1:7");
    }
}
