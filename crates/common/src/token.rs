//! Access tokens as people and machines hold them: `muster_<id>_<secret>`. The secret's end is a check, so that a token
//! that was cut or mistyped is told apart from one that nobody knows.

use muster_core::access::Digest;
use rand::Rng as _;
use sha2::{Digest as _, Sha256};

/// What every token begins with: programs that look for leaked secrets know it by that.
pub const PREFIX: &str = "muster_";
/// Characters of an id: few enough for a table, and 2^40 of them.
const ID_LENGTH: usize = 8;
/// 32 bytes, five bits a character.
const SECRET_LENGTH: usize = 52;
/// 30 bits of the check.
const CHECK_LENGTH: usize = 6;
/// Letters and digits that are not taken for one another.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A token that was just made.
#[derive(Clone)]
pub struct Fresh {
    /// All of it; it is not kept anywhere.
    pub text: String,
    /// The part that may be shown.
    pub id: String,
    /// What is kept of the secret.
    pub digest: Digest,
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fresh").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A token that somebody showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which it says it is.
    pub id: String,
    /// Of its secret.
    pub digest: Digest,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not look like one.
    #[error("this is no access token; one looks like muster_abcd2345_…")]
    Foreign,
    /// It looks like one, and its check is not right.
    #[error("this access token was cut or mistyped: its check does not match; copy all of it again")]
    Damaged,
}

/// The variable that holds an access token.
pub const VARIABLE: &str = "MUSTER_TOKEN";

/// The access token in [`VARIABLE`]; none: it is not set, or holds the number of the lease under which this process runs
/// as a task, which has the same name.
pub fn from_environment() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|text| is_meant(text))
}

fn is_meant(text: &str) -> bool {
    !text.trim().bytes().all(|byte| byte.is_ascii_digit())
}

/// A token with a secret of 256 random bits.
pub fn generate() -> Fresh {
    let mut id = [0_u8; 5];
    rand::rng().fill_bytes(&mut id);
    generate_for(write(&id, ID_LENGTH))
}

/// A token that is called so, with a secret of 256 random bits.
pub fn generate_for(id: String) -> Fresh {
    let mut secret = [0_u8; 32];
    rand::rng().fill_bytes(&mut secret);
    let head = format!("{PREFIX}{id}_{}", write(&secret, SECRET_LENGTH));
    let check = check(&head);
    Fresh { text: format!("{head}{check}"), id, digest: digest(&secret) }
}

/// Takes a token apart.
///
/// # Errors
/// It is none, or damaged.
pub fn parse(text: &str) -> Result<Shown, Error> {
    let rest = text.trim().strip_prefix(PREFIX).ok_or(Error::Foreign)?;
    let (id, secret) = rest.split_once('_').ok_or(Error::Foreign)?;
    let well_made = |text: &str| text.bytes().all(|byte| ALPHABET.contains(&byte));
    if id.len() != ID_LENGTH || secret.len() != SECRET_LENGTH + CHECK_LENGTH || !well_made(id) || !well_made(secret) {
        return Err(Error::Damaged);
    }
    let (secret, found) = secret.split_at(SECRET_LENGTH);
    if check(&format!("{PREFIX}{id}_{secret}")) != found {
        return Err(Error::Damaged);
    }
    Ok(Shown { id: id.to_owned(), digest: digest(&read(secret).ok_or(Error::Damaged)?) })
}

fn digest(secret: &[u8; 32]) -> Digest {
    Sha256::digest(secret).into()
}

/// No secret: it finds mistakes, and nobody is kept out by it.
fn check(head: &str) -> String {
    let sum: [u8; 32] = Sha256::digest(head.as_bytes()).into();
    write(&sum, CHECK_LENGTH)
}

/// The first `length` times five bits.
fn write(bytes: &[u8], length: usize) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let one = |n: usize| (0..5).fold(0_u8, |value, k| value << 1 | bit(n * 5 + k));
    (0..length).map(|n| char::from(ALPHABET[usize::from(one(n))])).collect()
}

/// The reverse of `write`, of a secret.
fn read(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    for (n, letter) in text.bytes().enumerate() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        for k in (0..5).filter(|k| value >> (4 - k) & 1 == 1) {
            let at = n * 5 + k;
            // What stands past the last byte is padding, which is zero.
            *bytes.get_mut(at / 8)? |= 1 << (7 - at % 8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_no_two_are_alike() {
        let (one, two) = (generate(), generate());
        assert_ne!(one.text, two.text);
        assert_eq!(parse(&one.text), Ok(Shown { id: one.id.clone(), digest: one.digest }));
        assert_eq!(parse(&format!(" {}\n", two.text)), Ok(Shown { id: two.id, digest: two.digest }));
        assert!(!format!("{one:?}").contains(&one.text[16..]), "a secret is not shown by accident");
    }

    #[test]
    fn a_secret_is_written_with_all_its_bits() {
        for secret in [[0_u8; 32], [255; 32], std::array::from_fn(|n| u8::try_from(n * 7).unwrap())] {
            assert_eq!(read(&write(&secret, SECRET_LENGTH)), Some(secret));
        }
    }

    #[test]
    fn every_single_slip_is_noticed() {
        let text = generate().text;
        for at in 0..text.len() {
            let mut cut = text.clone();
            cut.remove(at);
            assert!(parse(&cut).is_err(), "without character {at}");
            for other in ["2", "x", "_"] {
                let mut changed = text.clone();
                changed.replace_range(at..=at, other);
                assert!(changed == text || parse(&changed).is_err(), "`{other}` at {at}");
            }
        }
    }

    #[test]
    fn the_number_of_a_lease_is_not_meant_as_a_token() {
        assert!(!is_meant("") && !is_meant("17") && !is_meant(" 1048576\n"));
        assert!(is_meant(&generate().text) && is_meant("nothing") && is_meant("17x"));
    }

    #[test]
    fn what_is_no_token_at_all_is_told_from_a_damaged_one() {
        for text in ["", "nothing", "muster_", "ghp_0123", "Bearer muster"] {
            assert_eq!(parse(text), Err(Error::Foreign), "{text}");
        }
        for text in ["muster_a_b", "muster_abcd2345_", &generate().text.to_uppercase().replace("MUSTER_", "muster_")] {
            assert_eq!(parse(text), Err(Error::Damaged), "{text}");
        }
    }
}
