//! Enemies on the port: each is refused or bounded, told once in the log, and nobody else is disturbed.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use muster_common::{
    proto::{
        PROTOCOL,
        v1::{self, agent_link_client::AgentLinkClient, agent_up::Message as Up, muster_client::MusterClient},
    },
    tls::Who,
};
use muster_controller::identity::Authority as Signs;
use muster_integration::{
    certificates::Authority,
    secure::{Secure, Shows, channel},
    wait::{self, Look},
};
use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::{Code, Request, Status, transport::Channel};

const HOUR: Duration = Duration::from_secs(3600);

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A certificate for an agent, signed at `at` for an hour.
fn signed(authority: &Authority, who: &Who, at: SystemTime) -> Result<Shows> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let ca = authority.certificate();
    let certificate = Signs::of_files(&ca, &ca.with_extension("key"))?.sign_agent(who, &request, at, HOUR)?;
    Ok(Shows { certificate, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) })
}

/// What a call of an agent says that opens its control stream with this hello.
async fn hello(channel: &Channel, name: &str, uid: &str) -> Result<(), Status> {
    let offer = Some(v1::Offer { name: name.to_owned(), ..v1::Offer::default() });
    let hello = v1::Hello { uid: uid.to_owned(), offer, protocol: PROTOCOL, ..v1::Hello::default() };
    let messages = tokio_stream::iter([v1::AgentUp { message: Some(Up::Hello(hello)) }]);
    let mut down = AgentLinkClient::new(channel.clone()).control(messages).await?.into_inner();
    down.message().await.map(|_| ())
}

#[test]
fn bad_certificates_and_garbage_end_at_the_door_and_are_told_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (own, foreign) = (Authority::new(&folder.path().join("own"))?, Authority::new(&folder.path().join("foreign"))?);
    let ca = own.certificate();
    let mut secure =
        Secure::start(&format!("ca = '{}'\nca_key = '{}'", ca.display(), ca.with_extension("key").display()))?;
    secure.join("north")?;
    let uid = std::fs::read_to_string(secure.agent_data("north").join("agent-uid"))?.trim().to_owned();
    let north = Who::Agent { name: "north".to_owned(), uid: uid.clone(), generation: 1 };
    let now = SystemTime::UNIX_EPOCH + Duration::from_micros(muster_common::clock::Clock::system().wall().0);
    // Good in all else: these are refused for the one thing that is wrong with them.
    let expired = signed(&own, &north, now - 3 * HOUR)?;
    let other = signed(&foreign, &north, now)?;
    let earlier = signed(&own, &Who::Agent { name: "north".to_owned(), uid: uid.clone(), generation: 7 }, now)?;
    runtime()?.block_on(async {
        for _ in 0..10 {
            for bad in [&expired, &other] {
                // With TLS 1.3 a client learns of it with its first call.
                let said = match channel(secure.address(), &secure.ca(), Some(bad)).await {
                    Ok(channel) => hello(&channel, "north", &uid).await.err().map(|status| status.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                ensure!(said.is_some(), "it was let in");
            }
        }
        let channel = channel(secure.address(), &secure.ca(), Some(&earlier)).await?;
        let status = hello(&channel, "north", &uid).await.err().context("it was let in")?;
        ensure!(status.code() == Code::PermissionDenied && status.message().contains("joined anew"), "{status}");
        Ok(())
    })?;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        for _ in 0..10 {
            let mut stream = TcpStream::connect(secure.address())?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            // It may be closed before all is written.
            drop(stream.write_all(garbage));
            let mut answer = Vec::new();
            drop(stream.read_to_end(&mut answer));
            ensure!(answer.len() < 100, "it is answered at length: {answer:?}");
        }
    }
    secure.works()?;
    let log = secure.log();
    for word in ["has expired", "is of another authority", "is no TLS"] {
        ensure!(log.matches(word).count() == 1, "{word:?} is not told once:\n{log}");
    }
    secure.finish()
}

#[test]
fn a_stolen_certificate_speaks_for_nobody_else() -> Result<()> {
    let mut secure = Secure::start("")?;
    secure.join("north")?;
    secure.join("south")?;
    let agents = secure.ctl().json(&["agents"])?;
    let id = |name: &str| -> Result<u64> {
        let found = agents["agents"].as_array().into_iter().flatten().find(|agent| agent["name"] == name);
        found.and_then(|agent| agent["id"].as_u64()).context("no such agent")
    };
    let (north, south) = (id("north")?, id("south")?);
    let uid = |name: &str| std::fs::read_to_string(secure.agent_data(name).join("agent-uid"));
    let (north_uid, south_uid) = (uid("north")?, uid("south")?);
    let stolen = Shows::stolen(&secure.agent_data("north"))?;
    runtime()?.block_on(async {
        let thief = channel(secure.address(), &secure.ca(), Some(&stolen)).await?;
        let nobody = channel(secure.address(), &secure.ca(), None).await?;
        for (name, uid) in [("south", &south_uid), ("north", &south_uid), ("south", &north_uid)] {
            let status = hello(&thief, name, uid.trim()).await.err().context("it was let in")?;
            ensure!(status.code() == Code::PermissionDenied, "{name} {uid}: {status}");
        }
        let mut calls = AgentLinkClient::new(thief.clone());
        let part = v1::ResultPart { agent: south, token: 1, job: 1, ..v1::ResultPart::default() };
        let status = calls.put_result(tokio_stream::iter([part])).await.err().context("a result was taken")?;
        ensure!(status.code() == Code::PermissionDenied, "{status}");
        let request = v1::InputsRequest { agent: south, token: 1, job: 1, ..v1::InputsRequest::default() };
        let status = calls.inputs(request).await.err().context("inputs were given away")?;
        ensure!(status.code() == Code::PermissionDenied, "{status}");
        let up = tokio_stream::iter([v1::LogUp { agent: south, batches: Vec::new() }]);
        let mut down = calls.logs(up).await?.into_inner();
        let status = down.message().await.err().context("output was taken")?;
        ensure!(status.code() == Code::PermissionDenied, "{status}");
        // Its own is its own.
        let up = tokio_stream::iter([v1::LogUp { agent: north, batches: Vec::new() }]);
        ensure!(calls.logs(up).await?.into_inner().message().await.is_ok(), "its own stream is refused");
        // People's calls are not for agents, and agents' calls not for people.
        let status = MusterClient::new(thief).list_agents(v1::ListAgentsRequest::default()).await.err();
        ensure!(status.is_some_and(|status| status.code() == Code::PermissionDenied), "an agent is no person");
        let status = hello(&nobody, "south", south_uid.trim()).await.err().context("it was let in")?;
        ensure!(status.code() == Code::Unauthenticated, "{status}");
        // Nobody becomes an agent by saying so where controllers say it.
        let mut claim = Request::new(tokio_stream::iter([v1::LogUp { agent: south, batches: Vec::new() }]));
        let who = Who::Agent { name: "south".to_owned(), uid: south_uid.trim().to_owned(), generation: 1 };
        claim.metadata_mut().insert("muster-peer", who.uri().parse()?);
        claim.metadata_mut().insert("muster-forwarded-by", "1".parse()?);
        let status = AgentLinkClient::new(nobody).logs(claim).await.err().context("a claim was believed")?;
        ensure!(status.code() == Code::Unauthenticated, "{status}");
        Ok(())
    })?;
    secure.agent_is("south", "connected")?;
    secure.works()?;
    secure.finish()
}

#[test]
fn ten_thousand_connections_that_say_nothing_disturb_nobody_and_end() -> Result<()> {
    const SILENT: usize = 10_000;
    let (_, most) = getrlimit(RLIMIT_NOFILE)?;
    ensure!(most > SILENT as u64 + 500, "this needs a hard limit of open files above {SILENT}, and it is {most}");
    setrlimit(RLIMIT_NOFILE, most, most)?;
    let mut secure = Secure::start("")?;
    secure.join("north")?;
    let connect = |_| TcpStream::connect(secure.address()).context("it takes no connection");
    let mut silent = (0..SILENT).map(connect).collect::<Result<Vec<_>>>()?;
    secure.works()?;
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        match stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => bail!("a silent connection is not ended: {other:?}"),
        }
    }
    let files = format!("/proc/{}/fd", secure.controller.as_ref().context("it runs")?.pid());
    wait::until("the controller to have closed them", || {
        let open = std::fs::read_dir(&files)?.count();
        Ok(Look::when(open < 200, open))
    })?;
    secure.works()?;
    let told = secure.log().matches("a connection is refused").count();
    ensure!(told <= 2, "it is told {told} times");
    secure.finish()
}

#[test]
fn large_messages_are_refused_and_who_does_not_read_is_bounded() -> Result<()> {
    let mut secure = Secure::start("")?;
    secure.join("north")?;
    let shell = "head -c 30000000 /dev/zero | tr '\\\\000' 'x' | fold -w 1000";
    let file = secure.file("loud.toml", &format!("name = \"loud\"\n[[tasks]]\nname = \"a\"\nshell = \"{shell}\"\n"))?;
    let job = secure.ctl().submit(&file)?;
    let shown = secure.ctl().finished(job, Duration::from_secs(60))?;
    ensure!(shown["state"] == "succeeded", "{shown}");
    let memory = || -> Result<u64> {
        let pid = secure.controller.as_ref().context("it runs")?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
    };
    let before = memory()?;
    runtime()?.block_on(async {
        let own = Shows::stolen(&secure.agent_data("north"))?;
        let agent = channel(secure.address(), &secure.ca(), Some(&own)).await?;
        let person = channel(secure.address(), &secure.ca(), None).await?;
        let large = |bytes: usize| "x".repeat(bytes);
        let spec = Some(v1::JobSpec { name: large(100 << 20), ..v1::JobSpec::default() });
        let request = v1::SubmitRequest { spec, ..v1::SubmitRequest::default() };
        let status = MusterClient::new(person.clone()).submit(request).await.err().context("100 MB were taken")?;
        ensure!(status.code() == Code::OutOfRange, "{status}");
        let status = hello(&agent, &large(100 << 20), "u").await.err().context("100 MB were taken")?;
        ensure!(status.code() == Code::OutOfRange, "{status}");
        // Streams that nobody reads: each is held by what fits into its window.
        let mut unread = Vec::new();
        for _ in 0..50 {
            let selector = Some(v1::Selector { text: job.to_string() });
            let request = v1::LogsRequest { selector, ..v1::LogsRequest::default() };
            unread.push(MusterClient::new(person.clone()).logs(request).await?);
        }
        secure.works()?;
        let after = memory()?;
        ensure!(after < before + 300, "the controller grew from {before} to {after} MiB");
        drop(unread);
        Ok(())
    })?;
    secure.works()?;
    secure.finish()
}
