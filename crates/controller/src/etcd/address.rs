//! Where an etcd cluster is, as a person writes it: `etcd://a:2379,b:2379,c:2379/prefix`.

use std::{fmt, str::FromStr};

/// The port that etcd listens on unless it is told otherwise.
const PORT: u16 = 2379;

/// Its members, and where in it our keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    urls: Vec<String>,
    prefix: String,
    tls: bool,
}

/// It is no address of etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of etcd: {why}; write it like etcd://host-a:2379,host-b:2379, or etcds:// for TLS")]
pub struct BadAddress {
    text: String,
    why: &'static str,
}

impl Address {
    /// Of each member, for the client library.
    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// What stands before each of our keys; ends with a slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether it is spoken to by TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let refuse = |why| BadAddress { text: text.to_owned(), why };
        let (tls, rest) = match text.split_once("://") {
            Some(("etcd", rest)) => (false, rest),
            Some(("etcds", rest)) => (true, rest),
            _ => return Err(refuse("it does not start with etcd:// or etcds://")),
        };
        let (members, path) = rest.split_once('/').unwrap_or((rest, ""));
        let scheme = if tls { "https" } else { "http" };
        let mut urls = Vec::new();
        for member in members.split(',').map(str::trim) {
            // The colon of a port stands behind the bracket of an IPv6 address.
            let has_port = member.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            if member.is_empty() || member.contains(['@', '?', '#', ' ']) {
                return Err(refuse("a member has no host, or something besides host and port"));
            }
            urls.push(if has_port { format!("{scheme}://{member}") } else { format!("{scheme}://{member}:{PORT}") });
        }
        let path = path.trim_matches('/');
        let prefix = if path.is_empty() { "/muster/v1/".to_owned() } else { format!("/{path}/muster/v1/") };
        Ok(Self { urls, prefix, tls })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "etcds://" } else { "etcd://" })?;
        for (n, url) in self.urls.iter().enumerate() {
            let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
            write!(f, "{}{host}", if n == 0 { "" } else { "," })?;
        }
        match self.prefix.strip_suffix("/muster/v1/") {
            Some("") | None => Ok(()),
            Some(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_get_their_port_and_a_path_keeps_clusters_apart() {
        let table = [
            ("etcd://a", &["http://a:2379"][..], "/muster/v1/", "etcd://a:2379"),
            ("etcd://a:1,b", &["http://a:1", "http://b:2379"], "/muster/v1/", "etcd://a:1,b:2379"),
            ("etcds://[::1]:5/blue/", &["https://[::1]:5"], "/blue/muster/v1/", "etcds://[::1]:5/blue"),
        ];
        for (text, urls, prefix, shown) in table {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.urls(), urls, "{text}");
            assert_eq!((address.prefix(), address.to_string().as_str()), (prefix, shown), "{text}");
            assert_eq!(shown.parse::<Address>().unwrap(), address, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_how_one_is_written() {
        for text in ["", "a:2379", "http://a", "etcd://", "etcd://a,,b", "etcd://user@a"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("etcd://host-a:2379"), "{error}");
        }
    }
}
