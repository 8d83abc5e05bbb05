//! TLS between programs: whom one trusts, how a connection is secured, and what a certificate says of its owner.
//!
//! One provider of cryptography for all of it, so that no two of them meet in one process.

mod connect;
mod join;
mod shown;
mod trust;
mod who;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};

pub use self::{
    connect::{Dial, Io, Network, Reached, Stream, Tcp, Wire, connect},
    join::{JoinToken, NoJoinToken},
    shown::Shown,
    trust::{Trust, client},
    who::{SKEW, Validity, Who, public_key_of_authority, validity},
};

/// HTTP/2, which is all that is spoken.
pub const ALPN: &[u8] = b"h2";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {what} in {}", path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM form: {problem}", path.display())]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A certificate that is none.
    #[error("a certificate cannot be used: {0}")]
    Certificate(String),
    /// The library refuses.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// The one provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// SHA-256, in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The certificates in a PEM file; at least one.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(no_pem(path, what, &pem::Error::NoItemsFound)),
        Err(error) => Err(no_pem(path, what, &error)),
    }
}

/// A certificate as a PEM file holds it.
pub fn pem(certificate: &[u8]) -> String {
    let body = base64(certificate);
    let lines: String =
        body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n").collect();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let at = |n: usize| u32::from(part.get(n).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= part.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// The private key in a PEM file.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn private_key(path: &Path, what: &'static str) -> Result<PrivateKeyDer<'static>, Error> {
    let bytes = read(path, what)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| no_pem(path, what, &error))
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { what, path: path.to_owned(), source })
}

fn no_pem(path: &Path, what: &'static str, error: &pem::Error) -> Error {
    Error::Pem { what, path: path.to_owned(), problem: error.to_string() }
}

/// Whether a host (a name, or an address with or without brackets) is this machine for certain: what is said to it in
/// plain text, nobody else can read.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "10.0.0.1", "0.0.0.0", "[::]", "localhost.example.org", "127.0.0.1.example.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_file_that_holds_something_else_is_told_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let error = certificates(&path, "the authority's certificate").unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("the authority's certificate"), "{error}");
        std::fs::write(&path, "garbage").unwrap();
        let error = certificates(&path, "the authority's certificate").unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("PEM"), "{error}");
        let error = private_key(&path, "its key").unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("its key"), "{error}");
    }

    #[test]
    fn a_certificate_survives_its_file() {
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for length in [1, 47, 48, 49, 500] {
            let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            std::fs::write(&path, pem(&bytes)).unwrap();
            let found = certificates(&path, "it").unwrap();
            assert_eq!(found.iter().map(|found| found.to_vec()).collect::<Vec<_>>(), [bytes]);
        }
    }

    #[test]
    fn a_hash_is_what_others_say_it_is() {
        assert_eq!(hash(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
