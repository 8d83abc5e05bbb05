//! Commands in tasks that run: a person's call and an agent's call, joined. Nothing of them is kept but that it was asked for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_common::proto::v1::{self, exec_reply, exec_request::Message, exec_up};
use muster_core::{
    access::Caller,
    audit::Note,
    event::Event,
    id::{AgentId, TaskId},
    state::Task,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

use crate::{
    dispatch::Outgoing,
    grpc::{
        Parts,
        agents::Back,
        layout::known,
        machine::Speaker,
        select::resolve,
        status::{of_engine, of_field},
    },
};

/// How long a person has for the first message, and an agent to take the command up.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Messages that wait for either side.
const ROOM: usize = 16;
/// Commands at one time, of all people: each holds two streams open.
const AT_ONCE: usize = 256;

/// Commands that wait for their agent, by number. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
}

/// One side of a command, until the other comes.
#[derive(Debug)]
struct Waiting {
    agent: AgentId,
    stdin: mpsc::Receiver<v1::ExecDown>,
    replies: Back<v1::ExecReply>,
    /// Dropped when the agent's side is there.
    taken: tokio::sync::oneshot::Sender<()>,
}

/// Its command waits no longer than its caller.
struct Registered {
    calls: Calls,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.calls.lock().waiting.remove(&self.id);
    }
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, waiting: Waiting) -> Result<Registered, Status> {
        let mut state = self.lock();
        if state.waiting.len() >= AT_ONCE {
            return Err(Status::resource_exhausted(format!("{AT_ONCE} commands wait for their agents; try again")));
        }
        state.last += 1;
        let id = state.last;
        state.waiting.insert(id, waiting);
        Ok(Registered { calls: self.clone(), id })
    }

    fn take(&self, id: u64, agent: AgentId) -> Option<Waiting> {
        let mut state = self.lock();
        let is_its = state.waiting.get(&id).is_some_and(|waiting| waiting.agent == agent);
        if is_its { state.waiting.remove(&id) } else { None }
    }
}

/// A person's side: until the command ended, or nobody is interested any more.
pub(super) async fn ask(
    parts: Parts,
    calls: Calls,
    caller: Arc<Caller>,
    mut requests: Streaming<v1::ExecRequest>,
    back: Back<v1::ExecReply>,
) -> Result<(), Status> {
    let first = timeout(BEGIN_WITHIN, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no command came; it is sent first"))??;
    let Some(v1::ExecRequest { message: Some(Message::Start(start)) }) = first else {
        return Err(Status::invalid_argument("the first message must say which task and which command"));
    };
    if start.command.first().is_none_or(String::is_empty) {
        return Err(of_field("start.command", "is empty; name a program"));
    }
    let (task, token, agent, name) = place(&parts, &caller, start.selector)?;
    let note = Note::done(&caller, "exec", &task.to_string(), &start.command.join(" "));
    parts.handle.ask(Event::Note(note)).await.map_err(of_engine)?;

    let (input, stdin) = mpsc::channel(ROOM);
    let (taken, at_work) = tokio::sync::oneshot::channel();
    let registered = calls.add(Waiting { agent, stdin, replies: back.clone(), taken })?;
    let order = v1::ExecOrder { id: registered.id, token, command: start.command };
    if !parts.sessions.send_to(agent, Outgoing::Exec(order)) {
        return Err(Status::unavailable(format!("agent `{name}`, which runs {task}, is not connected")));
    }
    // The sender is dropped without a word, which is the word.
    if timeout(BEGIN_WITHIN, at_work).await.is_err() {
        return Err(Status::unavailable(format!(
            "agent `{name}` does not take up the command; it may be older than this controller"
        )));
    }
    tokio::select! {
        () = back.closed() => Ok(()),
        fed = feed(&mut requests, &input) => match fed {
            // What it says still comes; it ends with its own word, or when nobody listens.
            Ok(()) => {
                tokio::select! { () = back.closed() => {}, () = input.closed() => {} }
                Ok(())
            }
            Err(status) => Err(status),
        },
    }
}

/// What the command reads. Ends with an error when the person is gone.
async fn feed(requests: &mut Streaming<v1::ExecRequest>, input: &mpsc::Sender<v1::ExecDown>) -> Result<(), Status> {
    loop {
        let down = match requests.message().await?.and_then(|request| request.message) {
            Some(Message::Stdin(stdin)) => v1::ExecDown { stdin, stdin_end: false },
            Some(Message::StdinEnd(_)) => v1::ExecDown { stdin: Vec::new(), stdin_end: true },
            Some(Message::Start(_)) => return Err(Status::invalid_argument("one call runs one command")),
            None => return Err(Status::cancelled("the caller went away")),
        };
        if input.send(down).await.is_err() {
            return Ok(());
        }
    }
}

/// Where the one task that is meant runs now.
fn place(
    parts: &Parts,
    caller: &Caller,
    selector: Option<v1::Selector>,
) -> Result<(TaskId, u64, AgentId, String), Status> {
    let snapshot = parts.view.load();
    let found = resolve(&snapshot, &caller.reach, selector)?;
    let range = found.range();
    if range.end - range.start != 1 {
        let many = range.end - range.start;
        return Err(Status::failed_precondition(format!(
            "{} stands for {many} tasks, and a command runs in one; name it: {}.{}",
            found.text,
            found.id(),
            range.start
        )));
    }
    let task = TaskId::new(found.id(), range.start);
    let Some(attempt) = known(&found.job, range.start).and_then(Task::live) else {
        let state = found.job.state_of(range.start).map_or("gone", |state| state.as_str());
        return Err(Status::failed_precondition(format!("{task} does not run: it is {state}; `ctl explain {task}`")));
    };
    let name = snapshot.agents.get(&attempt.agent).map_or_else(String::new, |agent| agent.offer.name.clone());
    Ok((task, attempt.token.0, attempt.agent, name))
}

/// An agent's side: what the command does goes up, what it reads goes down.
pub(super) async fn serve(
    parts: Parts,
    calls: Calls,
    speaker: Speaker,
    mut up: Streaming<v1::ExecUp>,
    back: Back<v1::ExecDown>,
) -> Result<(), Status> {
    let first = timeout(BEGIN_WITHIN, up.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came; it is sent first"))??;
    let Some(v1::ExecUp { message: Some(exec_up::Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message must be the hello of a command"));
    };
    let agent = AgentId(hello.agent);
    speaker.check_agent(&parts.view.load(), agent)?;
    let Some(Waiting { mut stdin, replies, taken, .. }) = calls.take(hello.id, agent) else {
        return Err(Status::not_found("nobody waits for this command any more"));
    };
    drop(taken);
    let down = async {
        while let Some(down) = stdin.recv().await {
            if back.send(Ok(down)).await.is_err() {
                break;
            }
        }
    };
    let said = async {
        while let Some(message) = up.message().await?.and_then(|message| message.message) {
            let (message, is_last) = match message {
                exec_up::Message::Output(output) => (exec_reply::Message::Output(output), false),
                exec_up::Message::End(end) => (exec_reply::Message::End(end), true),
                exec_up::Message::Hello(_) => return Err(Status::invalid_argument("a hello is said once")),
            };
            let sent = replies.send(Ok(v1::ExecReply { message: Some(message) })).await;
            if is_last || sent.is_err() {
                return Ok(());
            }
        }
        Err(Status::aborted("the agent ended the call without a word on how the command ended"))
    };
    let result = tokio::select! {
        result = said => result,
        // Nobody reads what it does.
        () = replies.closed() => Ok(()),
        () = async { down.await; std::future::pending().await } => Ok(()),
    };
    if let Err(status) = &result {
        let _nobody_reads =
            replies.try_send(Err(Status::aborted(format!("the command was cut off: {}", status.message()))));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(agent: u64) -> Waiting {
        let (stdin, replies) = (mpsc::channel(1).1, mpsc::channel(1).0);
        Waiting { agent: AgentId(agent), stdin, replies, taken: tokio::sync::oneshot::channel().0 }
    }

    #[test]
    fn a_command_is_taken_once_by_its_own_agent_and_waits_no_longer_than_its_caller() {
        let calls = Calls::default();
        let first = calls.add(waiting(1)).unwrap();
        assert!(calls.take(first.id, AgentId(2)).is_none(), "another agent hears what is not its own");
        assert!(calls.take(first.id, AgentId(1)).is_some());
        assert!(calls.take(first.id, AgentId(1)).is_none());
        let second = calls.add(waiting(1)).unwrap();
        assert_ne!(first.id, second.id);
        let id = second.id;
        drop(second);
        assert!(calls.take(id, AgentId(1)).is_none(), "its caller is gone");
    }

    #[test]
    fn so_many_commands_wait_and_no_more() {
        let calls = Calls::default();
        let all: Vec<_> = (0..AT_ONCE).map(|_| calls.add(waiting(1)).unwrap()).collect();
        assert_eq!(calls.add(waiting(1)).err().map(|status| status.code()), Some(tonic::Code::ResourceExhausted));
        drop(all);
        assert!(calls.add(waiting(1)).is_ok());
    }
}
