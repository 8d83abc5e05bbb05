//! What the cluster runs: a process that says when it starts, that it lives, and when it ends.
//!
//! Each line is one write to a file that is only appended to, so lines of many processes never mix. A lock that the
//! kernel takes back when the process is dead tells two attempts of one task that run at once, to the microsecond.

use std::{
    env,
    fs::{File, OpenOptions, TryLockError},
    hint,
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use crate::{now, work::Does};

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(40);
/// Between those of each of the many processes of a bomb.
const BOMB_BEAT: Duration = Duration::from_millis(300);
/// More than any task here may have.
const HOG: usize = 256 << 20;

/// Bytes of a line of a flood, which the checker knows, too; and how many are written at once.
const LINE: u64 = 32;
const CHUNK: u64 = 1024;

/// What a task does.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder of the witness file and the locks
    #[arg(long)]
    witness: PathBuf,
    /// The submission that this task is part of
    #[arg(long)]
    key: String,
    /// Its name in the submission
    #[arg(long)]
    name: String,
    /// Thousandths of a processor that it takes
    #[arg(long)]
    cpus: u64,
    /// How long it works
    #[arg(long)]
    ms: u64,
    /// Attempts below this number fail
    #[arg(long, default_value_t = 0)]
    fails_below: u64,
    /// What it does beside
    #[arg(long, value_enum, default_value = "works")]
    does: Does,
    /// One of the many that a bomb made
    #[arg(long)]
    child: bool,
}

/// Runs as a task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let said = |name: &str| env::var(name).with_context(|| format!("{name} is not set: this is no task"));
    let (job, attempt, token) = (said("MUSTER_JOB")?, said("MUSTER_ATTEMPT")?, said("MUSTER_TOKEN")?);
    let about = format!("{} {} {job} {attempt} {token} {} {}", args.key, args.name, said("MUSTER_AGENT")?, args.cpus);
    let path = args.witness.join("lines");
    let mut file = OpenOptions::new().append(true).open(&path).with_context(|| format!("{}", path.display()))?;
    let mut say =
        move |word: &str, more: &str| file.write_all(format!("{word} {} {about}{more}\n", now::us()).as_bytes());

    if args.child {
        // It lives for as long as it is let.
        loop {
            multiply()?;
            thread::sleep(BOMB_BEAT);
            say("beat", "")?;
        }
    }
    let lock = args.witness.join(format!("lock.{}.{}", args.key, args.name));
    let lock = File::create(&lock).with_context(|| format!("{}", lock.display()))?;
    // Held until this process is dead, whatever kills it.
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        say("overlap", "")?;
    }
    say("start", "")?;
    match args.does {
        Does::Works => {}
        Does::Floods => {
            let wrote = flood(&token, args.ms, || say("beat", ""))?;
            say("wrote", &format!(" {wrote}"))?;
        }
        Does::Hogs => drop(hint::black_box(vec![1_u8; HOG])),
        Does::Bombs => {
            // Its children are born deaf.
            sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(Signal::SIGTERM)), None)?;
            multiply()?;
        }
    }
    let mut left = if args.does == Does::Floods { Duration::ZERO } else { Duration::from_millis(args.ms) };
    while !left.is_zero() {
        let pause = left.min(BEAT);
        thread::sleep(pause);
        left -= pause;
        if !left.is_zero() {
            say("beat", "")?;
        }
    }
    let fails = attempt.parse::<u64>().is_ok_and(|attempt| attempt < args.fails_below);
    say("end", if fails { " 3" } else { " 0" })?;
    Ok(if fails { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// Writes numbered lines as fast as they are taken, and says how many bytes. Each is [`LINE`] long and names its attempt, so
/// that its place tells which it is.
fn flood(token: &str, ms: u64, mut beat: impl FnMut() -> io::Result<()>) -> Result<u64> {
    let (mut out, until_us) = (io::stdout().lock(), now::us() + ms * 1_000);
    let (mut lines, mut beat_us) = (0, now::us());
    while now::us() < until_us {
        let chunk: String = (lines..lines + CHUNK).map(|n| format!("{token:>15} {n:>15}\n")).collect();
        out.write_all(chunk.as_bytes()).context("nobody takes what a task writes")?;
        lines += CHUNK;
        if now::us() >= beat_us {
            beat()?;
            beat_us = now::us() + u64::try_from(BEAT.as_micros()).unwrap_or(0);
        }
    }
    out.flush()?;
    Ok(lines * LINE)
}

/// Two more of this process, in sessions of their own. Where there is no room for them, none.
fn multiply() -> Result<()> {
    let exe = env::current_exe().context("cannot tell where this program is")?;
    for _ in 0..2 {
        let made = Command::new("setsid").arg("--fork").arg(&exe).args(env::args_os().skip(1)).arg("--child").spawn();
        if let Ok(mut made) = made {
            let _forked = made.wait();
        }
    }
    Ok(())
}
