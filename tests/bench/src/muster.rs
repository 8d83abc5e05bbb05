//! The system under measure: separate daemons on a durable store, and a client that adds little.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use muster_common::proto::v1::{self, muster_client::MusterClient};
use muster_integration::{
    binaries,
    daemon::Daemon,
    etcd::Etcd,
    system::{Options, System},
};
use tonic::transport::{Channel, Endpoint};

use crate::aid;

/// How long one measurement may take.
const LIMIT: Duration = Duration::from_secs(300);

/// A system and a connection to it.
pub(crate) struct Muster {
    pub(crate) client: MusterClient<Channel>,
    // After the client: it hangs up first.
    pub(crate) system: System,
}

impl Muster {
    /// Starts one with as many processors as the machine has.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_on(None).await
    }

    /// The same on a store that is shared, where one is named.
    pub(crate) async fn start_on(shared: Option<String>) -> Result<Self> {
        let cpus = u32::try_from(aid::parallel()).context("that many processors")?;
        Self::start_with(Options { cpus, shared, ..Options::default() }).await
    }

    /// The same, as the options say.
    pub(crate) async fn start_with(options: Options) -> Result<Self> {
        let system = System::start(options)?;
        let client = connect(system.address()).await?;
        Ok(Self { client, system })
    }

    /// Hands in a job.
    pub(crate) async fn submit(&mut self, spec: v1::JobSpec) -> Result<u64> {
        submit(&mut self.client, spec).await
    }

    /// Waits until so many tasks of a job succeeded; returns how many did, and when that was seen.
    pub(crate) async fn succeeded(&mut self, job: u64, at_least: u64) -> Result<(u64, Instant)> {
        succeeded(&mut self.client, job, at_least).await
    }

    /// Hands in a job and returns the tasks per second until all are done.
    pub(crate) async fn rate(&mut self, spec: v1::JobSpec, tasks: u32) -> Result<f64> {
        let began = Instant::now();
        let job = self.submit(spec).await?;
        let (_, ended) = self.succeeded(job, u64::from(tasks)).await?;
        Ok(f64::from(tasks) / (ended - began).as_secs_f64())
    }

    /// Ends a job.
    pub(crate) async fn cancel(&mut self, job: u64) -> Result<()> {
        let selector = Some(v1::Selector { text: job.to_string() });
        let request = v1::CancelRequest { selector, by: "bench".to_owned(), ..Default::default() };
        self.client.cancel(request).await.context("cancel").map(drop)
    }
}

/// Hands in a job.
pub(crate) async fn submit(client: &mut MusterClient<Channel>, spec: v1::JobSpec) -> Result<u64> {
    let request = v1::SubmitRequest { spec: Some(spec), by: "bench".to_owned(), ..Default::default() };
    Ok(client.submit(request).await.context("submit")?.into_inner().job)
}

/// Waits until so many tasks of a job succeeded; returns how many did, and when that was seen.
pub(crate) async fn succeeded(client: &mut MusterClient<Channel>, job: u64, at_least: u64) -> Result<(u64, Instant)> {
    let selector = Some(v1::Selector { text: job.to_string() });
    let request = v1::WatchJobRequest { selector };
    let mut stream = client.watch_job(request).await.context("watch")?.into_inner();
    let look = async {
        while let Some(summary) = stream.message().await.context("watch")? {
            let tally = summary.tally.unwrap_or_default();
            if tally.succeeded >= at_least {
                return Ok((tally.succeeded, Instant::now()));
            }
            if tally.failed + tally.cancelled + tally.skipped > 0 {
                bail!("job {job} does not go as it should: {tally:?}");
            }
        }
        bail!("job {job} ended before {at_least} tasks succeeded")
    };
    tokio::time::timeout(LIMIT, look).await.with_context(|| format!("job {job}: no end within {LIMIT:?}"))?
}

/// The `n`-th of several controllers on `etcd`; listens where it is told, or where there is room.
pub(crate) fn member(folder: &Path, etcd: &Etcd, n: usize, ttl: Duration, listen: Option<&str>) -> Result<Daemon> {
    let config = folder.join(format!("controller{n}.toml"));
    std::fs::write(&config, format!("session_ttl = '{}s'\nname = 'c{n}'\n", ttl.as_secs()))?;
    let mut command = Command::new(binaries::path("muster-controller")?);
    command.args(["--listen", listen.unwrap_or("127.0.0.1:0"), "--store", &etcd.address(), "--config"]).arg(config);
    command.arg("--data").arg(folder.join("shared"));
    let mut daemon = Daemon::start(&format!("controller{n}"), &mut command, folder)?;
    daemon.address(0)?;
    Ok(daemon)
}

/// A connection, tried until the limit: a controller that loads a large store answers late.
pub(crate) async fn connect(address: &str) -> Result<MusterClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let began = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(MusterClient::new(channel)),
            Err(error) if began.elapsed() > LIMIT => return Err(error).context("no connection"),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// A job of one group of `count` tasks of one processor each; no program: an empty task.
pub(crate) fn array(name: &str, program: Option<&str>, count: u32) -> v1::JobSpec {
    self::count(job(name, task(program.map(|program| vec![program.to_owned()]))), count)
}

/// The same job, with so many of each of its tasks.
pub(crate) fn count(mut job: v1::JobSpec, count: u32) -> v1::JobSpec {
    for task in &mut job.tasks {
        task.array = Some(v1::task_spec::Array::Range(v1::RangeArray { first: 0, count, step: 1 }));
    }
    job
}

/// A job of one task of one processor.
pub(crate) fn program(name: &str, argv: Vec<String>) -> v1::JobSpec {
    job(name, task(Some(argv)))
}

/// A job of one task that stamps the time into `file`.
pub(crate) fn stamp(program: &Path, file: &Path) -> v1::JobSpec {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    job("stamp", task(Some(vec![text(program), text(file)])))
}

/// A job of one task that a shell runs.
pub(crate) fn shell(name: &str, text: &str) -> v1::JobSpec {
    let mut task = task(None);
    task.command = Some(v1::task_spec::Command::Shell(text.to_owned()));
    job(name, task)
}

fn job(name: &str, task: v1::TaskSpec) -> v1::JobSpec {
    v1::JobSpec { name: name.to_owned(), queue: "default".to_owned(), tasks: vec![task], ..Default::default() }
}

fn task(argv: Option<Vec<String>>) -> v1::TaskSpec {
    v1::TaskSpec {
        name: "task".to_owned(),
        command: argv.map(|args| v1::task_spec::Command::Argv(v1::Argv { args })),
        request: Some(v1::Request { cpu_milli: 1_000, ..Default::default() }),
        retry: Some(v1::Retry { factor_milli: 1_000, ..Default::default() }),
        grace_ms: 5_000,
        ..Default::default()
    }
}
