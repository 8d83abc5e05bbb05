//! The bytes of a backup file.
//!
//! ```text
//! "MUSTERBK"  format (u32)  length of the header (u32)  header      numbers are little-endian
//! zlib( { length (u32)  entry }* )                                  the last entry is the end, which counts the others
//! SHA-256 of all before
//! ```
//!
//! A newer format is refused before anything else of the file is looked at; a cut or flipped byte anywhere by the sum.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use muster_common::{
    proto::v1::{self, backup_entry::Entry as Kind},
    wire::record,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::Error;

const MAGIC: &[u8; 8] = b"MUSTERBK";
/// Of the frame around the records, whose versions are `wire`'s.
const FORMAT: u32 = 1;
const SUM: usize = 32;
/// No header and no entry is longer: a job's spec may have 64 MiB.
const LENGTH_MAX: usize = 256 << 20;

/// Writes a backup into memory, from where it is taken bit by bit.
pub struct Writer {
    deflate: ZlibEncoder<Vec<u8>>,
    sum: Sha256,
    records: u64,
    objects: u64,
}

impl Writer {
    /// A backup with this header.
    pub fn new(header: &v1::BackupHeader) -> Self {
        let header = header.encode_to_vec();
        let mut start = MAGIC.to_vec();
        start.extend(FORMAT.to_le_bytes());
        start.extend(u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
        start.extend(header);
        let deflate = ZlibEncoder::new(start, Compression::fast());
        Self { deflate, sum: Sha256::new(), records: 0, objects: 0 }
    }

    /// One record.
    ///
    /// # Errors
    /// It cannot be compressed.
    pub fn record(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.records += 1;
        self.entry(Kind::Record(v1::BackupRecord { key: key.to_owned(), value: value.to_vec() }))
    }

    /// A part of an object.
    ///
    /// # Errors
    /// It cannot be compressed.
    pub fn object(&mut self, path: &str, data: &[u8], first: bool) -> io::Result<()> {
        self.objects += u64::from(first);
        self.entry(Kind::Object(v1::BackupObject { path: path.to_owned(), data: data.to_vec(), first }))
    }

    fn entry(&mut self, entry: Kind) -> io::Result<()> {
        let entry = v1::BackupEntry { entry: Some(entry) }.encode_to_vec();
        let length = u32::try_from(entry.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.deflate.write_all(&length.to_le_bytes())?;
        self.deflate.write_all(&entry)
    }

    /// The bytes that are ready.
    pub fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(self.deflate.get_mut());
        self.sum.update(&bytes);
        bytes
    }

    /// The last bytes.
    ///
    /// # Errors
    /// They cannot be compressed.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry(Kind::End(v1::BackupEnd { records: self.records, objects: self.objects }))?;
        let mut bytes = self.deflate.finish()?;
        self.sum.update(&bytes);
        bytes.extend(self.sum.finalize());
        Ok(bytes)
    }
}

/// What a backup holds.
#[derive(Debug)]
pub enum Entry {
    /// One record, key and value.
    Record(String, Vec<u8>),
    /// A part of an object.
    Object {
        /// Where it lies in the object store.
        path: String,
        /// The next bytes of it.
        data: Vec<u8>,
        /// Whether it begins here.
        first: bool,
    },
}

/// Reads a backup whose sum was found right.
#[derive(Debug)]
pub struct Reader {
    header: v1::BackupHeader,
    path: PathBuf,
    entries: ZlibDecoder<io::Take<BufReader<File>>>,
    records: u64,
    objects: u64,
}

impl Reader {
    /// Checks the whole file and stands before its first entry. Blocks.
    ///
    /// # Errors
    /// It is no backup, a newer one, or not what was written.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |doing| move |source| Error::Io { doing, path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io("open"))?;
        let (length, body) = start(&mut file, path)?;
        check_sum(&mut file, path, length)?;
        file.seek(io::SeekFrom::Start(16)).map_err(io("read"))?;
        let mut header = vec![0; body];
        file.read_exact(&mut header).map_err(io("read"))?;
        let header = v1::BackupHeader::decode(header.as_slice()).map_err(|error| torn(path, error))?;
        if header.version > record::VERSION {
            return Err(Error::Newer { path: path.to_owned(), by: header.written_by });
        }
        let left = length - (16 + body + SUM) as u64;
        let entries = ZlibDecoder::new(BufReader::new(file).take(left));
        Ok(Self { header, path: path.to_owned(), entries, records: 0, objects: 0 })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &v1::BackupHeader {
        &self.header
    }

    /// The next entry; none: that was all. Blocks.
    ///
    /// # Errors
    /// The file was made wrong.
    pub fn entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut length = [0; 4];
        self.entries.read_exact(&mut length).map_err(|error| torn(&self.path, error))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LENGTH_MAX {
            return Err(torn(&self.path, format!("an entry of {length} bytes")));
        }
        let mut entry = vec![0; length];
        self.entries.read_exact(&mut entry).map_err(|error| torn(&self.path, error))?;
        let entry = v1::BackupEntry::decode(entry.as_slice()).map_err(|error| torn(&self.path, error))?;
        match entry.entry {
            Some(Kind::Record(record)) => {
                self.records += 1;
                Ok(Some(Entry::Record(record.key, record.value)))
            }
            Some(Kind::Object(object)) => {
                self.objects += u64::from(object.first);
                Ok(Some(Entry::Object { path: object.path, data: object.data, first: object.first }))
            }
            Some(Kind::End(end)) if (end.records, end.objects) == (self.records, self.objects) => Ok(None),
            Some(Kind::End(_)) => Err(torn(&self.path, "it does not hold as much as it says")),
            None => Err(torn(&self.path, "an entry of no known kind")),
        }
    }
}

/// How long the file is, and its header.
fn start(file: &mut File, path: &Path) -> Result<(u64, usize), Error> {
    let io = |source| Error::Io { doing: "read", path: path.to_owned(), source };
    let length = file.metadata().map_err(io)?.len();
    let mut start = [0; 16];
    let foreign = || Error::Foreign { path: path.to_owned() };
    match file.read_exact(&mut start) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(if length == 0 { torn(path, "it is empty") } else { foreign() });
        }
        Err(error) => return Err(io(error)),
    }
    let (magic, numbers) = start.split_first_chunk::<8>().ok_or_else(foreign)?;
    if magic != MAGIC {
        return Err(foreign());
    }
    let number =
        |at: usize| numbers.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes);
    if number(0) > FORMAT {
        return Err(Error::Newer { path: path.to_owned(), by: "a newer Muster".to_owned() });
    }
    let header = number(4) as usize;
    if (16 + header + SUM) as u64 > length {
        return Err(torn(path, "it is cut off"));
    }
    Ok((length, header))
}

fn check_sum(file: &mut File, path: &Path, length: u64) -> Result<(), Error> {
    let io = |source| Error::Io { doing: "read", path: path.to_owned(), source };
    file.rewind().map_err(io)?;
    let mut sum = Sha256::new();
    let mut body = BufReader::new(&mut *file).take(length - SUM as u64);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = body.read(&mut buffer).map_err(io)?;
        if read == 0 {
            break;
        }
        sum.update(buffer.get(..read).unwrap_or_default());
    }
    file.seek(io::SeekFrom::Start(length - SUM as u64)).map_err(io)?;
    let mut written = [0; SUM];
    file.read_exact(&mut written).map_err(io)?;
    if sum.finalize().as_slice() == written { Ok(()) } else { Err(torn(path, "its SHA-256 is not that of its bytes")) }
}

fn torn(path: &Path, what: impl ToString) -> Error {
    Error::Torn { path: path.to_owned(), what: what.to_string() }
}
