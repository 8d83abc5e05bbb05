//! Folders and files that a job file names.

use std::path::{Path, PathBuf};

use super::{
    kind::Kind,
    read::{Read, Reader},
    tree::Node,
};

/// Bytes of a file that a job file names.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// A folder, whole: a relative one is taken from the submitter's.
pub(super) struct Folder(pub(super) String);

impl Read for Folder {
    fn kind() -> Kind {
        Kind::Text
    }

    fn wants() -> String {
        "a folder".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let folder = String::read(reader, node)?;
        if folder.starts_with('~') {
            reader.wrong(node.at, "starts with `~`, which only a shell understands; write the whole path");
            return None;
        }
        if folder.is_empty() || is_whole(&folder) {
            return Some(Self(folder));
        }
        let whole: PathBuf = reader.context.cwd.join(&folder).components().collect();
        let text = whole.into_os_string().into_string();
        reader.judge(node, text.map_err(|_| "lies in a folder whose name is not UTF-8".to_owned())).map(Self)
    }
}

/// Whether a path starts at a root, of this system or of another's.
fn is_whole(path: &str) -> bool {
    let bytes = path.as_bytes();
    let has_drive = matches!(bytes, [drive, b':', b'\\' | b'/', ..] if drive.is_ascii_alphabetic());
    path.starts_with(['/', '\\']) || has_drive
}

/// What is in a file that stands beside the job file.
pub(super) struct Content(pub(super) Vec<u8>);

impl Read for Content {
    fn kind() -> Kind {
        Kind::Text
    }

    fn wants() -> String {
        "a file, from the job file's folder".to_owned()
    }

    fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Self> {
        let name = String::read(reader, node)?;
        let path = reader.context.dir.join(&name);
        reader.judge(node, load(&path)).map(Self)
    }
}

fn load(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    // Only regular files: a pipe or a device may never end.
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if meta.len() > MAX_FILE {
        return Err(format!("{} has {} bytes; at most {MAX_FILE} are read", path.display(), meta.len()));
    }
    std::fs::read(path).map_err(failed)
}
