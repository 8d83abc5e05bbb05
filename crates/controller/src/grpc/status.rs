//! Errors as callers get them: a code for programs, a text for people that says what to do, places where there are any.

use muster_common::wire;
use muster_core::{event::Refusal, validate::Problem};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{engine, logs};

/// Bytes of problems in one answer. They travel in the trailers, of which a client takes 16 KiB, and a third longer.
const PROBLEM_BYTES: usize = 8 * 1024;

/// A refusal or a failure of the engine.
pub(super) fn of_engine(error: engine::Error) -> Status {
    match error {
        engine::Error::Refused(refusal) => of_refusal(refusal),
        engine::Error::Full(why) => Status::resource_exhausted(why),
        engine::Error::Unavailable(why) => Status::unavailable(why),
    }
}

fn of_refusal(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NotFound(_) => Status::not_found(text),
        Refusal::Invalid(problems) => of_problems(&problems),
        Refusal::QueueFull { .. } => {
            Status::resource_exhausted(format!("{text}; submit again when some have ended, or raise its limit"))
        }
        Refusal::Denied(_) => Status::permission_denied(text),
        Refusal::Conflict(_) => Status::failed_precondition(text),
        Refusal::StaleSession { .. } => Status::aborted(text),
        Refusal::Unheard { .. } => Status::unavailable(text),
    }
}

/// Everything that is wrong with a request, each with its place.
pub(super) fn of_problems(problems: &[Problem]) -> Status {
    let mut room = PROBLEM_BYTES;
    let fits = problems.iter().take_while(|problem| {
        let size = problem.path.len() + problem.message.len() + 8;
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    });
    let violations: Vec<_> = fits.map(|problem| FieldViolation::new(&problem.path, &problem.message)).collect();
    let text = match (problems, violations.len()) {
        ([only], _) => shorten(&only.to_string()),
        (all, shown) if shown == all.len() => format!("{shown} problems"),
        (all, shown) => format!("{} problems, of which the first {shown} follow", all.len()),
    };
    Status::with_error_details(Code::InvalidArgument, text, ErrorDetails::with_bad_request(violations))
}

/// One field that says what cannot be.
pub(super) fn of_field(path: &str, message: impl Into<String>) -> Status {
    of_problems(&[Problem { path: path.to_owned(), message: message.into() }])
}

/// A message that could not be understood.
pub(super) fn of_wire(prefix: &str, error: &wire::Error) -> Status {
    match error {
        wire::Error::Field { path, problem } => of_field(&format!("{prefix}{path}"), problem),
        other => Status::invalid_argument(shorten(&other.to_string())),
    }
}

/// Logs or results that could not be kept or read.
pub(super) fn of_logs(error: &logs::Error) -> Status {
    match error {
        logs::Error::Store { .. } => {
            tracing::warn!(%error, source = ?std::error::Error::source(error), "logs or results are not to be had");
            Status::unavailable(format!("{error}; see the controller's log"))
        }
        logs::Error::Gap { .. } => Status::out_of_range(error.to_string()),
        logs::Error::Full => Status::resource_exhausted(error.to_string()),
        logs::Error::ResultTooLarge => Status::invalid_argument(error.to_string()),
    }
}

/// What a call gets that a stop cuts off.
pub(super) fn stopping() -> Status {
    Status::unavailable("the controller is stopping; ask again when it is back")
}

/// A text that fits into a header.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 2_000;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// `word` in a sentence that says it is unknown: with the nearest known one, if one is near.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    let near = near.filter(|(likeness, _)| *likeness > 0.8);
    near.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_problems_fit_into_a_header_and_say_how_many_there_are() {
        let problems: Vec<_> =
            (0..1000).map(|n| Problem { path: format!("tasks[{n}].name"), message: "x".repeat(60) }).collect();
        let status = of_problems(&problems);
        let shown = status.get_error_details().bad_request().unwrap().field_violations.len();
        assert!(shown > 80 && status.details().len() < 11_000, "{shown}, {}", status.details().len());
        assert_eq!(status.message(), format!("1000 problems, of which the first {shown} follow"));
    }

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("cencus", ["merge", "census"]), Some("census"));
        assert_eq!(nearest("xyz", ["merge", "census"]), None);
    }
}
