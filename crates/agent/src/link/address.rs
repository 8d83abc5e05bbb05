//! Where a controller is, and how connections to it are kept.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use muster_common::tls::{self, Dial, Network, Tcp};
use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint, Uri};

/// A machine that does not answer is not worth more, for another may lead.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A peer that stopped, or a path that swallows packets, is seen after this and `PING_LIMIT`; without
/// pings an HTTP/2 client waits for ever.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// A controller's address: `https://host:port`, or `http://host:port`.
#[derive(Clone, Debug)]
pub struct Address {
    text: String,
    /// `host:port`.
    host: String,
    secure: bool,
    endpoint: Endpoint,
    network: Arc<dyn Network>,
}

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("controller address `{text}` {problem}; write it as https://host:port")]
pub struct AddressError {
    text: String,
    problem: String,
}

impl Address {
    /// Whether TLS is spoken there.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is this machine for certain.
    pub fn is_loopback(&self) -> bool {
        tls::is_loopback(self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name))
    }

    /// The same place, reached over another network.
    #[must_use]
    pub fn through(self, network: Arc<dyn Network>) -> Self {
        Self { network, ..self }
    }

    /// A connection.
    pub(super) async fn connect(&self, tls: Option<&Arc<ClientConfig>>) -> Result<Channel, tonic::transport::Error> {
        self.dial(tls).open(&self.endpoint).await
    }

    /// A connection of its own for bulk, made when it is first used. Needs a runtime.
    pub(super) fn bulk(&self, tls: Option<&Arc<ClientConfig>>) -> Channel {
        self.dial(tls).open_lazily(&self.endpoint)
    }

    fn dial(&self, tls: Option<&Arc<ClientConfig>>) -> Dial {
        Dial::new(vec![self.host.clone()], tls.filter(|_| self.secure).cloned()).through(Arc::clone(&self.network))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |problem: &str| AddressError { text: text.to_owned(), problem: problem.to_owned() };
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = full.parse().map_err(|error| refuse(&format!("cannot be read: {error}")))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refuse("has an unknown scheme")),
        };
        if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none_or(|port| port == 0) {
            return Err(refuse("names no host and port"));
        }
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        if host.contains('@') {
            return Err(refuse("names a user, and there are none"));
        }
        // What secures the connection is ours, and not the library's: it is told of a plain one.
        let plain: Uri =
            format!("http://{host}").parse().map_err(|error| refuse(&format!("cannot be read: {error}")))?;
        let endpoint = Endpoint::from(plain)
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { text: full, host, secure, endpoint, network: Arc::new(Tcp) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_a_person_writes_it() {
        for (text, full) in [
            ("http://localhost:7070", "http://localhost:7070"),
            ("10.0.0.1:7070", "http://10.0.0.1:7070"),
            ("[::1]:7070", "http://[::1]:7070"),
            ("https://c0.example.org:7070", "https://c0.example.org:7070"),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), full);
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_with_what_would() {
        for (text, problem) in [
            ("http://me@host:1", "names a user"),
            ("ftp://host:1", "unknown scheme"),
            ("host", "names no host and port"),
            ("http://host", "names no host and port"),
            ("", "cannot be read"),
            ("http://ho st:1", "cannot be read"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(problem) && error.contains("https://host:port"), "{text}: {error}");
        }
    }
}
