//! On which disk a folder lies, and what is written to hold an attempt to a rate there.

use std::{
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use muster_core::resources::IoLimits;
use nix::sys::stat::{major, minor};

use super::trees::{Version, path};

/// A whole disk: limits are not taken for its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    major: u64,
    minor: u64,
}

/// Where an attempt works, and where we do.
pub(crate) type Disks = [Option<Disk>; 2];

/// How fast an attempt may use which disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Io {
    pub(crate) limits: IoLimits,
    pub(crate) disks: Disks,
}

impl Io {
    /// What is asked for; of which disks is not known yet.
    pub(super) fn of(limits: &IoLimits) -> Option<Self> {
        (!limits.is_empty()).then_some(Self { limits: *limits, disks: [None; 2] })
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The disk on which `folder` lies; `Err` is for people.
pub(crate) fn under(folder: &Path) -> Result<Disk, String> {
    let shown = folder.display();
    let device = fs::metadata(folder).map_err(|error| format!("{shown} cannot be looked at: {error}"))?.dev();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (device, kind) = match major(device) {
        // The file system has no disk of its own, or more than one: its mount says what it was made of.
        0 => {
            let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
            let (kind, source) = mounted(&mounts(), &whole).unwrap_or_default();
            let made_of = fs::metadata(source).ok().filter(|file| file.file_type().is_block_device());
            (made_of.map(|file| file.rdev()), kind)
        }
        _ => (Some(device), String::new()),
    };
    let none = || format!("{shown} lies on no disk of this machine (its file system is `{kind}`)");
    let device = device.ok_or_else(none)?;
    whole_disk(Path::new("/sys/dev/block"), Disk { major: major(device), minor: minor(device) }).ok_or_else(none)
}

/// The kind and the source of what is mounted over `folder`: of mounts at the same place, the last.
fn mounted(mounts: &str, folder: &Path) -> Option<(String, PathBuf)> {
    let over = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = path(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        let what = (after.next()?.to_owned(), path(after.next()?));
        folder.starts_with(&point).then(|| (point.components().count(), what))
    });
    over.max_by_key(|(depth, _)| *depth).map(|(_, what)| what)
}

/// `disk`, or what it is a part of; none: the kernel knows no such device.
fn whole_disk(devices: &Path, disk: Disk) -> Option<Disk> {
    let dir = fs::canonicalize(devices.join(disk.to_string())).ok()?;
    if !dir.join("partition").exists() {
        return Some(disk);
    }
    let text = fs::read_to_string(dir.parent()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(Disk { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// What is written to which files, in this order, so that `now` holds where `before` did.
pub(super) fn lines(version: Version, before: Option<Io>, now: Option<Io>) -> Vec<(&'static str, String)> {
    let disks = |io: Option<Io>| io.map(|io| io.disks).unwrap_or_default().into_iter().flatten().collect::<Vec<_>>();
    let (old, new) = (disks(before), disks(now));
    let limits = now.map(|now| now.limits).unwrap_or_default();
    let gone = old.iter().filter(|disk| !new.contains(disk)).map(|disk| (disk, IoLimits::default()));
    let all = gone.chain(new.iter().map(|disk| (disk, limits)));
    match version {
        Version::One => all.flat_map(|(disk, limits)| in_v1(*disk, &limits)).collect(),
        Version::Two => all.map(|(disk, limits)| ("io.max", in_v2(*disk, &limits))).collect(),
    }
}

/// Files of version 1 take one disk a line; 0 is no limit. How often is counted in 32 bits there: of more, the kernel
/// would keep the rest, which may be 0.
fn in_v1(disk: Disk, limits: &IoLimits) -> [(&'static str, String); 4] {
    let line = |amount: Option<u64>| format!("{disk} {}", amount.unwrap_or(0));
    let often = |amount: Option<u64>| line(amount.map(|amount| amount.min(u32::MAX.into())));
    [
        ("blkio.throttle.read_bps_device", line(limits.read)),
        ("blkio.throttle.write_bps_device", line(limits.write)),
        ("blkio.throttle.read_iops_device", often(limits.read_ops)),
        ("blkio.throttle.write_iops_device", often(limits.write_ops)),
    ]
}

fn in_v2(disk: Disk, limits: &IoLimits) -> String {
    let word = |amount: Option<u64>| amount.map_or_else(|| "max".to_owned(), |amount| amount.to_string());
    let IoLimits { read, write, read_ops, write_ops } = limits;
    format!("{disk} rbps={} wbps={} riops={} wiops={}", word(*read), word(*write), word(*read_ops), word(*write_ops))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Disk = Disk { major: 8, minor: 0 };
    const B: Disk = Disk { major: 254, minor: 16 };

    fn io(read: Option<u64>, write_ops: Option<u64>, disks: Disks) -> Option<Io> {
        Some(Io { limits: IoLimits { read, write_ops, ..IoLimits::default() }, disks })
    }

    #[test]
    fn version_two_takes_one_line_a_disk_and_max_where_nothing_is_asked_for() {
        let table: [(Option<Io>, Option<Io>, &[&str]); 5] = [
            (None, None, &[]),
            (None, io(Some(5), None, [Some(A), None]), &["8:0 rbps=5 wbps=max riops=max wiops=max"]),
            (
                None,
                io(Some(5), Some(7), [Some(A), Some(B)]),
                &["8:0 rbps=5 wbps=max riops=max wiops=7", "254:16 rbps=5 wbps=max riops=max wiops=7"],
            ),
            // The next attempt works elsewhere: nothing of the first one's stays.
            (
                io(Some(5), Some(7), [Some(A), None]),
                io(None, Some(1), [Some(B), None]),
                &["8:0 rbps=max wbps=max riops=max wiops=max", "254:16 rbps=max wbps=max riops=max wiops=1"],
            ),
            (io(Some(5), None, [Some(A), None]), None, &["8:0 rbps=max wbps=max riops=max wiops=max"]),
        ];
        for (before, now, expected) in table {
            let found: Vec<_> = lines(Version::Two, before, now);
            assert!(found.iter().all(|(file, _)| *file == "io.max"));
            assert_eq!(found.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn version_one_has_a_file_for_each_and_zero_where_nothing_is_asked_for() {
        let told = |before, now| {
            let lines = lines(Version::One, before, now).into_iter();
            lines.map(|(file, text)| format!("{} {text}", file.trim_start_matches("blkio.throttle."))).collect()
        };
        let found: Vec<String> = told(None, io(Some(5), Some(7), [Some(B), None]));
        let names = ["read_bps", "write_bps", "read_iops", "write_iops"];
        let expected = |amounts: [u64; 4]| names.iter().zip(amounts).map(|(n, a)| format!("{n}_device 254:16 {a}"));
        assert_eq!(found, expected([5, 0, 0, 7]).collect::<Vec<_>>());
        let found: Vec<String> = told(None, io(Some(1 << 40), Some(1 << 32), [Some(B), None]));
        assert_eq!(found, expected([1 << 40, 0, 0, u32::MAX.into()]).collect::<Vec<_>>());
        let found: Vec<String> = told(io(Some(5), Some(7), [Some(B), None]), None);
        assert_eq!(found, expected([0; 4]).collect::<Vec<_>>());
    }

    #[test]
    fn a_partition_stands_for_its_disk_and_what_the_kernel_does_not_know_for_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (devices, disk) = (folder.path().join("block"), folder.path().join("devices/sda"));
        fs::create_dir_all(disk.join("sda1")).expect("made");
        fs::create_dir(&devices).expect("made");
        fs::write(disk.join("dev"), "8:0\n").expect("written");
        fs::write(disk.join("sda1/partition"), "1\n").expect("written");
        std::os::unix::fs::symlink(&disk, devices.join("8:0")).expect("linked");
        std::os::unix::fs::symlink(disk.join("sda1"), devices.join("8:1")).expect("linked");
        assert_eq!(whole_disk(&devices, Disk { major: 8, minor: 1 }), Some(A));
        assert_eq!(whole_disk(&devices, A), Some(A));
        assert_eq!(whole_disk(&devices, B), None);
    }

    #[test]
    fn a_folder_belongs_to_the_last_mount_of_the_deepest_place_over_it() {
        let mounts = "1 0 0:20 / / rw - overlay overlay rw\n\
                      2 1 0:30 /@home /home rw shared:1 - btrfs /dev/sdb1 rw\n\
                      3 2 0:31 / /home/a\\040b rw - tmpfs none rw\n\
                      4 2 0:32 / /home/a\\040b rw - nfs host:/x rw\n";
        let found = |folder: &str| mounted(mounts, Path::new(folder)).map(|(kind, _)| kind);
        assert_eq!(found("/var/lib"), Some("overlay".to_owned()));
        assert_eq!(found("/home/c"), Some("btrfs".to_owned()));
        assert_eq!(found("/homestead"), Some("overlay".to_owned()));
        assert_eq!(found("/home/a b/c"), Some("nfs".to_owned()));
        assert_eq!(mounted("", Path::new("/x")), None);
    }

    #[test]
    fn files_in_memory_are_on_no_disk_and_it_is_said() {
        let why = under(Path::new("/proc")).expect_err("no disk");
        assert_eq!(why, "/proc lies on no disk of this machine (its file system is `proc`)");
    }
}
