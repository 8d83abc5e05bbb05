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

/// Where a call came from.
pub(super) struct Origin {
    address: Option<SocketAddr>,
    from: Option<SocketAddr>,
    peer: Option<Peer>,
}

impl Origin {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let from = request.headers().get(FROM).and_then(|value| value.to_str().ok()?.parse().ok());
        let peer = request.extensions().get::<Peer>().cloned();
        let address = request.extensions().get::<TcpConnectInfo>().and_then(|info| info.remote_addr);
        Self { address, from, peer }
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

/// Takes away what a caller who is no controller says of where its call came from.
pub(in crate::grpc) fn forget<B>(request: &mut Request<B>) {
    request.headers_mut().remove(FROM);
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
    fn what_is_no_address_is_not_repeated() {
        for (said, told) in [("10.9.9.9:1", "10.9.9.9:1 through 10.0.0.1:7"), ("root", "10.0.0.1:7")] {
            let mut request = Request::new(());
            request.headers_mut().insert(FROM, HeaderValue::from_static(said));
            let remote_addr = Some("10.0.0.1:7".parse().unwrap());
            request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr });
            assert_eq!(&*Origin::of(&request).text(), told);
        }
    }

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
