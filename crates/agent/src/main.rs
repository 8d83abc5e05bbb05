//! `muster-agent`: the daemon on a machine.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, builder::FalseyValueParser};
use muster_agent::{
    app,
    cgroup::Enforce,
    config,
    config::{Config, OnStop},
    exec::guard,
    link::Credential,
};
use muster_common::{
    precedence,
    service::Service,
    shutdown::{Asked, Requests},
    telemetry,
    tls::JoinToken,
    token,
};
use muster_core::validate;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is told to end and does not is killed, and reports go out: the unit's `TimeoutStopSec`.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// The word that turns this program into the guard of another instance of it.
const GUARD: &str = "guard";

/// The word that turns it into the keeper of what runs; a safe says it.
#[cfg(unix)]
const KEEPER: &str = "keeper";

/// The word that turns it into the safe of a keeper, which it starts.
const SAFE: &str = "safe";

/// Runs tasks on this machine and reports to a controller.
#[derive(Clone, Debug, Parser)]
#[command(name = "muster-agent", version)]
struct Flags {
    /// A controller; several are tried in turn [default: http://127.0.0.1:7717]
    #[arg(long, value_name = "https://HOST:PORT", env = "MUSTER_CONTROLLER", value_delimiter = ',')]
    controller: Vec<String>,
    /// The agent's own folder; each agent needs its own [default: muster-agent-data]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Go on in the place of an agent of another machine, whose folder this was and which is gone for good
    #[arg(long, env = "MUSTER_ADOPT_DATA", value_parser = FalseyValueParser::new())]
    adopt_data: bool,
    /// What the agent is called [default: the machine's name]
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Processors that tasks may take together, like 4 or 0.5 [default: all]
    #[arg(long, value_name = "N", value_parser = config::cpus)]
    cpus: Option<u64>,
    /// Memory that tasks may take together, like 16GiB [default: all]
    #[arg(long, value_name = "SIZE", value_parser = config::bytes)]
    memory: Option<u64>,
    /// GPUs that tasks may take together
    #[arg(long, value_name = "N")]
    gpus: Option<u64>,
    /// A named resource and how many there are; may be repeated
    #[arg(long, value_name = "NAME=N", value_parser = resource)]
    resource: Vec<(String, u64)>,
    /// A label that tasks may require; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// What to join with for the first time: a token of `ctl admin join-token`
    #[arg(long, value_name = "TOKEN", env = "MUSTER_JOIN", hide_env_values = true)]
    join: Option<JoinToken>,
    /// Speak plain text to other machines, too: everybody on the network may read and change it
    #[arg(long, env = "MUSTER_INSECURE", value_parser = FalseyValueParser::new())]
    insecure: bool,
    /// Whether tasks must be held to their limits: required, auto or off
    #[arg(long, value_name = "HOW")]
    limits: Option<Enforce>,
    /// What SIGTERM does with tasks that run: they go on for as long as their leases hold, for the agent that is started
    /// next, or they are ended; SIGINT always ends them [default: leave]
    #[arg(long, value_name = "leave|end")]
    on_stop: Option<OnStop>,
    /// A file with an access token of the role agent; otherwise the variable MUSTER_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A TOML file with everything that may be set; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(word) if word == GUARD => return guard::main(args),
        #[cfg(unix)]
        Some(word) if word == KEEPER => return muster_agent::keeper::main(args),
        #[cfg(unix)]
        Some(word) if word == SAFE => return muster_agent::safe::main(args),
        _ => {}
    }
    match run(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(flags: Flags) -> anyhow::Result<()> {
    #[cfg(muster_mutants)]
    muster_common::mutant::from_env().map_err(anyhow::Error::msg)?;
    let telemetry = telemetry::init(telemetry::Options::daemon("muster-agent"))?;
    let worked = serve(flags).await;
    telemetry.shutdown().await;
    worked
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let service = Service::from_environment();
    let config = Config { look_every: service.look_every(), ..configuration(flags.clone())? };
    precedence::take();
    let (drain, on_stop) = (config.drain, config.on_stop);
    let mut running = service.starting("takes up its folder", app::start(config)).await?;
    let mut requests = Requests::listen(flags.config.is_some());
    // One whose controller is away does what it should: it looks for one, and what runs goes on.
    service.ready();
    let (pulse, watched, mut seen) = (running.pulse.clone(), running.pulse.clone(), 0);
    service.watch_apart(move || watched.look(&mut seen)).context("cannot start a thread")?;
    let asked = loop {
        tokio::select! {
            () = running.finished() => anyhow::bail!("the agent ended by itself; its log says why"),
            asked = requests.next() => match asked {
                Asked::Reread => tokio::select! {
                    () = reread(&running, flags.clone()) => {}
                    // What the file says waits for a program of the operator; an end does not.
                    asked = requests.end() => break asked,
                },
                Asked::End(asked) => break asked,
            },
        }
    };
    if asked == "SIGTERM" && on_stop == OnStop::Leave {
        tracing::info!(asked, "stopping: what runs is left to the keeper");
        service.stopping("leaves what runs to its keeper");
        running.request_leave();
    } else if drain.is_zero() {
        tracing::info!(asked, "stopping: what runs is ended and reported");
        service.stopping("ends what runs and reports it");
        running.request_stop();
    } else {
        tracing::info!(asked, ?drain, "stopping: nothing new is taken, and what runs is ended and reported");
        service.stopping(&format!("takes no new work; what runs may go on for {} s", drain.as_secs()));
        service.ends_within(drain.saturating_add(STOP_LIMIT));
        running.request_stop();
    }
    let mut is_told = false;
    loop {
        tokio::select! {
            () = running.finished() => return Ok(()),
            // What runs has its grace past the drain, which may be more than the manager waits by itself.
            grace = pulse.grace(), if !is_told => {
                is_told = true;
                if !grace.is_zero() {
                    service.ends_within(drain.saturating_add(grace).saturating_add(STOP_LIMIT));
                }
            }
            // A person who asks twice does not want to wait.
            asked = requests.next() => if let Asked::End(asked) = asked {
                tracing::warn!(asked, "asked again: nothing is given grace any more");
                running.request_stop();
            }
        }
    }
}

/// SIGHUP: what the file says of the machine counts from now on. What else it says, from the next start on.
async fn reread(running: &app::Running, flags: Flags) {
    match configuration(flags) {
        Ok(config) => {
            tracing::info!("the configuration is read again: what it says of the machine counts from now on");
            running.offer(config.machine).await;
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the configuration cannot be used; all stays as it is")
        }
    }
}

fn configuration(flags: Flags) -> anyhow::Result<Config> {
    let mut config = match &flags.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    if !flags.controller.is_empty() {
        config.controllers = flags.controller;
    }
    config.credential = match (flags.token_file, token::from_environment()) {
        (Some(path), _) => Credential::File(path),
        (None, Some(text)) => Credential::Text(text.into()),
        (None, None) => config.credential,
    };
    config.data_dir = flags.data.unwrap_or(config.data_dir);
    config.join = flags.join.or(config.join);
    config.insecure |= flags.insecure;
    config.adopt_data |= flags.adopt_data;
    config.enforce = flags.limits.unwrap_or(config.enforce);
    config.on_stop = flags.on_stop.unwrap_or(config.on_stop);
    let machine = &mut config.machine;
    machine.name = flags.name.or(machine.name.take());
    machine.cpu_milli = flags.cpus.or(machine.cpu_milli);
    machine.memory = flags.memory.or(machine.memory);
    machine.gpus = flags.gpus.or(machine.gpus);
    machine.named.extend(flags.resource);
    machine.labels.extend(flags.label);
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    config.keeper = Some(guard::Program { exe: exe.clone(), args: vec![OsString::from(SAFE)] });
    config.guard = Some(guard::Program { exe, args: vec![OsString::from(GUARD)] });
    Ok(config)
}

fn name(text: &str) -> Result<String, String> {
    validate::agent_name(text).map(|()| text.to_owned())
}

fn resource(text: &str) -> Result<(String, u64), String> {
    let found = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let found = found.and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
    let (name, n) = found.ok_or_else(|| "a resource is written as NAME=N, like licence=2".to_owned())?;
    validate::resource_name(&name).map(|()| (name, n))
}

fn label(text: &str) -> Result<(String, String), String> {
    let found = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let found = found.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let (key, value) = found.ok_or_else(|| "a label is written as KEY=VALUE, like zone=a".to_owned())?;
    validate::label_key(&key).map(|()| (key, value))
}
