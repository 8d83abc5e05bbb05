//! What people wish of agents, and what agents say of their machines.

use muster_common::proto::{
    PROTOCOL,
    v1::{self, agent_down::Message as Down, agent_up::Message as Up, tend_agents_request::Wish},
};
use tonic::Code;

use super::rig::{self, Rig, job, run, selector, succeeded, task, within};

async fn agents(rig: &mut Rig, request: v1::ListAgentsRequest) -> v1::ListAgentsReply {
    rig.people.list_agents(request).await.unwrap().into_inner()
}

fn drain(within_ms: u64) -> v1::TendAgentsRequest {
    let wish = Some(Wish::Drain(v1::DrainWish { within_ms: Some(within_ms) }));
    let (names, reason, by) = (vec!["north".to_owned()], "new kernel".to_owned(), "ann".to_owned());
    v1::TendAgentsRequest { names, reason, by, wish, ..v1::TendAgentsRequest::default() }
}

#[test]
fn a_drain_is_shown_ends_what_runs_at_its_time_and_is_taken_back() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("j", vec![task("a")])).await;
        let lease = agent.lease().await;
        let reply = rig.people.tend_agents(drain(1)).await.unwrap().into_inner();
        assert_eq!((reply.changed, reply.same), (vec!["north".to_owned()], vec![]));
        let stop = within(async {
            loop {
                if let Some(Down::Stop(stop)) = agent.next().await.unwrap() {
                    return stop;
                }
            }
        });
        assert_eq!(stop.await.token, lease.token);
        let view = agents(&mut rig, Default::default()).await.agents.remove(0);
        let cordon = view.cordon.expect("it is drained");
        assert_eq!((cordon.by.as_str(), cordon.reason.as_str(), cordon.drain), ("ann", "new kernel", true));
        agent.end(&[(&lease, v1::End { kind: v1::EndKind::Cancelled.into(), ..v1::End::default() }, None)]).await;
        let request = v1::ListTasksRequest { selector: selector(id), ..Default::default() };
        let shown = rig.people.list_tasks(request).await.unwrap().into_inner().tasks.remove(0).task.unwrap();
        assert_eq!((shown.state(), shown.losses, shown.retries), (v1::TaskState::Queued, 0, 0));
        let resume = v1::TendAgentsRequest { wish: Some(Wish::Resume(v1::ResumeWish {})), ..drain(0) };
        rig.people.tend_agents(resume.clone()).await.unwrap();
        let lease = agent.lease().await;
        agent.end(&[(&lease, succeeded(), None)]).await;
        let again = rig.people.tend_agents(resume).await.unwrap().into_inner();
        assert_eq!(again.same, ["north"]);
    });
}

#[test]
fn a_wish_that_cannot_be_is_refused_with_its_field() {
    run(async |mut rig: Rig| {
        let _agent = rig.agent().await;
        let table = [
            (v1::TendAgentsRequest { wish: None, ..drain(1) }, Code::InvalidArgument, "wish"),
            (v1::TendAgentsRequest { names: vec!["nobody".into()], ..drain(1) }, Code::NotFound, "nobody"),
            (v1::TendAgentsRequest { labels: vec!["a b c".into()], ..drain(1) }, Code::InvalidArgument, "label"),
            (v1::TendAgentsRequest { reason: "x".repeat(2000), ..drain(1) }, Code::InvalidArgument, "reason"),
        ];
        for (request, code, word) in table {
            let status = rig.people.tend_agents(request).await.unwrap_err();
            assert!(status.code() == code && format!("{status:?}").contains(word), "{status:?}");
        }
    });
}

#[test]
fn agents_come_in_pages_with_the_totals_of_all() {
    run(async |mut rig: Rig| {
        let mut all = Vec::new();
        for n in 0..5 {
            let mut hello = rig::hello();
            hello.uid = format!("uid-{n}");
            if let Some(offer) = &mut hello.offer {
                offer.name = format!("n{n}");
                offer.labels.insert("zone".to_owned(), if n < 3 { "a" } else { "b" }.to_owned());
            }
            all.push(rig.try_agent(hello).await.unwrap());
        }
        let mut request = v1::ListAgentsRequest { page_size: 2, ..Default::default() };
        let mut names = Vec::new();
        loop {
            let reply = agents(&mut rig, request.clone()).await;
            assert!(reply.agents.len() <= 2);
            let totals = reply.totals.expect("an answer has totals");
            assert_eq!((totals.connected, totals.capacity.map(|c| c.cpu_milli)), (5, Some(5 * 64_000)));
            names.extend(reply.agents.into_iter().map(|view| view.offer.unwrap().name));
            request.page_token = reply.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names, ["n0", "n1", "n2", "n3", "n4"]);
        let zone = v1::ListAgentsRequest { labels: vec!["zone=a".into()], only_totals: true, ..Default::default() };
        let reply = agents(&mut rig, zone).await;
        assert_eq!((reply.agents.len(), reply.totals.unwrap().connected), (0, 3));
        let named = v1::ListAgentsRequest { names: vec!["n4".into()], ..Default::default() };
        assert_eq!(agents(&mut rig, named).await.agents.len(), 1);
    });
}

#[test]
fn a_machine_says_how_it_is_and_what_it_offers_now_and_both_are_shown() {
    run(async |mut rig: Rig| {
        let hello = v1::Hello { protocol: PROTOCOL, ..rig::hello() };
        let mut offer = hello.offer.clone().unwrap();
        let agent = rig.try_agent(hello).await.unwrap();
        let load = v1::Load { load_milli: 1500, memory_free: 7, disk_free: 9 };
        agent.tell(Up::Heartbeat(v1::Heartbeat { stamp_us: 1, load: Some(load) })).await;
        offer.capacity = Some(v1::Request { cpu_milli: 2000, ..v1::Request::default() });
        offer.facts = Some(v1::Facts { kernel: "6.12".to_owned(), ..v1::Facts::default() });
        agent.tell(Up::Offer(offer.clone())).await;
        let view = within(async {
            loop {
                let view = agents(&mut rig, Default::default()).await.agents.remove(0);
                if view.offer.as_ref() == Some(&offer) {
                    return view;
                }
                tokio::task::yield_now().await;
            }
        });
        let view = view.await;
        assert_eq!((view.load, view.capacity), (Some(load), offer.capacity));
        drop(agent);
        within(async {
            while agents(&mut rig, Default::default()).await.agents[0].load.is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
}
