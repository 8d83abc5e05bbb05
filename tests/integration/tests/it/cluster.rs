//! Several controllers on a real etcd: one leads, the others pass calls on, and its end costs nothing.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use muster_common::proto::{PROTOCOL, v1};
use muster_integration::{
    binaries,
    ctl::Ctl,
    daemon::Daemon,
    etcd::{self, Etcd},
    skip::skip,
    wait::{self, Look},
};
use tempfile::TempDir;

/// Of each controller's session: short, so that a crash is noticed soon.
const SESSION_TTL: Duration = Duration::from_secs(2);

/// Controllers, an agent that knows all of them, and their etcd.
struct Cluster {
    // Dropped in this order.
    agent: Option<Daemon>,
    controllers: Vec<(String, Daemon)>,
    etcd: Etcd,
    folder: TempDir,
}

impl Cluster {
    fn start(controllers: usize) -> Result<Self> {
        Self::start_with(controllers, "")
    }

    /// `settings`: more lines of each controller's file.
    fn start_with(controllers: usize, settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-it-").tempdir()?;
        let etcd = Etcd::start(folder.path(), 1, &[])?;
        let mut cluster = Self { agent: None, controllers: Vec::new(), etcd, folder };
        for n in 0..controllers {
            cluster.start_controller(n, settings)?;
        }
        cluster.leader(&[])?;
        let mut command = Command::new(binaries::path("muster-agent")?);
        for (address, _) in &cluster.controllers {
            command.args(["--controller", &format!("http://{address}")]);
        }
        command.args(["--name", "worker", "--cpus", "4", "--data"]).arg(cluster.folder.path().join("agent"));
        cluster.agent = Some(Daemon::start("agent", &mut command, cluster.folder.path())?);
        cluster.connected()?;
        Ok(cluster)
    }

    fn start_controller(&mut self, n: usize, settings: &str) -> Result<()> {
        let folder = self.folder.path();
        let config = folder.join(format!("controller{n}.toml"));
        let ttl = SESSION_TTL.as_secs();
        // Logs lie where every leader finds them.
        let shared = folder.join("shared");
        let text = format!("session_ttl = '{ttl}s'\nlease_ttl = '30s'\nlease_margin = '1s'\nname = 'c{n}'\n{settings}");
        std::fs::write(&config, text)?;
        let mut command = Command::new(binaries::path("muster-controller")?);
        command.args(["--listen", "127.0.0.1:0", "--store", &self.etcd.address(), "--config"]).arg(config);
        command.arg("--data").arg(shared);
        let mut daemon = Daemon::start(&format!("controller{n}"), &mut command, folder)?;
        let from = 0;
        let address = daemon.address(from)?;
        self.controllers.push((address, daemon));
        Ok(())
    }

    /// People know every controller.
    fn ctl(&self) -> Ctl {
        let all: Vec<_> = self.controllers.iter().map(|(address, _)| address.as_str()).collect();
        Ctl::of(&all.join(","))
    }

    /// Which controller leads, by what etcd says; not one of `except`.
    fn leader(&self, except: &[usize]) -> Result<usize> {
        wait::until("a leader", || {
            let key = match self.etcd.ctl(&["get", "/muster/v1/leader", "--print-value-only"]) {
                Ok(key) => key,
                Err(error) => return Ok(Look::not_yet(error)),
            };
            let leads = self.controllers.iter().position(|(address, _)| key.contains(address.as_str()));
            Ok(match leads.filter(|n| !except.contains(n)) {
                Some(n) => Look::Done(n),
                None => Look::not_yet(key),
            })
        })
    }

    fn connected(&self) -> Result<()> {
        wait::until("the agent to be connected", || {
            let ran = self.ctl().run(&["agents", "-o", "json"])?;
            Ok(Look::when(ran.stdout.windows(11).any(|part| part == b"\"connected\""), ran.to_string()))
        })
    }

    fn submit(&self, name: &str, text: &str) -> Result<u64> {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text)?;
        self.ctl().submit(&file)
    }

    fn stop(mut self) -> Result<()> {
        for mut daemon in self.agent.take().into_iter().chain(self.controllers.drain(..).map(|(_, daemon)| daemon)) {
            if daemon.ended()?.is_none() {
                daemon.stop()?;
            }
            daemon.expect_no_errors()?;
        }
        Ok(())
    }
}

fn gated(gate: &Path) -> String {
    let shell = format!("echo one; until test -e {}; do sleep 0.01; done; echo two", gate.display());
    format!("name = \"gated\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n")
}

#[test]
fn work_goes_on_undisturbed_while_its_leader_is_killed_or_resigns() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("cluster::work_goes_on_undisturbed_while_its_leader_is_killed_or_resigns", &why);
    }
    let mut cluster = Cluster::start(3)?;
    let gate = cluster.folder.path().join("gate");
    let job = cluster.submit("gated.toml", &gated(&gate))?;
    let ctl = cluster.ctl();
    let runs = || {
        wait::until("the task to run", || {
            let ran = ctl.run(&["show", &job.to_string(), "--tasks", "-o", "json"])?;
            let shown: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
            Ok(Look::when(shown["tasks"][0]["state"] == "running", ran.to_string()))
        })
    };
    runs()?;
    // Each address answers, whoever leads.
    for (address, _) in &cluster.controllers {
        let shown = Ctl::of(address).json(&["show", &job.to_string()])?;
        ensure!(shown["job"]["state"] == "running", "{address}: {shown}");
    }

    wait::until("all controllers to be seen", || {
        let status = cluster.ctl().run(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        let all = status["controllers"].as_array().cloned().unwrap_or_default();
        let leaders = all.iter().filter(|one| one["leads"] == true).count();
        let is_known =
            status["store"]["bytes"].as_u64() > Some(0) && status["store"]["latency_ms"].as_f64() > Some(0.0);
        let counts = (all.len(), leaders, status["agents"]["connected"].as_u64());
        Ok(Look::when(counts == (3, 1, Some(1)) && is_known, status))
    })?;
    let first = cluster.leader(&[])?;
    cluster.controllers[first].1.kill9()?;
    let second = cluster.leader(&[first])?;
    cluster.connected()?;
    runs()?;

    cluster.controllers[second].1.stop()?;
    cluster.leader(&[first, second])?;
    cluster.connected()?;
    runs()?;

    std::fs::write(&gate, "")?;
    let done = ctl.finished(job, wait::LIMIT)?;
    ensure!(done["state"] == "succeeded", "{done}");
    let shown = ctl.json(&["show", &job.to_string(), "--tasks"])?;
    let attempts = shown["tasks"][0]["attempts"].as_array().context("attempts")?;
    ensure!(attempts.len() == 1, "it ran once, under three leaders: {shown}");
    wait::until("its whole output", || {
        let ran = ctl.run(&["logs", &job.to_string()])?;
        Ok(Look::when(ran.stdout == b"one\ntwo\n", ran.to_string()))
    })?;
    cluster.stop()
}

#[test]
fn a_leader_that_was_stopped_for_long_steps_down_before_it_says_another_word() -> Result<()> {
    use nix::sys::signal::Signal;

    if let Some(why) = etcd::missing() {
        return skip("cluster::a_leader_that_was_stopped_for_long_steps_down_before_it_says_another_word", &why);
    }
    let cluster = Cluster::start(2)?;
    let old = cluster.leader(&[])?;
    cluster.controllers[old].1.freeze()?;
    let new = cluster.leader(&[old])?;
    cluster.connected_to(new)?;
    let job = cluster.submit_to(new, "a.toml", "name = \"a\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    Ctl::of(&cluster.controllers[new].0).finished(job, wait::LIMIT)?;
    cluster.controllers[old].1.signal(Signal::SIGCONT)?;
    // It finds out, stands by, and passes calls on to the one that leads.
    let ctl = Ctl::of(&cluster.controllers[old].0);
    wait::until("the old leader to know of the job", || {
        let ran = ctl.run(&["show", &job.to_string(), "-o", "json"])?;
        Ok(Look::when(ran.code == 0, ran.to_string()))
    })?;
    ensure!(cluster.leader(&[])? == new, "the new leader leads on");
    cluster.stop()
}

#[test]
fn past_its_budget_the_store_takes_nothing_new_and_what_runs_goes_on() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("cluster::past_its_budget_the_store_takes_nothing_new_and_what_runs_goes_on", &why);
    }
    let cluster = Cluster::start_with(1, "store_budget = '2 MiB'\n")?;
    let gate = cluster.folder.path().join("gate");
    let running = cluster.submit("gated.toml", &gated(&gate))?;
    let large =
        format!("name = \"large\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\nstdin = \"{}\"\n", "x".repeat(400_000));
    let file = cluster.folder.path().join("large.toml");
    std::fs::write(&file, large)?;
    let file = file.to_string_lossy().into_owned();
    let ctl = cluster.ctl();
    ctl.run(&["submit", "--key", "first", &file])?.expect(0)?;
    let refused = wait::until("a submission to be refused", || {
        let ran = ctl.run(&["submit", &file])?;
        Ok(if ran.code == 0 { Look::not_yet("accepted") } else { Look::Done(ran) })
    })?;
    let refused = refused.expect(5)?;
    ensure!(refused.stderr.contains("budget"), "{refused}");
    // What was accepted before is still named to who asks again, and the screen says what is wrong.
    ctl.run(&["submit", "--key", "first", &file])?.expect(0)?;
    let status = ctl.run(&["status"])?.expect(1)?;
    ensure!(status.text().contains("problem:") && status.text().contains("budget"), "{status}");
    std::fs::write(&gate, "")?;
    ensure!(ctl.finished(running, wait::LIMIT)?["state"] == "succeeded", "what runs goes on");
    cluster.stop()
}

impl Cluster {
    fn connected_to(&self, n: usize) -> Result<()> {
        let ctl = Ctl::of(&self.controllers[n].0);
        wait::until("the agent to be connected to the new leader", || {
            let ran = ctl.run(&["agents", "-o", "json"])?;
            Ok(Look::when(ran.stdout.windows(11).any(|part| part == b"\"connected\""), ran.to_string()))
        })
    }

    fn submit_to(&self, n: usize, name: &str, text: &str) -> Result<u64> {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text)?;
        Ctl::of(&self.controllers[n].0).submit(&file)
    }
}

#[test]
fn another_grpc_client_finds_the_same_at_the_leader_and_at_a_standby() -> Result<()> {
    const NAME: &str = "cluster::another_grpc_client_finds_the_same_at_the_leader_and_at_a_standby";
    if let Some(why) = etcd::missing().or_else(crate::protocol::missing) {
        return skip(NAME, &why);
    }
    let cluster = Cluster::start(2)?;
    cluster.controllers.iter().try_for_each(|(address, _)| crate::protocol::ask(address))?;
    cluster.stop()
}

#[test]
fn a_controller_whose_sign_of_life_went_with_an_earlier_session_is_listed_again() -> Result<()> {
    const NAME: &str = "cluster::a_controller_whose_sign_of_life_went_with_an_earlier_session_is_listed_again";
    const KEY: &str = "/muster/v1/members/c1";
    if let Some(why) = etcd::missing() {
        return skip(NAME, &why);
    }
    let cluster = Cluster::start(2)?;
    let listed = || {
        wait::until("both controllers to be listed", || {
            let status = cluster.ctl().json(&["status"])?;
            let is_there =
                status["controllers"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "c1"));
            Ok(Look::when(is_there && !cluster.etcd.ctl(&["get", KEY, "--keys-only"])?.is_empty(), &status))
        })
    };
    listed()?;
    // As if a request of an earlier session had come late, which took the key along when it ended.
    let deleted = cluster.etcd.ctl(&["del", KEY])?;
    ensure!(deleted.trim() == "1", "{deleted}");
    listed()?;
    cluster.stop()
}

#[test]
fn etcdctl_reads_what_is_said_to_lie_in_etcd() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("cluster::etcdctl_reads_what_is_said_to_lie_in_etcd", &why);
    }
    let cluster = Cluster::start(2)?;
    let job = cluster.submit("a.toml", "name = \"a\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n")?;
    cluster.ctl().finished(job, wait::LIMIT)?;
    let read = |arguments: &[&str]| cluster.etcd.ctl(arguments);
    let keys = wait::until("both members to be in etcd", || {
        let keys = match read(&["get", "/muster/v1/", "--prefix", "--keys-only"]) {
            Ok(keys) => keys,
            Err(error) => return Ok(Look::not_yet(error)),
        };
        let members = keys.lines().filter(|key| key.starts_with("/muster/v1/members/")).count();
        Ok(if members == 2 { Look::Done(keys) } else { Look::not_yet(keys) })
    })?;
    for what in ["leader", "head", "meta", "agents/", "jobs/"] {
        let there = keys.lines().any(|key| key.strip_prefix("/muster/v1/").is_some_and(|key| key.starts_with(what)));
        ensure!(there, "no `{what}` among\n{keys}");
    }
    let strangers: Vec<_> = keys
        .lines()
        .filter_map(|key| key.strip_prefix("/muster/v1/"))
        .filter(|key| {
            let known =
                ["leader", "members", "head", "meta", "agents", "jobs", "queues", "staged", "parts", "tokens", "audit"];
            key.split('/').next().is_none_or(|first| !known.contains(&first))
        })
        .collect();
    ensure!(strangers.is_empty(), "docs/cluster.md does not say what these are: {strangers:?}");
    // The leader's key lives as long as its session: etcd itself says so.
    let leader = read(&["get", "/muster/v1/leader", "-w", "json"])?;
    let leader: serde_json::Value = serde_json::from_str(&leader)?;
    let session = leader["kvs"][0]["lease"].as_i64().context("the leader's key has no session")?;
    let told = read(&["lease", "timetolive", &format!("{session:x}"), "--keys"])?;
    ensure!(told.contains("/muster/v1/leader"), "{told}");
    cluster.stop()
}

/// One agent that holds nothing and says that it lives for as long as what comes back does.
async fn welcomed(channel: tonic::transport::Channel, n: usize) -> Result<tonic::Streaming<v1::AgentDown>> {
    let (up, inbox) = tokio::sync::mpsc::channel(1);
    let offer = Some(v1::Offer { name: format!("crowd{n}"), ..v1::Offer::default() });
    let hello = v1::Hello { uid: format!("crowd-{n}"), offer, protocol: PROTOCOL, ..v1::Hello::default() };
    up.send(v1::AgentUp { message: Some(v1::agent_up::Message::Hello(hello)) }).await?;
    let mut client = v1::agent_link_client::AgentLinkClient::new(channel);
    let mut down = client.control(tokio_stream::wrappers::ReceiverStream::new(inbox)).await?.into_inner();
    let first = down.message().await?.context("the stream ended")?;
    ensure!(matches!(first.message, Some(v1::agent_down::Message::Welcome(_))), "{first:?}");
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        loop {
            beat.tick().await;
            let message = Some(v1::agent_up::Message::Heartbeat(v1::Heartbeat { stamp_us: 1, load: None }));
            if up.send(v1::AgentUp { message }).await.is_err() {
                return;
            }
        }
    });
    Ok(down)
}

#[test]
fn a_standby_serves_more_agents_than_one_connection_to_the_leader_carries() -> Result<()> {
    const NAME: &str = "cluster::a_standby_serves_more_agents_than_one_connection_to_the_leader_carries";
    /// One connection of a controller carries 256 calls at one time.
    const CROWD: usize = 400;
    if let Some(why) = etcd::missing() {
        return skip(NAME, &why);
    }
    let cluster = Cluster::start(2)?;
    let standby = &cluster.controllers[1 - cluster.leader(&[])?].0;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{standby}"))?;
        let mut streams = tokio::task::JoinSet::new();
        for part in 0..4 {
            let channel = endpoint.connect().await?;
            (0..CROWD / 4).for_each(|n| drop(streams.spawn(welcomed(channel.clone(), part * CROWD / 4 + n))));
        }
        let mut open = Vec::new();
        let all = async {
            while let Some(stream) = streams.join_next().await {
                open.push(stream??);
            }
            Ok::<_, anyhow::Error>(())
        };
        let outcome = tokio::time::timeout(wait::LIMIT, all).await;
        ensure!(outcome.is_ok(), "{} of {CROWD} agents were welcomed within {:?}", open.len(), wait::LIMIT);
        outcome??;
        // People find their way, too, while all these stay.
        let (ctl, standby) = (Ctl::of(standby), standby.clone());
        let listed = tokio::task::spawn_blocking(move || ctl.run(&["list"])).await??;
        ensure!(listed.code == 0, "ctl through {standby}: {listed}");
        Ok(())
    })?;
    cluster.stop()
}
