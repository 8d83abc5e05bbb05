//! What a certificate says of its owner: one name of ours among its alternative names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

const SCHEME: &str = "muster://";

/// The owner of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// `muster://controller/<name>`.
    Controller(String),
    /// `muster://agent/<name>?uid=<uid>&generation=<n>`.
    Agent {
        /// What it is called.
        name: String,
        /// The number of its data folder.
        uid: String,
        /// Of which enrolment.
        generation: u64,
    },
}

impl Who {
    /// As a certificate carries it.
    pub fn uri(&self) -> String {
        match self {
            Self::Controller(name) => format!("{SCHEME}controller/{}", escape(name)),
            Self::Agent { name, uid, generation } => {
                format!("{SCHEME}agent/{}?uid={}&generation={generation}", escape(name), escape(uid))
            }
        }
    }

    /// The reverse of [`Who::uri`]; none: it is no name of ours.
    pub fn parse(uri: &str) -> Option<Self> {
        let (kind, rest) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        match kind {
            "controller" => Some(Self::Controller(unescape(rest)?)),
            "agent" => {
                let (name, rest) = rest.split_once("?uid=")?;
                let (uid, generation) = rest.split_once("&generation=")?;
                let generation = generation.parse().ok()?;
                Some(Self::Agent { name: unescape(name)?, uid: unescape(uid)?, generation })
            }
            _ => None,
        }
    }

    /// The owner of a certificate, DER, that was verified before; none: it names nobody of ours, or more than one.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
        let mut found = names.flatten().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(Self::parse(uri)),
            _ => None,
        });
        let first = found.next()?;
        if found.next().is_some() { None } else { first }
    }
}

/// Letters, digits, `.`, `_` and `-` stand for themselves; everything else is `%xx`.
fn escape(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'.' | b'_' | b'-' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    text.bytes().map(one).collect()
}

fn unescape(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'.' | b'_' | b'-' => byte,
            byte if byte.is_ascii_alphanumeric() => byte,
            _ => return None,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// Clocks of other machines may be so much behind that of the one that signs: a certificate begins so much earlier.
pub const SKEW: Duration = Duration::from_secs(600);

/// From when until when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: SystemTime,
    /// Not after.
    pub until: SystemTime,
}

impl Validity {
    /// Whether it is over.
    pub fn is_over(&self, now: SystemTime) -> bool {
        now > self.until
    }

    /// How long to wait from `now` until it should be renewed: when two thirds of its life are over.
    pub fn renew_in(&self, now: SystemTime) -> Duration {
        (self.until - self.life() / 3).duration_since(now).unwrap_or_default()
    }

    /// From its signing to its end.
    pub fn life(&self) -> Duration {
        self.until.duration_since(self.from + SKEW).unwrap_or_default()
    }
}

/// From when until when a certificate, DER, holds; none: it is no certificate.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds: i64| Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
    let validity = certificate.validity();
    Some(Validity { from: time(validity.not_before.timestamp())?, until: time(validity.not_after.timestamp())? })
}

/// The bare public key of an authority's certificate, DER; none: it is no certificate, or may not sign others.
pub fn public_key_of_authority(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    certificate.is_ca().then(|| certificate.public_key().subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_somebody_is_survives_its_certificate() {
        let agent = |name: &str, uid: &str| Who::Agent { name: name.into(), uid: uid.into(), generation: 7 };
        let all = [
            Who::Controller("c0".into()),
            Who::Controller("https://10.0.0.1:7717".into()),
            agent("north", "0f-1"),
            agent("a?uid=b&generation=9", "x/y%"),
            agent("käfer", "ü"),
        ];
        for who in all {
            assert_eq!(Who::parse(&who.uri()), Some(who.clone()), "{}", who.uri());
        }
    }

    #[test]
    fn what_is_no_name_of_ours_is_nobody() {
        for uri in [
            "muster://agent/north",
            "muster://agent/north?uid=1",
            "muster://agent/north?uid=1&generation=x",
            "muster://agent/a/b?uid=1&generation=1",
            "muster://agent/?uid=1&generation=1",
            "muster://robot/north",
            "muster://controller/%zz",
            "spiffe://controller/c0",
            "",
        ] {
            assert_eq!(Who::parse(uri), None, "{uri}");
        }
        assert_eq!(Who::of(b"garbage"), None);
        assert_eq!(validity(b"garbage"), None);
    }

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let validity = Validity { from: at(400), until: at(1_900) };
        assert_eq!(validity.life(), Duration::from_secs(900));
        assert_eq!(validity.renew_in(at(1_000)), Duration::from_secs(600));
        assert_eq!(validity.renew_in(at(1_700)), Duration::ZERO);
        assert!(!validity.is_over(at(1_900)) && validity.is_over(at(1_901)));
    }
}
