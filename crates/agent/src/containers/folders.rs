//! The folders of an attempt in a container, and who may use them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_core::id::Token;
use tracing::warn;

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

    /// Empties `files`, or makes it. What users of an image left there may be beyond our own user, if that is not root's: it
    /// stays, for nobody to find (nobody is given its name again), and is tried again at the next start.
    pub(crate) fn empty(files: &Path) -> io::Result<()> {
        let first = match fs::remove_dir_all(files) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => error,
            _ => return fs::create_dir_all(files),
        };
        for entry in fs::read_dir(files)?.flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _counted_below =
                if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        }
        let left = fs::read_dir(files)?.count();
        // One in which nothing can be made is of no use to anybody.
        let trial = files.join("trial");
        if fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)).is_err() {
            return Err(first);
        }
        warn!(folder = %files.display(), left, error = %first, "files of earlier attempts cannot be removed by this user; they stay there");
        Ok(())
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use nix::unistd::{Uid, setfsuid};

    use super::*;

    /// Does it as a user who is not root: on a thread of its own, for that counts for a thread.
    fn as_nobody<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            setfsuid(Uid::from_raw(65534));
            work()
        });
        thread.join().expect("it does not panic")
    }

    #[test]
    fn what_another_user_left_is_no_reason_not_to_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = folder.path().join("files");
        let theirs = files.join("7.box/shared");
        fs::create_dir_all(&theirs).expect("ours");
        for file in [theirs.join("x"), files.join("8.result")] {
            fs::write(file, "").expect("ours");
        }
        for (path, mode) in [(folder.path(), 0o755), (&files, 0o777), (&theirs, 0o555)] {
            allow(path, mode).expect("ours");
        }
        let emptied = {
            let files = files.clone();
            as_nobody(move || Folders::empty(&files))
        };
        emptied.expect("it goes on");
        let left = |folder: &Path| fs::read_dir(folder).expect("it is there").flatten().map(|entry| entry.file_name());
        assert_eq!(left(&files).collect::<Vec<_>>(), ["7.box"]);
        assert!(theirs.join("x").exists());
        // Where nothing can be made, it does not go on.
        allow(&files, 0o555).expect("ours");
        let emptied = {
            let files = files.clone();
            as_nobody(move || Folders::empty(&files))
        };
        assert!(emptied.is_err());
        for path in [&files, &theirs] {
            allow(path, 0o755).expect("ours");
        }
        Folders::empty(&files).expect("all of it is ours");
        assert_eq!(left(&files).count(), 0);
    }
}
