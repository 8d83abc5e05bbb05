//! What is inside the file: records with their checks, and one header that says what there must be.
//!
//! redb checks its pages only after a crash. So that a flipped bit, a lost page or a stale one is never
//! misread, every record carries a check over its key and value, and the header the count and the
//! sum of all checks.

use std::path::Path;

use muster_common::wire::{self, record};
use muster_core::{
    id::Term,
    record::{Key, Piece},
};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
};

use crate::store::{
    Batch, Error, Loaded,
    embedded::{
        disk::{self, Disk},
        fill,
        header::{self, Header},
    },
};

pub(super) const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
pub(super) const HEADER: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("muster");

/// Room made ahead for what the header promises, which may be wrong.
const CAPACITY_MAX: usize = 1 << 20;

/// What became of a commit that met no error.
pub(super) enum Written {
    /// On disk; so many commits are there now.
    Durable(u64),
    /// Refused: another term has begun.
    Fenced,
}

/// Makes an empty store.
pub(super) fn initialise(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(RECORDS)?;
    Header::default().write(&mut write.open_table(HEADER)?)?;
    write.commit()?;
    Ok(())
}

/// Reads and checks everything, and only then begins a new term.
pub(super) fn load(database: &Database, disk: &mut dyn Disk) -> Result<Loaded, Error> {
    fill::check(database, disk.path())?;
    let (header, pieces) = read(database, disk.path())?;
    if let Some(noted) = disk.noted().filter(|noted| *noted > header.commits) {
        return Err(damaged(
            disk.path(),
            format!("it ends with commit {}, but commit {noted} was acknowledged", header.commits),
        ));
    }
    let next = Header { term: header.term + 1, commits: header.commits + 1, ..header };
    begin_term(database, next).map_err(|error| disk::explain(disk.path(), "write", error))?;
    disk.note(next.commits);
    Ok(Loaded { term: Term(next.term), pieces })
}

/// Writes all of `batch` and syncs, or nothing of it (C2).
pub(super) fn commit(database: &Database, term: Term, batch: &Batch) -> Result<Written, redb::Error> {
    let write = database.begin_write()?;
    let mut header_table = write.open_table(HEADER)?;
    let found = header_table.get(header::KEY)?.and_then(|bytes| Header::parse(bytes.value()).ok());
    let Some(mut header) = found.filter(|header| header.term == term.0) else {
        drop(header_table);
        write.abort()?;
        return Ok(Written::Fenced);
    };
    header.commits += 1;
    let mut records = write.open_table(RECORDS)?;
    for (key, piece) in &batch.puts {
        put(&mut records, &mut header, key, piece)?;
    }
    for key in &batch.deletes {
        delete(&mut records, &mut header, key)?;
    }
    header.write(&mut header_table)?;
    drop((header_table, records));
    write.commit()?;
    Ok(Written::Durable(header.commits))
}

fn begin_term(database: &Database, header: Header) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    header.write(&mut write.open_table(HEADER)?)?;
    write.commit()?;
    Ok(())
}

/// Whether a file is a store that this version reads.
pub(super) fn check_owner(database: &impl ReadableDatabase, path: &Path) -> Result<(), Error> {
    let read = database.begin_read().map_err(|error| disk::explain(path, "read", error))?;
    read_header(&read, path).map(|_| ())
}

fn read(database: &Database, path: &Path) -> Result<(Header, Vec<(Key, Piece)>), Error> {
    let read = database.begin_read().map_err(|error| disk::explain(path, "read", error))?;
    let header = read_header(&read, path)?;
    let records = read.open_table(RECORDS).map_err(|error| disk::explain(path, "read", error))?;
    Ok((header, read_records(&records, header, path)?))
}

pub(super) fn read_header(read: &ReadTransaction, path: &Path) -> Result<Header, Error> {
    let table = match read.open_table(HEADER) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Err(Error::Foreign { path: path.to_owned() }),
        Err(error) => return Err(disk::explain(path, "read", error)),
    };
    let bytes = table.get(header::KEY).map_err(|error| disk::explain(path, "read", error))?;
    let bytes = bytes.ok_or_else(|| damaged(path, "its header is missing".to_owned()))?;
    Header::parse(bytes.value()).map_err(|problem| problem.at(path))
}

fn read_records(
    table: &ReadOnlyTable<&'static [u8], &'static [u8]>,
    header: Header,
    path: &Path,
) -> Result<Vec<(Key, Piece)>, Error> {
    let failed = |error: redb::StorageError| disk::explain(path, "read", error);
    let (mut records, mut sum) = (0_u64, 0_u64);
    let mut pieces = Vec::with_capacity(usize::try_from(header.records).unwrap_or(0).min(CAPACITY_MAX));
    for row in table.iter().map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        let (key, value) = (key.value(), value.value());
        let (check, record) = checked(key, value)
            .ok_or_else(|| damaged(path, format!("record `{}` is not as it was written", key.escape_ascii())))?;
        records += 1;
        sum = sum.wrapping_add(u64::from(check));
        let key = record::parse_key(key).map_err(|error| refused(path, error))?;
        let piece = record::decode(&key, record).map_err(|error| refused(path, error))?;
        pieces.push((key, piece));
    }
    if (records, sum) != (header.records, header.sum) {
        let what = format!("it holds {records} records, and not the {} that were written to it", header.records);
        return Err(damaged(path, what));
    }
    Ok(pieces)
}

/// The check over a record and the record itself; none: it is not as it was written.
pub(super) fn checked<'a>(key: &[u8], value: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (record, check) = value.split_last_chunk::<4>()?;
    let check = u32::from_le_bytes(*check);
    (check == check_of(key, record)).then_some((check, record))
}

fn check_of(key: &[u8], record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(record);
    hasher.finalize()
}

pub(super) fn damaged(path: &Path, what: String) -> Error {
    Error::Damaged { path: path.to_owned(), what }
}

fn refused(path: &Path, error: wire::Error) -> Error {
    match error {
        wire::Error::Newer { found, known, .. } => Error::Newer { path: path.to_owned(), found, known },
        other => damaged(path, other.to_string()),
    }
}

/// What `put` and `delete` change.
pub(super) type Records<'t> = Table<'t, &'static [u8], &'static [u8]>;

fn put(records: &mut Records<'_>, header: &mut Header, key: &Key, piece: &Piece) -> Result<(), redb::Error> {
    put_bytes(records, header, &record::key_bytes(key), record::encode(piece, key))
}

/// Writes a record as it is, with its check.
pub(super) fn put_bytes(
    records: &mut Records<'_>,
    header: &mut Header,
    name: &str,
    mut value: Vec<u8>,
) -> Result<(), redb::Error> {
    let check = check_of(name.as_bytes(), &value);
    value.extend(check.to_le_bytes());
    if let Some(old) = records.insert(name.as_bytes(), value.as_slice())? {
        header.without(check_in(old.value()));
    }
    header.with(check);
    Ok(())
}

fn delete(records: &mut Records<'_>, header: &mut Header, key: &Key) -> Result<(), redb::Error> {
    if let Some(old) = records.remove(record::key_bytes(key).as_bytes())? {
        header.without(check_in(old.value()));
    }
    Ok(())
}

/// What is written as the check of a value, right or not.
fn check_in(value: &[u8]) -> u32 {
    value.last_chunk().map_or(0, |check| u32::from_le_bytes(*check))
}

/// Writes a record that this version would not write.
#[cfg(test)]
pub(super) fn put_raw(database: &Database, key: &Key, value: &[u8]) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut header_table = write.open_table(HEADER)?;
        let header = header_table.get(header::KEY)?.and_then(|bytes| Header::parse(bytes.value()).ok());
        let mut header = header.unwrap_or_default();
        put_bytes(&mut write.open_table(RECORDS)?, &mut header, &record::key_bytes(key), value.to_vec())?;
        header.write(&mut header_table)?;
    }
    write.commit()?;
    Ok(())
}

/// Takes a record away without a word to the header.
#[cfg(test)]
pub(super) fn lose(database: &Database, key: &Key) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(RECORDS)?.remove(record::key_bytes(key).as_bytes())?;
    write.commit()?;
    Ok(())
}
