//! How a machine is, as people see it: what the kernel says of load, memory and disk comes to the table and to the screen.

use std::{fs, hint::black_box, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use nix::sys::statvfs::statvfs;
use serde_json::Value;

use crate::disk::SmallDisk;

const MIB: u64 = 1 << 20;
/// Of a disk of 16 MiB.
const FILLER: u64 = 8 * MIB;
/// What an agent writes on its disk between its look and ours, at most.
const BESIDE: u64 = MIB;
/// What this test takes for itself, to see that less is free; another program may take or give back half of it meanwhile.
const TAKEN: u64 = 1024 * MIB;

/// Between two questions. An agent looks every ten seconds, and who asks all the time only makes the machine busy.
const PAUSE: Duration = Duration::from_millis(300);

/// What `ctl agents --wide` says of the one agent.
fn told(system: &System) -> Result<Value> {
    thread::park_timeout(PAUSE);
    let shown = system.ctl().json(&["agents", "--wide"])?;
    shown["agents"].get(0).map(|agent| agent["now"].clone()).with_context(|| format!("no agent in {shown}"))
}

/// Waits until what is told of `key` lies within `margin` of what `look` finds.
fn comes_to(system: &System, key: &str, margin: u64, look: impl Fn() -> Result<u64>) -> Result<u64> {
    wait::until(&format!("{key} to be what it is"), || {
        let (now, found) = (told(system)?, look()?);
        let said = now[key].as_u64().filter(|said| said.abs_diff(found) <= margin);
        Ok(said.map_or_else(|| Look::NotYet(format!("{now}, and there is {found}")), Look::Done))
    })
}

fn disk_free(disk: &SmallDisk) -> Result<u64> {
    let found = statvfs(&disk.0)?;
    Ok(found.fragment_size() * found.blocks_available())
}

fn memory_free() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("it is told")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// What `ctl top` has in the last columns of its line of the one agent: load, free memory, free disk.
fn on_screen(system: &System) -> Result<[f64; 3]> {
    let text = system.ctl().run(&["top"])?.expect(0)?.text();
    let line = text.lines().find(|line| line.starts_with("worker")).with_context(|| format!("no agent in\n{text}"))?;
    let mut words = line.split_whitespace().rev().map(amount);
    let mut next = || words.next().flatten().with_context(|| format!("no figure in `{line}`"));
    let (disk, memory, load) = (next()?, next()?, next()?);
    Ok([load, memory, disk])
}

/// Of `3.2G`.
fn amount(text: &str) -> Option<f64> {
    let unit = ['B', 'K', 'M', 'G', 'T'].iter().zip(0..).find(|(unit, _)| text.ends_with(**unit));
    let number: f64 = text.trim_end_matches(|c: char| c.is_ascii_uppercase()).parse().ok()?;
    Some(number * 1024_f64.powi(unit.map_or(0, |(_, power)| power)))
}

#[test]
fn load_free_memory_and_free_disk_are_told_as_they_are_and_as_they_change() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = match SmallDisk::mount(&folder.path().join("small"))? {
        Ok(disk) => disk,
        Err(why) => {
            return skip("live::load_free_memory_and_free_disk_are_told_as_they_are_and_as_they_change", &why);
        }
    };
    let system = System::start(Options { spool: Some(disk.0.join("agent")), ..Options::default() })?;
    let follows = || -> Result<u64> {
        comes_to(&system, "memory_free_bytes", TAKEN / 2, memory_free)?;
        comes_to(&system, "disk_free_bytes", BESIDE, || disk_free(&disk))
    };
    let empty = follows()?;
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![0; usize::try_from(FILLER)?])?;
    let taken = vec![7_u8; usize::try_from(TAKEN)?];
    let filled = follows()?;
    ensure!(filled + FILLER - 3 * BESIDE < empty, "{empty} bytes were free, then {filled}");
    fs::remove_file(filler)?;
    drop(black_box(taken));
    let again = follows()?;
    ensure!(filled + FILLER - 3 * BESIDE < again, "{filled} bytes were free, then {again}");

    wait::until("the load to be what it is", || {
        let (now, text) = (told(&system)?, fs::read_to_string("/proc/loadavg")?);
        let found: f64 = text.split_whitespace().next().context("a load")?.parse()?;
        let is_near = now["load"].as_f64().is_some_and(|said| (said - found).abs() <= 0.2 + found / 5.0);
        Ok(Look::when(is_near, format!("{now}, and there is {found}")))
    })?;
    wait::until("the screen to say what the table says", || {
        let (now, shown) = (told(&system)?, on_screen(&system)?);
        let said = ["load", "memory_free_bytes", "disk_free_bytes"].map(|key| now[key].as_f64().unwrap_or(-1.0));
        // A short number has two digits at least.
        let is_same = said.iter().zip(shown).all(|(said, shown)| (said - shown).abs() <= 0.01 + said / 20.0);
        Ok(Look::when(is_same, (said, shown)))
    })?;
    system.finish()
}
