//! The audit log as an admin reads it: page by page, newest first.

use muster_common::{proto::v1, wire::access::audit_to_proto};
use muster_core::{
    access::Who,
    audit::{BLOCK, Outcome, Record},
    time::Timestamp,
};
use tonic::Status;

use crate::{
    grpc::filter::{page_size, page_start, page_token},
    view::Snapshot,
};

/// What is asked for.
struct Wanted<'a> {
    since: Timestamp,
    actor: &'a str,
    action: &'a str,
    refused: bool,
}

impl Wanted<'_> {
    fn matches(&self, record: &Record) -> bool {
        let is_actor = match &record.who {
            Who::Token { id, .. } if **id == *self.actor => true,
            who => who.name() == self.actor,
        };
        // `token` stands for `token.create` and `token.revoke`.
        let rest = record.action.strip_prefix(self.action);
        let is_action = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        record.at >= self.since
            && (self.actor.is_empty() || is_actor)
            && (self.action.is_empty() || is_action)
            && (!self.refused || record.outcome == Outcome::Refused)
    }
}

pub(super) fn list(snapshot: &Snapshot, request: &v1::ListAuditRequest) -> Result<v1::ListAuditReply, Status> {
    let since = Timestamp(request.since_us);
    let wanted = Wanted { since, actor: &request.actor, action: &request.action, refused: request.refused };
    // Records before this one.
    let before = page_start(&request.page_token)?.unwrap_or(u64::MAX);
    let size = page_size(request.page_size);
    let blocks = snapshot.audit.range(..=before / BLOCK).rev();
    let records = blocks.flat_map(|(_, block)| block.records.iter().rev());
    let mut found = records.filter(|record| record.n < before && wanted.matches(record));
    let records: Vec<_> = found.by_ref().take(size).map(audit_to_proto).collect();
    let last = records.last().map(|record| record.n);
    let next_page_token = found.next().and(last).map(page_token).unwrap_or_default();
    Ok(v1::ListAuditReply { records, next_page_token })
}
