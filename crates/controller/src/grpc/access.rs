//! The service for access tokens and the audit log. Secrets are made here, shown once, and never kept.

use std::{sync::Arc, time::Duration};

use muster_common::{
    proto::v1::{self, access_server::Access},
    token,
    wire::access::{role_from_proto, role_to_proto},
};
use muster_core::{
    access::{NewToken, Reach, Token},
    event::Event,
    time::Timestamp,
    validate::Problem,
};
use tonic::{Request, Response, Status};

use crate::grpc::{
    Parts, audit,
    guard::{Guard, caller},
    status::{of_engine, of_problems, of_wire},
};

const NAME_MAX: usize = 64;
const QUEUES_MAX: usize = 256;
/// What the audit log calls whoever has no name.
const RESERVED: [&str; 2] = ["anonymous", "muster"];
/// A token that is worth nothing before it arrives is a mistake.
const TTL_MIN: Duration = Duration::from_secs(1);

/// See `Access` in `access.proto`.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    pub(super) parts: Parts,
    pub(super) guard: Guard,
}

#[tonic::async_trait]
impl Access for Tokens {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let problems = problems(&request);
        if !problems.is_empty() {
            return Err(of_problems(&problems));
        }
        let fresh = token::generate();
        let expires = match request.ttl_us {
            0 => Timestamp(0),
            ttl => self.parts.clock.wall().after(Duration::from_micros(ttl)),
        };
        let id: Arc<str> = fresh.id.as_str().into();
        let new = NewToken {
            id: Arc::clone(&id),
            name: request.name.as_str().into(),
            role: role_from_proto(request.role).map_err(|error| of_wire("", &error))?,
            reach: Reach::of(request.queues.into_iter().map(Arc::from)),
            digest: fresh.digest,
            by: caller.who.name().into(),
            expires,
        };
        self.parts.handle.ask(Event::CreateToken(new).by(&caller)).await.map_err(of_engine)?;
        let snapshot = self.parts.view.load();
        let view = snapshot.tokens.get(&id).map(|token| self.view(token));
        Ok(Response::new(v1::CreateTokenReply { token: fresh.text, view }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        caller(&request)?;
        let snapshot = self.parts.view.load();
        let mut tokens: Vec<_> = snapshot.tokens.values().map(|token| self.view(token)).collect();
        tokens.sort_by(|a, b| (a.created_us, &a.id).cmp(&(b.created_us, &b.id)));
        Ok(Response::new(v1::ListTokensReply { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenReply>, Status> {
        let caller = caller(&request)?;
        let which = request.into_inner().token.into();
        self.parts.handle.ask(Event::RevokeToken { which }.by(&caller)).await.map_err(of_engine)?;
        Ok(Response::new(v1::RevokeTokenReply {}))
    }

    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Result<Response<v1::ListAuditReply>, Status> {
        caller(&request)?;
        audit::list(&self.parts.view.load(), request.get_ref()).map(Response::new)
    }
}

impl Tokens {
    fn view(&self, token: &Token) -> v1::TokenView {
        let state = match (token.revoked.is_never(), token.is_live(self.parts.clock.wall())) {
            (false, _) => "revoked",
            (true, true) => "live",
            (true, false) => "expired",
        };
        v1::TokenView {
            id: token.id.to_string(),
            name: token.name.to_string(),
            role: role_to_proto(token.role).into(),
            queues: token.reach.queues().iter().map(ToString::to_string).collect(),
            created_us: token.created.0,
            created_by: token.created_by.to_string(),
            expires_us: token.expires.0,
            revoked_us: token.revoked.0,
            last_used_us: self.guard.last_used(&token.id).0,
            state: state.to_owned(),
        }
    }
}

/// Everything that is wrong with a wish for a token.
fn problems(request: &v1::CreateTokenRequest) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |path: &str, message: String| problems.push(Problem { path: path.to_owned(), message });
    let odd = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-' | '@');
    let name = &request.name;
    if name.is_empty() || name.len() > NAME_MAX || name.contains(odd) {
        let message = format!("`{name}` is no name; use up to {NAME_MAX} letters, digits, `_`, `.`, `-` and `@`");
        add("name", message);
    }
    if RESERVED.contains(&name.as_str()) {
        add("name", format!("`{name}` stands for somebody else in the audit log; choose another name"));
    }
    if role_from_proto(request.role).is_err() {
        add("role", "must be viewer, operator, admin or agent".to_owned());
    }
    if request.queues.len() > QUEUES_MAX {
        add("queues", format!("has {} entries; at most {QUEUES_MAX} are accepted", request.queues.len()));
    }
    let odd = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-');
    for (n, queue) in request.queues.iter().enumerate().take(QUEUES_MAX) {
        if queue.is_empty() || queue.len() > 128 || queue.contains(odd) {
            add(&format!("queues[{n}]"), format!("`{queue}` is no name of a queue"));
        }
    }
    if request.ttl_us > 0 && Duration::from_micros(request.ttl_us) < TTL_MIN {
        add("ttl", format!("must be at least {TTL_MIN:?}"));
    }
    problems
}
