//! How an agent gets its certificate: the first one with a join token, each later one with the one before.

use std::{sync::Arc, time::Duration};

use muster_common::{
    proto::v1::{self, identity_client::IdentityClient},
    tls::{self, JoinToken, Trust},
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

use super::{Address, chain};

/// For the connection and the answer; a controller that is being elected takes a while.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// What was signed, DER.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Our certificate.
    pub certificate: Vec<u8>,
    /// The authority's.
    pub authority: Vec<u8>,
}

/// Why nothing was signed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JoinError {
    /// Trying again may help.
    #[error("{0}")]
    Away(String),
    /// Only a person can help.
    #[error("{0}")]
    Refused(String),
}

impl From<Status> for JoinError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Refused(status.message().to_owned()),
            code => Self::Away(format!("{} ({code:?})", status.message())),
        }
    }
}

/// Who wants to join.
#[derive(Clone, Debug)]
pub struct Joiner<'a> {
    /// Its token.
    pub token: &'a JoinToken,
    /// What it is called.
    pub name: &'a str,
    /// The number of its data folder.
    pub uid: &'a str,
}

/// Joins at `address`, which is believed by the pin in the token.
///
/// # Errors
/// Nobody answers there, or the token is not accepted.
pub async fn enrol(address: &Address, joiner: &Joiner<'_>, request: Vec<u8>) -> Result<Signed, JoinError> {
    let trust = Trust::Pin(joiner.token.pin.clone());
    let tls = tls::client(&trust, None).map_err(|error| JoinError::Refused(error.to_string()))?;
    let request = v1::EnrolRequest {
        secret: joiner.token.secret.clone(),
        name: joiner.name.to_owned(),
        uid: joiner.uid.to_owned(),
        request,
    };
    let reply = limited(async { Ok(client(address, Arc::new(tls)).await?.enrol(request).await?.into_inner()) }).await?;
    if tls::hash(&reply.authority) != joiner.token.pin {
        return Err(JoinError::Refused("the controller is of another authority than the token".to_owned()));
    }
    Ok(Signed { certificate: reply.certificate, authority: reply.authority })
}

/// Gets the next certificate at `address`.
///
/// # Errors
/// Nobody answers there, or our certificate is not accepted any more.
pub async fn renew(address: &Address, tls: Arc<ClientConfig>, request: Vec<u8>) -> Result<Signed, JoinError> {
    let request = v1::RenewRequest { request };
    let reply = limited(async { Ok(client(address, tls).await?.renew(request).await?.into_inner()) }).await?;
    Ok(Signed { certificate: reply.certificate, authority: reply.authority })
}

async fn client(address: &Address, tls: Arc<ClientConfig>) -> Result<IdentityClient<Channel>, JoinError> {
    let channel = address.connect(Some(&tls)).await.map_err(|error| JoinError::Away(chain(&error)))?;
    Ok(IdentityClient::new(channel))
}

async fn limited<T>(work: impl Future<Output = Result<T, JoinError>>) -> Result<T, JoinError> {
    let late = |_| JoinError::Away(format!("no answer within {} s", ANSWER_WITHIN.as_secs()));
    timeout(ANSWER_WITHIN, work).await.unwrap_or_else(|error| Err(late(error)))
}
