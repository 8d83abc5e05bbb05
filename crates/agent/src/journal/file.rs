//! Segments as files: found, read, begun, set aside, deleted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tracing::{error, warn};

use super::{Error, codec, replay::replay};
use crate::{exec::os, supervisor::Memory};

/// A segment and its number.
pub(super) type Segment = (u64, PathBuf);

/// The file of a segment.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("journal-{number:08}.log"))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// All segments, oldest first.
pub(super) fn segments(folder: &Path) -> Result<Vec<Segment>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("journal-").and_then(|rest| rest.strip_suffix(".log"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The memory of the newest segment that has all that it begins with, which has all that those before it said; failing
/// that, of what can be read of the newest; and whether there is such a segment.
pub(super) fn load(segments: &[Segment]) -> Result<(Memory, bool), Error> {
    let mut best = None;
    for (_, path) in segments.iter().rev() {
        let bytes = fs::read(path).map_err(failed(path))?;
        let found = replay(&bytes);
        if let Some(version) = found.newer {
            return Err(Error::Newer { path: path.clone(), found: version, known: codec::VERSION });
        }
        if let Some(at) = found.torn_at {
            let lost = bytes.len() - at;
            warn!(path = %path.display(), at, lost, "the journal's last write was cut short; its tail is dropped");
        }
        if !found.damaged.is_empty() || !(found.headed || bytes.is_empty()) {
            set_aside(path, &found.damaged);
        }
        if found.whole {
            return Ok((found.memory, true));
        }
        // Keep looking: those before it are deleted when it is on disk, and a power failure may come earlier.
        warn!(path = %path.display(), "a journal segment lacks what it should begin with; the one before it counts");
        best.get_or_insert(found.memory);
    }
    Ok((best.unwrap_or_default(), false))
}

/// Keeps a damaged file for a person. What it named and can no longer be read is not lost in
/// silence: the controller sees at our hello that we do not hold it and gives it out again.
fn set_aside(path: &Path, damaged: &[String]) {
    let aside = path.with_extension("damaged");
    let kept = fs::copy(path, &aside);
    // An older build let others read it.
    let _kept_or_not = os::close_file(&aside);
    error!(
        path = %path.display(), aside = %aside.display(), kept = kept.is_ok(), damaged = damaged.join("; "),
        "the journal is damaged; what can be read is used and leases that are missing will be given out again",
    );
}

/// Writes a new segment that begins with `memory`. It survives the end of this process, and not yet that of the machine.
pub(super) fn begin(folder: &Path, number: u64, memory: &Memory) -> Result<(File, u64), Error> {
    let mut bytes = Vec::new();
    codec::append_memory(memory, &mut bytes);
    let path = path(folder, number);
    let draft = path.with_extension("draft");
    let begun = || -> io::Result<File> {
        // Left by a crash, perhaps with other rights.
        let _gone = fs::remove_file(&draft);
        let mut options = OpenOptions::new();
        let mut file = os::for_us_alone(options.create_new(true).append(true)).open(&draft)?;
        file.write_all(&bytes)?;
        // Nothing may fail behind this: from here on it is the one that counts.
        fs::rename(&draft, &path)?;
        Ok(file)
    };
    let file = begun().map_err(|source| {
        // On a full disk half a draft is in the way of what comes next.
        let _ = fs::remove_file(&draft);
        Error::Io { path: path.clone(), source }
    })?;
    Ok((file, u64::try_from(bytes.len()).unwrap_or(u64::MAX)))
}

/// Deletes the segments before `number`; one that cannot be deleted does no harm and is tried again.
pub(super) fn delete_before(folder: &Path, number: u64) {
    for (_, path) in segments(folder).unwrap_or_default().into_iter().filter(|(other, _)| *other < number) {
        if let Err(error) = fs::remove_file(&path) {
            warn!(path = %path.display(), %error, "an old journal segment could not be deleted");
        }
    }
}
