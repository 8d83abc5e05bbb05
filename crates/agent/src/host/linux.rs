//! Linux: the memory that our cgroup may use, and GPUs.

use std::path::{Path, PathBuf};

/// The lowest memory limit of our cgroup and those above it, v2 or v1; none: no limit.
pub(super) fn memory_limit() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    files(&text).iter().filter_map(|file| limit_in(&std::fs::read_to_string(file).ok()?)).min()
}

/// Every file that may hold a limit for a process whose `/proc/self/cgroup` is `text`.
fn files(text: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (root, name) = if id == "0" {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|folder| Path::new(root).join(folder).join(name)));
    }
    files
}

/// v2 says `max` for none, v1 a number near the largest there is.
fn limit_in(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit > 0 && *limit < 1 << 60)
}

/// NVIDIA's devices are `/dev/nvidia0` and so on; others have no name that all drivers share.
pub(super) fn gpus() -> u64 {
    let is_gpu = |name: &str| {
        name.strip_prefix("nvidia")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    let Ok(devices) = std::fs::read_dir("/dev") else { return 0 };
    let count = devices.flatten().filter(|device| device.file_name().to_str().is_some_and(is_gpu)).count();
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_up_to_the_root() {
        let shown = |text| files(text).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            shown("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        assert_eq!(
            shown("5:cpu:/x\n4:memory:/x\n"),
            ["/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        assert!(shown("nonsense\n\n").is_empty());
    }

    #[test]
    fn no_limit_is_none() {
        for (text, limit) in
            [("max\n", None), ("9223372036854771712\n", None), ("", None), ("1048576\n", Some(1 << 20))]
        {
            assert_eq!(limit_in(text), limit, "{text:?}");
        }
    }
}
