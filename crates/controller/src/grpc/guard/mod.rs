//! The guard at the door: says who a caller is and whether they may, before any service hears of the call.
//!
//! Deny by default: a call without a rule, a caller without a name, a service without the guard's word is refused.

mod cut;
mod limiter;
mod origin;
mod recorder;
pub(in crate::grpc) mod table;
#[cfg(test)]
pub(in crate::grpc) mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use muster_common::{clock::Clock, token};
use muster_core::{
    access::{Caller, Enforcement, Reach, Role, Token, Who},
    time::Timestamp,
};
use subtle::ConstantTimeEq as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::{Service, http},
    service::Routes,
};

pub(super) use self::origin::{forget, stamp};
use self::{
    cut::{Cuts, NOBODY},
    limiter::{Limiter, Verdict},
    origin::Origin,
    recorder::{Recorder, Source},
    table::{Kind, Needs, Rule},
};
use crate::{engine::Handle, grpc::peer::Peer, view::View};

/// Stands before the services of one leadership. Clones share it.
#[derive(Clone)]
pub(super) struct Guard {
    shared: Arc<Shared>,
}

struct Shared {
    view: View,
    clock: Clock,
    enforcement: Enforcement,
    recorder: Recorder,
    limiter: Mutex<Limiter>,
    used: Mutex<BTreeMap<Arc<str>, Timestamp>>,
    cuts: Cuts,
    /// What calls are bound to that were let in because nobody was asked.
    nobody: Arc<str>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("enforcement", &self.shared.enforcement).finish_non_exhaustive()
    }
}

/// A caller that may.
struct Admitted {
    caller: Arc<Caller>,
    rule: &'static Rule,
    /// The token that the call and its answer are bound to.
    token: Option<Arc<str>>,
}

/// What a caller shows.
enum Shown {
    Nothing,
    Token(token::Shown),
    /// Something that proves nothing, and why.
    Odd(String),
}

/// Why a caller may not.
struct Refused {
    status: Status,
    who: Who,
    /// Whether it was an attempt to be somebody.
    attempt: bool,
}

impl Guard {
    pub(super) fn new(handle: Handle, view: View, clock: Clock, enforcement: Enforcement) -> Self {
        let recorder = Recorder::new(handle, clock);
        let (limiter, used, cuts, nobody) = (Mutex::default(), Mutex::default(), Cuts::default(), NOBODY.into());
        Self { shared: Arc::new(Shared { view, clock, enforcement, recorder, limiter, used, cuts, nobody }) }
    }

    /// Starts what goes on beside calls, until `cancel`.
    pub(super) fn start(&self, tracker: &TaskTracker, cancel: &CancellationToken) {
        let shared = &self.shared;
        let cut = shared.cuts.clone().run(shared.view.clone(), shared.clock);
        let (recorder, first, second) = (shared.recorder.clone(), cancel.clone(), cancel.clone());
        tracker.spawn(async move { first.run_until_cancelled(cut).await });
        tracker.spawn(async move { second.run_until_cancelled(recorder.run()).await });
    }

    /// When a token was last used here; never: not since this leadership began.
    pub(super) fn last_used(&self, id: &str) -> Timestamp {
        let used = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(id).copied().unwrap_or_default()
    }

    /// Passes a call on to `routes` if its caller may.
    pub(super) async fn call(&self, mut routes: Routes, mut request: http::Request<Body>) -> http::Response<Body> {
        let origin = Origin::of(&request);
        let admitted = match self.admit(&request, &origin) {
            Ok(admitted) => admitted,
            Err(refused) => {
                let path = request.uri().path().to_owned();
                return self.refuse(&path, &origin, *refused).await.into_http();
            }
        };
        request.extensions_mut().insert(Arc::clone(&admitted.caller));
        if let Some(id) = &admitted.token {
            request = request.map(|body| self.shared.cuts.bind_call(id, body));
        }
        let response = match routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.note_refusal(&admitted, &status).await;
        }
        match &admitted.token {
            Some(id) => response.map(|body| self.shared.cuts.bind_answer(id, body)),
            None => response,
        }
    }

    fn admit(&self, request: &http::Request<Body>, origin: &Origin) -> Result<Admitted, Box<Refused>> {
        let path = request.uri().path();
        let Some(rule) = table::rule(path) else {
            let status = Status::unimplemented(format!("there is no call {path}, or nobody may use it"));
            return Err(Box::new(Refused { status, who: Who::Anonymous, attempt: false }));
        };
        let peer = origin.text();
        let admitted = |who, reach, token| Admitted { caller: Arc::new(Caller { who, peer, reach }), rule, token };
        let Needs::Role(needed) = rule.needs else { return Ok(admitted(Who::Anonymous, Reach::All, None)) };
        if let Some(Peer::Agent(name)) = origin.peer()
            && needed != Role::Agent
        {
            // Whoever stole it gets no further, whether tokens are asked for or not.
            let text = "an agent's certificate is good for its own work only; people's calls come without it";
            let who = Who::Agent(name.as_str().into());
            return Err(Box::new(Refused { status: Status::permission_denied(text), who, attempt: false }));
        }
        if !self.is_enforced() {
            let nobody = (self.shared.enforcement == Enforcement::WithTokens).then(|| Arc::clone(&self.shared.nobody));
            return Ok(match origin.machine() {
                Some(machine @ Who::Agent(_)) => admitted(machine, Reach::All, None),
                machine => admitted(machine.unwrap_or(Who::Anonymous), Reach::All, nobody),
            });
        }
        match (origin.peer(), needed) {
            (Some(Peer::Agent(name)), Role::Agent) => Ok(admitted(Who::Agent(name.as_str().into()), Reach::All, None)),
            _ => {
                let token = self.check(request, origin)?;
                may(&token, rule, needed)?;
                self.note_use(&token.id);
                let (id, name) = (Arc::clone(&token.id), Arc::clone(&token.name));
                Ok(admitted(Who::Token { id, name }, token.reach.clone(), Some(Arc::clone(&token.id))))
            }
        }
    }

    fn is_enforced(&self) -> bool {
        match self.shared.enforcement {
            Enforcement::Never => false,
            Enforcement::Always => true,
            Enforcement::WithTokens => !self.shared.view.load().tokens.is_empty(),
        }
    }

    /// The token that a caller shows, if it is one and good.
    fn check(&self, request: &http::Request<Body>, origin: &Origin) -> Result<Arc<Token>, Box<Refused>> {
        let refuse =
            |who, text: String| Err(Box::new(Refused { status: Status::unauthenticated(text), who, attempt: true }));
        let shown = match shown(request) {
            Shown::Token(shown) => shown,
            Shown::Odd(why) => return refuse(Who::Anonymous, why),
            Shown::Nothing => {
                let who = origin.machine().unwrap_or(Who::Anonymous);
                return refuse(who, ASKS.to_owned());
            }
        };
        let snapshot = self.shared.view.load();
        let known = snapshot.tokens.get(shown.id.as_str());
        // As long for a token that is not there as for one whose secret is wrong.
        let expected = known.map_or([0; 32], |token| token.digest);
        let matches = bool::from(expected.ct_eq(&shown.digest));
        let Some(token) = known.filter(|_| matches) else {
            return refuse(Who::Anonymous, format!("access token {} is not known here; {NEW_ONE}", shown.id));
        };
        if token.is_live(self.shared.clock.wall()) {
            return Ok(Arc::clone(token));
        }
        let end = if token.revoked.is_never() { "has expired" } else { "was revoked" };
        let who = Who::Token { id: Arc::clone(&token.id), name: Arc::clone(&token.name) };
        refuse(who, format!("access token {} ({}) {end}; {NEW_ONE}", token.id, token.name))
    }

    fn note_use(&self, id: &Arc<str>) {
        let mut used = self.shared.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(Arc::clone(id), self.shared.clock.wall());
    }

    /// Counts, records and words a refusal.
    async fn refuse(&self, path: &str, origin: &Origin, refused: Refused) -> Status {
        let Refused { status, who, attempt } = refused;
        let shared = &self.shared;
        if attempt {
            let now = shared.clock.now().mono;
            let verdict = shared.limiter.lock().unwrap_or_else(PoisonError::into_inner).failed(now, origin.address());
            if verdict == Verdict::Report {
                tracing::warn!(peer = %origin.text(), "too many calls with a wrong access token, or none; more are not told for a minute");
            }
            if verdict != Verdict::Tell {
                shared.recorder.count(Source::Stranger);
                return Status::resource_exhausted(
                    "too many calls from this address showed no good access token; wait a minute, and show one",
                );
            }
        }
        let (action, object) = table::rule(path).map_or(("other", path), |rule| (rule.action, ""));
        if status.code() != Code::Unimplemented {
            let caller = Arc::new(Caller { who, peer: origin.text(), reach: Reach::All });
            let source = if attempt { Source::Stranger } else { Source::of(&caller.who) };
            shared.recorder.refused(source, &caller, (action, object), status.message()).await;
        }
        status
    }

    /// Records that a service refused something. What was done is recorded with what it changed.
    async fn note_refusal(&self, admitted: &Admitted, status: &Status) {
        let (caller, rule) = (&admitted.caller, admitted.rule);
        let is_refusal = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => true,
            // Whose reach has an end is told so of what lies beyond it.
            Code::NotFound => rule.kind == Kind::Changes || caller.reach != Reach::All,
            Code::FailedPrecondition | Code::ResourceExhausted | Code::AlreadyExists => rule.kind == Kind::Changes,
            // Bad input, and what nobody decided about.
            _ => false,
        };
        if is_refusal {
            let source = Source::of(&caller.who);
            self.shared.recorder.refused(source, caller, (rule.action, ""), status.message()).await;
        }
    }
}

/// What a caller without a token is told.
const ASKS: &str = "this controller asks who you are: give an access token with --token-file, MUSTER_TOKEN or \
                    `token_file` in the configuration; an admin makes one with `ctl admin token create`";
const NEW_ONE: &str = "an admin makes a new one with `ctl admin token create`";

fn shown(request: &http::Request<Body>) -> Shown {
    let mut headers = request.headers().get_all(http::header::AUTHORIZATION).iter();
    let Some(header) = headers.next() else { return Shown::Nothing };
    if headers.next().is_some() {
        return Shown::Odd("two `authorization` headers came; send one".to_owned());
    }
    let Some((scheme, text)) = header.to_str().ok().and_then(|text| text.trim().split_once(' ')) else {
        return Shown::Odd("the `authorization` header must be `Bearer TOKEN`".to_owned());
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Shown::Odd("the `authorization` header must be `Bearer TOKEN`".to_owned());
    }
    match token::parse(text) {
        Ok(shown) => Shown::Token(shown),
        Err(error) => Shown::Odd(error.to_string()),
    }
}

fn may(token: &Token, rule: &Rule, needed: Role) -> Result<(), Box<Refused>> {
    if token.role.allows(needed) {
        return Ok(());
    }
    let text = format!(
        "this token ({}) has the role {}; {} needs {needed}; ask an admin for a token of that role (`ctl admin token create`)",
        token.name, token.role, rule.action
    );
    let who = Who::Token { id: Arc::clone(&token.id), name: Arc::clone(&token.name) };
    Err(Box::new(Refused { status: Status::permission_denied(text), who, attempt: false }))
}

/// Who asks, as the guard found. A call that did not pass it has no caller and is refused.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Arc<Caller>, Status> {
    let found = request.extensions().get::<Arc<Caller>>();
    found.cloned().ok_or_else(|| Status::internal("nobody looked at who asks; this is a bug, please report it"))
}
