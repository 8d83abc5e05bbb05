//! All records at one commit, read page by page, so that commits go on in between.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase};

use crate::store::{
    Error,
    embedded::{
        disk,
        header::Header,
        table::{self, RECORDS},
    },
};

/// Bytes of one page: a few milliseconds of the thread's time.
const PAGE_BYTES: usize = 4 << 20;

/// Records with their keys.
pub(super) type Page = Vec<(String, Vec<u8>)>;

/// One reading, from its first page to its last.
pub(super) struct Reading {
    read: ReadTransaction,
    header: Header,
    /// Where the next page begins: after this key.
    after: Option<Vec<u8>>,
    records: u64,
    sum: u64,
}

impl Reading {
    pub(super) fn begin(database: &Database, path: &Path) -> Result<Self, Error> {
        let read = database.begin_read().map_err(|error| disk::explain(path, "read", error))?;
        let header = table::read_header(&read, path)?;
        Ok(Self { read, header, after: None, records: 0, sum: 0 })
    }

    /// Under which term all of it was committed.
    pub(super) fn term(&self) -> u64 {
        self.header.term
    }

    /// The next records; none: these were all, and they are what the header promises.
    pub(super) fn page(&mut self, path: &Path) -> Result<Page, Error> {
        let failed = |error: redb::StorageError| disk::explain(path, "read", error);
        let table = self.read.open_table(RECORDS).map_err(|error| disk::explain(path, "read", error))?;
        let from = match self.after.as_deref() {
            None => std::ops::Bound::Unbounded,
            Some(key) => std::ops::Bound::Excluded(key),
        };
        let rows = table.range::<&[u8]>((from, std::ops::Bound::Unbounded)).map_err(failed)?;
        let (mut page, mut bytes) = (Page::new(), 0);
        for row in rows {
            let (key, value) = row.map_err(failed)?;
            let (key, value) = (key.value(), value.value());
            let wrong = || table::damaged(path, format!("record `{}` is not as it was written", key.escape_ascii()));
            let (check, record) = table::checked(key, value).ok_or_else(wrong)?;
            self.records += 1;
            self.sum = self.sum.wrapping_add(u64::from(check));
            bytes += key.len() + record.len();
            page.push((std::str::from_utf8(key).map_err(|_| wrong())?.to_owned(), record.to_vec()));
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        match page.last() {
            Some((key, _)) => self.after = Some(key.as_bytes().to_vec()),
            None if (self.records, self.sum) != (self.header.records, self.header.sum) => {
                let (found, there) = (self.records, self.header.records);
                let what = format!("it holds {found} records, and not the {there} that were written to it");
                return Err(table::damaged(path, what));
            }
            None => {}
        }
        Ok(page)
    }
}
