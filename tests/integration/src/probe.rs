//! What a process uses, as the kernel counts it (Linux).

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Resident memory in bytes, now.
pub fn resident(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:").map(|kib| kib * 1024)
}

/// The most resident memory it ever had, in bytes.
pub fn resident_peak(pid: u32) -> Result<u64> {
    status_kib(pid, "VmHWM:").map(|kib| kib * 1024)
}

/// Processor time used so far, in user and kernel mode, by all its threads.
pub fn cpu(pid: u32) -> Result<Duration> {
    // In ticks of 10 ms, field 14 and 15, counted after the name, which may hold spaces.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Memory in bytes that is a process's own, now: not that of files, which others share.
pub fn resident_own(pid: u32) -> Result<u64> {
    status_kib(pid, "RssAnon:").map(|kib| kib * 1024)
}

/// A process that `pid` started, or one of those did, and whose first argument is this word.
pub fn descendant(pid: u32, word: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find_map(|child: u32| {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        let is_it = line.split(|byte| *byte == 0).nth(1) == Some(word.as_bytes());
        if is_it { Some(child) } else { descendant(child, word) }
    })
}

fn status_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("{field} is missing"))?;
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).with_context(|| format!("{field}{line} is no size"))
}
