//! What is in the safe: by key, a record, a note and open files. Never interpreted.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use super::message::{Close, Kept, Note, Put};

/// See the module.
#[derive(Default)]
pub(super) struct Store {
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    pid: i32,
    record: Vec<u8>,
    note: Vec<u8>,
    files: Vec<Option<OwnedFd>>,
}

impl Store {
    /// What was there under that key is replaced.
    pub(super) fn put(&mut self, put: Put, files: Vec<OwnedFd>) {
        let Put { key, pid, record, .. } = put;
        let files = files.into_iter().map(Some).collect();
        let entry = Entry { pid: i32::try_from(pid).unwrap_or(0), record, note: Vec::new(), files };
        self.entries.insert(key, entry);
    }

    pub(super) fn note(&mut self, note: Note) {
        if let Some(entry) = self.entries.get_mut(&note.key) {
            entry.note = note.note;
        }
    }

    pub(super) fn close(&mut self, close: Close) {
        let at = usize::try_from(close.file).unwrap_or(usize::MAX);
        if let Some(file) = self.entries.get_mut(&close.key).and_then(|entry| entry.files.get_mut(at)) {
            *file = None;
        }
    }

    pub(super) fn take_out(&mut self, key: u64) {
        self.entries.remove(&key);
    }

    /// How `pid` ended is known: nobody asks for it any more.
    pub(super) fn settle(&mut self, pid: i32) {
        self.entries.values_mut().filter(|entry| entry.pid == pid).for_each(|entry| entry.pid = 0);
    }

    /// Whether somebody will ask how `pid` ended.
    pub(super) fn has(&self, pid: i32) -> bool {
        self.entries.values().any(|entry| entry.pid == pid)
    }

    /// All of it, for the next keeper; each with the files that go with it.
    pub(super) fn all(&self) -> impl Iterator<Item = std::io::Result<(Kept, Vec<OwnedFd>)>> {
        self.entries.iter().map(|(key, entry)| {
            let open = entry.files.iter().flatten();
            let files = open.map(OwnedFd::try_clone).collect::<std::io::Result<Vec<_>>>()?;
            let there = entry.files.iter().map(Option::is_some).collect();
            let kept = Kept { key: *key, record: entry.record.clone(), note: entry.note.clone(), files: there };
            Ok((kept, files))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u64, pid: u32) -> Put {
        Put { key, pid, record: vec![1], files: 2 }
    }

    fn files() -> Vec<OwnedFd> {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        vec![reader.into(), writer.into()]
    }

    #[test]
    fn what_was_put_noted_and_not_closed_or_taken_out_is_there() {
        let mut store = Store::default();
        store.put(put(1, 10), files());
        store.put(put(2, 20), files());
        store.note(Note { key: 2, note: vec![5] });
        store.note(Note { key: 2, note: vec![6] });
        store.close(Close { key: 2, file: 0 });
        store.take_out(1);
        // Of what is not there nobody need know.
        store.note(Note { key: 1, note: vec![9] });
        store.close(Close { key: 2, file: 7 });
        let all: Vec<_> = store.all().map(|kept| kept.expect("files can be copied")).collect();
        let [(kept, files)] = &all[..] else { panic!("{all:?}") };
        let expected = Kept { key: 2, record: vec![1], note: vec![6], files: vec![false, true] };
        assert_eq!((kept, files.len()), (&expected, 1));
    }

    #[test]
    fn an_end_is_kept_until_it_is_settled() {
        let mut store = Store::default();
        store.put(put(1, 10), files());
        assert!(store.has(10) && !store.has(11));
        store.settle(10);
        assert!(!store.has(10));
        assert_eq!(store.all().count(), 1, "the rest of it stays");
    }
}
