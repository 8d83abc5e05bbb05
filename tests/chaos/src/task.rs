//! What the cluster runs: a process that says when it starts, that it lives, and when it ends.
//!
//! Each line is one write to a file that is only appended to, so lines of many processes never mix. A lock that the
//! kernel takes back when the process is dead tells two attempts of one task that run at once, to the microsecond.

use std::{
    env,
    fs::{File, OpenOptions, TryLockError},
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::now;

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(40);

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

    let lock = args.witness.join(format!("lock.{}.{}", args.key, args.name));
    let lock = File::create(&lock).with_context(|| format!("{}", lock.display()))?;
    // Held until this process is dead, whatever kills it.
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        say("overlap", "")?;
    }
    say("start", "")?;
    let mut left = Duration::from_millis(args.ms);
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
