//! Commands on terminals: which agent is given them, and who is told that there are none.

use muster_common::proto::v1::{self, agent_down::Message as Down, agent_up::Message as Up, exec_request::Message};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use super::rig::{Rig, hello, job, run, selector, task, within};

/// What is sent: a start, and then nothing for as long as anybody listens.
fn requests(start: v1::ExecStart) -> impl tokio_stream::Stream<Item = v1::ExecRequest> + Send + 'static {
    let start = v1::ExecRequest { message: Some(Message::Start(start)) };
    let resized = v1::ExecRequest { message: Some(Message::Resized(v1::TerminalSize { columns: 7, rows: 5 })) };
    tokio_stream::iter([start, resized]).chain(tokio_stream::pending())
}

fn terminal(name: &str) -> Option<v1::Terminal> {
    Some(v1::Terminal { name: name.into(), size: Some(v1::TerminalSize { columns: 100, rows: 30 }) })
}

async fn refused(replies: Result<tonic::Response<tonic::Streaming<v1::ExecReply>>, Status>) -> Status {
    match replies {
        Err(status) => status,
        Ok(replies) => within(replies.into_inner().message()).await.expect_err("refused"),
    }
}

#[test]
fn a_command_on_a_terminal_goes_to_an_agent_that_knows_of_them_and_is_refused_for_another() {
    run(async |mut rig: Rig| {
        let id = rig.submit(&job("held", vec![task("a")])).await;
        let start = |terminal| v1::ExecStart { selector: selector(id), command: vec!["sh".into()], terminal };
        let mut agent = rig.try_agent(v1::Hello { terminals: true, ..hello() }).await.unwrap();
        let lease = agent.lease().await;
        let _replies = rig.people.exec_terminal(requests(start(terminal("xterm")))).await.unwrap();
        let Some(Down::Exec(order)) = agent.next().await.unwrap() else { panic!("no order") };
        assert_eq!((order.token, order.terminal), (lease.token, terminal("xterm")));
        // Its sizes go down, too.
        let up = v1::exec_up::Message::Hello(v1::ExecHello { agent: agent.id(), id: order.id });
        let up = tokio_stream::once(v1::ExecUp { message: Some(up) }).chain(tokio_stream::pending());
        let mut down = agent.client.exec(up).await.unwrap().into_inner();
        let resized = within(down.message()).await.unwrap().unwrap().resized;
        assert_eq!(resized, Some(v1::TerminalSize { columns: 7, rows: 5 }));

        // The same agent, gone back to an older build: it hears nothing of it.
        let holding = vec![lease.token];
        let mut older = rig.try_agent(v1::Hello { holding, ..hello() }).await.unwrap();
        let status = refused(rig.people.exec_terminal(requests(start(terminal("xterm")))).await).await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("is older than this controller and knows of no terminals"), "{status}");
        older.tell(Up::Heartbeat(v1::Heartbeat { stamp_us: 77, load: None })).await;
        let Some(Down::HeartbeatAck(_)) = older.next().await.unwrap() else { panic!("it was told something") };
    });
}

#[test]
fn each_call_is_for_what_it_says_and_a_terminal_has_a_name_that_can_be_one() {
    run(async |mut rig: Rig| {
        let id = rig.submit(&job("held", vec![task("a")])).await;
        let mut agent = rig.try_agent(v1::Hello { terminals: true, ..hello() }).await.unwrap();
        agent.lease().await;
        let start = |terminal| v1::ExecStart { selector: selector(id), command: vec!["sh".into()], terminal };
        let mut all = vec![refused(rig.people.exec(requests(start(terminal("xterm")))).await).await];
        let long = "x".repeat(65);
        for odd in [None, terminal("x term"), terminal("x\u{1b}[0m"), terminal(&long)] {
            all.push(refused(rig.people.exec_terminal(requests(start(odd))).await).await);
        }
        for status in all {
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
    });
}
