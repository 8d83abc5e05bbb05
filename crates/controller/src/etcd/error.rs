//! What etcd answers, by what follows from it.

use etcd_client::Error as Client;
use tonic::Code;

/// Why a call did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody knows whether it was done: another try will tell.
    #[error("{0}")]
    Away(String),
    /// It was not done: its store has no room, and takes nothing but deletions until a person has made some.
    #[error(
        "etcd has no room left (NOSPACE); compact and defragment it, or raise --quota-backend-bytes, then disarm its alarm"
    )]
    NoSpace,
    /// It was not done: a transaction may not hold so many operations there.
    #[error("etcd takes fewer operations in one transaction")]
    TooManyOperations,
    /// It was not done: a request may not be so large there.
    #[error("etcd takes smaller requests only")]
    TooLarge,
    /// It was not done: it lets us not in, or not do that.
    #[error("etcd refuses: {0}; check its user, password, certificates and roles")]
    Denied(String),
    /// It was not done: the lease it names does not exist.
    #[error("the session is over")]
    NoSession,
    /// It was not done, for another reason.
    #[error("etcd refuses: {0}")]
    Refused(String),
}

impl From<Client> for Error {
    fn from(error: Client) -> Self {
        let Client::GRpcStatus(status) = &error else {
            return match &error {
                Client::InvalidArgs(_) | Client::InvalidUri(_) | Client::InvalidMetadataValue(_) => {
                    Self::Refused(error.to_string())
                }
                // Streams and connections that broke.
                _ => Self::Away(chain(&error)),
            };
        };
        let text = status.message();
        match status.code() {
            Code::InvalidArgument if text.contains("too many operations") => Self::TooManyOperations,
            Code::InvalidArgument if text.contains("request is too large") => Self::TooLarge,
            Code::ResourceExhausted if text.contains("space exceeded") => Self::NoSpace,
            Code::ResourceExhausted if text.contains("trying to send message larger") => Self::TooLarge,
            Code::OutOfRange if text.contains("message length too large") => Self::TooLarge,
            Code::NotFound if text.contains("lease not found") => Self::NoSession,
            // Its token is too old: another try begins with a new one.
            Code::Unauthenticated if text.contains("invalid auth token") => Self::Away(text.to_owned()),
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(text.to_owned()),
            Code::InvalidArgument if text.contains("auth") || text.contains("user name is empty") => {
                Self::Denied(text.to_owned())
            }
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::AlreadyExists => Self::Refused(text.to_owned()),
            // No leader, a leader that changed, a limit that passed, a connection that broke: it may have been done.
            _ => Self::Away(if text.is_empty() { status.to_string() } else { text.to_owned() }),
        }
    }
}

/// The innermost cause says most.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn each_answer_says_whether_it_may_have_been_done() {
        let table = [
            (Code::Unavailable, "etcdserver: leader changed", Error::Away("etcdserver: leader changed".into())),
            (Code::Unknown, "h2 protocol error", Error::Away("h2 protocol error".into())),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Error::NoSpace),
            (Code::InvalidArgument, "etcdserver: too many operations in txn request", Error::TooManyOperations),
            (Code::InvalidArgument, "etcdserver: request is too large", Error::TooLarge),
            (Code::NotFound, "etcdserver: requested lease not found", Error::NoSession),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                Error::Denied("etcdserver: permission denied".into()),
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                Error::Away("etcdserver: invalid auth token".into()),
            ),
        ];
        for (code, text, expected) in table {
            assert_eq!(Error::from(Client::GRpcStatus(Status::new(code, text))), expected, "{text}");
        }
    }
}
