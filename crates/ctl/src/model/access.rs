//! Access tokens and the audit log.

use muster_common::{proto::v1, wire::access::role_from_proto};
use serde::Serialize;

use super::{some, time_of};
use crate::output::{
    Human, Page,
    style::Look,
    table::{Cell, Column, Table, plain},
    time,
};

/// One token, without its secret.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Token {
    id: String,
    name: String,
    /// `viewer`, `operator`, `admin` or `agent`.
    role: String,
    /// Empty: all.
    queues: Vec<String>,
    /// `live`, `expired` or `revoked`.
    state: String,
    created_at: Option<String>,
    created_by: Option<String>,
    /// None: it does not expire.
    expires_at: Option<String>,
    revoked_at: Option<String>,
    /// None: not since the present controller leads.
    last_used_at: Option<String>,
    #[serde(skip)]
    view: v1::TokenView,
}

impl From<v1::TokenView> for Token {
    fn from(view: v1::TokenView) -> Self {
        Self {
            id: view.id.clone(),
            name: view.name.clone(),
            role: role_from_proto(view.role).map_or("unknown", |role| role.as_str()).to_owned(),
            queues: view.queues.clone(),
            state: view.state.clone(),
            created_at: time_of(view.created_us),
            created_by: some(&view.created_by),
            expires_at: time_of(view.expires_us),
            revoked_at: time_of(view.revoked_us),
            last_used_at: time_of(view.last_used_us),
            view,
        }
    }
}

/// All tokens.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<Token>,
}

impl Human for Tokens {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Text};
        if self.tokens.is_empty() {
            return "no tokens; everybody may do everything\n".to_owned();
        }
        let columns = [
            Key("TOKEN"),
            Text("NAME"),
            Key("ROLE"),
            Key("STATE"),
            Text("QUEUES"),
            Key("MADE"),
            Key("EXPIRES"),
            Key("USED"),
        ];
        let mut table = Table::new(columns);
        for token in &self.tokens {
            let look = if token.state == "live" { Look::Good } else { Look::Dim };
            let queues = if token.queues.is_empty() { "all".to_owned() } else { token.queues.join(",") };
            let day =
                |at: &Option<String>, none: &str| at.as_deref().and_then(|at| at.get(..10)).unwrap_or(none).to_owned();
            table.row([
                Cell::from(token.id.as_str()),
                token.name.as_str().into(),
                token.role.as_str().into(),
                Cell::looking(&token.state, look),
                queues.into(),
                day(&token.created_at, "-").into(),
                day(&token.expires_at, "never").into(),
                time::age(token.view.last_used_us, page.now).into(),
            ]);
        }
        page.table(&table)
    }
}

/// A token that was just made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Made {
    /// All of it.
    token: String,
    id: String,
    name: String,
    role: String,
    queues: Vec<String>,
    expires_at: Option<String>,
}

impl Made {
    pub(crate) fn of(reply: v1::CreateTokenReply) -> Self {
        let Token { id, name, role, queues, expires_at, .. } = Token::from(reply.view.unwrap_or_default());
        Self { token: reply.token, id, name, role, queues, expires_at }
    }
}

impl Human for Made {
    /// The token alone: `ctl admin token create … > FILE`.
    fn human(&self, _: &Page) -> String {
        format!("{}\n", self.token)
    }
}

/// A token that was revoked.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Revoked {
    pub(crate) revoked: String,
}

impl Human for Revoked {
    fn human(&self, _: &Page) -> String {
        format!("revoked {}\n", plain(&self.revoked))
    }
}

/// One audit record.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    n: u64,
    at: Option<String>,
    /// Who: a token's or an agent's name, `anonymous`, or `muster` itself.
    actor: String,
    /// `anonymous`, `token`, `agent`, `controller` or `muster`.
    actor_kind: &'static str,
    /// Of a token.
    actor_id: Option<String>,
    /// The address.
    peer: Option<String>,
    action: String,
    object: Option<String>,
    /// `done` or `refused`.
    outcome: &'static str,
    detail: Option<String>,
    /// Refused calls before this one that were counted only.
    uncounted: u64,
}

impl From<v1::AuditRecord> for Entry {
    fn from(record: v1::AuditRecord) -> Self {
        let actor = record.actor.unwrap_or_default();
        let actor_kind = match actor.kind() {
            v1::ActorKind::Anonymous => "anonymous",
            v1::ActorKind::Token => "token",
            v1::ActorKind::Agent => "agent",
            v1::ActorKind::Controller => "controller",
            v1::ActorKind::Muster => "muster",
        };
        Self {
            n: record.n,
            at: time_of(record.at_us),
            actor: actor.name,
            actor_kind,
            actor_id: some(&actor.id),
            peer: some(&record.peer),
            action: record.action,
            object: some(&record.object),
            outcome: if record.refused { "refused" } else { "done" },
            detail: some(&record.detail),
            uncounted: record.uncounted,
        }
    }
}

/// A page of the audit log, newest first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Audit {
    pub(crate) records: Vec<Entry>,
    pub(crate) next_page_token: Option<String>,
}

impl Human for Audit {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number, Text};
        if self.records.is_empty() {
            return "no records\n".to_owned();
        }
        let columns =
            [Number("N"), Key("TIME"), Text("WHO"), Text("FROM"), Key("WHAT"), Text("OF"), Key("OUTCOME"), Text("WHY")];
        let mut table = Table::new(columns);
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        for record in &self.records {
            let look = if record.outcome == "refused" { Look::Bad } else { Look::Good };
            let more = match record.uncounted {
                0 => String::new(),
                n => format!(" (and {n} refused before it)"),
            };
            table.row([
                Cell::from(record.n.to_string()),
                record.at.as_deref().and_then(|at| at.get(..19)).unwrap_or("-").into(),
                record.actor.as_str().into(),
                text(&record.peer).into(),
                record.action.as_str().into(),
                text(&record.object).into(),
                Cell::looking(record.outcome, look),
                format!("{}{more}", text(&record.detail)).into(),
            ]);
        }
        page.table(&table)
    }
}

/// What a check of the audit log found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verified {
    /// How many records hold together, counted from the newest.
    records: u64,
    pub(crate) oldest: u64,
    newest: u64,
    /// Of the newest record, in hexadecimal digits.
    hash: Option<String>,
    /// None: all is as it was written.
    pub(crate) problem: Option<String>,
}

impl Verified {
    /// One more that holds, from the newest to the oldest.
    pub(crate) fn add(&mut self, n: u64, hash: String) {
        if self.hash.is_none() {
            (self.newest, self.hash) = (n, Some(hash));
        }
        self.records += 1;
        self.oldest = n;
    }
}

impl Human for Verified {
    fn human(&self, page: &Page) -> String {
        if let Some(problem) = &self.problem {
            let text = format!("the audit log was tampered with: {problem}");
            return format!("{}\n", page.paint(Look::Bad, &plain(&text)));
        }
        match &self.hash {
            None => "the audit log is empty\n".to_owned(),
            Some(hash) => format!(
                "{} records, {} to {}, are as they were written\n{}:{hash}\n",
                self.records, self.oldest, self.newest, self.newest
            ),
        }
    }
}
