//! What went wrong, for a person: the thing, the reason, the next step; and the exit code that says it to scripts.

use std::{error::Error as _, fmt, io};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::exit::Exit;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Everything was said already; only the exit code is left.
    #[error("exit code {}", .0.0)]
    Quiet(Exit),
    /// To be printed.
    #[error(transparent)]
    Told(Box<Told>),
}

/// A message and where it leads.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Told {
    pub(crate) exit: Exit,
    what: String,
    details: Vec<String>,
    next: Option<String>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for detail in &self.details {
            write!(f, "\n  {detail}")?;
        }
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl Error {
    /// `what`: lower case, the thing and the reason.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self::Told(Box::new(Told { exit, what: what.into(), details: Vec::new(), next: None }))
    }

    /// One more line.
    #[must_use]
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        if let Self::Told(told) = &mut self {
            told.details.push(line.into());
        }
        self
    }

    /// What to do now.
    #[must_use]
    pub(crate) fn next(mut self, step: impl Into<String>) -> Self {
        if let Self::Told(told) = &mut self {
            told.next = Some(step.into());
        }
        self
    }

    /// What the process ends with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Quiet(exit) => *exit,
            Self::Told(told) => told.exit,
        }
    }

    /// Whether a later try may succeed: the controller is away or busy with a restart.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.exit() == Exit::UNREACHABLE
    }
}

impl From<io::Error> for Error {
    /// Output that nobody reads any more (`ctl list | head`) is no failure.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Quiet(Exit::OK)
        } else {
            Self::new(Exit::FAULT, format!("cannot write the output: {error}"))
        }
    }
}

/// The exit code that stands for a status of the controller.
fn exit_of(code: Code) -> Exit {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Exit::USAGE,
        Code::NotFound => Exit::NOT_FOUND,
        Code::Unavailable | Code::DeadlineExceeded => Exit::UNREACHABLE,
        Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated => Exit::REFUSED,
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
            Exit::FAULT
        }
    }
}

/// What the status stands for. One that carries a source was not sent by a controller: the connection broke, in
/// whatever words of HTTP, and a later try may find the controller again.
fn code_of(status: &Status) -> Code {
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled | Code::DataLoss if status.source().is_some() => {
            Code::Unavailable
        }
        code => code,
    }
}

fn next_of(code: Code) -> Option<&'static str> {
    match code {
        Code::NotFound => Some("`ctl list` shows the jobs there are, `ctl show JOB --tasks` the tasks of one"),
        Code::Unavailable | Code::DeadlineExceeded => {
            Some("try again; if it stays away, look at the controller's log, or start one with `ctl dev`")
        }
        Code::ResourceExhausted => Some("try again when work has finished, or raise the limit that is named"),
        Code::Unimplemented => Some("the controller is older than this ctl (`ctl version`); bring both to one version"),
        Code::Unknown | Code::Internal | Code::DataLoss => Some("the controller's log says more"),
        _ => None,
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let code = code_of(&status);
        let what = match status.message() {
            "" => format!("the controller answered \"{}\"", code.description()),
            message => message.to_owned(),
        };
        let mut error = Self::new(exit_of(code), what);
        if let Some(bad) = status.get_details_bad_request() {
            for violation in bad.field_violations {
                error = error.detail(format!("{}: {}", violation.field, violation.description));
            }
        }
        // The controller may have named the next step itself.
        match next_of(code) {
            Some(step) if !status.message().contains("ctl ") => error.next(step),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn every_status_has_its_exit_code() {
        let table = [
            (Code::InvalidArgument, 2),
            (Code::OutOfRange, 2),
            (Code::NotFound, 3),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::FailedPrecondition, 5),
            (Code::AlreadyExists, 5),
            (Code::Aborted, 5),
            (Code::ResourceExhausted, 5),
            (Code::PermissionDenied, 5),
            (Code::Unauthenticated, 5),
            (Code::Internal, 8),
            (Code::Unknown, 8),
            (Code::Unimplemented, 8),
            (Code::DataLoss, 8),
            (Code::Cancelled, 8),
        ];
        for (code, exit) in table {
            assert_eq!(Error::from(Status::new(code, "x")).exit(), Exit(exit), "{code:?}");
        }
    }

    #[test]
    fn field_violations_stand_one_per_line_before_the_next_step() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("tasks[0].name", "is empty");
        details.add_bad_request_violation("queue", "no such queue");
        let status = Status::with_error_details(Code::InvalidArgument, "the job is refused", details);
        let text = Error::from(status).to_string();
        assert_eq!(text, "the job is refused\n  tasks[0].name: is empty\n  queue: no such queue");
    }

    #[test]
    fn a_status_without_words_still_says_something() {
        let text = Error::from(Status::new(Code::NotFound, "")).to_string();
        assert!(text.starts_with("the controller answered \""), "{text}");
        assert!(text.contains("next: `ctl list`"), "{text}");
    }

    #[test]
    fn a_broken_pipe_is_silent_and_no_failure() {
        let error = Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(error, Error::Quiet(Exit::OK)), "{error:?}");
    }
}
