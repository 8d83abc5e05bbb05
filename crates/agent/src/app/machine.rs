//! Which machine this is, as far as a data folder may know.

use muster_common::tls;

/// Given to a machine when its system is installed or first started, and to no other (machine-id(5)).
const FILE: &str = "/etc/machine-id";
/// The machine's own number is for nobody outside it; from what is told nobody finds it, nor what another program makes of it
/// (sd_id128_get_machine_app_specific(3)).
const APPLICATION: &str = "4d1c9a0b7e5f4f0b9c1f6a2e8d3b7c55";

/// Another text on each machine; empty: the system does not say.
pub(super) fn own() -> String {
    of(&std::fs::read_to_string(FILE).unwrap_or_default())
}

/// An image that has not been started yet says `uninitialized`, or nothing.
fn of(text: &str) -> String {
    let id = text.trim();
    let is_one = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_one { tls::hash(format!("{APPLICATION}{id}").as_bytes()) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_from_another_and_its_own_number_from_neither() {
        let (one, other) = ("0123456789abcdef0123456789abcdef\n", "1123456789abcdef0123456789abcdef\n");
        assert_eq!(of(one), of(one.trim()));
        assert_ne!(of(one), of(other));
        assert!(!of(one).contains("0123456789abcdef") && of(one).len() == 64, "{}", of(one));
        for nothing in ["", "\n", "uninitialized\n", "0123", "no number, although it has 32 bytes"] {
            assert_eq!(of(nothing), "", "{nothing:?}");
        }
    }
}
