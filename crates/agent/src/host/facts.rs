//! What people want to know of the machine: its system, its processors, its disk. Nothing is decided by it.

use std::path::Path;

use muster_core::record::{Facts, Gpu};

/// Looks at the machine. `folder` is the agent's own: its disk counts.
pub(super) fn found(folder: &Path, memory: u64, gpus: Vec<Gpu>) -> Facts {
    Facts {
        kernel: sysinfo::System::kernel_version().unwrap_or_default(),
        distribution: distribution(),
        processors: processors(),
        numa: numa(Path::new("/sys/devices/system/node")),
        memory,
        disk: super::live::disk(folder).map_or(0, |(all, _)| all),
        gpus,
        enforced: Vec::new(),
    }
}

/// All processors of the machine, whether we may use them or not.
fn processors() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    match count_of(text.trim()) {
        0 => std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        n => n,
    }
}

/// How many numbers `0-3,8,10-11` names; 0: it is no such list.
fn count_of(list: &str) -> u32 {
    let one = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').map(one).try_fold(0_u32, |sum, n| sum.checked_add(n?)).unwrap_or(0)
}

fn distribution() -> String {
    let files = ["/etc/os-release", "/usr/lib/os-release"];
    let text = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
    let named = text.and_then(|text| pretty_name(&text));
    named.or_else(|| sysinfo::System::long_os_version().ok()).unwrap_or_default()
}

/// os-release(5): `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"`.
fn pretty_name(text: &str) -> Option<String> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        let line = line.trim().trim_matches(['"', '\'']);
        (!line.is_empty()).then(|| line.chars().filter(|c| !c.is_control()).take(128).collect())
    };
    value("PRETTY_NAME").or_else(|| value("NAME"))
}

/// The processors of each node, in order of nodes; none: the system does not say.
fn numa(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let number = |name: &str| name.strip_prefix("node")?.parse::<u32>().ok();
    let mut nodes: Vec<(u32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let n = number(entry.file_name().to_str()?)?;
            Some((n, std::fs::read_to_string(entry.path().join("cpulist")).ok()?.trim().to_owned()))
        })
        .collect();
    nodes.sort_unstable();
    nodes.into_iter().map(|(_, list)| list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted_and_nonsense_is_none() {
        for (text, n) in [("0", 1), ("0-3", 4), ("0-3,8,10-11", 7), ("", 0), ("3-1", 0), ("x", 0), ("0-4294967295", 0)]
        {
            assert_eq!(count_of(text), n, "{text}");
        }
    }

    #[test]
    fn a_distribution_is_called_by_its_pretty_name_or_else_by_its_name() {
        let table = [
            (
                "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                Some("Debian GNU/Linux 12 (bookworm)"),
            ),
            ("NAME=Alpine\nPRETTY_NAME=\n", Some("Alpine")),
            ("PRETTY_NAMES='x'\n", None),
            ("", None),
        ];
        for (text, name) in table {
            assert_eq!(pretty_name(text).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn nodes_are_told_in_their_order() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, list) in [("node10", "8-9\n"), ("node2", "0-7\n"), ("has_cpu", "0-1\n"), ("nodex", "1\n")] {
            std::fs::create_dir(folder.path().join(name)).expect("a node");
            std::fs::write(folder.path().join(name).join("cpulist"), list).expect("its list");
        }
        assert_eq!(numa(folder.path()), ["0-7", "8-9"]);
        assert!(numa(&folder.path().join("none")).is_empty());
    }
}
