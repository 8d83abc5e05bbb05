//! Control groups whose keeper and agent are killed: the next ones hold what runs to the same limits and go on counting. Also
//! run on version 2 (`cargo xtask vm`).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use muster_integration::{
    ctl::Ctl,
    skip::skip,
    system::{Options, System},
    wait::{self, Look},
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use crate::{
    heirs::{Gate, Keepers, all_run, task, tasks},
    limits::cgroups,
};

const MIB: u64 = 1 << 20;
/// What a shell and its children take beside what a test asks for.
const BESIDE: u64 = 16 * MIB;
/// Seconds on a processor, before the keeper is killed.
const BUSY: f64 = 0.3;
/// Bytes that some take: more than [`BESIDE`].
const LARGE: u64 = 40_000_000;

/// Whether cgroups can be made here; where they must (`cargo xtask vm`), it is no question.
fn can_run(system: &System, test: &str) -> Result<bool> {
    if !cgroups(system).is_empty() {
        return Ok(true);
    }
    ensure!(std::env::var_os("MUSTER_TEST_CGROUPS").is_none(), "{test} must run here");
    skip(test, "no cgroups can be made here")?;
    Ok(false)
}

/// The processes of the shells of a job, by the number of their task.
fn shells(gate: &Gate, count: usize) -> Result<BTreeMap<usize, i32>> {
    wait::until("all shells to say who they are", || {
        let text = fs::read_to_string(&gate.starts).unwrap_or_default();
        let of = |line: &str| {
            let (task, pid) = line.split_once(' ')?;
            Some((task.parse().ok()?, pid.trim().parse().ok()?))
        };
        let found: BTreeMap<usize, i32> = text.lines().filter_map(of).collect();
        Ok(if found.len() == count { Look::Done(found) } else { Look::NotYet(text) })
    })
}

/// The cgroups of a process, in every tree in which the agent has a folder.
fn places(system: &System, pid: i32) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let bases = cgroups(system);
    let own = |line: &str| {
        let path = Path::new(line.splitn(3, ':').nth(2)?);
        let base = bases.iter().find(|base| base.file_name() == path.parent().and_then(Path::file_name))?;
        Some((base.file_name()?.to_owned(), path.file_name()?.to_owned()))
    };
    let (folder, number) =
        text.lines().find_map(own).with_context(|| format!("it is in no cgroup of ours:\n{text}"))?;
    let bases = bases.iter().filter(|base| base.file_name() == Some(&folder));
    Ok(bases.map(|base| base.join(&number)).filter(|dir| dir.exists()).collect())
}

/// What stands in the files of limits, those of both versions.
fn held_to(places: &[PathBuf]) -> BTreeMap<&'static str, String> {
    const FILES: [&str; 11] = [
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "cpu.max",
        "cpu.weight",
        "pids.max",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "cpu.shares",
    ];
    let read = |name: &'static str| {
        let text = places.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok())?;
        Some((name, text.trim().to_owned()))
    };
    FILES.into_iter().filter_map(read).collect()
}

/// Seconds that one process had on processors, which the kernel tells in hundredths.
fn spent(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // The 14th and 15th of all, the third of which is the first after the name.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// Takes [`LARGE`] at one time, by a program that copies in pieces wherever it comes from.
fn takes() -> String {
    format!("dd if=/dev/zero bs=100000 count={} 2>/dev/null | tail -c {LARGE} >/dev/null\n", LARGE / 100_000)
}

/// Tasks that leave counts in cgroups which others are given after them: high marks, kills for want of memory.
fn before() -> String {
    let mut text = "name = \"before\"\n".to_owned();
    text += &task("big", "array = 2\nmemory = \"64MiB\"", &takes());
    text += &task("hog", "array = 2\nmemory = \"16MiB\"", &takes());
    text
}

fn kinds(gate: &Gate) -> String {
    // Without a step of theirs until a line is there for each: what is emulated has no time to lose.
    let (begin, wait) = (gate.begin(), format!("read -r line <{}\n", gate.path));
    let mut text = "name = \"held\"\n".to_owned();
    let strict = "array = 4\nmemory = \"64MiB\"\ncpus = 0.5\ncpu_limit = true\npids = 40";
    text += &task("small", strict, &format!("{begin}{wait}exit 0"));
    text += &task("large", "memory = \"64MiB\"", &format!("{}{begin}{wait}exit 0", takes()));
    text += &task("hog", "memory = \"24MiB\"", &format!("{begin}{wait}{}exec sleep 1000", takes()));
    let works = format!("while ! test -e {}.enough; do :; done\n", gate.path);
    text += &task("busy", "", &format!("{begin}{works}{wait}exit 0"));
    let hides = format!("setsid sh -c '(sleep 1000 & echo $! >{}.stray) </dev/null >/dev/null 2>&1'", gate.starts);
    text += &task("hides", "", &format!("{hides}\n{begin}{wait}exit 0"));
    text
}
const TASKS: usize = 8;

/// Keeper, agent, and both of them.
fn kill_all(system: &mut System) -> Result<()> {
    let mut keepers = Keepers::of(system)?;
    keepers.kill(system)?;
    system.agent()?.kill9()?;
    system.start_agent()?;
    system.agent()?.kill9()?;
    keepers.kill(system)?;
    system.start_agent()
}

/// How each task of a job ended, the most memory that it had, and what else it took.
fn over(ctl: &Ctl, job: u64) -> Result<Vec<(String, u64, Value)>> {
    // One call that waits: where processors are emulated, many that look take longer than the job.
    ctl.run(&["wait", &job.to_string()])?;
    let of = |task: &Value| {
        let attempts = task["attempts"].as_array().context("attempts")?;
        ensure!(attempts.len() == 1, "it was tried again: {task}");
        let end = &attempts[0]["end"];
        let said = format!("{} {}", end["kind"].as_str().unwrap_or("?"), end["reason"].as_str().unwrap_or_default());
        let usage = attempts[0]["usage"].clone();
        let peak = usage["memory_peak_bytes"].as_u64().with_context(|| format!("no peak in {usage}"))?;
        Ok((said.trim().to_owned(), peak, usage))
    };
    tasks(ctl, job)?.iter().map(of).collect()
}

#[test]
fn limits_counts_and_peaks_of_what_runs_outlive_its_keeper_and_its_agent() -> Result<()> {
    let mut system = System::start(Options { cpus: 12, ..Options::default() })?;
    if !can_run(&system, "adopted::limits_counts_and_peaks_of_what_runs_outlive_its_keeper_and_its_agent")? {
        return Ok(());
    }
    let (ctl, gate) = (system.ctl(), Gate::new(&system, "held"));
    let file = system.file("before.toml", &before())?;
    let ran = ctl.run(&["submit", "--wait", &file.to_string_lossy()])?;
    ensure!(ran.to_string().contains("2 succeeded, 2 failed"), "nobody lacked memory: {ran}");
    mkfifo(gate.path.as_str(), Mode::S_IRWXU)?;
    let job = system.submit("held.toml", &kinds(&gate))?;
    all_run(&ctl, job, TASKS)?;
    let shells = shells(&gate, TASKS)?;
    let in_force = || -> Result<Vec<_>> { shells.values().map(|pid| Ok(held_to(&places(&system, *pid)?))).collect() };
    let held = wait::until("small tasks to be held to what they ask for", || {
        let held = in_force()?;
        let is_held = held[..4].iter().all(|small| {
            let is = |name: &str, value: &str| small.get(name).is_some_and(|found| found == value);
            (is("memory.max", "67108864") || is("memory.limit_in_bytes", "67108864"))
                && (is("cpu.max", "50000 100000") || is("cpu.cfs_quota_us", "50000"))
                && (is("cpu.weight", "50") || is("cpu.shares", "512"))
                && is("pids.max", "40")
        });
        Ok(if is_held { Look::Done(held) } else { Look::not_yet(&held[..4]) })
    })?;
    let busy = shells[&6];
    let taken = wait::until("a busy task to have taken its time", || {
        let spent = spent(busy)?;
        Ok(if spent >= BUSY { Look::Done(spent) } else { Look::not_yet(spent) })
    })?;
    fs::write(format!("{}.enough", gate.path), "")?;
    kill_all(&mut system)?;
    let now: Vec<_> = shells.values().map(|pid| Ok(held_to(&places(&system, *pid)?))).collect::<Result<_>>()?;
    ensure!(now == held, "limits before: {held:#?}\nand after: {now:#?}");
    let stray: i32 = fs::read_to_string(format!("{}.stray", gate.starts))?.trim().parse()?;
    ensure!(Path::new(&format!("/proc/{stray}")).exists(), "what hides was ended too early");

    let mut lines = File::options().write(true).open(&gate.path)?;
    lines.write_all(&[b'\n'; TASKS])?;
    let found = over(&ctl, job)?;
    drop(lines);
    gate.check(TASKS)?;
    for (n, (said, peak, usage)) in found.iter().enumerate() {
        ensure!(usage["unenforced"] == json!([]), "{n}: {usage}");
        let expected = match n {
            // Not what others had in the same cgroup before them.
            0..=3 | 6 | 7 => said == "succeeded" && *peak < BESIDE,
            // It was that high before any keeper died.
            4 => said == "succeeded" && (LARGE..LARGE + BESIDE).contains(peak),
            _ => said == "oom it needed more memory than its limit of 24 MiB",
        };
        ensure!(expected, "task {n}: {said}, {peak} bytes");
    }
    let told = |name: &str| found[6].2[name].as_f64().unwrap_or(0.0);
    let told = told("cpu_user_seconds") + told("cpu_system_seconds");
    ensure!(told >= taken, "it had taken {taken} s before, and of all {told} s are told");
    let state = fs::read_to_string(format!("/proc/{stray}/stat")).unwrap_or_default();
    let is_dead =
        state.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with(['Z', 'X']) || rest.is_empty());
    ensure!(is_dead, "it is over, and something of it lives: {state}");

    // What comes after them is given cgroups that nobody has any more.
    let text = "name = \"after\"\n".to_owned() + &task("after", "array = 6\nmemory = \"32MiB\"", "sleep 0.1\n");
    let job = system.submit("after.toml", &text)?;
    for (said, peak, usage) in over(&ctl, job)? {
        ensure!(said == "succeeded" && peak < BESIDE && usage["unenforced"] == json!([]), "{said}, {peak}, {usage}");
    }
    let dirs = cgroups(&system);
    system.finish()?;
    ensure!(dirs.iter().all(|dir| !dir.exists()), "cgroups are left: {dirs:?}");
    Ok(())
}
