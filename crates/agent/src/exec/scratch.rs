//! Working folders for tasks that name none: each task has one to itself, empty when it starts.
//!
//! A folder that was left empty serves the next task, because making and removing one costs more
//! than looking into it; and one whose time of change is the old one need not even be looked into.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_core::time::{Timestamp, micros};
use tracing::warn;

/// Empty folders that are kept for the next tasks.
const SPARE_MAX: usize = 256;

/// Folders of failed attempts that are kept, however large; older ones go.
const KEPT_MAX: usize = 100;
/// Folders of one name that are kept, before keeping fails. Numbers of jobs repeat where a controller was made anew.
const NAMES_MAX: usize = 2 * KEPT_MAX;

/// A change that is older than this has a time of its own: file systems tell times in steps, the coarsest of two seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// When something was last made, removed or renamed in a folder, or its rights changed. Nobody can set it back.
type Changed = Duration;

/// The folder of one attempt.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    /// When it was empty, and its last change so long past that the next one has another time.
    empty_at: Option<Changed>,
    /// It was made for this attempt, which may be another user's, and serves no other.
    pub(crate) is_private: bool,
}

impl Folder {
    /// One that an attempt has already.
    #[cfg(unix)]
    pub(crate) fn again(path: PathBuf, is_private: bool) -> Self {
        Self { path, empty_at: None, is_private }
    }

    /// Whether the next task may have it as it is.
    pub(crate) fn is_clean(&self) -> bool {
        !self.is_private && (self.is_untouched() || Scratch::is_empty(&self.path))
    }

    fn is_untouched(&self) -> bool {
        self.empty_at.is_some() && self.empty_at == changed(&self.path)
    }
}

/// All scratch folders of this agent.
pub(crate) struct Scratch {
    root: PathBuf,
    kept: PathBuf,
    made: AtomicU64,
    spare: Mutex<Vec<Folder>>,
}

impl Scratch {
    /// Under `root`, which is emptied but for `used`: what else is there is of an earlier run. What is kept of failed attempts
    /// is moved to `kept`, on the same file system.
    pub(crate) fn new(root: PathBuf, kept: PathBuf, used: &BTreeSet<PathBuf>) -> io::Result<Self> {
        std::fs::create_dir_all(&root)?;
        for entry in std::fs::read_dir(&root)?.flatten() {
            let path = entry.path();
            if used.contains(&path) {
                continue;
            }
            let removed =
                if entry.file_type()?.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
        std::fs::create_dir_all(&kept)?;
        let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok();
        let made = used.iter().filter_map(number).max().map_or(0, |last| last + 1);
        Ok(Self { root, kept, made: AtomicU64::new(made), spare: Mutex::default() })
    }

    /// An empty folder, which nobody had before if it is to be private; taken `now`.
    pub(crate) fn take(&self, is_private: bool, now: Timestamp) -> io::Result<Folder> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut folder) = (!is_private).then(spare).flatten() {
            folder.empty_at =
                folder.empty_at.or_else(|| changed(&folder.path).filter(|change| is_settled(*change, now)));
            return Ok(folder);
        }
        let path = self.root.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&path)?;
        Ok(Folder { path, is_private, empty_at: None })
    }

    /// Keeps what an attempt left, under `name` or, if another's has that, one that begins with it. Returns where; none: it
    /// left nothing. Blocks.
    pub(crate) fn keep(&self, folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
        if Self::is_empty(folder) {
            return Ok(None);
        }
        let mut others = 0;
        let to = loop {
            let to = self.kept.join(if others == 0 { name.to_owned() } else { format!("{name}-{}", others + 1) });
            match std::fs::rename(folder, &to) {
                Ok(()) => break to,
                // What is there and empty would be replaced: nothing is lost with it.
                Err(error) if is_taken(&error) && others < NAMES_MAX => others += 1,
                Err(error) => return Err(error),
            }
        };
        self.forget_oldest(&to);
        Ok(Some(to))
    }

    /// Never `newest`, of which somebody is just told.
    fn forget_oldest(&self, newest: &Path) {
        let Ok(entries) = std::fs::read_dir(&self.kept) else { return };
        let mut kept: Vec<_> = entries.flatten().map(|entry| (kept_at(&entry.path()), entry.path())).collect();
        kept.sort_unstable_by_key(|(at, path)| (path == newest, *at));
        let many = kept.len().saturating_sub(KEPT_MAX);
        for (_, old) in kept.drain(..many) {
            self.clear(&old);
        }
    }

    /// Takes back a folder of which nothing was made.
    pub(crate) fn put_back(&self, folder: Folder) {
        match folder.is_clean() {
            true => self.put_empty(folder),
            false => self.clear(&folder.path),
        }
    }

    /// Takes back a folder that is empty, for the next task.
    pub(crate) fn put_empty(&self, mut folder: Folder) {
        if !folder.is_untouched() {
            folder.empty_at = None;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(folder);
        } else {
            drop(spare);
            self.clear(&folder.path);
        }
    }

    /// Removes a folder and what the task left in it, of any size: not for a thread that others wait for.
    pub(crate) fn clear(&self, folder: &Path) {
        if let Err(error) = std::fs::remove_dir_all(folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(folder = %folder.display(), %error, "could not remove what a task left in its scratch folder");
        }
    }

    /// Whether the task left nothing in it.
    pub(crate) fn is_empty(folder: &Path) -> bool {
        std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
    }
}

/// Whether something has that name, and it is not what may be replaced.
fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    // Windows denies access to the name of a folder that is there.
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
        || cfg!(windows) && error.kind() == io::ErrorKind::PermissionDenied
}

/// When a folder came there: its renaming is its last change, but for those of people who look after it. What the task wrote
/// last may be long past.
fn kept_at(path: &Path) -> Option<Duration> {
    let modified = || std::fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
    changed(path).or_else(|| modified()?.duration_since(std::time::UNIX_EPOCH).ok())
}

#[cfg(unix)]
fn changed(path: &Path) -> Option<Changed> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::symlink_metadata(path).ok()?;
    let (seconds, nanos) = (u64::try_from(found.ctime()).ok()?, u32::try_from(found.ctime_nsec()).ok()?);
    Some(Duration::new(seconds, nanos))
}

/// What is told there can be set to anything.
#[cfg(not(unix))]
fn changed(_: &Path) -> Option<Changed> {
    None
}

fn is_settled(change: Changed, now: Timestamp) -> bool {
    now.since(Timestamp(micros(change))) > SETTLED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (tempfile::TempDir, Scratch) {
        let dir = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(dir.path().join("scratch"), dir.path().join("kept"), &BTreeSet::new())
            .expect("it can be made");
        (dir, scratch)
    }

    #[test]
    fn a_folder_that_was_just_made_is_looked_into() {
        let (_dir, scratch) = made();
        let folder = scratch.take(false, Timestamp(0)).expect("a folder");
        let made = Timestamp(micros(changed(&folder.path).unwrap_or_default()));
        scratch.put_back(folder);
        let again = scratch.take(false, made).expect("the same");
        assert_eq!(again.empty_at, None, "a change in the same step would not show");
        std::fs::write(again.path.join("left"), "").expect("it is ours");
        assert!(!again.is_clean());
    }

    #[cfg(unix)]
    #[test]
    fn whoever_leaves_something_in_a_folder_changes_its_time_whatever_else_is_set_back() {
        let (_dir, scratch) = made();
        let mut folder = scratch.take(false, Timestamp(0)).expect("a folder");
        folder.empty_at = changed(&folder.path);
        assert!(folder.is_untouched() && folder.is_clean());
        let before = std::fs::metadata(&folder.path).and_then(|found| found.modified()).expect("it has a time");
        // The next step of the file system's clock has come when a change shows.
        while folder.is_untouched() {
            std::fs::write(folder.path.join("left"), "").expect("it is ours");
            let times = std::fs::FileTimes::new().set_modified(before);
            std::fs::File::open(&folder.path).and_then(|dir| dir.set_times(times)).expect("it is ours");
            if folder.is_untouched() {
                std::fs::remove_file(folder.path.join("left")).expect("it is there");
            }
        }
        assert!(!folder.is_clean());
        std::fs::remove_file(folder.path.join("left")).expect("it is there");
        assert!(folder.is_clean(), "it was looked into");
        scratch.put_back(folder);
        assert_eq!(
            scratch.take(false, Timestamp(0)).expect("the same").empty_at,
            None,
            "its old time says nothing any more"
        );
    }

    /// What an attempt left, which wrote this and nothing since 1970.
    fn left(scratch: &Scratch, text: &str) -> PathBuf {
        let folder = scratch.take(true, Timestamp(0)).expect("a folder").path;
        std::fs::write(folder.join("left"), text).expect("it is ours");
        let long_past = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        std::fs::File::open(&folder).and_then(|dir| dir.set_times(long_past)).expect("it is ours");
        folder
    }

    #[test]
    fn nothing_is_lost_because_another_attempt_had_the_same_numbers() {
        let (dir, scratch) = made();
        for (text, name) in [("first", "5.7.1"), ("second", "5.7.1-2"), ("third", "5.7.1-3")] {
            let kept = scratch.keep(&left(&scratch, text), "5.7.1").expect("it is kept").expect("it left something");
            assert_eq!(kept, dir.path().join("kept").join(name));
            assert_eq!(std::fs::read_to_string(kept.join("left")).expect("there"), text);
        }
        std::fs::write(dir.path().join("kept/9.0.1"), "not ours").expect("it is ours");
        let kept = scratch.keep(&left(&scratch, "x"), "9.0.1").expect("it is kept").expect("it left something");
        assert_eq!(kept, dir.path().join("kept/9.0.1-2"));
        assert_eq!(std::fs::read_to_string(dir.path().join("kept/5.7.1/left")).expect("there"), "first");
        let empty = scratch.take(true, Timestamp(0)).expect("a folder");
        assert_eq!(scratch.keep(&empty.path, "5.7.1").expect("nothing to do"), None);
    }

    #[cfg(unix)]
    #[test]
    fn the_hundred_newest_stay_whenever_their_tasks_wrote_last() {
        let (dir, scratch) = made();
        let keep = |n: usize| {
            let folder = left(&scratch, "x");
            if n < 5 {
                // These wrote last of all, and were kept first.
                let last = std::time::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
                std::fs::File::open(&folder).and_then(|dir| dir.set_modified(last)).expect("ours");
            }
            let kept = scratch.keep(&folder, &format!("1.{n}.1")).expect("it is kept").expect("it left something");
            assert!(kept.join("left").exists(), "{n} went at once");
            // The next one comes later by the file system's clock, which goes in steps.
            let clock = dir.path().join("clock");
            while std::fs::write(&clock, "").is_err() || changed(&clock) <= changed(&kept) {}
        };
        (0..KEPT_MAX + 5).for_each(keep);
        let there = |n: usize| dir.path().join(format!("kept/1.{n}.1/left")).exists();
        let gone: Vec<_> = (0..KEPT_MAX + 5).filter(|n| !there(*n)).collect();
        assert_eq!(gone, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn only_a_change_long_past_counts() {
        let now = Timestamp(0).after(SETTLED * 10);
        let [long, just, never] = [8, 10, 12].map(|at| is_settled(SETTLED * at, now));
        assert!(long && !just && !never, "a clock that was set back proves nothing");
    }
}
