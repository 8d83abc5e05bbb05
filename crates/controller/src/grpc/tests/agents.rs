//! What agents say and are told; health and reflection.

use std::sync::Arc;

use muster_common::proto::v1::{
    self, agent_down::Message as Down, agent_link_client::AgentLinkClient, agent_up::Message as Up,
    muster_client::MusterClient,
};
use muster_core::spec::{After, Array, On, TaskSpec};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1 as reflection, v1alpha};

use super::rig::{self, Rig, batch, hello, job, run, selector, succeeded, task, within};

#[test]
fn a_hello_is_checked_before_anything_else() {
    run(async |rig: Rig| {
        let base = hello;
        let cases = [
            (v1::Hello { protocol: 0, ..base() }, Code::FailedPrecondition, "upgrade the agent"),
            (v1::Hello { protocol: 99, ..base() }, Code::FailedPrecondition, "upgrade the controller"),
            (v1::Hello { uid: String::new(), ..base() }, Code::InvalidArgument, "uid"),
            (v1::Hello { uid: "x".repeat(1000), ..base() }, Code::InvalidArgument, "uid"),
            (v1::Hello { offer: None, ..base() }, Code::InvalidArgument, "offer"),
        ];
        let named = ["", " ", "a b", "-x", "a\nb"].map(|name| {
            let mut hello = base();
            hello.offer.as_mut().unwrap().name = name.to_owned();
            (hello, Code::InvalidArgument, "the name of an agent")
        });
        for (hello, code, part) in cases.into_iter().chain(named) {
            let status = rig.try_agent(hello).await.err().expect("refused");
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(part), "{status}");
        }
        let mut client = AgentLinkClient::new(rig.channel.clone());
        let beat = v1::AgentUp { message: Some(Up::Heartbeat(v1::Heartbeat::default())) };
        let mut down = client.control(tokio_stream::iter([beat])).await.unwrap().into_inner();
        let status = within(down.message()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(rig.parts.sessions.count(), 0);
    });
}

#[test]
fn heartbeats_are_answered_and_a_newer_connection_replaces_an_older_one() {
    run(async |rig: Rig| {
        let mut first = rig.agent().await;
        assert!(first.welcome.heartbeat_ms > 0 && first.welcome.lease_ttl_ms > first.welcome.heartbeat_ms);
        first.tell(Up::Heartbeat(v1::Heartbeat { stamp_us: 77, load: None })).await;
        let Some(Down::HeartbeatAck(ack)) = first.next().await.unwrap() else { panic!("no answer") };
        assert_eq!((ack.stamp_us, ack.term), (77, first.welcome.term));
        let second = rig.agent().await;
        assert_eq!(second.id(), first.id());
        assert!(second.welcome.session > first.welcome.session);
        let status = first.next().await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{status}");
    });
}

#[test]
fn a_report_that_cannot_be_read_costs_only_itself() {
    run(async |mut rig: Rig| {
        rig.submit(&job("odd", vec![task("a"), task("b")])).await;
        let mut agent = rig.agent().await;
        let (first, second) = (agent.lease().await, agent.lease().await);
        // A kind of end that only a newer build knows.
        let newer = v1::End { kind: 99, ..v1::End::default() };
        agent.end(&[(&first, newer, None), (&second, succeeded(), None)]).await;
        let again = agent.lease().await;
        assert_eq!((again.job, again.task), (first.job, first.task), "it is lost, and tried again");
        assert!(again.token > second.token);
        agent.end(&[(&again, succeeded(), None)]).await;
    });
}

#[test]
fn leases_carry_what_is_run_and_reports_end_it() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let items: Vec<_> = ["x", "y"].map(str::to_owned).into();
        let scan = TaskSpec { array: Some(Array::Items(items.into())), ..task("scan") };
        let id = rig.submit(&job("items", vec![scan])).await;
        let (first, second) = (agent.lease().await, agent.lease().await);
        assert_eq!((first.array_index, first.array_item.as_deref()), (Some(0), Some("x")));
        assert_eq!((second.array_index, second.array_item.as_deref()), (Some(1), Some("y")));
        assert_eq!((agent.specs.len(), agent.specs[0].job_name.as_str()), (1, "items"));
        agent.end(&[(&first, succeeded(), None), (&second, succeeded(), None)]).await;
        let shown = rig.people.get_job(v1::GetJobRequest { selector: selector(id) }).await.unwrap().into_inner();
        assert_eq!(shown.summary.unwrap().state(), v1::JobState::Succeeded);
        // One that says nothing costs only itself.
        let bad = v1::Report { seq: 9, ..v1::Report::default() };
        agent.tell(Up::Reports(v1::Reports { reports: vec![bad] })).await;
        agent.tell(Up::Heartbeat(v1::Heartbeat { stamp_us: 77, load: None })).await;
        let Some(Down::HeartbeatAck(ack)) = agent.next().await.unwrap() else { panic!("no answer") };
        assert_eq!(ack.stamp_us, 77);
    });
}

#[test]
fn a_cancelled_attempt_is_stopped_at_its_agent() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("long", vec![task("a")])).await;
        let lease = agent.lease().await;
        let request = v1::CancelRequest { selector: selector(id), ..Default::default() };
        rig.people.cancel(request).await.unwrap();
        let Some(Down::Stop(stop)) = agent.next().await.unwrap() else { panic!("no order to stop") };
        assert_eq!((stop.token, stop.term), (lease.token, agent.welcome.term));
    });
}

#[test]
fn an_agent_that_leaves_or_is_cut_off_is_known_as_such() {
    run(async |mut rig: Rig| {
        let agent = rig.agent().await;
        agent.tell(Up::Goodbye(v1::Goodbye {})).await;
        let state = within(async {
            loop {
                let reply = rig.people.list_agents(v1::ListAgentsRequest::default()).await.unwrap().into_inner();
                if reply.agents[0].state != "connected" {
                    return reply.agents[0].state.clone();
                }
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(state.await, "stopped");
    });
}

#[test]
fn inputs_are_one_document_of_what_dependencies_left() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let on = |name: &str| After { job: None, job_name: None, task: Some(name.to_owned()), on: On::Any };
        let count = TaskSpec { array: Some(Array::Range { first: 0, count: 3, step: 1 }), ..task("count") };
        let merge = TaskSpec { after: vec![on("list"), on("count"), on("none"), on("list2")], ..task("merge") };
        let id = rig.submit(&job("pipe", vec![task("list"), count, task("none"), task("list2"), merge])).await;
        let large = format!("[{}1]", "1,".repeat(100_000));
        let left = [Some("{\"n\": 1}"), Some("10"), None, Some("30"), None, Some("\"x\"")];
        for (n, json) in left.iter().enumerate() {
            let lease = agent.lease().await;
            assert_eq!(lease.task as usize, n);
            if n == 1 {
                let id = agent.id();
                let parts = large.as_bytes().chunks(70_000).map(|data| v1::ResultPart {
                    agent: id,
                    token: lease.token,
                    job: lease.job,
                    task: lease.task,
                    data: data.to_vec(),
                });
                let parts: Vec<_> = parts.collect();
                let kept = agent.client.put_result(tokio_stream::iter(parts)).await.unwrap().into_inner();
                assert_eq!(kept.bytes, large.len() as u64);
                agent.end_stored(&lease, kept.bytes).await;
            } else {
                agent.end(&[(&lease, succeeded(), *json)]).await;
            }
        }
        let lease = agent.lease().await;
        assert!(agent.specs[0].has_inputs);
        let group = agent.specs[0].group;
        let request =
            v1::InputsRequest { agent: agent.id(), token: lease.token, job: id, group, task: Some(lease.task) };
        // Inputs are for who has the lease, and for the entry that it is for.
        for wrong in [
            v1::InputsRequest { agent: agent.id() + 1, ..request },
            v1::InputsRequest { agent: agent.id() + 1, task: None, ..request },
            v1::InputsRequest { token: lease.token + 1, ..request },
            v1::InputsRequest { token: lease.token + 1, task: None, ..request },
            v1::InputsRequest { task: Some(0), ..request },
            v1::InputsRequest { group: 0, ..request },
        ] {
            let error = agent.client.inputs(wrong).await.unwrap_err();
            assert_eq!(error.code(), Code::PermissionDenied, "{wrong:?}: {error}");
        }
        // An agent of the release before does not name the task.
        let older = v1::InputsRequest { task: None, ..request };
        agent.client.inputs(older).await.unwrap();
        let mut stream = agent.client.inputs(request).await.unwrap().into_inner();
        let mut document = Vec::new();
        while let Some(part) = within(stream.message()).await.unwrap() {
            assert!(part.data.len() <= 64 * 1024);
            document.extend(part.data);
        }
        let expected = format!("{{\"list\":{{\"n\": 1}},\"count\":[{large},null,30],\"none\":null,\"list2\":\"x\"}}");
        assert_eq!(String::from_utf8(document).unwrap(), expected);
        let request = v1::GetResultRequest { selector: selector(format!("{id}.count[0]")) };
        let mut stream = rig.people.get_result(request).await.unwrap().into_inner();
        let mut stored = Vec::new();
        while let Some(part) = within(stream.message()).await.unwrap() {
            stored.extend(part.data);
        }
        assert_eq!(String::from_utf8(stored).unwrap(), large);
        let request = v1::InputsRequest { job: id, group: 99, ..Default::default() };
        assert_eq!(agent.client.inputs(request).await.unwrap_err().code(), Code::PermissionDenied);
    });
}

#[test]
fn a_result_without_a_live_lease_is_refused() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        rig.submit(&job("fenced", vec![task("a")])).await;
        let lease = agent.lease().await;
        let part = |token| v1::ResultPart { agent: 1, token, job: lease.job, task: lease.task, data: b"1".to_vec() };
        let wrong = agent.client.put_result(tokio_stream::iter([part(lease.token + 1)])).await.unwrap_err();
        assert_eq!(wrong.code(), Code::FailedPrecondition);
        agent.end(&[(&lease, succeeded(), None)]).await;
        let late = agent.client.put_result(tokio_stream::iter([part(lease.token)])).await.unwrap_err();
        assert_eq!(late.code(), Code::FailedPrecondition);
        let none = agent.client.put_result(tokio_stream::empty()).await.unwrap_err();
        assert_eq!(none.code(), Code::InvalidArgument);
    });
}

#[test]
fn output_is_acknowledged_when_it_is_kept_and_foreign_output_at_once() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("talk", vec![task("a")])).await;
        let lease = agent.lease().await;
        let (up, mut down) = agent.log_stream().await;
        let foreign = v1::LogBatch { token: lease.token + 9, ..batch(&lease, 0, &["not mine"], false) };
        let batches = vec![foreign, batch(&lease, 0, &["a", "b"], true)];
        up.send(v1::LogUp { agent: agent.id(), batches }).await.unwrap();
        let mut kept = std::collections::BTreeMap::new();
        while kept.get(&lease.token) != Some(&2) || kept.get(&(lease.token + 9)) != Some(&1) {
            let acks = within(down.message()).await.unwrap().expect("the stream holds").acks;
            kept.extend(acks.into_iter().map(|ack| (ack.token, ack.kept)));
        }
        let request = v1::LogsRequest { selector: selector(id), ..Default::default() };
        let stream = rig.people.logs(request).await.unwrap().into_inner();
        let frames: Vec<_> = stream.map(|reply| reply.unwrap().frames.len()).collect().await;
        assert_eq!(frames, [2]);
    });
}

#[test]
fn health_and_reflection_answer_their_own_clients() {
    run(async |rig: Rig| {
        let mut health = HealthClient::new(rig.channel.clone());
        for service in ["", "muster.v1.Muster", "muster.v1.AgentLink"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let mut watch = health.watch(request).await.unwrap().into_inner();
            while within(watch.message()).await.unwrap().unwrap().status() != ServingStatus::Serving {}
        }
        let mut client = reflection::server_reflection_client::ServerReflectionClient::new(rig.channel.clone());
        let message_request = Some(reflection::server_reflection_request::MessageRequest::ListServices(String::new()));
        let request = reflection::ServerReflectionRequest { host: String::new(), message_request };
        let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
        let answer = within(answers.message()).await.unwrap().unwrap().message_response.unwrap();
        let reflection::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
            panic!("{answer:?}")
        };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        assert!(names.contains(&"muster.v1.Muster") && names.contains(&"muster.v1.AgentLink"), "{names:?}");
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(rig.channel.clone());
        let symbol = "muster.v1.Muster".to_owned();
        let message_request = Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(symbol));
        let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request };
        let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
        assert!(within(answers.message()).await.unwrap().unwrap().message_response.is_some());
    });
}

#[test]
fn a_large_spec_is_taken_and_a_larger_message_is_refused() {
    run(async |mut rig: Rig| {
        let script = "x".repeat(6_000);
        let entry =
            |n: u32| TaskSpec { command: muster_core::spec::Command::Shell(script.clone()), ..task(&format!("t{n}")) };
        let spec = job("large", (0..1000).map(entry).collect());
        let id = rig.submit(&spec).await;
        let mut client = MusterClient::new(rig.channel.clone()).max_decoding_message_size(64 << 20);
        let shown = client.get_job(v1::GetJobRequest { selector: selector(id) }).await.unwrap().into_inner();
        assert_eq!(shown.groups.len(), 1000);
        let mut agent = rig.agent().await;
        let goods = Arc::new(vec![0_u8; 5 << 20]);
        let part = v1::ResultPart { data: goods.to_vec(), ..Default::default() };
        let status = agent.client.put_result(tokio_stream::iter([part])).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        let _: rig::Agent = agent;
    });
}

#[test]
fn two_agents_of_one_name_are_told_of_once() {
    run(async |rig: Rig| {
        let look = |agent: &rig::Agent| {
            let agent = muster_core::id::AgentId(agent.id());
            rig.parts.twins.look(agent, &rig.parts.view.load(), &rig.parts.sessions)
        };
        let first = rig.agent().await;
        let mut other = hello();
        other.uid = "uid-2".to_owned();
        other.offer.as_mut().unwrap().name = "south".to_owned();
        let south = rig.try_agent(other).await.unwrap();
        assert_eq!([look(&first), look(&south)], [0, 0]);
        let twin = rig.try_agent(v1::Hello { uid: "uid-3".to_owned(), ..hello() }).await.unwrap();
        assert_ne!(twin.id(), first.id());
        assert_eq!([look(&first), look(&twin)], [0, 0], "it was told of when it came");
        // A clone of none who were told of: it is told of now, and no second time.
        let parts = crate::grpc::Twins::default();
        let again = |agent: &rig::Agent| {
            let agent = muster_core::id::AgentId(agent.id());
            parts.look(agent, &rig.parts.view.load(), &rig.parts.sessions)
        };
        assert_eq!([again(&twin), again(&first), again(&south)], [1, 0, 0]);
    });
}
