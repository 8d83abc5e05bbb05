//! One home for every developer command: `cargo xtask help` lists them.

mod bench;
mod chaos;
mod etcd;
mod lint;
mod mutants;
mod package;
mod setup;
mod sim;
mod step;
mod tally;
mod test;
mod tree;
mod vm;
mod windows;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer commands of Muster.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = false)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the tests need; quick when all is there
    Setup,
    /// Run everything that can run here and name what was skipped and why
    Test,
    /// Format the tree
    Fmt {
        /// Only say what is not formatted
        #[arg(long)]
        check: bool,
    },
    /// Formatting, clippy, documentation and the rules about the tree
    Lint,
    /// Clippy over everything, warnings denied
    Clippy,
    /// Build the documentation, warnings denied
    Docs,
    /// Check the rules about the tree: rooms, headers, lengths
    Tidy,
    /// Generate the Rust of the protocol from proto/, after a change there
    Proto,
    /// Explore seeds in the simulation, or replay one with a readable trace
    Sim(sim::Args),
    /// Break one rule after another on purpose: the simulation must notice each time
    Mutants,
    /// Break a cluster of real processes as a seed says, and check from outside what it promised
    Chaos(chaos::Args),
    /// What an agent promises, tested on cgroup v2 in a virtual machine that this boots
    Vm,
    /// The Windows build
    Windows {
        #[command(subcommand)]
        what: Windows,
    },
    /// Make the Debian packages
    Package(package::Args),
    /// Measure the figures we promise (release build)
    Bench(bench::Args),
    /// What continuous integration runs
    Ci,
}

#[derive(Subcommand)]
enum Windows {
    /// Compile agent and ctl for x86_64-pc-windows-gnu
    Check,
}

fn main() -> Result<ExitCode> {
    match Args::parse().command {
        Command::Setup => setup::run(),
        Command::Test => test::run(),
        Command::Vm => vm::run(),
        Command::Fmt { check } => lint::fmt(check),
        Command::Lint => lint::all(),
        Command::Clippy => lint::clippy(),
        Command::Docs => lint::docs(),
        Command::Tidy => lint::tidy(),
        Command::Proto => step::run("proto", tree::cargo().args(["run", "--quiet", "--locked", "-p", "muster-proto"])),
        Command::Sim(args) => sim::run(&args),
        Command::Mutants => mutants::command(),
        Command::Chaos(args) => chaos::run(&args),
        Command::Windows { what: Windows::Check } => windows::run(),
        Command::Package(args) => package::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Ci => step::run("ci", &mut std::process::Command::new(tree::root().join(".ci/run"))),
    }
}
