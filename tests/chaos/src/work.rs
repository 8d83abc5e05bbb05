//! The workload W: short tasks, longer ones, diamonds and a tick each second, handed in by `ctl` with a key each until
//! they are acknowledged. What was acknowledged is written down for the checker.

use std::{
    fs::File,
    io::Write as _,
    path::PathBuf,
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use muster_integration::{binaries, ctl};
use serde_json::{Value, json};

use crate::{
    cast::{CONTROLLERS, LOG_LIMIT, Node},
    dice::Dice,
    ground::Ground,
    now,
    stage::Stop,
    wires::Wire,
};

/// One call of `ctl` may take so long: it looks for a controller itself while nobody leads.
const CALL_WITHIN: Duration = Duration::from_secs(20);
/// Between a call that failed and the next try with the same key.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// People: they hand in work and write down what they were told.
pub(crate) struct People<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) log: Mutex<File>,
    pub(crate) witness: PathBuf,
    pub(crate) stop: &'a Stop,
    /// Calls that did not end well, each of which was tried again.
    pub(crate) refused: AtomicU64,
}

/// A task of a submission, as the checker is told of it.
struct Task {
    name: &'static str,
    cpus: u64,
    ms: u64,
    fails_below: u64,
    after: &'static [&'static str],
    does: Does,
}

impl Task {
    fn of(name: &'static str, cpus: u64, ms: u64) -> Self {
        Self { name, cpus, ms, fails_below: 0, after: &[], does: Does::Works }
    }
}

/// Of a hog, far below what it takes.
const HOG_MEMORY: &str = "32MiB";
/// Of a bomb: so many processes at once.
const BOMB_PIDS: u64 = 40;
const BOMB_TIMEOUT: &str = "2s";

/// Those of one flood, half a processor each.
const FLOOD: [&str; 8] = ["f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7"];
/// What jobs are called that flood, and the others.
pub(crate) const FLOOD_NAME: &str = "flood";
const NAME: &str = "w";

/// What a task does beside its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Does {
    Works,
    /// X21: takes more memory than it asked for.
    Hogs,
    /// X20: forks without end into sessions of their own, deaf to SIGTERM.
    Bombs,
    /// X18: writes as much as it can.
    Floods,
}

impl Does {
    /// How its last attempt ends if nothing else ends it; none: well.
    fn must(self) -> Option<&'static str> {
        match self {
            Self::Works | Self::Floods => None,
            Self::Hogs => Some("oom"),
            Self::Bombs => Some("timeout"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Hogs => "hogs",
            Self::Bombs => "bombs",
            Self::Floods => "floods",
        }
    }
}

impl People<'_> {
    /// One who hands in job after job until `stop`, each with a pause after it.
    pub(crate) fn hand_in(&self, who: usize, seed: u64, until_us: u64, pause_ms: u64) -> Result<()> {
        let mut dice = Dice::new(seed, &format!("work{who}"));
        let mut count = 0;
        while now::us() < until_us && !self.stop.is_asked() {
            let key = format!("p{who}-{count}");
            let (tasks, on_lost) = any_job(&mut dice);
            self.submit(&key, &tasks, on_lost, who + count)?;
            count += 1;
            self.stop.rest(Duration::from_millis(dice.between(pause_ms / 2, pause_ms * 3 / 2)));
        }
        Ok(())
    }

    /// The tick: each second its own key, whatever the clocks of the others say.
    pub(crate) fn tick(&self, until_us: u64) -> Result<()> {
        let began = now::us();
        let mut count = 0;
        while now::us() < until_us && !self.stop.is_asked() {
            self.submit(&format!("tick-{count}"), &[Task::of("tick", 500, 50)], "retry", count)?;
            count += 1;
            let next = began + count as u64 * 1_000_000;
            self.stop.rest(Duration::from_micros(next.saturating_sub(now::us())));
        }
        Ok(())
    }

    /// X18: a job whose tasks all write as much as they can, for so long.
    pub(crate) fn flood(&self, key: &str, ms: u64) -> Result<()> {
        let tasks = FLOOD.map(|name| Task { does: Does::Floods, ..Task::of(name, 500, ms) });
        self.submit(key, &tasks, "retry", 0)
    }

    /// Hands in one job until it is acknowledged; gives up only when the run is over.
    fn submit(&self, key: &str, tasks: &[Task], on_lost: &str, turn: usize) -> Result<()> {
        let file = job_file(key, tasks, on_lost, &self.witness)?;
        let began = now::us();
        let mut turn = turn;
        while !self.stop.is_asked() {
            // `ctl` knows all of them, a different one first each time.
            let ran = self.ctl(turn, &["submit", "-", "--format", "json", "--key", key, "-o", "json"], &file)?;
            let answer: Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
            if let (0, Some(job)) = (ran.code, answer["job"].as_u64()) {
                let list: Vec<_> = tasks
                    .iter()
                    .map(|task| json!({ "name": task.name, "cpus": task.cpus, "after": task.after }))
                    .collect();
                let is_flood = tasks.iter().any(|task| task.does == Does::Floods);
                let line = json!({ "key": key, "job": job, "began_us": began, "acked_us": now::us(),
                                   "on_lost": on_lost, "tasks": list,
                                   "must": tasks.iter().find_map(|task| task.does.must()),
                                   "log_limit": is_flood.then_some(LOG_LIMIT) });
                let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                return writeln!(log, "{line}").context("could not write the log of the people");
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            turn += 1;
            self.stop.rest(AGAIN_AFTER);
        }
        Ok(())
    }

    /// Runs `ctl` in the network of the people; `turn` says which controller it asks first.
    pub(crate) fn ctl(&self, turn: usize, arguments: &[&str], stdin: &[u8]) -> Result<ctl::Ran> {
        let addresses: Vec<_> = (0..CONTROLLERS)
            .map(|k| Wire::Door((k + turn) % CONTROLLERS).begin())
            .map(|(ip, port)| format!("{ip}:{port}"))
            .collect();
        let mut command = self.ground.command(&Node::Client.name(), &binaries::path("ctl")?);
        command
            .args(arguments)
            .env("MUSTER_CONTROLLER", addresses.join(","))
            .env("NO_COLOR", "1")
            .env("MUSTER_INSECURE", "1");
        command.env("HOME", "/nonexistent").env_remove("XDG_CONFIG_HOME").current_dir(&self.witness);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().context("could not start ctl")?;
        // One that takes too long is ended, and counts as a call that failed.
        Ok(ctl::finish(child, stdin, CALL_WITHIN).unwrap_or_else(|error| ctl::Ran {
            code: -1,
            stdout: Vec::new(),
            stderr: format!("{error:#}"),
        }))
    }
}

/// W without its ticks: 3 short, 4 longer, 2 diamonds of nine; and one of ten that does what it should not.
fn any_job(dice: &mut Dice) -> (Vec<Task>, &'static str) {
    if dice.chance(10) {
        let (name, does) = if dice.chance(50) { ("hog", Does::Hogs) } else { ("bomb", Does::Bombs) };
        return (vec![Task { does, ..Task::of(name, 500, 20_000) }], "retry");
    }
    match dice.between(0, 8) {
        0..=2 => {
            let fails_below = if dice.chance(30) { 2 } else { 0 };
            (vec![Task { fails_below, ..Task::of("short", 500, 50) }], "retry")
        }
        3..=6 => {
            let cpus = [500, 1_000, 2_000][usize::try_from(dice.between(0, 2)).unwrap_or(0)];
            let on_lost = if dice.chance(20) { "fail" } else { "retry" };
            // Some outlive a lease: those show whether an agent that cannot renew it ends them in time.
            let ms = if dice.chance(30) { dice.between(6_000, 10_000) } else { dice.between(1_000, 5_000) };
            (vec![Task::of("long", cpus, ms)], on_lost)
        }
        _ => {
            let ms = |dice: &mut Dice| dice.between(100, 900);
            let tasks = vec![
                Task::of("top", 500, ms(dice)),
                Task { after: &["top"], ..Task::of("left", 1_000, ms(dice)) },
                Task { after: &["top"], ..Task::of("right", 500, ms(dice)) },
                Task { after: &["left", "right"], ..Task::of("bottom", 500, ms(dice)) },
            ];
            (tasks, "retry")
        }
    }
}

fn job_file(key: &str, tasks: &[Task], on_lost: &str, witness: &std::path::Path) -> Result<Vec<u8>> {
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    let one = |task: &Task| {
        let words = [
            exe.to_string_lossy().into_owned(),
            "task".to_owned(),
            format!("--witness={}", witness.display()),
            format!("--key={key}"),
            format!("--name={}", task.name),
            format!("--cpus={}", task.cpus),
            format!("--ms={}", task.ms),
            format!("--fails-below={}", task.fails_below),
            format!("--does={}", task.does.word()),
        ];
        let cpus = f64::from(u32::try_from(task.cpus).unwrap_or(0)) / 1000.0;
        let mut file = json!({ "name": task.name, "run": words, "cpus": cpus, "after": task.after, "on_lost": on_lost,
                "cwd": "/", "retries": { "max": if task.fails_below > 0 { 5 } else { 0 }, "delay": "100ms" } });
        match task.does {
            Does::Works | Does::Floods => {}
            Does::Hogs => file["memory"] = HOG_MEMORY.into(),
            Does::Bombs => {
                file["pids"] = BOMB_PIDS.into();
                (file["timeout"], file["grace"]) = (BOMB_TIMEOUT.into(), "500ms".into());
            }
        }
        file
    };
    let name = if tasks.iter().any(|task| task.does == Does::Floods) { FLOOD_NAME } else { NAME };
    let file = json!({ "name": name, "tasks": tasks.iter().map(one).collect::<Vec<_>>() });
    Ok(file.to_string().into_bytes())
}
