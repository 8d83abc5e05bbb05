//! The authority: made once for an installation or given by its operator, and what it signs.

use std::{
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_common::tls::{self, SKEW, Who};
use muster_core::{identity, time::Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

/// How long an authority lasts.
const YEARS_10: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The two do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// The library refuses.
    #[error("the certificate cannot be made")]
    Rcgen(#[from] rcgen::Error),
    /// A request of somebody else that makes no sense.
    #[error("the request for a certificate cannot be read: {0}")]
    Request(String),
}

/// Who signs every certificate of the installation.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    pin: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, as the store keeps it.
    ///
    /// # Errors
    /// The library refuses.
    pub fn make(now: SystemTime) -> Result<identity::Authority, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Two installations are told apart by it in every list of authorities.
        let number: u32 = rand::random();
        params.distinguished_name = named(&format!("Muster authority {number:08x}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (date(now - SKEW), date(now + YEARS_10));
        params.serial_number = Some(serial());
        let certificate = params.self_signed(&key)?;
        Ok(identity::Authority {
            certificate: certificate.der().to_vec().into(),
            key: key.serialize_der().into(),
            made: timestamp(now),
        })
    }

    /// The one that the store keeps.
    ///
    /// # Errors
    /// The record holds something else.
    pub fn of_record(record: &identity::Authority) -> Result<Self, Error> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(record.key.to_vec()));
        Self::new(CertificateDer::from(record.certificate.to_vec()), &key, "the authority in the store")
    }

    /// The operator's own, from PEM files.
    ///
    /// # Errors
    /// A file cannot be read, or the two do not belong together.
    pub fn of_files(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let mut certificates = tls::certificates(certificate, "the authority's certificate")?;
        let key = tls::private_key(key, "the authority's key")?;
        Self::new(certificates.remove(0), &key, &format!("the authority in {}", certificate.display()))
    }

    fn new(certificate: CertificateDer<'static>, key: &PrivateKeyDer<'_>, what: &str) -> Result<Self, Error> {
        let key = KeyPair::try_from(key)?;
        match tls::public_key_of_authority(&certificate) {
            None => return Err(Error::Mismatch(format!("{what} is no certificate that may sign others"))),
            Some(public) if public != key.public_key_raw() => {
                return Err(Error::Mismatch(format!("{what} and its key do not belong together")));
            }
            Some(_) => {}
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let pin = tls::hash(&certificate);
        Ok(Self { certificate, issuer, pin })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of its certificate: by this it is known before its certificate is.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// A certificate for a controller of this name, reached under these names and addresses, and its key.
    ///
    /// # Errors
    /// The library refuses.
    pub fn sign_controller(
        &self,
        name: &str,
        hosts: &[String],
        now: SystemTime,
        life: Duration,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Error> {
        let key = KeyPair::generate()?;
        let mut params = self.params(&Who::Controller(name.to_owned()), now, life)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((certificate.der().clone(), key))
    }

    /// A certificate for an agent, for the key of its request. Whatever else the request asks for is not heard.
    ///
    /// # Errors
    /// The request is none, or its key is of no known kind.
    pub fn sign_agent(
        &self,
        who: &Who,
        request: &[u8],
        now: SystemTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, Error> {
        let key = read_request(request)?.public_key;
        let mut params = self.params(who, now, life)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&key, &self.issuer)?.der().clone())
    }

    fn params(&self, who: &Who, now: SystemTime, life: Duration) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::default();
        let (Who::Controller(name) | Who::Agent { name, .. }) = who;
        params.distinguished_name = named(name);
        params.subject_alt_names = vec![SanType::URI(who.uri().as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (date(now - SKEW), date(now + life));
        params.serial_number = Some(serial());
        Ok(params)
    }
}

/// By what the key of a request is known: SHA-256 of it.
///
/// # Errors
/// It is no request.
pub fn key_hash(request: &[u8]) -> Result<Arc<str>, Error> {
    Ok(tls::hash(read_request(request)?.public_key.der_bytes()).into())
}

/// The signature on it is checked: whoever asks has the key.
fn read_request(request: &[u8]) -> Result<CertificateSigningRequestParams, Error> {
    let request = CertificateSigningRequestDer::from(request);
    CertificateSigningRequestParams::from_der(&request).map_err(|error| Error::Request(error.to_string()))
}

fn named(name: &str) -> DistinguishedName {
    let mut found = DistinguishedName::new();
    found.push(DnType::CommonName, name);
    found
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // A serial number is positive, and none is zero.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn date(at: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(at)
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn authority() -> Authority {
        Authority::of_record(&Authority::make(now()).unwrap()).unwrap()
    }

    fn request(key: &KeyPair, params: CertificateParams) -> Vec<u8> {
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn agent() -> Who {
        Who::Agent { name: "north".to_owned(), uid: "u-1".to_owned(), generation: 2 }
    }

    #[test]
    fn a_request_gets_its_key_signed_and_nothing_else_that_it_asks_for() {
        let (authority, key) = (authority(), KeyPair::generate().unwrap());
        let mut greedy = CertificateParams::new(vec!["controller.example.org".to_owned()]).unwrap();
        greedy.subject_alt_names.push(SanType::URI("muster://controller/c0".try_into().unwrap()));
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = authority.sign_agent(&agent(), &request(&key, greedy), now(), LIFE).unwrap();
        assert_eq!(Who::of(&signed), Some(agent()));
        assert!(!String::from_utf8_lossy(&signed).contains("example.org"));
        let validity = tls::validity(&signed).unwrap();
        assert_eq!((validity.from, validity.until), (now() - SKEW, now() + LIFE));
    }

    #[test]
    fn a_request_that_is_none_or_that_another_key_signed_is_refused() {
        let (authority, key) = (authority(), KeyPair::generate().unwrap());
        let good = request(&key, CertificateParams::default());
        assert_eq!(key_hash(&good).unwrap(), key_hash(&request(&key, CertificateParams::default())).unwrap());
        let mut broken = good.clone();
        *broken.last_mut().unwrap() ^= 1;
        for bad in [&b"garbage"[..], &good[..good.len() / 2], &broken] {
            assert!(matches!(authority.sign_agent(&agent(), bad, now(), LIFE), Err(Error::Request(_))));
            assert!(key_hash(bad).is_err());
        }
    }

    #[test]
    fn a_controller_is_known_by_all_its_names() {
        let hosts = ["c0.example.org", "10.0.0.1", "::1", "localhost"].map(str::to_owned);
        let (signed, _) = authority().sign_controller("https://c0:7717", &hosts, now(), LIFE).unwrap();
        assert_eq!(Who::of(&signed), Some(Who::Controller("https://c0:7717".to_owned())));
        assert!(String::from_utf8_lossy(&signed).contains("c0.example.org"));
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = file("ca.pem", params.self_signed(&key).unwrap().pem());
        let leaf = file("leaf.pem", CertificateParams::default().self_signed(&key).unwrap().pem());
        let right = file("ca.key", key.serialize_pem());
        let wrong = file("other.key", KeyPair::generate().unwrap().serialize_pem());
        Authority::of_files(&ca, &right).unwrap();
        let text = |ca, key| Authority::of_files(ca, key).unwrap_err().to_string();
        assert!(text(&ca, &wrong).contains("do not belong together"));
        assert!(text(&leaf, &right).contains("may sign others"));
        assert!(text(&right, &right).contains("ca.key"));
    }
}
