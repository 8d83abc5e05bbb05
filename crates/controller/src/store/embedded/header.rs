//! What must be in the file: who wrote last, how often, and what all records come to.

use std::path::Path;

use redb::Table;

use crate::store::Error;

pub(super) const KEY: &str = "header";

/// Says that a redb file is ours.
const MAGIC: [u8; 8] = *b"MUSTERST";

/// Of the header and of the frame around a record. The records' own versions are `wire`'s.
const FORMAT: u32 = 1;

/// What there must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The newest.
    pub(super) term: u64,
    /// So many were ever made.
    pub(super) commits: u64,
    /// So many are there.
    pub(super) records: u64,
    /// Of all records' checks, wrapping.
    pub(super) sum: u64,
}

/// Why a header is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Foreign,
    Newer(u32),
    Damaged,
}

impl Problem {
    pub(super) fn at(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Foreign => Error::Foreign { path },
            Self::Newer(found) => Error::Newer { path, found, known: FORMAT },
            Self::Damaged => Error::Damaged { path, what: "its header is not as it was written".to_owned() },
        }
    }
}

impl Header {
    /// Magic, format, the four numbers, and a check over all that.
    const LEN: usize = 8 + 4 + 4 * 8 + 4;

    fn bytes(self) -> [u8; Self::LEN] {
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        for number in [self.term, self.commits, self.records, self.sum] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes.try_into().expect("the parts above are LEN bytes long")
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Problem::Foreign)?;
        if *magic != MAGIC {
            return Err(Problem::Foreign);
        }
        let (format, rest) = rest.split_first_chunk::<4>().ok_or(Problem::Damaged)?;
        let format = u32::from_le_bytes(*format);
        if format > FORMAT {
            return Err(Problem::Newer(format));
        }
        let (mut rest, check) = rest.split_last_chunk::<4>().ok_or(Problem::Damaged)?;
        let body = bytes.len() - check.len();
        if bytes.len() != Self::LEN || crc32fast::hash(&bytes[..body]) != u32::from_le_bytes(*check) {
            return Err(Problem::Damaged);
        }
        let mut number = || {
            let (number, after) = rest.split_first_chunk::<8>().ok_or(Problem::Damaged)?;
            rest = after;
            Ok(u64::from_le_bytes(*number))
        };
        Ok(Self { term: number()?, commits: number()?, records: number()?, sum: number()? })
    }

    pub(super) fn write(self, table: &mut Table<'_, &'static str, &'static [u8]>) -> Result<(), redb::Error> {
        table.insert(KEY, self.bytes().as_slice())?;
        Ok(())
    }

    /// One record more.
    pub(super) fn with(&mut self, check: u32) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(u64::from(check));
    }

    /// One record less. Stops at zero: a count that was wrong is found at the next loading.
    pub(super) fn without(&mut self, check: u32) {
        self.records = self.records.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(check));
    }
}
