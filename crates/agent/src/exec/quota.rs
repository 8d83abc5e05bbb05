//! How much may lie in the scratch folder of one attempt: looked at again and again while it runs.
//!
//! A look costs the disk something, so that the next one waits for many times as long as it took. What is written and
//! removed between two looks is not seen, nor files that have no name any more.

use std::{
    collections::HashSet,
    fs::Metadata,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::BoxFuture;
use muster_common::clock::Clock;

use super::{confined::shown, rules::Rules};

/// From the start to the first look, and between looks that cost nothing.
const PAUSE: Duration = Duration::from_secs(1);
/// A look is followed by a pause of so many times its own length.
const SHARE: u32 = 20;
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A look ends here; what it has seen counts.
const ENTRIES_MAX: usize = 1_000_000;

/// See the module.
pub(super) struct Quota(Option<BoxFuture<'static, u64>>);

impl Quota {
    /// For an attempt that may leave `limit` bytes in `folder`; without either nothing is looked at.
    pub(super) fn of(folder: Option<PathBuf>, limit: Option<u64>, clock: Clock) -> Self {
        let both = folder.zip(limit);
        Self(both.map(|(folder, limit)| -> BoxFuture<'static, u64> { Box::pin(passed(folder, limit, clock)) }))
    }

    /// Waits until more is there than may be; returns how much. Never, if there is no limit. Cancel safe.
    pub(super) async fn passed(&mut self) -> u64 {
        let Some(look) = &mut self.0 else { return std::future::pending().await };
        let found = look.as_mut().await;
        // It has said so, once.
        self.0 = None;
        found
    }
}

/// What a person should know of an attempt of which `found` bytes were there.
pub(super) fn why(found: u64, own: Option<u64>, rules: &Rules) -> String {
    let whose = if own.is_some() { "its scratch_size" } else { "this agent's scratch_size" };
    let limit = shown(own.or(rules.scratch_size).unwrap_or_default());
    let found = shown(found);
    format!(
        "{found} lay in its scratch folder, more than {whose} of {limit}: let it remove what it does not need, or give the task a \
         larger scratch_size"
    )
}

async fn passed(folder: PathBuf, limit: u64, clock: Clock) -> u64 {
    // Goes with this future: nobody waits for a look then.
    let wanted = Arc::new(());
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let (folder, wanted, began) = (folder.clone(), Arc::downgrade(&wanted), clock.mono());
        let look = tokio::task::spawn_blocking(move || measure(&folder, limit, &wanted));
        match look.await {
            Ok(found) if found > limit => return found,
            _ => pause = (clock.mono().since(began) * SHARE).clamp(PAUSE, PAUSE_MAX),
        }
    }
}

/// Bytes of disk that all below `folder` takes; once they are more than `limit`, so many as were seen.
fn measure(folder: &Path, limit: u64, wanted: &Weak<()>) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let (mut found, mut entries, mut linked) = (0_u64, 0, HashSet::new());
    while let Some(folder) = folders.pop() {
        // Removed or closed meanwhile.
        let Ok(list) = std::fs::read_dir(folder) else { continue };
        for entry in list.flatten() {
            entries += 1;
            let Ok(file) = entry.metadata() else { continue };
            if file.is_dir() {
                folders.push(entry.path());
            }
            if name_of_many(&file).is_none_or(|file| linked.insert(file)) {
                found = found.saturating_add(size(&file));
            }
            if found > limit || entries >= ENTRIES_MAX || wanted.strong_count() == 0 {
                return found;
            }
        }
    }
    found
}

#[cfg(unix)]
fn size(file: &Metadata) -> u64 {
    // A file with holes takes less than it is long, and a short one a whole block.
    std::os::unix::fs::MetadataExt::blocks(file).saturating_mul(512)
}

#[cfg(not(unix))]
fn size(file: &Metadata) -> u64 {
    file.len()
}

/// What a file that has several names is known by.
#[cfg(unix)]
fn name_of_many(file: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    (file.nlink() > 1 && !file.is_dir()).then(|| (file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn name_of_many(_file: &Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn found(folder: &Path, limit: u64) -> u64 {
        let wanted = Arc::new(());
        measure(folder, limit, &Arc::downgrade(&wanted))
    }

    #[test]
    fn all_below_a_folder_counts_once_and_nothing_elsewhere() -> std::io::Result<()> {
        let (inside, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let full = vec![7_u8; 1 << 20];
        let empty = found(inside.path(), u64::MAX);
        std::fs::create_dir_all(inside.path().join("a/b"))?;
        std::fs::write(inside.path().join("a/b/file"), &full)?;
        std::fs::write(outside.path().join("large"), &full)?;
        std::os::unix::fs::symlink(outside.path(), inside.path().join("away"))?;
        std::os::unix::fs::symlink(inside.path(), inside.path().join("a/round"))?;
        std::fs::hard_link(inside.path().join("a/b/file"), inside.path().join("again"))?;
        // A hole takes no room.
        std::fs::File::create(inside.path().join("hole"))?.set_len(1 << 30)?;
        let taken = found(inside.path(), u64::MAX) - empty;
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&taken), "{taken}");
        assert!(found(inside.path(), 4096) > 4096);
        assert_eq!(found(&inside.path().join("never"), 0), 0);
        assert_eq!(measure(inside.path(), u64::MAX, &Weak::new()).max(taken), taken, "nobody waits for it");
        Ok(())
    }

    #[test]
    fn it_is_told_whose_limit_was_passed_and_what_to_do() {
        let rules = Rules { scratch_size: Some(1 << 30), ..Rules::default() };
        let own = why(3 << 20, Some(2 << 20), &rules);
        assert!(
            own.starts_with("3 MiB lay in its scratch folder, more than its scratch_size of 2 MiB: let it"),
            "{own}"
        );
        assert!(why(3 << 30, None, &rules).contains("more than this agent's scratch_size of 1 GiB"));
    }
}
