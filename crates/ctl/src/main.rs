//! The words a person types: hands work in, follows it, says why it waits, or runs a whole Muster here.

mod cli;
mod commands;
mod error;
mod exit;
mod live;
mod model;
#[cfg(test)]
mod network;
mod output;
mod remote;
mod system;
mod work;

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;
use mimalloc::MiMalloc;
use muster_common::telemetry;

use crate::{cli::Cli, commands::Ctl, error::Error, exit::Exit};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The word that turns this program into the guard of an agent in another process of it.
const GUARD: &str = "guard";

/// Threads that are still at work when everything was said are not waited for longer.
const LINGER: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|word| word == GUARD) {
        return muster_agent::exec::guard::main(args);
    }
    let cli = Cli::parse();
    let ctl = Ctl::new(&cli);
    let exit = start(&ctl, cli).unwrap_or_else(|error| {
        ctl.output.error(&error);
        error.exit()
    });
    ExitCode::from(exit.0)
}

fn start(ctl: &Ctl, cli: Cli) -> Result<Exit, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Exit::FAULT, format!("cannot start threads: {error}")))?;
    let exit = runtime.block_on(async {
        // The embedded controller and agent log here too: only what went wrong.
        let telemetry = telemetry::init(telemetry::Options { filter: "warn", ..telemetry::Options::command("ctl") })
            .map_err(|error| Error::new(Exit::USAGE, error.to_string()))?;
        let exit = commands::dispatch(ctl, cli.command).await;
        telemetry.shutdown().await;
        exit
    });
    runtime.shutdown_timeout(LINGER);
    exit
}
