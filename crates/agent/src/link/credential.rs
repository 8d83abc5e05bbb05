//! What the agent proves itself with where it has no certificate: an access token, read anew for every call, so that
//! another one in the same file needs no restart.

use std::{fmt, fs, path::PathBuf, sync::Arc};

use muster_common::token;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

/// Where the token is.
#[derive(Clone, Default)]
pub enum Credential {
    /// There is none.
    #[default]
    None,
    /// Here.
    Text(Arc<str>),
    /// In this file.
    File(PathBuf),
}

/// Why a token cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It cannot be read.
    #[error("cannot read the access token in {}; name another file with --token-file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is none.
    #[error("{place}: {source}")]
    NoToken {
        /// Where it was found.
        place: String,
        /// What is wrong with it.
        source: token::Error,
    },
}

impl fmt::Debug for Credential {
    /// Never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Credential {
    /// What goes with a call; none: nothing does.
    ///
    /// # Errors
    /// There should be a token and is none.
    pub fn header(&self) -> Result<Option<MetadataValue<Ascii>>, CredentialError> {
        let (text, place) = match self {
            Self::None => return Ok(None),
            Self::Text(text) => (text.to_string(), "MUSTER_TOKEN".to_owned()),
            Self::File(path) => {
                let unreadable = |source| CredentialError::Unreadable { path: path.clone(), source };
                (fs::read_to_string(path).map_err(unreadable)?, path.display().to_string())
            }
        };
        let text = text.trim();
        let no_token = |source| CredentialError::NoToken { place: place.clone(), source };
        token::parse(text).map_err(no_token)?;
        let mut header: MetadataValue<Ascii> =
            format!("Bearer {text}").parse().map_err(|_| no_token(token::Error::Foreign))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = self.header().map_err(|error| Status::unauthenticated(error.to_string()))?;
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_anew_for_every_call() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        let mut credential = Credential::File(path.clone());
        let refused = credential.call(Request::new(())).expect_err("no file");
        assert!(refused.message().contains("cannot read the access token"), "{refused}");
        for _ in 0..2 {
            let text = token::generate().text;
            fs::write(&path, format!("{text}\n")).expect("written");
            let request = credential.call(Request::new(())).expect("a token");
            let header = request.metadata().get("authorization").and_then(|header| header.to_str().ok());
            assert_eq!(header, Some(format!("Bearer {text}").as_str()));
            assert!(!format!("{credential:?} {request:?}").contains(&text[16..]), "a secret is not shown by accident");
        }
    }

    #[test]
    fn what_is_no_token_is_not_sent_and_none_says_nothing() {
        let error = Credential::Text("hunter2".into()).header().expect_err("it is none").to_string();
        assert!(error.starts_with("MUSTER_TOKEN: this is no access token") && !error.contains("hunter2"), "{error}");
        let request = Credential::None.call(Request::new(())).expect("nothing is needed");
        assert!(request.metadata().is_empty());
    }
}
