//! Under which names and addresses others may reach this controller: they stand in its certificate.

use std::net::{IpAddr, SocketAddr};

/// What the operator says, where it is advertised, where it listens, and what this machine is called.
pub fn hosts(named: &[String], advertised: &str, listens: SocketAddr) -> Vec<String> {
    let mut found: Vec<String> = named.to_vec();
    found.extend(host_of(advertised).map(str::to_owned));
    if listens.ip().is_unspecified() {
        found.extend(addresses().iter().map(ToString::to_string));
    } else {
        found.push(listens.ip().to_string());
    }
    found.extend(machine());
    found.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|host| is_host(host) && seen.insert(host.clone()));
    found
}

/// What stands in a certificate as a name or an address.
pub(super) fn is_host(text: &str) -> bool {
    let is_label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*');
    text.parse::<IpAddr>().is_ok() || (!text.is_empty() && text.len() < 254 && text.bytes().all(is_label))
}

/// The host of a URL, without its port.
fn host_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    if let Some(rest) = rest.strip_prefix('[') {
        return rest.split_once(']').map(|(host, _)| host);
    }
    Some(rest.rsplit_once(':').map_or(rest, |(host, _)| host))
}

#[cfg(unix)]
fn machine() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

#[cfg(not(unix))]
fn machine() -> Option<String> {
    std::env::var("COMPUTERNAME").ok()
}

/// All addresses of this machine.
#[cfg(unix)]
fn addresses() -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let address = |found: nix::ifaddrs::InterfaceAddress| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    all.filter_map(address).collect()
}

#[cfg(not(unix))]
fn addresses() -> Vec<IpAddr> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_reached_where_it_says_and_where_it_listens() {
        let listens: SocketAddr = "10.0.0.1:7717".parse().unwrap();
        let found = hosts(&["muster.example.org".to_owned()], "https://[fd00::1]:7717", listens);
        for host in ["muster.example.org", "fd00::1", "10.0.0.1", "localhost", "127.0.0.1", "::1"] {
            assert_eq!(found.iter().filter(|found| *found == host).count(), 1, "{host} in {found:?}");
        }
        let everywhere = hosts(&[], "https://c0:1/", "0.0.0.0:7717".parse().unwrap());
        assert!(everywhere.contains(&"c0".to_owned()) && !everywhere.contains(&"0.0.0.0".to_owned()), "{everywhere:?}");
    }

    #[test]
    fn what_is_no_name_is_left_out() {
        for bad in ["", "a b", "x/y", "ü"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
