//! The service of those who run an installation.

use std::time::Duration;

use muster_common::{
    proto::v1::{self, admin_server::Admin},
    tls::{self, JoinToken},
};
use muster_core::{
    event::{Answer, Event},
    identity::{Answer as Told, Change, Join},
};
use tonic::{Request, Response, Status};

use crate::grpc::{
    Parts,
    guard::caller,
    identity,
    jobs::unexpected,
    orders::by,
    status::{of_engine, of_field},
};

/// A token that is forgotten somewhere should not be worth much for long.
const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const USES_MAX: u32 = 100_000;

/// See `Admin` in `admin.proto`.
#[derive(Clone, Debug)]
pub(super) struct Admins {
    pub(super) parts: Parts,
}

#[tonic::async_trait]
impl Admin for Admins {
    async fn make_join_token(
        &self,
        request: Request<v1::MakeJoinTokenRequest>,
    ) -> Result<Response<v1::MakeJoinTokenReply>, Status> {
        let (_, ready) = identity::authority(&self.parts)?;
        let caller = caller(&request)?;
        let request = request.into_inner();
        if !request.agent.is_empty() {
            identity::check_name("agent", &request.agent)?;
        }
        let ttl = Duration::from_millis(request.ttl_ms);
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(of_field("ttl_ms", format!("must be from 1 to {}, which is 30 days", TTL_MAX.as_millis())));
        }
        if request.uses == 0 || request.uses > USES_MAX {
            return Err(of_field("uses", format!("must be from 1 to {USES_MAX}")));
        }
        let secret: [u8; 32] = rand::random();
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let now = self.parts.clock.wall();
        let expires = now.after(ttl);
        let join = Join {
            hash: tls::hash(secret.as_bytes()).into(),
            agent: request.agent.as_str().into(),
            expires,
            uses: request.uses,
            keys: Vec::new(),
            made: now,
            by: by(&caller, request.by.clone()),
        };
        let answer =
            self.parts.handle.ask(Event::Identity(Change::Invite(join)).by(&caller)).await.map_err(of_engine)?;
        let Answer::Identity(Told::Invited) = answer else { return Err(unexpected(&answer)) };
        tracing::info!(agent = request.agent, by = request.by, uses = request.uses, "a join token was made");
        let pin = ready.authority.pin().to_owned();
        let token = JoinToken { pin: pin.clone(), secret }.reveal();
        Ok(Response::new(v1::MakeJoinTokenReply { token, expires_us: expires.0, pin }))
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentReply>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let change = Change::Revoke { name: request.agent.as_str().into() };
        let answer = self.parts.handle.ask(Event::Identity(change).by(&caller)).await.map_err(of_engine)?;
        let Answer::Identity(Told::Revoked { already }) = answer else { return Err(unexpected(&answer)) };
        tracing::info!(agent = request.agent, by = request.by, already, "an agent is revoked");
        Ok(Response::new(v1::RevokeAgentReply { already }))
    }
}
