//! Who is at the other end of a call, as its connection proved; calls that another controller passes on say whose they are.

use std::net::SocketAddr;

use muster_common::tls::Who;
use tonic::{
    codegen::http,
    transport::server::{Connected, TcpConnectInfo},
};

use super::guard;

/// On a call that a controller passes on: who made it. Believed from a controller only.
const HEADER: &str = "muster-peer";
/// On every call that a controller passes on.
pub(super) const FORWARDED: &str = "muster-forwarded-by";

/// Who made a call, proved by a certificate. It stands in the extensions of a request; absent: nobody showed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An agent, by its name.
    Agent(String),
    /// Another controller, by its name.
    Controller(String),
}

impl From<&Who> for Peer {
    fn from(who: &Who) -> Self {
        match who {
            Who::Controller(name) => Self::Controller(name.clone()),
            Who::Agent { name, .. } => Self::Agent(name.clone()),
        }
    }
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Who showed a certificate that was verified.
    pub(super) who: Option<Who>,
    pub(super) remote: Option<SocketAddr>,
}

/// Whether controllers prove who they are to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secured {
    /// They show certificates.
    Yes,
    /// They speak plain text, and whoever reaches the port may say that a call came from elsewhere.
    No,
}

/// Puts into the extensions of a request who made it, and takes away what it only claims.
pub(super) fn establish<B>(request: &mut http::Request<B>, secured: Secured) -> Option<Who> {
    let line = request.extensions().get::<Line>().cloned();
    if let Some(remote) = line.as_ref().and_then(|line| line.remote) {
        request.extensions_mut().insert(TcpConnectInfo { local_addr: None, remote_addr: Some(remote) });
    }
    let shown = line.and_then(|line| line.who);
    let claimed = request.headers_mut().remove(HEADER);
    if secured == Secured::Yes && !matches!(shown, Some(Who::Controller(_))) {
        guard::forget(request);
    }
    let passed_on = matches!(shown, Some(Who::Controller(_))) && request.headers().contains_key(FORWARDED);
    let who = if passed_on { claimed.and_then(|value| Who::parse(value.to_str().ok()?)) } else { shown };
    if let Some(who) = &who {
        request.extensions_mut().insert(Peer::from(who));
        request.extensions_mut().insert(who.clone());
    }
    who
}

/// Writes on a call that is passed on whose it is.
pub(super) fn introduce<B>(request: &mut http::Request<B>) {
    request.headers_mut().remove(HEADER);
    let who = request.extensions().get::<Who>().map(Who::uri);
    if let Some(who) = who.and_then(|who| http::HeaderValue::try_from(who).ok()) {
        request.headers_mut().insert(HEADER, who);
    }
    request.headers_mut().insert(FORWARDED, http::HeaderValue::from_static("1"));
}

impl Connected for super::accept::Conn {
    type ConnectInfo = Line;

    fn connect_info(&self) -> Line {
        self.line.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> Who {
        Who::Agent { name: name.to_owned(), uid: "u".to_owned(), generation: 1 }
    }

    fn request(who: Option<Who>, headers: &[(&'static str, String)]) -> http::Request<()> {
        let mut request = http::Request::new(());
        request.extensions_mut().insert(Line { who, remote: None });
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_claim_is_believed_from_a_controller_that_passes_a_call_on_and_from_nobody_else() {
        let north = || (HEADER, agent("north").uri());
        let forwarded = || (FORWARDED, "1".to_owned());
        let controller = || Some(Who::Controller("c1".to_owned()));
        let table = [
            (None, vec![north(), forwarded()], None),
            (Some(agent("south")), vec![north(), forwarded()], Some(agent("south"))),
            (controller(), vec![north(), forwarded()], Some(agent("north"))),
            (controller(), vec![north()], controller()),
            (controller(), vec![forwarded()], None),
            (controller(), vec![(HEADER, "garbage".to_owned()), forwarded()], None),
            (Some(agent("south")), vec![], Some(agent("south"))),
        ];
        for (shown, headers, expected) in table {
            let mut request = request(shown.clone(), &headers);
            assert_eq!(establish(&mut request, Secured::Yes), expected, "{shown:?} {headers:?}");
            assert!(!request.headers().contains_key(HEADER));
            assert_eq!(request.extensions().get::<Peer>().cloned(), expected.as_ref().map(Peer::from));
        }
    }

    #[test]
    fn where_a_call_came_from_is_believed_of_controllers_and_in_plain_text_of_anybody() {
        let controller = Some(Who::Controller("c1".to_owned()));
        let table = [
            (controller, Secured::Yes, true),
            (Some(agent("north")), Secured::Yes, false),
            (None, Secured::Yes, false),
            (None, Secured::No, true),
        ];
        for (shown, secured, kept) in table {
            let from = ("muster-forwarded-from", "10.9.9.9:1".to_owned());
            let mut request = request(shown.clone(), &[from, (FORWARDED, "1".to_owned())]);
            establish(&mut request, secured);
            assert_eq!(request.headers().contains_key("muster-forwarded-from"), kept, "{shown:?} {secured:?}");
        }
    }

    #[test]
    fn what_is_passed_on_says_whose_it_is() {
        let mut first = request(Some(agent("north")), &[(HEADER, agent("other").uri())]);
        establish(&mut first, Secured::Yes);
        introduce(&mut first);
        assert_eq!(first.headers()[HEADER], agent("north").uri());
        let mut person = request(None, &[]);
        establish(&mut person, Secured::Yes);
        introduce(&mut person);
        assert!(!person.headers().contains_key(HEADER) && person.headers().contains_key(FORWARDED));
    }
}
