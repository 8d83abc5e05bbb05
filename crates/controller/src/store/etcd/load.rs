//! From etcd into memory: all of it at one revision, page by page; then a transaction that ends every earlier commit.

use std::{borrow::Cow, collections::BTreeMap};

use etcd_client::{Client, GetOptions, KeyValue};
use muster_common::{
    proto::v1,
    wire::{self, record},
};
use muster_core::{
    id::Term,
    record::{Key, Piece},
};
use prost::Message as _;

use super::{
    EtcdStore, State,
    fill::ORIGIN,
    pack::{self, marked},
    write::Fail,
};
use crate::{
    etcd,
    store::{Error, Loaded, Records},
};

/// Keys of one page; fewer where these do not fit into a message.
const PAGE: i64 = 4096;
/// A page of more bytes is asked for in smaller ones.
const MESSAGE_MAX: usize = 32 << 20;
/// A commit of our own that was under way may come in between so often.
const TRIES: u32 = 8;

/// Keys without our prefix, in order, with their values.
pub(super) type Values = BTreeMap<String, Vec<u8>>;

/// Pieces in order of their keys, and which of them lie in how many parts.
type Decoded = (Vec<(Key, Piece)>, BTreeMap<String, u32>);

/// Names and whole values in order, and which of them lie in how many parts.
type Whole<'a> = (Vec<(&'a str, Cow<'a, [u8]>)>, BTreeMap<String, u32>);

/// All that is there at one revision.
pub(super) struct Read {
    pub(super) values: Values,
    head: v1::HeadRecord,
    pub(super) head_at: i64,
}

impl EtcdStore {
    /// Reads and checks everything, and only then writes: a record that is not understood leaves the store as it is.
    pub(super) async fn take_up(&self, state: &mut State) -> Result<Loaded, Error> {
        for _ in 0..TRIES {
            if !self.fence.authority.holds() {
                return Err(Error::Deposed);
            }
            let read = self.read().await?;
            let origin = self.origin_in(&read.values)?.unwrap_or_default();
            if origin.copying {
                return Err(Error::Unfinished { url: self.etcd.address().to_string(), from: origin.from });
            }
            let staged = self.staged(&read)?;
            let mut values = read.values;
            overlay(&mut values, &staged);
            let (pieces, parts) = self.decode(&values)?;
            drop(values);

            let name = self.name(state);
            let mut head = read.head_at;
            let began = match self.step(&mut head, &name, read.head.staged, &[]).await {
                // The commit of which nobody knew came in between: now it is there to be read.
                Err(Fail::Moved) => continue,
                began => began,
            };
            began.map_err(|fail| self.failed(fail))?;
            let term = Term(u64::try_from(head).unwrap_or(0) + origin.term_floor);
            if read.head.staged > 0 {
                let copied = self.copy_staged(state, &mut head, &name, read.head.staged, &staged).await;
                copied.map_err(|fail| self.failed(fail))?;
            }
            (state.head, state.parts) = (Some(head), parts);
            return Ok(Loaded { term, pieces });
        }
        Err(self.remote(etcd::Error::Away("its last commit changes while it is read".to_owned())))
    }

    /// All records at one revision.
    pub(super) async fn copy_out(&self) -> Result<Records, Error> {
        let read = self.read().await?;
        let origin = self.origin_in(&read.values)?.unwrap_or_default();
        let staged = self.staged(&read)?;
        let mut values = read.values;
        overlay(&mut values, &staged);
        // No term is higher than the revision of the last commit.
        let term = Term(u64::try_from(read.head_at).unwrap_or(0) + origin.term_floor);
        Ok(Records { term, all: owned(self.whole(&values)?.0) })
    }

    pub(super) fn failed(&self, fail: Fail) -> Error {
        match fail {
            Fail::Deposed => Error::Deposed,
            Fail::Moved => self.remote(etcd::Error::Away("its last commit changed".to_owned())),
            Fail::Etcd(error) => self.remote(error),
        }
    }

    pub(super) async fn read(&self) -> Result<Read, Error> {
        loop {
            match self.read_at_once().await {
                // What was compacted away while we read is read anew.
                Err(etcd::Error::Refused(why)) if why.contains("compacted") => {}
                read => return read.map_err(|error| self.remote(error)),
            }
        }
    }

    async fn read_at_once(&self) -> Result<Read, etcd::Error> {
        let prefix = self.etcd.address().prefix();
        let end = end_of(prefix);
        let (mut from, mut revision, mut limit) = (prefix.as_bytes().to_vec(), 0, PAGE);
        let mut read = Read { values: Values::new(), head: v1::HeadRecord::default(), head_at: 0 };
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(limit).with_revision(revision);
            let get = |client: Client| {
                let (from, options) = (from.clone(), options.clone());
                async move {
                    let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_MAX);
                    kv.get(from, Some(options)).await
                }
            };
            let mut page = match self.etcd.call(self.within(), get).await {
                Err(etcd::Error::TooLarge) if limit > 1 => {
                    limit /= 4;
                    continue;
                }
                page => page?,
            };
            revision = page.header().map_or(revision, etcd_client::ResponseHeader::revision).max(revision);
            let more = page.more();
            let values = page.take_kvs();
            let Some(last) = values.last() else { return Ok(read) };
            from = last.key().to_vec();
            from.push(0);
            for value in values {
                read.add(prefix, value)?;
            }
            if !more {
                return Ok(read);
            }
        }
    }

    /// The writes of a batch that was not copied to its keys.
    fn staged(&self, read: &Read) -> Result<Vec<v1::Write>, Error> {
        let mut writes = Vec::new();
        for n in 0..read.head.staged {
            let key = pack::staged_key(n);
            let bytes = read.values.get(&key).ok_or_else(|| self.damaged(format!("`{key}` is missing")))?;
            writes.extend(pack::read_staged(bytes).map_err(|error| self.damaged(format!("`{key}`: {error}")))?);
        }
        Ok(writes)
    }

    fn decode(&self, values: &Values) -> Result<Decoded, Error> {
        let (whole, parts) = self.whole(values)?;
        let mut pieces = Vec::with_capacity(whole.len());
        for (name, value) in &whole {
            let key = record::parse_key(name.as_bytes()).map_err(|error| self.refused(error))?;
            let piece = record::decode(&key, value).map_err(|error| self.refused(error))?;
            pieces.push((key, piece));
        }
        Ok((pieces, parts))
    }

    /// The records among the keys, those in parts put together.
    pub(super) fn whole<'a>(&self, values: &'a Values) -> Result<Whole<'a>, Error> {
        let (mut whole, mut parts) = (Vec::with_capacity(values.len()), BTreeMap::new());
        for (name, value) in values {
            let room = name.split('/').next();
            if matches!(room, Some("leader" | "members" | "head" | "staged" | "parts" | ORIGIN)) {
                continue;
            }
            let value = match marked(value) {
                None => Cow::Borrowed(value.as_slice()),
                Some(count) => {
                    parts.insert(name.clone(), count);
                    Cow::Owned(self.joined(values, name, count)?)
                }
            };
            whole.push((name.as_str(), value));
        }
        Ok((whole, parts))
    }

    fn joined(&self, values: &Values, name: &str, count: u32) -> Result<Vec<u8>, Error> {
        let mut whole = Vec::new();
        for n in 0..count {
            let key = pack::part(name, n);
            let part = values.get(&key).ok_or_else(|| self.damaged(format!("`{key}` is missing")))?;
            whole.extend_from_slice(part);
        }
        Ok(whole)
    }

    pub(super) fn damaged(&self, what: String) -> Error {
        Error::Damaged { path: self.etcd.address().to_string().into(), what }
    }

    fn refused(&self, error: wire::Error) -> Error {
        match error {
            wire::Error::Newer { found, known, .. } => {
                Error::Newer { path: self.etcd.address().to_string().into(), found, known }
            }
            other => self.damaged(other.to_string()),
        }
    }
}

impl Read {
    fn add(&mut self, prefix: &str, value: KeyValue) -> Result<(), etcd::Error> {
        let at = value.mod_revision();
        let (key, value) = value.into_key_value();
        let name = String::from_utf8(key).ok().and_then(|key| key.strip_prefix(prefix).map(str::to_owned));
        let Some(name) = name else {
            return Err(etcd::Error::Refused(format!("a key under {prefix} is not one of Muster's")));
        };
        if name == "head" {
            let head = v1::HeadRecord::decode(value.as_slice());
            self.head = head.map_err(|error| etcd::Error::Refused(format!("`head` is damaged: {error}")))?;
            self.head_at = at;
        }
        self.values.insert(name, value);
        Ok(())
    }
}

pub(super) fn owned(whole: Vec<(&str, Cow<'_, [u8]>)>) -> Vec<(String, Vec<u8>)> {
    whole.into_iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect()
}

/// What copying a staged batch will make of the keys.
fn overlay(values: &mut Values, writes: &[v1::Write]) {
    for write in writes {
        if !write.delete {
            values.insert(write.key.clone(), write.value.clone());
        } else if write.key.ends_with('/') {
            values.retain(|key, _| !key.starts_with(&write.key));
        } else {
            values.remove(&write.key);
        }
    }
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // It ends with a slash, which is not the last of the bytes.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
