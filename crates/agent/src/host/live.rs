//! How the machine is at this moment. Cheap: three small reads.

use std::path::Path;

use muster_common::proto::v1::Load;

/// Load, free memory and free disk; 0 where the system does not tell.
pub(super) fn look(folder: &Path) -> Load {
    let load = std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| load_of(&text));
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    Load { load_milli: load.unwrap_or(0), memory_free: memory.unwrap_or(0), disk_free: disk_free(folder).unwrap_or(0) }
}

/// proc_loadavg(5): `0.20 0.18 0.12 1/80 11206`.
fn load_of(text: &str) -> Option<u64> {
    let load = text.split_whitespace().next()?.parse::<f64>().ok().filter(|load| (0.0..=1e9).contains(load))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    Some((load * 1000.0).round() as u64)
}

/// proc_meminfo(5): `MemAvailable:   12345 kB`.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What is free of the disk that holds `folder`; none: not known.
pub(super) fn disk_free(folder: &Path) -> Option<u64> {
    disk(folder).map(|(_, free)| free)
}

/// Bytes of the disk that holds `folder`: all, and those that are free for us.
#[cfg(unix)]
pub(super) fn disk(folder: &Path) -> Option<(u64, u64)> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    #[allow(clippy::useless_conversion, reason = "these are no u64 on every system")]
    let (unit, all, free) =
        (u64::from(found.fragment_size()), u64::from(found.blocks()), u64::from(found.blocks_available()));
    Some((unit.saturating_mul(all), unit.saturating_mul(free)))
}

/// Bytes of the disk that holds `folder`; not known here.
#[cfg(not(unix))]
pub(super) fn disk(_folder: &Path) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read_and_nonsense_is_none() {
        assert_eq!(load_of("0.25 0.18 0.12 1/80 11206\n"), Some(250));
        assert_eq!((load_of(""), load_of("-1 x"), load_of("nan")), (None, None, None));
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:     12 kB\n"), Some(12 * 1024));
        assert_eq!(available("MemAvailable: lots\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_says_how_it_is() {
        let load = look(Path::new("/"));
        assert!(load.memory_free > 1 << 20 && load.disk_free > 0, "{load:?}");
    }
}
