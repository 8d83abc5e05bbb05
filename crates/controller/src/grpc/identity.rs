//! The service through which machines get their certificates.

use std::sync::Arc;

use muster_common::{
    proto::v1::{self, identity_server::Identity},
    tls::{self, Who},
};
use muster_core::{
    event::{Answer, Event},
    identity::{Answer as Told, Change, Enrolment},
    validate,
};
use tonic::{Request, Response, Status};

use crate::{
    grpc::{
        Parts,
        guard::caller,
        machine::Speaker,
        quiet::Quiet,
        status::{of_engine, of_field},
    },
    identity::{self, Own, Ready},
};

/// Whoever tries tokens is told of once a minute.
static QUIET: Quiet = Quiet::new();
const UID_MAX: usize = 256;

/// See `Identity` in `identity.proto`.
#[derive(Clone, Debug)]
pub(super) struct Machines {
    pub(super) parts: Parts,
}

/// The authority, if this controller speaks TLS.
pub(super) fn authority(parts: &Parts) -> Result<(&Own, Arc<Ready>), Status> {
    let own = parts.own.as_ref().ok_or_else(|| {
        Status::failed_precondition(
            "this controller speaks plain text, where nobody needs a certificate; start it with --tls",
        )
    })?;
    let ready = own.ready().ok_or_else(|| Status::unavailable("the authority is not known yet; try again"))?;
    Ok((own, ready))
}

/// What an agent may be called: names stand in certificates, keys and URLs.
pub(super) fn check_name(path: &str, name: &str) -> Result<(), Status> {
    validate::agent_name(name).map_err(|problem| of_field(path, problem))
}

fn sign(own: &Own, ready: &Ready, who: &Who, request: &[u8]) -> Result<Vec<u8>, Status> {
    let signed = ready.authority.sign_agent(who, request, own.now(), own.life());
    signed.map(|certificate| certificate.to_vec()).map_err(|error| of_signing(&error))
}

fn of_signing(error: &identity::Error) -> Status {
    match error {
        identity::Error::Request(_) => of_field("request", error.to_string()),
        other => {
            tracing::error!(%other, "a certificate cannot be signed");
            Status::internal("the certificate cannot be signed; the controller's log says why")
        }
    }
}

#[tonic::async_trait]
impl Identity for Machines {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolReply>, Status> {
        let (own, ready) = authority(&self.parts)?;
        let caller = caller(&request)?;
        let request = request.into_inner();
        check_name("name", &request.name)?;
        if request.uid.is_empty() || request.uid.len() > UID_MAX {
            return Err(of_field("uid", format!("must have 1 to {UID_MAX} bytes")));
        }
        let key = identity::key_hash(&request.request).map_err(|error| of_signing(&error))?;
        let enrolment = Enrolment {
            hash: tls::hash(request.secret.as_bytes()).into(),
            name: request.name.as_str().into(),
            uid: request.uid.as_str().into(),
            key,
        };
        // Signed only when the token is used up for good: a commit that failed signed nothing.
        let answer = self.parts.handle.ask(Event::Identity(Change::Enrol(enrolment)).by(&caller)).await;
        let answer = answer.map_err(of_engine).inspect_err(|status| {
            QUIET.tell("join", || tracing::warn!(name = request.name, why = status.message(), "an agent may not join"));
        });
        let generation = match answer? {
            Answer::Identity(Told::Enrolled { generation }) => generation,
            other => return Err(crate::grpc::jobs::unexpected(&other)),
        };
        tracing::info!(name = request.name, uid = request.uid, generation, "an agent joined");
        let who = Who::Agent { name: request.name, uid: request.uid, generation };
        let certificate = sign(own, &ready, &who, &request.request)?;
        Ok(Response::new(v1::EnrolReply { certificate, authority: ready.authority.certificate().to_vec() }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        let (own, ready) = authority(&self.parts)?;
        caller(&request)?;
        let speaker = Speaker::of(&self.parts, &request)?;
        let who = speaker.identity().ok_or_else(|| Status::unauthenticated("an agent shows its certificate here"))?;
        let certificate = sign(own, &ready, &who, &request.get_ref().request)?;
        tracing::info!(agent = ?who, "an agent has a new certificate");
        Ok(Response::new(v1::RenewReply { certificate, authority: ready.authority.certificate().to_vec() }))
    }
}
