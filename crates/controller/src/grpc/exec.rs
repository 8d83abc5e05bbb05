//! Commands in tasks that run: a person's call and an agent's call, joined. Nothing of them is kept but that it was asked for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use muster_common::proto::v1::{self, exec_reply, exec_request::Message, exec_up};
use muster_core::{
    access::Caller,
    audit::Note,
    event::Event,
    id::{AgentId, TaskId},
    state::Task,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tonic::{Status, Streaming};

use crate::{
    dispatch::{Outgoing, Sent},
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
/// Who does not read for so long is not told why there is no more.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(10);
/// Commands at one time, of all people: each holds two streams open.
const AT_ONCE: usize = 256;
/// No entry of terminfo(5) has a name half as long.
const TERMINAL_NAME_MAX: usize = 64;

/// Commands, and those of them that wait for their agent by number. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    shared: Arc<Mutex<State>>,
    places: Arc<Semaphore>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { shared: Arc::default(), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
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

/// Its command waits no longer than its caller, and has its place for as long as that.
struct Registered {
    calls: Calls,
    id: u64,
    _place: OwnedSemaphorePermit,
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
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{AT_ONCE} commands run already; try again when one of them ended"))
        })?;
        let mut state = self.lock();
        state.last += 1;
        let id = state.last;
        state.waiting.insert(id, waiting);
        Ok(Registered { calls: self.clone(), id, _place: place })
    }

    fn take(&self, id: u64, agent: AgentId) -> Option<Waiting> {
        let mut state = self.lock();
        let is_its = state.waiting.get(&id).is_some_and(|waiting| waiting.agent == agent);
        if is_its { state.waiting.remove(&id) } else { None }
    }
}

/// What a command reads from and writes to, by the call that is made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ways {
    /// `Exec`
    Pipes,
    /// `ExecTerminal`
    Terminal,
}

/// A person's side: until the command ended, or nobody is interested any more.
pub(super) async fn ask(
    parts: Parts,
    calls: Calls,
    caller: Arc<Caller>,
    (mut requests, ways): (Streaming<v1::ExecRequest>, Ways),
    back: Back<v1::ExecReply>,
) -> Result<(), Status> {
    let first = timeout(BEGIN_WITHIN, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no command came; it is sent first"))??;
    let start = start(first, ways)?;
    let (task, token, agent, name) = place(&parts, &caller, start.selector)?;
    let note = Note::done(&caller, "exec", &task.to_string(), &start.command.join(" "));
    parts.handle.ask(Event::Note(note)).await.map_err(of_engine)?;

    let (input, stdin) = mpsc::channel(ROOM);
    let (taken, at_work) = tokio::sync::oneshot::channel();
    let registered = calls.add(Waiting { agent, stdin, replies: back.clone(), taken })?;
    let order = v1::ExecOrder { id: registered.id, token, command: start.command, terminal: start.terminal };
    match parts.sessions.send_to(agent, Outgoing::Exec(order)) {
        Sent::Yes => {}
        Sent::Away => {
            return Err(Status::unavailable(format!("agent `{name}`, which runs {task}, is not connected")));
        }
        Sent::NotUnderstood => {
            return Err(Status::failed_precondition(format!(
                "agent `{name}`, which runs {task}, is older than this controller and knows of no terminals: upgrade it, or \
                 ask for none (`ctl exec` without `--tty`)"
            )));
        }
    }
    // The sender is dropped without a word, which is the word.
    if timeout(BEGIN_WITHIN, at_work).await.is_err() {
        return Err(Status::unavailable(format!(
            "agent `{name}` does not take up the command; it may be older than this controller"
        )));
    }
    while_open(&mut requests, &input, &back).await
}

/// Which command is wanted, where, and on which terminal.
fn start(first: Option<v1::ExecRequest>, ways: Ways) -> Result<v1::ExecStart, Status> {
    let Some(v1::ExecRequest { message: Some(Message::Start(start)) }) = first else {
        return Err(Status::invalid_argument("the first message must say which task and which command"));
    };
    if start.command.first().is_none_or(String::is_empty) {
        return Err(of_field("start.command", "is empty; name a program"));
    }
    // As every entry of terminfo(5) is called.
    let is_name = |name: &str| name.len() <= TERMINAL_NAME_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
    match (ways, &start.terminal) {
        (Ways::Pipes, None) => Ok(start),
        (Ways::Pipes, Some(_)) => Err(of_field("start.terminal", "is for the call ExecTerminal; leave it out here")),
        (Ways::Terminal, None) => Err(of_field("start.terminal", "is missing; without one the call is Exec")),
        (Ways::Terminal, Some(terminal)) if is_name(&terminal.name) => Ok(start),
        (Ways::Terminal, Some(_)) => Err(of_field(
            "start.terminal.name",
            format!("must be at most {TERMINAL_NAME_MAX} letters, digits and signs of ASCII, without spaces"),
        )),
    }
}

/// What the command reads goes down, until its agent's side ended or nobody listens to it.
async fn while_open(
    requests: &mut (impl Stream<Item = Result<v1::ExecRequest, Status>> + Unpin),
    input: &mpsc::Sender<v1::ExecDown>,
    back: &Back<v1::ExecReply>,
) -> Result<(), Status> {
    tokio::select! {
        () = back.closed() => Ok(()),
        // The caller keeps its side open for as long as there is an answer, and we hold the answer open.
        () = input.closed() => Ok(()),
        status = feed(requests, input) => Err(status),
    }
}

/// What the command reads. Ends when the person is gone.
async fn feed(
    requests: &mut (impl Stream<Item = Result<v1::ExecRequest, Status>> + Unpin),
    input: &mpsc::Sender<v1::ExecDown>,
) -> Status {
    loop {
        let request = match requests.next().await.transpose() {
            Ok(request) => request,
            Err(status) => return status,
        };
        let down = match request.and_then(|request| request.message) {
            Some(Message::Stdin(stdin)) => v1::ExecDown { stdin, ..v1::ExecDown::default() },
            Some(Message::StdinEnd(_)) => v1::ExecDown { stdin_end: true, ..v1::ExecDown::default() },
            Some(Message::Resized(size)) => v1::ExecDown { resized: Some(size), ..v1::ExecDown::default() },
            Some(Message::Start(_)) => return Status::invalid_argument("one call runs one command"),
            None => return Status::cancelled("the caller went away"),
        };
        if input.send(down).await.is_err() {
            // Who waits for this hears that from the channel itself.
            std::future::pending::<()>().await;
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
    let result = tokio::select! {
        result = said(&mut up, &replies) => result,
        // Nobody reads what it does.
        () = replies.closed() => Ok(()),
        () = async { down.await; std::future::pending().await } => Ok(()),
    };
    last_word(&replies, &result).await;
    result
}

/// What the command does, until it ended.
async fn said(
    up: &mut (impl Stream<Item = Result<v1::ExecUp, Status>> + Unpin),
    replies: &Back<v1::ExecReply>,
) -> Result<(), Status> {
    while let Some(message) = up.next().await.transpose()?.and_then(|message| message.message) {
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
}

/// Why there will be no word on how the command ended.
async fn last_word(replies: &Back<v1::ExecReply>, result: &Result<(), Status>) {
    if let Err(status) = &result {
        let word = Status::aborted(format!("the command was cut off: {}", status.message()));
        let _nobody_reads = replies.send_timeout(Err(word), LAST_WORD_WITHIN).await;
    }
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
    fn so_many_commands_run_and_no_more() {
        let calls = Calls::default();
        let all: Vec<_> = (0..AT_ONCE).map(|_| calls.add(waiting(1)).unwrap()).collect();
        for one in all.iter().take(10) {
            assert!(calls.take(one.id, AgentId(1)).is_some());
        }
        assert_eq!(calls.add(waiting(1)).err().map(|status| status.code()), Some(tonic::Code::ResourceExhausted));
        drop(all);
        assert!(calls.add(waiting(1)).is_ok());
    }

    fn output() -> Result<v1::ExecReply, Status> {
        Ok(v1::ExecReply { message: Some(exec_reply::Message::Output(v1::ExecOutput::default())) })
    }

    #[tokio::test]
    async fn a_call_ends_with_the_agents_side_while_its_caller_reads_slowly_and_sends_nothing() {
        let (input, stdin) = mpsc::channel(1);
        let (back, _unread) = mpsc::channel(1);
        back.try_send(output()).unwrap();
        drop(stdin);
        let ended = timeout(BEGIN_WITHIN, while_open(&mut futures::stream::pending(), &input, &back)).await;
        assert!(matches!(ended, Ok(Ok(()))), "{ended:?}");
    }

    #[tokio::test]
    async fn who_reads_slowly_is_told_all_the_same_that_a_command_was_cut_off() {
        let (replies, mut read) = mpsc::channel(1);
        let up = |message| v1::ExecUp { message: Some(message) };
        let mut up = futures::stream::iter([Ok(up(exec_up::Message::Output(v1::ExecOutput::default())))]);
        let told = async {
            let result = said(&mut up, &replies).await;
            assert!(result.is_err());
            last_word(&replies, &result).await;
            drop(replies);
        };
        let reads = async {
            // Reads only when nothing else can happen any more.
            tokio::task::yield_now().await;
            let mut all = Vec::new();
            while let Some(reply) = read.recv().await {
                all.push(reply.map(drop).map_err(|status| status.code()));
            }
            all
        };
        let (all, ()) = tokio::join!(reads, told);
        assert_eq!(all, [Ok(()), Err(tonic::Code::Aborted)]);
    }
}
