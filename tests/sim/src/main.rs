//! `muster-sim --seed N` replays one world with a readable trace; `--seeds A..B` explores many, `--hunt A..B` until one is
//! wrong.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail};
use muster_sim::run;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let words = match switch_on_fault(&words) {
        Ok(words) => words,
        Err(error) => {
            eprintln!("muster-sim: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = match words {
        ["--seed", seed] => seed.parse().with_context(|| format!("`{seed}` is no seed: a number")).map(replay),
        ["--seeds", range] => parse_range(range).map(|(from, to)| explore(from, to, Until::End)),
        ["--hunt", range] => parse_range(range).map(|(from, to)| explore(from, to, Until::Found)),
        #[cfg(muster_mutants)]
        ["--mutants"] => Ok(list_faults()),
        _ => Err(anyhow::anyhow!("usage: muster-sim --seed N | --seeds A..B | --hunt A..B")),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("muster-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `--mutant NAME` before all else: a build with faults runs with this one.
#[cfg(muster_mutants)]
fn switch_on_fault<'a>(words: &'a [&'a str]) -> std::result::Result<&'a [&'a str], String> {
    match words {
        ["--mutant", name, rest @ ..] => muster_core::mutant::switch_on(name).map(|()| rest),
        words => Ok(words),
    }
}

#[cfg(muster_mutants)]
#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn list_faults() -> ExitCode {
    muster_core::mutant::ALL.iter().for_each(|(name, breaks)| println!("{name} {breaks}"));
    ExitCode::SUCCESS
}

#[cfg(not(muster_mutants))]
fn switch_on_fault<'a>(words: &'a [&'a str]) -> std::result::Result<&'a [&'a str], String> {
    Ok(words)
}

fn parse_range(text: &str) -> Result<(u64, u64)> {
    let Some((from, to)) = text.split_once("..") else { bail!("`{text}` is no range: A..B") };
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("`{text}` is no number"));
    Ok((number(from)?, number(to)?))
}

#[expect(clippy::print_stdout, reason = "the trace is what was asked for")]
fn replay(seed: u64) -> ExitCode {
    let outcome = run(seed, true);
    print!("{}", outcome.trace);
    println!(
        "seed {seed}: {} steps, {} faults, {} jobs promised, hash {:016x}",
        outcome.steps, outcome.faults, outcome.promised, outcome.hash
    );
    for violation in &outcome.violations {
        println!("VIOLATION {violation}");
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    Found,
}

#[expect(clippy::print_stdout, reason = "the summary is what was asked for")]
fn explore(from: u64, to: u64, until: Until) -> ExitCode {
    let enough = AtomicBool::new(false);
    let next = AtomicU64::new(from);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut found: Vec<(u64, Vec<String>)> = Vec::new();
    let (mut steps, mut faults, mut promised) = (0, 0, 0);
    std::thread::scope(|scope| {
        let work = || {
            let (mut bad, mut steps, mut faults, mut promised) = (Vec::new(), 0, 0, 0);
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= to || enough.load(Ordering::Relaxed) {
                    return (bad, steps, faults, promised);
                }
                let outcome = run(seed, false);
                steps += outcome.steps;
                faults += outcome.faults;
                promised += outcome.promised;
                if !outcome.violations.is_empty() {
                    bad.push((seed, outcome.violations));
                    enough.store(until == Until::Found, Ordering::Relaxed);
                }
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for handle in handles {
            match handle.join() {
                Ok((bad, s, f, p)) => {
                    found.extend(bad);
                    steps += s;
                    faults += f;
                    promised += p;
                }
                Err(_) => found.push((0, vec!["the simulation itself panicked; its message is above".to_owned()])),
            }
        }
    });
    found.sort();
    for (seed, violations) in found.iter().take(10) {
        println!("seed {seed}: {}", violations.join("; "));
        println!("  replay it: cargo xtask sim --seed {seed}");
    }
    println!(
        "{} seeds, {steps} steps, {faults} faults, {promised} jobs promised: {} seeds with violations",
        to - from,
        found.len()
    );
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
