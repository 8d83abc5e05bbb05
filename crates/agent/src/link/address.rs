//! Where a controller is, and how connections to it are kept.

use std::{fmt, str::FromStr, time::Duration};

use tonic::transport::{Channel, Endpoint, Uri};

/// A machine that does not answer is not worth more, for another may lead.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A peer that stopped, or a path that swallows packets, is seen after this and `PING_LIMIT`; without
/// pings an HTTP/2 client waits for ever.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// A controller's address: `http://host:port`.
#[derive(Clone, Debug)]
pub struct Address {
    text: String,
    endpoint: Endpoint,
}

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("controller address `{text}` {problem}; write it as http://host:port")]
pub struct AddressError {
    text: String,
    problem: String,
}

impl Address {
    /// The endpoint of the control connection.
    pub(super) fn control(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A connection of its own for bulk, made when it is first used. Needs a runtime.
    pub(super) fn bulk(&self) -> Channel {
        self.endpoint.connect_lazy()
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
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("asks for TLS, which this build does not speak")),
            _ => return Err(refuse("has an unknown scheme")),
        }
        if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none_or(|port| port == 0) {
            return Err(refuse("names no host and port"));
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { text: full, endpoint })
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
        ] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), full);
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_with_what_would() {
        for (text, problem) in [
            ("https://host:1", "asks for TLS"),
            ("ftp://host:1", "unknown scheme"),
            ("host", "names no host and port"),
            ("http://host", "names no host and port"),
            ("", "cannot be read"),
            ("http://ho st:1", "cannot be read"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(problem) && error.contains("http://host:port"), "{text}: {error}");
        }
    }
}
