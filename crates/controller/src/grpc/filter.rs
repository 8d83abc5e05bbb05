//! Words in filters: states with their aliases, label conditions, name patterns, page tokens.

use muster_core::state::{JobState, State};
use tonic::Status;

use crate::grpc::status::{nearest, of_field};

const JOB_STATES: [JobState; 7] = [
    JobState::Waiting,
    JobState::Queued,
    JobState::Running,
    JobState::Succeeded,
    JobState::Failed,
    JobState::Cancelled,
    JobState::Skipped,
];

/// How many entries a page has if nobody says, and at most.
pub(super) const PAGE: u32 = 50;
pub(super) const PAGE_MAX: u32 = 1000;

/// The size of a page that a request asks for.
pub(super) fn page_size(asked: u32) -> usize {
    if asked == 0 { PAGE as usize } else { asked.min(PAGE_MAX) as usize }
}

/// A page's token: where it begins, in a form that nobody is tempted to make up.
pub(super) fn page_token(next: u64) -> String {
    format!("p{next:x}")
}

/// Where a page begins; none: at the beginning.
pub(super) fn page_start(token: &str) -> Result<Option<u64>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let next = token.strip_prefix('p').and_then(|hex| u64::from_str_radix(hex, 16).ok());
    next.map(Some).ok_or_else(|| {
        of_field("page_token", format!("`{token}` is no page token; pass the one of the last answer on, or none"))
    })
}

/// Which jobs' states are wanted; empty: all.
pub(super) fn job_states(words: &[String]) -> Result<Vec<JobState>, Status> {
    let mut states = Vec::new();
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pending" => states.extend([JobState::Waiting, JobState::Queued]),
            "completed" => states.push(JobState::Succeeded),
            word => match JOB_STATES.into_iter().find(|state| state.as_str() == word) {
                Some(state) => states.push(state),
                None => return Err(unknown_state(word, JOB_STATES.map(JobState::as_str).as_slice())),
            },
        }
    }
    Ok(states)
}

/// Which tasks' states are wanted; empty: all.
pub(super) fn task_states(words: &[String]) -> Result<Vec<State>, Status> {
    let mut states = Vec::new();
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pending" => states.extend([State::Scheduled, State::Waiting, State::Queued]),
            "completed" => states.push(State::Succeeded),
            word => match State::ALL.into_iter().find(|state| state.as_str() == word) {
                Some(state) => states.push(state),
                None => return Err(unknown_state(word, State::ALL.map(State::as_str).as_slice())),
            },
        }
    }
    Ok(states)
}

fn unknown_state(word: &str, known: &[&str]) -> Status {
    let aliases = ["pending", "completed"];
    let all = known.iter().chain(&aliases).copied();
    let hint = nearest(word, all).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    of_field("states", format!("`{word}` is no state; {hint}known are {}, pending, completed", known.join(", ")))
}

/// `key`, or `key=value`.
#[derive(Clone, Debug)]
pub(super) struct LabelFilter {
    key: String,
    value: Option<String>,
}

impl LabelFilter {
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim().to_owned())),
            None => (text.trim(), None),
        };
        if key.is_empty() {
            return Err(of_field("labels", format!("`{text}` names no label; write `key` or `key=value`")));
        }
        Ok(Self { key: key.to_owned(), value })
    }

    pub(super) fn matches(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        labels.get(&self.key).is_some_and(|there| self.value.as_ref().is_none_or(|wanted| wanted == there))
    }
}

/// Whether `name` is what `pattern` says, in which `*` stands for any text, none too.
pub(super) fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and how much of the name it takes so far.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|byte| Some(byte) == name.get(n)) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        let cases = [
            ("census", "census", true),
            ("census", "censu", false),
            ("cen*", "census", true),
            ("*sus", "census", true),
            ("c*n*s", "census", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b", "ab", true),
            ("a*b", "abc", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn states_have_aliases_and_unknown_ones_are_refused() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(job_states(&words(&["pending"])).unwrap(), [JobState::Waiting, JobState::Queued]);
        assert_eq!(job_states(&words(&["Completed"])).unwrap(), [JobState::Succeeded]);
        assert_eq!(task_states(&words(&["pending"])).unwrap(), [State::Scheduled, State::Waiting, State::Queued]);
        assert_eq!(job_states(&words(&["skipped"])).unwrap(), [JobState::Skipped]);
        assert!(job_states(&words(&["retrying"])).is_err(), "a task may be, a job not");
        let refused = task_states(&words(&["runing"])).unwrap_err();
        assert!(refused.message().contains("did you mean `running`?"), "{refused}");
    }

    #[test]
    fn a_page_token_comes_back_and_nothing_else_is_one() {
        assert_eq!(page_start(&page_token(77)).unwrap(), Some(77));
        assert_eq!(page_start("").unwrap(), None);
        for odd in ["77", "p", "pxyz", "-1"] {
            assert!(page_start(odd).is_err(), "{odd}");
        }
    }
}
