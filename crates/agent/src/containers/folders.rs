//! The folders of an attempt in a container, and who may use them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_core::id::Token;

/// Of one attempt. Whoever the image runs as may use what is seen inside; nobody else of the machine comes so far.
pub(crate) struct Folders {
    /// For us and the engine.
    pub(crate) private: PathBuf,
    /// In it, and seen inside at the same place.
    pub(crate) shared: PathBuf,
    /// In it: empty, for the task.
    pub(crate) scratch: PathBuf,
}

impl Folders {
    /// Under `files`, which is emptied at each start of the agent.
    pub(crate) fn of(files: &Path, token: Token) -> Self {
        let private = files.join(format!("{token}.box"));
        let shared = private.join("shared");
        Self { scratch: shared.join("scratch"), shared, private }
    }

    /// Makes them.
    pub(crate) fn make(&self) -> io::Result<()> {
        for (folder, mode) in [(&self.private, 0o700), (&self.shared, 0o777), (&self.scratch, 0o777)] {
            fs::create_dir(folder)?;
            allow(folder, mode)?;
        }
        Ok(())
    }

    /// Where the attempt leaves its result.
    pub(crate) fn result(&self) -> PathBuf {
        self.shared.join("result")
    }

    /// Puts a file where the attempt can read it; says where.
    pub(crate) fn take_in(&self, file: &Path) -> io::Result<PathBuf> {
        let inside = self.shared.join("inputs");
        fs::rename(file, &inside)?;
        allow(&inside, 0o644)?;
        Ok(inside)
    }
}

#[cfg(unix)]
fn allow(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn allow(_path: &Path, _mode: u32) -> io::Result<()> {
    Ok(())
}
