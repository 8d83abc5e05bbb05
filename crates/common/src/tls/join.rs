//! What an agent joins with: the pin of the authority that it may trust, and a secret that it may use.

use std::{fmt, str::FromStr};

const PREFIX: &str = "muster-join-";
/// SHA-256 and 256 bits, in hexadecimal.
const DIGITS: usize = 64;

/// `muster-join-<pin>-<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the authority's certificate.
    pub pin: String,
    /// What the controller has only the hash of.
    pub secret: String,
}

impl fmt::Debug for JoinToken {
    /// Never the secret: what is printed ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// As a person hands it on.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}-{}", self.pin, self.secret)
    }
}

/// Why a text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token; it looks like {PREFIX}<64 digits>-<64 digits> and is made by `ctl admin join-token` on a \
     controller that speaks TLS"
)]
pub struct NoJoinToken;

impl FromStr for JoinToken {
    type Err = NoJoinToken;

    fn from_str(text: &str) -> Result<Self, NoJoinToken> {
        let is_hex = |part: &&str| part.len() == DIGITS && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let parts = text.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let (pin, secret) = parts.filter(|(pin, secret)| is_hex(pin) && is_hex(secret)).ok_or(NoJoinToken)?;
        Ok(Self { pin: pin.to_ascii_lowercase(), secret: secret.to_ascii_lowercase() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_never_printed_whole() {
        let token = JoinToken { pin: "a1".repeat(32), secret: "b2".repeat(32) };
        let text = token.reveal();
        assert_eq!(format!(" {text}\n").parse::<JoinToken>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("b2b2"), "{token:?}");
        let pin = "a1".repeat(32);
        for bad in [
            "",
            "muster-join-",
            "muster-join-aa-bb",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{PREFIX}{pin}-{}x", "b".repeat(63)),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(NoJoinToken), "{bad}");
        }
    }
}
