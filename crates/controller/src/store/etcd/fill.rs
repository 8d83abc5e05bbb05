//! The records of another store copied here: all of them or none, whenever it is cut short.
//!
//! `origin` says from the first write on that a copy is under way, and nobody takes up a store that says so. The
//! transaction that changes it, and nothing before, makes the copy count.

use muster_common::{proto::v1, wire::record};
use prost::Message as _;

use super::{
    EtcdStore, State,
    load::{Values, owned},
    pack,
};
use crate::{
    etcd,
    store::{Change, Error, Records},
};

/// Where it is said whose records these are.
pub(super) const ORIGIN: &str = "origin";

impl EtcdStore {
    /// Whose copy lies here, if it is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn origin(&self) -> Result<Option<v1::OriginRecord>, Error> {
        let read = self.read().await?;
        self.origin_in(&read.values)
    }

    /// Begins a copy where nothing is but what an unfinished copy left, which goes.
    ///
    /// # Errors
    /// Something is there.
    pub async fn begin_copy(&self, origin: &v1::OriginRecord) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let read = self.read().await?;
        let left = self.origin_in(&read.values)?.filter(|origin| origin.copying);
        let ours = |name: &str| !matches!(name.split('/').next(), Some("leader" | "members"));
        let there: Vec<_> = read.values.keys().filter(|name| ours(name)).cloned().collect();
        if let (None, Some(first)) = (left, there.first()) {
            let found = format!("it holds {} records (`{first}`), perhaps of another installation", there.len());
            return Err(Error::Occupied { place: self.etcd.address().to_string(), found });
        }
        let mut head = read.head_at;
        let copying = v1::OriginRecord { copying: true, ..origin.clone() };
        let mut writes = vec![origin_write(&copying)];
        let stale = there.into_iter().filter(|name| name != ORIGIN && name != "head");
        writes.extend(stale.map(|key| v1::Write { key, value: Vec::new(), delete: true }));
        state.parts.clear();
        self.write_runs(&mut state, &mut head, &writes).await?;
        state.head = Some(head);
        Ok(())
    }

    /// Makes the copy what `changes` make of it.
    ///
    /// # Errors
    /// Another leads, or etcd refuses; the copy stays unfinished.
    pub async fn copy(&self, changes: &[Change<'_>]) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let mut head = state.head.ok_or(Error::Closed)?;
        let mut writes = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Put(key, value) => pack::put((*key).to_owned(), value.to_vec(), &mut state.parts, &mut writes),
                Change::Delete(key) => pack::delete((*key).to_owned(), &mut state.parts, &mut writes),
            }
        }
        self.write_runs(&mut state, &mut head, &writes).await?;
        state.head = Some(head);
        Ok(())
    }

    /// Whether the copy is the same, byte for byte, read back from etcd.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub async fn verify_copy(&self, records: &Records) -> Result<(), Error> {
        let read = self.read().await?;
        let copied = Records { term: records.term, all: owned(self.whole(&read.values)?.0) };
        let differences = copied.changes(records);
        match differences.first() {
            None => Ok(()),
            Some(Change::Put(key, _) | Change::Delete(key)) => {
                Err(self.damaged(format!("the copy differs in {} records, first `{key}`", differences.len())))
            }
        }
    }

    /// Makes the copy count: from now on it is a store like any other.
    ///
    /// # Errors
    /// With [`Error::may_pass`], it may count already; [`EtcdStore::origin`] tells.
    pub async fn finish_copy(&self, origin: &v1::OriginRecord) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let mut head = state.head.ok_or(Error::Closed)?;
        let done = v1::OriginRecord { copying: false, ..origin.clone() };
        self.write_runs(&mut state, &mut head, &[origin_write(&done)]).await?;
        state.head = Some(head);
        Ok(())
    }

    /// Removes what an unfinished copy left; a finished one stays.
    ///
    /// # Errors
    /// Another leads, or etcd refuses.
    pub async fn undo_copy(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        let read = self.read().await?;
        if !self.origin_in(&read.values)?.is_some_and(|origin| origin.copying) {
            return Ok(());
        }
        let mut head = read.head_at;
        let gone = |name: &&String| !matches!(name.split('/').next(), Some("leader" | "members" | "head" | ORIGIN));
        let mut names: Vec<_> = read.values.keys().filter(gone).cloned().collect();
        // Last: while it is there, nobody takes up what is left.
        names.push(ORIGIN.to_owned());
        let writes: Vec<_> = names.into_iter().map(|key| v1::Write { key, value: Vec::new(), delete: true }).collect();
        self.write_runs(&mut state, &mut head, &writes).await?;
        state.head = None;
        self.forget_head().await
    }

    /// Without records, `head` would be all that is there, and the place not empty.
    async fn forget_head(&self) -> Result<(), Error> {
        let key = self.prefixed("head");
        let delete = |mut client: etcd_client::Client| {
            let key = key.clone();
            async move { client.delete(key, None).await }
        };
        self.etcd.call(self.within(), delete).await.map(|_| ()).map_err(|error| self.remote(error))
    }

    pub(super) fn origin_in(&self, values: &Values) -> Result<Option<v1::OriginRecord>, Error> {
        let Some(bytes) = values.get(ORIGIN) else { return Ok(None) };
        let origin = v1::OriginRecord::decode(bytes.as_slice())
            .map_err(|error| self.damaged(format!("`{ORIGIN}` cannot be read: {error}")))?;
        if origin.version > record::VERSION {
            let path = self.etcd.address().to_string().into();
            return Err(Error::Newer { path, found: origin.version, known: record::VERSION });
        }
        Ok(Some(origin))
    }

    async fn write_runs(&self, state: &mut State, head: &mut i64, writes: &[v1::Write]) -> Result<(), Error> {
        let mut done = 0;
        while let Some(run) = pack::runs(&writes[done..], state.limits).into_iter().next() {
            let name = self.name(state);
            match self.step(head, &name, 0, &writes[done..done + run.end]).await {
                Ok(()) => done += run.end,
                Err(super::write::Fail::Etcd(etcd::Error::TooManyOperations)) if state.limits.fewer() => {}
                Err(fail) => return Err(self.failed(fail)),
            }
        }
        Ok(())
    }
}

fn origin_write(origin: &v1::OriginRecord) -> v1::Write {
    v1::Write { key: ORIGIN.to_owned(), value: origin.encode_to_vec(), delete: false }
}
