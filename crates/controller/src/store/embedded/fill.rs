//! A store made of records that were another's, and the mark of one whose records have become another's.

use std::path::Path;

use muster_common::{proto::v1, wire::record};
use prost::Message as _;
use redb::{Database, ReadTransaction, ReadableDatabase};

use crate::store::{
    Error, Records,
    embedded::{
        disk,
        header::Header,
        table::{self, HEADER, RECORDS},
    },
};

/// Beside the header: where it has moved.
const MOVE: &str = "move";

/// Fills a new store; all of it in one commit.
pub(super) fn fill(database: &Database, records: &Records) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut header_table = write.open_table(HEADER)?;
        let mut header = Header { term: records.term.0, commits: 1, ..Header::default() };
        let mut table = write.open_table(RECORDS)?;
        for (name, value) in &records.all {
            table::put_bytes(&mut table, &mut header, name, value.clone())?;
        }
        header.write(&mut header_table)?;
    }
    write.commit()?;
    Ok(())
}

/// Notes where the store has moved or is about to; none: it stays.
pub(super) fn mark(database: &Database, mark: Option<&v1::MoveRecord>) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut table = write.open_table(HEADER)?;
        match mark {
            Some(mark) => drop(table.insert(MOVE, mark.encode_to_vec().as_slice())?),
            None => drop(table.remove(MOVE)?),
        }
    }
    write.commit()?;
    Ok(())
}

/// Where it has moved, by its mark.
pub(super) fn marked(database: &Database, path: &Path) -> Result<Option<v1::MoveRecord>, Error> {
    let read = database.begin_read().map_err(|error| disk::explain(path, "read", error))?;
    read_mark(&read, path)
}

/// A store that has moved, or perhaps has, is not taken up.
pub(super) fn check(database: &Database, path: &Path) -> Result<(), Error> {
    let moved = |mark: v1::MoveRecord| Error::Moved { path: path.to_owned(), to: mark.to, done: mark.done };
    marked(database, path)?.map_or(Ok(()), |mark| Err(moved(mark)))
}

fn read_mark(read: &ReadTransaction, path: &Path) -> Result<Option<v1::MoveRecord>, Error> {
    let table = read.open_table(HEADER).map_err(|error| disk::explain(path, "read", error))?;
    let Some(bytes) = table.get(MOVE).map_err(|error| disk::explain(path, "read", error))? else { return Ok(None) };
    let mark = v1::MoveRecord::decode(bytes.value())
        .map_err(|error| table::damaged(path, format!("its `{MOVE}` mark cannot be read: {error}")))?;
    if mark.version > record::VERSION {
        return Err(Error::Newer { path: path.to_owned(), found: mark.version, known: record::VERSION });
    }
    Ok(Some(mark))
}
