//! `ctl exec`: a command beside a task that runs.

#[cfg(unix)]
mod terminal;
#[cfg(not(unix))]
#[path = "terminal_absent.rs"]
mod terminal;

use std::{io::Read as _, pin::pin, task::Poll};

use futures::poll;
use muster_common::{
    proto::v1::{self, exec_reply, exec_request::Message},
    wire::work::end_from_proto,
};
use muster_core::state::End;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use self::terminal::Screen;
use super::Ctl;
use crate::{error::Error, exit::Exit, output, remote::selector};

/// Bytes of standard input in one message.
const PIECE: usize = 32 << 10;
/// Messages that wait to be sent.
const ROOM: usize = 8;

/// Run a command beside a task that runs: in its folder, with its environment, user and limits
///
/// The command ends with the task, with ctl, or by itself; ctl then has its exit code. It is written to the audit log.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One task that runs: 17.merge, or a job of one task
    #[arg(value_name = "TASK")]
    task: String,
    /// Give it what comes on standard input; without this it reads nothing
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal, of this one's kind and size; with --stdin it has all the keys: `ctl exec -it 17.merge -- sh`
    #[arg(short = 't', long)]
    tty: bool,
    /// A program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    // Nobody is asked for a terminal that would not be of use.
    let screen = if args.tty { Some(Screen::of(args.stdin)?) } else { None };
    let client = ctl.client().await?;
    let (requests, inbox) = mpsc::channel(ROOM);
    let terminal = screen.as_ref().map(Screen::describe);
    let start = v1::ExecStart { selector: selector(&args.task), command: args.command, terminal };
    let there_is_room = |_| Error::new(Exit::FAULT, "the call was not begun");
    requests.try_send(of(Message::Start(start))).map_err(there_is_room)?;
    let (mut rpc, inbox) = (client.rpc.clone(), ReceiverStream::new(inbox));
    // The end of the requests would end the command: they stay open as long as we.
    let _open = requests.clone();
    let Some(screen) = screen else {
        let replies = rpc.exec(inbox).await?.into_inner();
        feed(args.stdin, requests);
        return listen(replies).await;
    };
    let replies = rpc.exec_terminal(inbox).await.map_err(older)?.into_inner();
    let mut left = pin!(screen.until_left(requests.clone()));
    // From its first poll on, no signal ends us before the terminal is given back.
    if let Poll::Ready(error) = poll!(left.as_mut()) {
        return Err(error);
    }
    let _given_back = screen.take()?;
    feed(args.stdin, requests);
    tokio::select! {
        // Apart: who is about to write to a terminal that stands still hears of no signal.
        end = tokio::spawn(listen(replies)) => {
            end.unwrap_or_else(|error| Err(Error::new(Exit::FAULT, format!("the answer could not be read: {error}"))))
        }
        error = left => Err(error),
    }
}

/// Says what to do with a controller that has no such call.
fn older(status: Status) -> Error {
    if status.code() != Code::Unimplemented {
        return status.into();
    }
    Error::new(Exit::REFUSED, "the controller gives commands no terminals: it is older than this ctl")
        .next("upgrade the controller, or leave out `--tty`")
}

/// Writes what the command writes, until it ended.
async fn listen(mut replies: Streaming<v1::ExecReply>) -> Result<Exit, Error> {
    while let Some(reply) = replies.message().await? {
        match reply.message {
            Some(exec_reply::Message::Output(output)) => write(&output)?,
            Some(exec_reply::Message::End(end)) => return judge(end),
            None => {}
        }
    }
    Err(Error::new(Exit::FAULT, "the controller ended the call without a word on how the command ended"))
}

fn of(message: Message) -> v1::ExecRequest {
    v1::ExecRequest { message: Some(message) }
}

/// Sends what is on standard input, from a thread that nobody waits for: reading it cannot be ended.
fn feed(is_wanted: bool, requests: mpsc::Sender<v1::ExecRequest>) {
    let _unwaited = std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut piece = vec![0; PIECE];
        while let Ok(len @ 1..) = if is_wanted { stdin.read(&mut piece) } else { Ok(0) } {
            if requests.blocking_send(of(Message::Stdin(piece[..len].to_vec()))).is_err() {
                return;
            }
        }
        let _nobody_reads = requests.blocking_send(of(Message::StdinEnd(true)));
    });
}

/// As it came, at once.
fn write(output: &v1::ExecOutput) -> Result<(), Error> {
    match v1::Stream::try_from(output.stream) {
        Ok(v1::Stream::Stderr) => output::raw_error(&output.data),
        _ => output::raw(&output.data),
    }
}

fn judge(end: v1::ExecEnd) -> Result<Exit, Error> {
    let end = end_from_proto(end.end.unwrap_or_default());
    let (end, why) = end.map_err(|error| Error::new(Exit::FAULT, format!("the controller's answer: {error}")))?;
    match end {
        End::Succeeded => Ok(Exit::OK),
        End::Exit(code) => Ok(Exit::of_process(code)),
        End::Signal(number) => Ok(Exit::of_signal(number)),
        _ => {
            let why = why.as_deref().unwrap_or("nobody says why");
            Err(Error::new(Exit::NOT_STARTED, format!("the command was not started: {why}")))
        }
    }
}
