//! Whether the machine was started again since this data folder was last used: then nothing of it can be alive.

use std::{io, path::Path};

use anyhow::Context as _;

use super::credentials;
use crate::exec::os;

/// Compares with what the folder says, and writes down what is true now.
pub(super) fn is_another(data_dir: &Path) -> anyhow::Result<bool> {
    let file = data_dir.join("boot");
    note(&file, &os::boot()).with_context(|| format!("cannot use {}", file.display()))
}

/// A folder that says nothing, or a system that does not, proves no restart.
fn note(file: &Path, now: &str) -> io::Result<bool> {
    let before = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if before != now {
        // All of it or nothing: half a name would be another machine start.
        credentials::write(file, now)?;
    }
    Ok(!before.is_empty() && !now.is_empty() && before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_name_is_another_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("boot");
        let said: Vec<bool> =
            ["a", "a", "b", "", "b"].iter().map(|now| note(&file, now).expect("it can be written")).collect();
        assert_eq!(said, [false, false, true, false, false]);
    }
}
