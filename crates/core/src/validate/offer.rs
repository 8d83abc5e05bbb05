//! Whether what a machine is called and counts can be named: by a person, by a job, in a certificate and on a command line.

use super::text;
use crate::record::Offer;

/// What an agent may be called.
///
/// # Errors
/// What is wrong with it, and what would be accepted.
pub fn agent_name(name: &str) -> Result<(), String> {
    // It is shown to people, who may not know yet what is in it.
    text::name(name).map_err(|problem| format!("the name of an agent {problem}").replace(char::is_control, "\u{fffd}"))
}

/// What an agent is called that nobody named, on a machine that calls itself `host`: that, as far as it can be a name.
pub fn agent_name_of(host: &str) -> String {
    let is_sign = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String =
        host.chars().map(is_sign).collect::<String>().trim_start_matches(['-', '.']).chars().take(128).collect();
    if agent_name(&name).is_ok() { name } else { "localhost".to_owned() }
}

/// The key of a label that jobs can require.
///
/// # Errors
/// What is wrong with it, and what would be accepted.
pub fn label_key(key: &str) -> Result<(), String> {
    let about = |problem: String| if problem.starts_with("the key") { problem } else { format!("a label {problem}") };
    text::label_key(key).map_err(about)
}

/// The name of a resource that jobs can ask for.
///
/// # Errors
/// What is wrong with it, and what would be accepted.
pub fn resource_name(name: &str) -> Result<(), String> {
    if matches!(name, "cpus" | "memory" | "gpus") {
        return Err(format!("the resource `{name}` is no named one; write `{name}` beside `resources`, not in it"));
    }
    text::name(name).map_err(|problem| format!("the name of a resource {problem}"))
}

/// All that agents can be asked for by name.
///
/// # Errors
/// The first thing that nobody could name.
pub fn offer(offer: &Offer) -> Result<(), String> {
    agent_name(&offer.name)?;
    offer.labels.keys().try_for_each(|key| label_key(key))?;
    offer.capacity.named.keys().try_for_each(|name| resource_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_machines_have_are_accepted_and_others_say_what_would_be() {
        for good in ["n1", "NORTH", "worker-1.example.org", "a_b", "10.0.0.1", "_x", &"n".repeat(128)] {
            assert_eq!(agent_name(good), Ok(()), "{good}");
        }
        let long = "n".repeat(129);
        for bad in ["", " ", "a b", "-x", ".x", "a\nb", "a/b", "ä", "a\u{1b}[2J", &long] {
            let problem = agent_name(bad).expect_err(bad);
            assert!(problem.starts_with("the name of an agent "), "{problem}");
            assert!(!problem.contains(char::is_control), "{problem:?}");
        }
    }

    #[test]
    fn a_machine_of_any_name_has_one_that_an_agent_can_have() {
        for (host, name) in
            [("n1.example.org", "n1.example.org"), ("Jo's box", "Jo-s-box"), ("-x", "x"), ("", "localhost")]
        {
            assert_eq!(agent_name_of(host), name);
        }
        for host in ["bücher", "---", "a/b", &"n".repeat(500), "\u{1b}[2J"] {
            assert_eq!(agent_name(&agent_name_of(host)), Ok(()), "{host:?}");
        }
    }

    #[test]
    fn an_offer_that_no_job_can_name_is_refused_for_what_cannot_be_named() {
        let base = Offer { name: "n1".to_owned(), ..Offer::default() };
        let mut good = base.clone();
        good.labels = [("topology/zone".to_owned(), "a b".to_owned()), ("os".to_owned(), String::new())].into();
        good.capacity.named = [("licence".to_owned(), 2)].into();
        assert_eq!(offer(&good), Ok(()));
        for (key, part) in [("a b", "the key `a b` holds ' '"), ("", "a label is empty"), ("a=b", "holds '='")] {
            let mut bad = base.clone();
            bad.labels.insert(key.to_owned(), "x".to_owned());
            let problem = offer(&bad).expect_err(key);
            assert!(problem.contains(part), "{key}: {problem}");
        }
        for (name, part) in [("cpus", "beside `resources`"), ("a/b", "holds '/'"), ("-x", "must start with")] {
            let mut bad = base.clone();
            bad.capacity.named.insert(name.to_owned(), 1);
            let problem = offer(&bad).expect_err(name);
            assert!(problem.contains(part), "{name}: {problem}");
        }
        assert!(offer(&Offer::default()).is_err(), "an agent without a name");
    }
}
