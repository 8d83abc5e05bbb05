//! One commit: one transaction where it fits into one, and otherwise a journal of its own, all or nothing.

use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use muster_common::{proto::v1, wire::record};
use prost::Message as _;

use super::{EtcdStore, State, pack};
use crate::{
    etcd,
    store::{Batch, Outcome},
};

/// A transaction is sent again for so long at most, and never past our authority.
const WITHIN: Duration = Duration::from_secs(60);

/// Why a step was not done.
#[derive(Debug)]
pub(super) enum Fail {
    /// Another controller leads.
    Deposed,
    /// We lead, but the last commit is not the one that we know.
    Moved,
    /// Etcd refused, or nobody knows.
    Etcd(etcd::Error),
}

impl EtcdStore {
    pub(super) async fn write(&self, state: &mut State, head: i64, batch: Batch) -> Outcome {
        if !self.fence.authority.holds() {
            return Outcome::Fenced;
        }
        let writes = pack::writes(&batch, &mut state.parts);
        drop(batch);
        let name = self.name(state);
        let mut head = head;
        match self.write_all(state, &mut head, &name, &writes).await {
            Ok(()) => {
                state.head = Some(head);
                Outcome::Committed
            }
            Err(Fail::Deposed) => Outcome::Fenced,
            Err(Fail::Moved) => Outcome::Unknown("an earlier commit was made after all".to_owned()),
            Err(Fail::Etcd(error)) => Outcome::Unknown(error.to_string()),
        }
    }

    /// A name that no other commit ever has.
    pub(super) fn name(&self, state: &mut State) -> String {
        state.tried += 1;
        format!("{}-{}", self.fence.revision, state.tried)
    }

    async fn write_all(&self, state: &mut State, head: &mut i64, name: &str, writes: &[v1::Write]) -> Result<(), Fail> {
        while pack::runs(writes, state.limits).len() <= 1 {
            match self.step(head, name, 0, writes).await {
                // Refused before anything was done.
                Err(Fail::Etcd(etcd::Error::TooManyOperations)) if state.limits.fewer() => {}
                done => return done,
            }
        }
        let staged = pack::staged(writes);
        let count = u32::try_from(staged.len()).unwrap_or(u32::MAX);
        for (n, part) in (0..).zip(staged) {
            let write = v1::Write { key: pack::staged_key(n), value: part.encode_to_vec(), delete: false };
            self.step(head, &format!("{name}-s{n}"), 0, &[write]).await?;
        }
        // From here on it is durable: who loads next copies what is not copied yet.
        self.step(head, name, count, &[]).await?;
        self.copy_staged(state, head, name, count, writes).await
    }

    /// Copies a staged batch to its keys and forgets it. May be done again from the start.
    pub(super) async fn copy_staged(
        &self,
        state: &mut State,
        head: &mut i64,
        name: &str,
        count: u32,
        writes: &[v1::Write],
    ) -> Result<(), Fail> {
        let (mut done, mut n) = (0, 0);
        while let Some(run) = pack::runs(&writes[done..], state.limits).into_iter().next() {
            match self.step(head, &format!("{name}-c{n}"), count, &writes[done..done + run.end]).await {
                Ok(()) => (done, n) = (done + run.end, n + 1),
                Err(Fail::Etcd(etcd::Error::TooManyOperations)) if state.limits.fewer() => {}
                Err(fail) => return Err(fail),
            }
        }
        let forget = v1::Write { key: "staged/".to_owned(), value: Vec::new(), delete: true };
        self.step(head, &format!("{name}-d"), 0, &[forget]).await
    }

    /// One transaction after the one that `head` names; done once, however often it is sent.
    pub(super) async fn step(
        &self,
        head: &mut i64,
        commit: &str,
        staged: u32,
        writes: &[v1::Write],
    ) -> Result<(), Fail> {
        let record = v1::HeadRecord { version: record::VERSION, commit: commit.to_owned(), staged };
        let at = self.prefixed("head");
        // C2: fenced by the leader key, chained to the commit before.
        let compares = vec![
            Compare::create_revision(self.fence.key.as_str(), CompareOp::Equal, self.fence.revision),
            Compare::mod_revision(at.as_str(), CompareOp::Equal, *head),
        ];
        let mut operations = vec![TxnOp::put(at.as_str(), record.encode_to_vec(), None)];
        operations.extend(writes.iter().map(|write| self.operation(write)));
        let look = [TxnOp::get(at.as_str(), None), TxnOp::get(self.fence.key.as_str(), None)];
        let txn = Txn::new().when(compares).and_then(operations).or_else(look);
        let send = |mut client: Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        let reply = self.etcd.call(self.within(), send).await.map_err(Fail::Etcd)?;
        if reply.succeeded() {
            *head = reply.header().map_or(0, etcd_client::ResponseHeader::revision);
            return Ok(());
        }
        self.found(&reply, head, commit)
    }

    /// What a transaction that was refused by its compares found: itself, done by an earlier try, or why.
    fn found(&self, reply: &TxnResponse, head: &mut i64, commit: &str) -> Result<(), Fail> {
        let mut looked = reply.op_responses().into_iter().map(|reply| match reply {
            TxnOpResponse::Get(reply) => reply.kvs().first().cloned(),
            _ => None,
        });
        let (last, leader) = (looked.next().flatten(), looked.next().flatten());
        if leader.is_none_or(|leader| leader.create_revision() != self.fence.revision) {
            return Err(Fail::Deposed);
        }
        let Some(last) = last else { return Err(Fail::Moved) };
        match v1::HeadRecord::decode(last.value()) {
            Ok(record) if record.commit == commit => {
                *head = last.mod_revision();
                Ok(())
            }
            _ => Err(Fail::Moved),
        }
    }

    fn operation(&self, write: &v1::Write) -> TxnOp {
        let key = self.prefixed(&write.key);
        match (write.delete, write.key.ends_with('/')) {
            (false, _) => TxnOp::put(key, write.value.as_slice(), None),
            (true, false) => TxnOp::delete(key, None),
            (true, true) => TxnOp::delete(key, Some(DeleteOptions::new().with_prefix())),
        }
    }

    /// How long a call may take: not longer than we lead.
    pub(super) fn within(&self) -> Duration {
        self.fence.authority.left().min(WITHIN)
    }
}
