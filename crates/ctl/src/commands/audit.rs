//! `ctl audit`: who did what, who was refused, and whether that is still what was written.

use muster_common::{proto::v1, wire::access::audit_from_proto};
use muster_core::audit::{self, Record};

use super::{Ctl, list::When};
use crate::{
    error::Error,
    exit::Exit,
    model::access::{Audit, Entry, Verified},
    output::{Format, style::Look},
    remote::Client,
};

/// The largest page that is asked for.
const PAGE: u32 = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// At or after this: 2h (ago), 2026-11-21, or RFC 3339
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,
    /// Only what this token, by its name or id, or this agent did; `anonymous`: where nobody was asked
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    actor: String,
    /// Only this: submit, cancel, token.create, …; `token` stands for all that begin so
    #[arg(long, value_name = "ACTION", default_value = "", hide_default_value = true)]
    action: String,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// How many at most, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Where the page before this one ended
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    page_token: String,
    /// Every page
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Check that no record was changed, taken out or put in; tells the newest one's hash
    #[arg(long, conflicts_with_all = ["since", "actor", "action", "refused", "limit", "page_token", "all"])]
    verify: bool,
    /// A number and hash that an earlier check told: that record must still be the same
    #[arg(long, value_name = "N:HASH", requires = "verify", value_parser = anchor)]
    expect: Option<(u64, String)>,
}

fn anchor(text: &str) -> Result<(u64, String), String> {
    let found = text.split_once(':').and_then(|(n, hash)| Some((n.parse().ok()?, hash.to_ascii_lowercase())));
    let found = found.filter(|(_, hash)| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
    found.ok_or_else(|| "write what `ctl audit --verify` told: a number, a colon and 64 hexadecimal digits".to_owned())
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    if args.verify {
        let verified = verify(client, args.expect).await?;
        ctl.output.one(&verified)?;
        return Ok(if verified.problem.is_none() { Exit::OK } else { Exit::FAILED });
    }
    let now = ctl.output.clock().wall();
    let mut request = v1::ListAuditRequest {
        since_us: args.since.map_or(0, |when| when.us(now)),
        actor: args.actor,
        action: args.action,
        refused: args.refused,
        page_size: 0,
        page_token: args.page_token,
    };
    let limit = if args.all { usize::MAX } else { usize::try_from(args.limit).unwrap_or(usize::MAX) };
    let mut audit = Audit { records: Vec::new(), next_page_token: None };
    while audit.records.len() < limit {
        request.page_size = u32::try_from(limit - audit.records.len()).unwrap_or(PAGE).min(PAGE);
        let reply = client.access.clone().list_audit(request.clone()).await?.into_inner();
        audit.records.extend(reply.records.into_iter().map(Entry::from));
        audit.next_page_token = crate::model::some(&reply.next_page_token);
        match &audit.next_page_token {
            Some(token) => request.page_token.clone_from(token),
            None => break,
        }
    }
    ctl.output.items(&audit, &audit.records)?;
    if let (Some(token), Format::Table | Format::Jsonl) = (&audit.next_page_token, ctl.output.format) {
        ctl.output.note(Look::Dim, &format!("there are more: --page-token {token}, or --all"));
    }
    Ok(Exit::OK)
}

/// Computes every hash here: what the controller says of them counts for nothing.
async fn verify(mut client: Client, expect: Option<(u64, String)>) -> Result<Verified, Error> {
    let mut verified = Verified::default();
    let mut newer: Option<Record> = None;
    let mut expected = expect;
    let mut request = v1::ListAuditRequest { page_size: PAGE, ..Default::default() };
    loop {
        let reply = client.access.list_audit(request.clone()).await?.into_inner();
        for record in reply.records {
            let record = audit_from_proto(record)
                .map_err(|error| Error::new(Exit::FAULT, format!("the controller sent no audit record: {error}")))?;
            let problem = newer.as_ref().and_then(|newer| audit::follows(&record, newer).err());
            let hash = hex(&record.digest());
            let known = expected.take_if(|(n, _)| *n == record.n);
            let differs = known
                .filter(|(_, known)| *known != hash)
                .map(|(n, _)| format!("record {n} is not the one that was there: its hash is {hash}"));
            if let Some(problem) = problem.map(|broken| broken.to_string()).or(differs) {
                verified.problem = Some(problem);
                return Ok(verified);
            }
            verified.add(record.n, hash);
            newer = Some(record);
        }
        if reply.next_page_token.is_empty() {
            break;
        }
        request.page_token = reply.next_page_token;
    }
    if let Some((n, _)) = expected {
        verified.problem = Some(format!("record {n} is not there; the oldest is {}", verified.oldest));
    }
    Ok(verified)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_is_a_number_and_a_hash() {
        let hash = "Ab".repeat(32);
        assert_eq!(anchor(&format!("17:{hash}")), Ok((17, "ab".repeat(32))));
        for odd in ["", "17", "17:", "x:00", &format!("17:{hash}0"), &format!("17:{}", "g".repeat(64))] {
            assert!(anchor(odd).is_err(), "{odd}");
        }
    }
}
