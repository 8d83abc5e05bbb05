//! Peers of other releases: the real controller with agents that speak older and newer protocols, and the real agent with
//! such controllers. The other side is written out here, message by message, as a program of that release says it.

use std::{net::SocketAddr, process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use muster_common::{
    proto::{
        OLDEST_PROTOCOL, PROTOCOL,
        v1::{
            self,
            agent_down::Message as Down,
            agent_link_client::AgentLinkClient,
            agent_link_server::{AgentLink, AgentLinkServer},
            agent_up::Message as Up,
            report::What,
        },
    },
    wire::spec::task_to_proto,
};
use muster_controller::store::{
    Records, Store as _,
    embedded::{Embedded, Locked},
};
use muster_core::{
    id::Term,
    spec::{Command as Runs, TaskSpec},
};
use muster_integration::{
    binaries,
    daemon::Daemon,
    etcd::{self, Etcd},
    skip::skip,
    system::System,
    wait::{self, Look},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    timeout(wait::LIMIT, work).await.with_context(|| format!("waited {:?} for {what}", wait::LIMIT))
}

/// An agent of another release, as it is at its first words.
struct Agent {
    client: AgentLinkClient<Channel>,
    up: mpsc::Sender<v1::AgentUp>,
    down: Streaming<v1::AgentDown>,
    welcome: v1::Welcome,
}

impl Agent {
    /// Says hello for these protocols; an agent of protocol 1 knows of no oldest one.
    async fn greet(address: &str, (oldest_protocol, protocol): (u32, u32)) -> Result<Self, Status> {
        let unreachable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
        let mut client = AgentLinkClient::new(endpoint.connect().await.map_err(unreachable)?);
        let capacity = Some(v1::Request { cpu_milli: 1_000, memory_bytes: 1 << 30, ..v1::Request::default() });
        let offer = Some(v1::Offer { name: "other".to_owned(), capacity, ..v1::Offer::default() });
        let hello = v1::Hello { uid: "other".to_owned(), offer, protocol, oldest_protocol, ..v1::Hello::default() };
        let (up, inbox) = mpsc::channel(16);
        // There is room: it is the first.
        let _sent = up.try_send(v1::AgentUp { message: Some(Up::Hello(hello)) });
        let mut down = client.control(ReceiverStream::new(inbox)).await?.into_inner();
        match down.message().await?.and_then(|message| message.message) {
            Some(Down::Welcome(welcome)) => Ok(Self { client, up, down, welcome }),
            other => Err(Status::internal(format!("no welcome: {other:?}"))),
        }
    }

    async fn say(&self, message: Up) -> Result<()> {
        Ok(self.up.send(v1::AgentUp { message: Some(message) }).await?)
    }

    async fn hear(&mut self) -> Result<Down> {
        let message = soon("the controller's next word", self.down.message()).await??;
        message.and_then(|message| message.message).context("the stream ended")
    }

    async fn lease(&mut self) -> Result<v1::Lease> {
        loop {
            if let Down::Leases(leases) = self.hear().await? {
                ensure!(leases.specs.iter().any(|spec| spec.task.is_some()), "a lease without its spec: {leases:?}");
                return leases.leases.into_iter().next().context("no lease");
            }
        }
    }

    /// Ships output, and waits until it may be forgotten.
    async fn ship(&mut self, lease: &v1::Lease, text: &str) -> Result<()> {
        let frames = vec![v1::LogFrame { data: text.as_bytes().to_vec().into(), ..v1::LogFrame::default() }];
        let v1::Lease { token, job, task, attempt, .. } = *lease;
        let batch = v1::LogBatch { token, job, task, attempt, first: 0, frames, last: true };
        let (up, inbox) = mpsc::channel(4);
        up.send(v1::LogUp { agent: self.welcome.agent, batches: vec![batch] }).await?;
        let mut acks = self.client.logs(ReceiverStream::new(inbox)).await?.into_inner();
        loop {
            let message = soon("output to be kept", acks.message()).await??.context("the log stream ended")?;
            if message.acks.iter().any(|ack| ack.token == token && ack.kept == 1) {
                return Ok(());
            }
        }
    }

    async fn report(&mut self, lease: &v1::Lease, seq: u64, what: What) -> Result<()> {
        let v1::Lease { token, job, task, .. } = *lease;
        let report = v1::Report { seq, token, job, task, what: Some(what) };
        self.say(Up::Reports(v1::Reports { reports: vec![report] })).await?;
        loop {
            if matches!(self.hear().await?, Down::ReportsAck(ack) if ack.up_to == seq) {
                return Ok(());
            }
        }
    }
}

/// Takes a job through its life with an agent that speaks these protocols.
async fn works(system: &System, protocols: (u32, u32), spoken: u32) -> Result<()> {
    let mut agent = Agent::greet(system.address(), protocols).await?;
    ensure!(agent.welcome.protocol == spoken, "{protocols:?}: {:?}", agent.welcome);
    agent.say(Up::Heartbeat(v1::Heartbeat { stamp_us: 7, load: None })).await?;
    ensure!(matches!(agent.hear().await?, Down::HeartbeatAck(ack) if ack.stamp_us == 7), "no answer to a heartbeat");
    let file = "name = \"a\"\n[[tasks]]\nname = \"a\"\nrun = [\"true\"]\n";
    let job = system.submit("a.toml", file)?;
    let lease = agent.lease().await?;
    ensure!(lease.job == job, "{lease:?} is not of job {job}");
    agent.report(&lease, 1, What::Started(v1::Started { at_us: 5_000_000 })).await?;
    agent.ship(&lease, "said by the other release\n").await?;
    let end = Some(v1::End { kind: v1::EndKind::Succeeded.into(), ..v1::End::default() });
    let ended = v1::Ended { end, started_us: 5_000_000, ended_us: 6_000_000, result: None, usage: None };
    agent.report(&lease, 2, What::Ended(ended)).await?;
    agent.say(Up::Goodbye(v1::Goodbye {})).await?;
    let ctl = system.ctl();
    let done = ctl.finished(job, wait::LIMIT)?;
    ensure!(done["state"] == "succeeded", "{done}");
    let text = ctl.run(&["logs", &job.to_string()])?.expect(0)?.text();
    ensure!(text == "said by the other release\n", "{text:?}");
    // Nobody is there for the next one's lease but the next one.
    wait::until("the agent to have left", || {
        let agents = ctl.json(&["agents"])?;
        let is_gone = |agent: &serde_json::Value| agent["name"] != "other" || agent["state"] == "stopped";
        let gone = agents["agents"].as_array().is_some_and(|all| all.iter().all(is_gone));
        Ok(Look::when(gone, agents))
    })
}

#[test]
fn agents_of_the_release_before_and_after_work_with_this_controller_and_others_are_told_whom_to_upgrade() -> Result<()>
{
    let mut system = System::plain()?;
    system.agent()?.stop()?;
    runtime()?.block_on(async {
        works(&system, (0, PROTOCOL - 1), PROTOCOL - 1).await?;
        works(&system, (OLDEST_PROTOCOL, PROTOCOL), PROTOCOL).await?;
        works(&system, (PROTOCOL, PROTOCOL + 1), PROTOCOL).await?;
        let refused = [
            ((0, PROTOCOL - 2), "upgrade the agent"),
            // As it was before both said what they understand.
            ((0, PROTOCOL + 1), "upgrade the controller"),
            ((PROTOCOL + 1, PROTOCOL + 2), "upgrade the controller"),
        ];
        for (protocols, part) in refused {
            let Err(status) = Agent::greet(system.address(), protocols).await else {
                bail!("{protocols:?} is taken in");
            };
            ensure!(status.code() == Code::FailedPrecondition, "{protocols:?}: {status}");
            ensure!(status.message().contains(part), "{protocols:?}: {status}");
        }
        Ok(())
    })?;
    system.start_agent()?;
    system.finish()
}

/// A controller of another release: it takes in who comes, speaks `protocol`, has one lease to give, and tells what it hears.
#[derive(Clone)]
struct Controller {
    protocol: u32,
    heard: mpsc::Sender<Heard>,
}

#[derive(Debug)]
enum Heard {
    Hello(Box<v1::Hello>),
    Beat,
    Ended(v1::Ended),
    Output(Vec<u8>),
}

impl Controller {
    async fn serve(protocol: u32) -> Result<(SocketAddr, mpsc::Receiver<Heard>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (heard, hears) = mpsc::channel(64);
        let service = AgentLinkServer::new(Self { protocol, heard });
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        Ok((address, hears))
    }

    /// One control stream.
    async fn converse(self, mut up: Streaming<v1::AgentUp>, down: mpsc::Sender<Result<v1::AgentDown, Status>>) {
        let say = async |message| down.send(Ok(v1::AgentDown { message: Some(message) })).await.is_ok();
        while let Ok(Some(v1::AgentUp { message: Some(message) })) = up.message().await {
            match message {
                Up::Hello(hello) => {
                    let _test_is_over = self.heard.send(Heard::Hello(Box::new(hello))).await;
                    let (lease_ttl_ms, heartbeat_ms) = (15_000, 200);
                    let protocol = self.protocol;
                    let welcome = v1::Welcome {
                        agent: 1,
                        session: 1,
                        term: 1,
                        protocol,
                        lease_ttl_ms,
                        heartbeat_ms,
                        drop: vec![],
                    };
                    say(Down::Welcome(welcome)).await;
                    say(Down::Leases(lease())).await;
                }
                Up::Heartbeat(v1::Heartbeat { stamp_us, .. }) => {
                    let _test_is_over = self.heard.send(Heard::Beat).await;
                    say(Down::HeartbeatAck(v1::HeartbeatAck { stamp_us, term: 1 })).await;
                }
                Up::Reports(reports) => {
                    for report in reports.reports {
                        say(Down::ReportsAck(v1::ReportsAck { up_to: report.seq })).await;
                        if let Some(What::Ended(ended)) = report.what {
                            let _test_is_over = self.heard.send(Heard::Ended(ended)).await;
                        }
                    }
                }
                // One of protocol 1 reads over what it does not know.
                Up::Goodbye(_) | Up::Draining(_) | Up::Offer(_) => {}
            }
        }
    }
}

fn lease() -> v1::Leases {
    let command = Runs::Argv(["echo", "for the other release"].map(str::to_owned).to_vec());
    let task = Some(task_to_proto(&TaskSpec { name: "a".to_owned(), command, ..TaskSpec::default() }));
    let spec = v1::LeaseSpec { job: 1, job_name: "a".into(), task, ..v1::LeaseSpec::default() };
    let lease = v1::Lease { token: 1, job: 1, task: 0, attempt: 1, ..v1::Lease::default() };
    v1::Leases { term: 1, specs: vec![spec], leases: vec![lease] }
}

#[tonic::async_trait]
impl AgentLink for Controller {
    type ControlStream = ReceiverStream<Result<v1::AgentDown, Status>>;
    type LogsStream = ReceiverStream<Result<v1::LogDown, Status>>;
    type InputsStream = ReceiverStream<Result<v1::InputsPart, Status>>;
    type ExecStream = ReceiverStream<Result<v1::ExecDown, Status>>;

    async fn control(&self, request: Request<Streaming<v1::AgentUp>>) -> Result<Response<Self::ControlStream>, Status> {
        let (down, answers) = mpsc::channel(64);
        tokio::spawn(self.clone().converse(request.into_inner(), down));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn logs(&self, request: Request<Streaming<v1::LogUp>>) -> Result<Response<Self::LogsStream>, Status> {
        let (down, answers) = mpsc::channel(64);
        let (mut up, heard) = (request.into_inner(), self.heard.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                let mut acks = Vec::new();
                for batch in message.batches {
                    let data = batch.frames.iter().flat_map(|frame| frame.data.to_vec()).collect();
                    let _test_is_over = heard.send(Heard::Output(data)).await;
                    let after = batch.first + batch.frames.len() as u64;
                    acks.push(v1::LogAck { token: batch.token, received: after, kept: after });
                }
                let _agent_is_gone = down.send(Ok(v1::LogDown { acks })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn inputs(&self, _: Request<v1::InputsRequest>) -> Result<Response<Self::InputsStream>, Status> {
        Err(Status::unimplemented("nothing has inputs here"))
    }

    async fn exec(&self, _: Request<Streaming<v1::ExecUp>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("a release before knows of no commands"))
    }

    async fn put_result(&self, _: Request<Streaming<v1::ResultPart>>) -> Result<Response<v1::ResultKept>, Status> {
        Err(Status::unimplemented("nothing has a large result here"))
    }
}

fn agent_of(address: SocketAddr, folder: &std::path::Path) -> Result<Daemon> {
    let mut command = Command::new(binaries::path("muster-agent")?);
    command.args(["--controller", &format!("http://{address}"), "--name", "own", "--cpus", "1", "--data"]);
    command.arg(folder.join("agent")).env("NO_COLOR", "1").env_remove("MUSTER_LOG");
    Daemon::start("agent", &mut command, folder)
}

#[test]
fn this_agent_works_with_a_controller_of_the_release_before() -> Result<()> {
    let folder = tempfile::tempdir()?;
    runtime()?.block_on(async {
        let (address, mut hears) = Controller::serve(PROTOCOL - 1).await?;
        let mut agent = agent_of(address, folder.path())?;
        let (mut beats, mut output, mut end) = (0, Vec::new(), None);
        while beats < 3 || output.is_empty() || end.is_none() {
            match soon("the agent's next word", hears.recv()).await?.context("the controller ended")? {
                Heard::Hello(hello) => ensure!(
                    (hello.oldest_protocol, hello.protocol) == (OLDEST_PROTOCOL, PROTOCOL),
                    "an agent says what it understands: {hello:?}"
                ),
                Heard::Beat => beats += 1,
                Heard::Output(data) => output.extend(data),
                Heard::Ended(ended) => end = ended.end,
            }
        }
        ensure!(output == b"for the other release\n", "{:?}", String::from_utf8_lossy(&output));
        ensure!(end.as_ref().is_some_and(|end| end.kind() == v1::EndKind::Succeeded), "{end:?}");
        tokio::task::block_in_place(|| agent.stop())?;
        agent.expect_no_errors()
    })
}

#[test]
fn this_agent_leaves_a_controller_that_it_does_not_understand_and_says_whom_to_upgrade() -> Result<()> {
    for (protocol, part) in [(PROTOCOL + 1, "upgrade the agent"), (PROTOCOL - 2, "upgrade the controller")] {
        let folder = tempfile::tempdir()?;
        runtime()?.block_on(async {
            let (address, mut hears) = Controller::serve(protocol).await?;
            let agent = Arc::new(agent_of(address, folder.path())?);
            let said = Arc::clone(&agent);
            let told = move || Ok(Look::when(said.log().contains(part), said.log()));
            tokio::task::spawn_blocking(move || wait::until("the agent to say it", told)).await??;
            // It comes again and again, for the controller may be upgraded meanwhile, and runs nothing.
            for _ in 0..3 {
                let heard = soon("the agent's next word", hears.recv()).await?.context("the controller ended")?;
                ensure!(matches!(heard, Heard::Hello(_)), "protocol {protocol}: {heard:?}");
            }
            ensure!(!agent.log().contains("attached to the controller"), "{}", agent.log());
            Ok(())
        })?;
    }
    Ok(())
}

/// A controller's own program on a store that a newer release wrote.
fn refuses(folder: &std::path::Path, store: &[&str]) -> Result<()> {
    let mut command = Command::new(binaries::path("muster-controller")?);
    std::fs::create_dir_all(folder)?;
    command.args(["--listen", "127.0.0.1:0", "--data"]).arg(folder).args(store).env("NO_COLOR", "1");
    let mut controller = Daemon::start("newer", &mut command, folder)?;
    let log = wait::until("the controller to refuse", || {
        let log = controller.log();
        Ok(if log.contains("use the newer version again") { Look::Done(log) } else { Look::NotYet(log) })
    })?;
    ensure!(log.contains("99"), "it does not say what it found: {log}");
    // One that shares its store with others may stay and look again; it never serves.
    let status = wait::until("it to end, or to try again", || {
        let again = controller.log().matches("use the newer version again").count() > 1;
        Ok(controller
            .ended()?
            .map_or(if again { Look::Done(None) } else { Look::not_yet("no") }, |s| Look::Done(Some(s))))
    })?;
    ensure!(status.is_none_or(|status| !status.success()), "it ended as if nothing was wrong: {log}");
    Ok(())
}

#[test]
fn a_store_that_a_newer_release_wrote_is_refused_by_the_program_and_left_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Field 1, the version: 99.
    let all = vec![("meta".to_owned(), vec![0x08, 99])];
    let records = Records { term: Term(7), all };
    Locked::new(folder.path())?.create(&records)?;
    refuses(folder.path(), &[])?;
    let left = runtime()?.block_on(Embedded::open(folder.path())?.snapshot())?;
    ensure!(left == records, "something was written: {left:?}");
    Ok(())
}

#[test]
fn an_etcd_that_a_newer_release_wrote_is_refused_by_the_program_and_left_as_it_is() -> Result<()> {
    if let Some(why) = etcd::missing() {
        return skip("peers::an_etcd_that_a_newer_release_wrote_is_refused_by_the_program_and_left_as_it_is", &why);
    }
    let folder = tempfile::tempdir()?;
    let etcd = Etcd::start(folder.path(), 1, &[])?;
    etcd.ctl(&["put", "/muster/v1/meta", "\u{8}c"])?;
    refuses(&folder.path().join("data"), &["--store", &etcd.address()])?;
    let keys = etcd.ctl(&["get", "/muster/v1/", "--prefix", "--keys-only"])?;
    // That it is there, and would lead, ends with its session.
    let own = ["/muster/v1/meta", "/muster/v1/leader", "/muster/v1/members/"];
    let strange = keys.lines().filter(|key| !key.is_empty() && !own.iter().any(|own| key.starts_with(own)));
    let strange: Vec<_> = strange.collect();
    ensure!(strange.is_empty(), "something was written: {strange:?}");
    ensure!(etcd.ctl(&["get", "/muster/v1/meta"])?.ends_with("\u{8}c\n"), "the record is another");
    Ok(())
}
