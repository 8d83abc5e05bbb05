//! What is mounted below a folder that a container may only read: engines show it as well, and leave it as it is.

use std::path::{Path, PathBuf};

use crate::cgroup::unescaped;

/// The first mount below `folder` that can be written, but for those of which `may_write` holds. `mounts` is a text as
/// `proc_pid_mountinfo(5)` describes it.
pub(super) fn written_below(mounts: &str, folder: &Path, may_write: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let points = mounts.lines().filter_map(point_if_written);
    points.into_iter().find(|point| point != folder && point.starts_with(folder) && !may_write(point))
}

fn point_if_written(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let mut words = before.split(' ').skip(4);
    let (point, own, whole) = (words.next()?, words.next()?, after.split(' ').nth(2).unwrap_or_default());
    // The mount and its file system are for reading only each by itself.
    let is_read_only = [own, whole].iter().any(|options| options.split(',').any(|option| option == "ro"));
    (!is_read_only).then(|| unescaped(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_for_writing_below_a_folder_is_found() {
        let at_root = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        let table = [
            ("", None),
            ("30 21 8:2 / /srv/words rw - ext4 /dev/sdb1 rw\n", None),
            ("30 21 8:2 / /srv/wordsmith rw - ext4 /dev/sdb1 rw\n", None),
            ("30 21 8:2 / /srv/words/big rw,relatime - ext4 /dev/sdb1 rw\n", Some("/srv/words/big")),
            ("30 21 8:2 / /srv/words/a/b\\040c rw shared:2 master:1 - nfs h:/x rw,vers=4\n", Some("/srv/words/a/b c")),
            ("30 21 8:2 / /srv/words/big ro,relatime - ext4 /dev/sdb1 rw\n", None),
            ("30 21 8:2 / /srv/words/big rw - iso9660 /dev/sr0 ro,nojoliet\n", None),
            ("30 21 8:2 / /srv/words/big rw - fuse.x x rw,errors=remount-ro\n", Some("/srv/words/big")),
            ("30 21 8:2 / /srv/words/out rw - tmpfs tmpfs rw\n", None),
            ("30 21 8:2 / /srv/words/out/x rw - tmpfs tmpfs rw\n", None),
            ("odd\n\n30 21 - tmpfs\n", None),
        ];
        for (line, expected) in table {
            let may_write = |point: &Path| point.starts_with("/srv/words/out");
            let found = written_below(&format!("{at_root}{line}"), Path::new("/srv/words"), may_write);
            assert_eq!(found, expected.map(PathBuf::from), "{line}");
        }
    }
}
