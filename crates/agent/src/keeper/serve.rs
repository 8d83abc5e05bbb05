//! The keeper's one loop: hears an agent, watches what runs, and goes on when the agent is gone.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use muster_common::clock::Clock;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    deliver::Deliveries,
    desk::{Desk, Next},
    line::Line,
    message::{self, Down, Heard, Hello, Up, Welcome},
};
use crate::{exec::ExecEvent, logs::Spools};

/// Who connects says at once who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// An agent that started us connects within this.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks whether our folder is still there, when nobody else would tell us.
const LOOK: Duration = Duration::from_secs(2);
/// While so many orders can begin without the agent, what became of others is read together, [`READ_EVERY`] so often.
const OFFERED_ENOUGH: usize = 8;
/// Far less than the offers last, far more than one end costs.
const READ_EVERY: Duration = Duration::from_millis(4);
/// Between two looks whether a lease ended, while an agent waits for its welcome, and whether all were killed whose lease did.
const FENCE_EVERY: Duration = Duration::from_millis(50);
/// Events taken in at most before anything is said about them.
const BURST: usize = 1024;
/// While so much waits for the agent, nothing more is gathered for it: what is new of output is one word then, not many.
const ENOUGH: usize = 4 << 20;
/// For the last words to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Everything that the loop listens to.
pub(super) struct Ears {
    pub(super) clock: Clock,
    pub(super) socket: PathBuf,
    pub(super) events: mpsc::Receiver<ExecEvent>,
    pub(super) spools: Spools,
    pub(super) deliveries: Arc<Deliveries>,
}

/// What one wait gave.
enum News {
    Agent(Line, Hello),
    /// The line moved; whether it still holds.
    Moved(bool),
    Event(ExecEvent),
    Terminate,
    /// Output, results, or time.
    Some,
    Over,
}

/// A socket at `path` that only our user may use.
pub(super) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = super::at_short_path(path, |path| UnixListener::bind(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Tells the first agent that there is no keeper, and why.
pub(super) async fn refuse(listener: UnixListener, path: &Path, why: &str) -> std::io::Result<()> {
    let told = timeout(FIRST_LIMIT, async {
        let (mut line, _) = greet(listener.accept().await?.0).await?;
        let welcome = Welcome { refused: why.to_owned(), ..Welcome::default() };
        line.put(&Up { welcome: Some(welcome), words: Vec::new() });
        line.send()?;
        flush(&mut line).await;
        std::io::Result::Ok(())
    });
    let told = told.await;
    let _gone = std::fs::remove_file(path);
    told.unwrap_or(Ok(()))
}

/// Runs until there is nothing left to keep.
pub(super) async fn serve(mut desk: Desk, listener: UnixListener, mut ears: Ears) -> std::io::Result<()> {
    let (greeted, mut agents) = mpsc::channel(4);
    let accepting = tokio::spawn(accept(listener, greeted));
    let mut term = signal(SignalKind::terminate())?;
    let mut line: Option<Line> = None;
    let mut words = Vec::new();
    let mut first = Some(Instant::now() + FIRST_LIMIT);
    let mut is_stopping = false;
    loop {
        let news = wait(&desk, &mut ears, &mut line, &mut agents, &mut term).await;
        let next = match news {
            News::Agent(new, hello) => {
                first = None;
                // Who asked for an end wants it only as long as nobody is there.
                is_stopping = false;
                words.clear();
                replace(&mut desk, &mut ears, &mut line, (new, hello)).await
            }
            News::Moved(holds) => hear(&mut desk, &mut line, holds, &mut words),
            News::Event(event) => {
                desk.event(event, &mut words);
                Next::Go
            }
            News::Terminate => {
                is_stopping |= line.is_none();
                if is_stopping {
                    info!("asked to end and without an agent: what runs is ended");
                    desk.end_all();
                }
                Next::Go
            }
            News::Some | News::Over => Next::Go,
        };
        take_in(&mut desk, &mut ears, &mut words);
        desk.fence();
        tell(&desk, &mut line, &mut words);
        let is_orphan = line.is_none() && first.is_none_or(|limit| limit <= Instant::now());
        let is_done = is_orphan && (desk.is_idle() || (is_stopping && !desk.has_live()));
        if next == Next::End || is_done {
            break;
        }
        if is_orphan && !ears.socket.exists() && !is_stopping {
            warn!("the data folder is gone; what runs is ended");
            is_stopping = true;
            desk.end_all();
        }
    }
    accepting.abort();
    let _gone = std::fs::remove_file(&ears.socket);
    if let Some(line) = &mut line {
        let _too_late = timeout(LAST_WORDS, flush(line)).await;
    }
    desk.stop().await;
    Ok(())
}

/// Cancel safe in every branch.
async fn wait(
    desk: &Desk,
    ears: &mut Ears,
    line: &mut Option<Line>,
    agents: &mut mpsc::Receiver<(Line, Hello)>,
    term: &mut Signal,
) -> News {
    let now = ears.clock.mono();
    let is_unhurried = desk.offered() >= OFFERED_ENOUGH;
    let often = if is_unhurried { READ_EVERY } else { LOOK };
    let often = if desk.is_fencing() { often.min(FENCE_EVERY) } else { often };
    let pause = desk.fence_at().map_or(LOOK, |due| due.since(now)).min(often);
    let has_line = line.is_some();
    let moves = async {
        match line {
            Some(line) => line.moves().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        moved = moves => News::Moved(moved.unwrap_or(false)),
        event = ears.events.recv(), if !is_unhurried => event.map_or(News::Over, News::Event),
        Some((line, hello)) = agents.recv() => News::Agent(line, hello),
        () = ears.spools.has_news(), if has_line && !is_unhurried => News::Some,
        () = ears.deliveries.has_news() => News::Some,
        _ = term.recv() => News::Terminate,
        () = sleep(pause) => News::Some,
    }
}

/// Another agent is there, or the same one again: the folder's lock sees to it that there is one at a time.
async fn replace(desk: &mut Desk, ears: &mut Ears, line: &mut Option<Line>, (mut new, hello): (Line, Hello)) -> Next {
    // What became of orders meanwhile is known before anybody is told what there is. The welcome says it all.
    let mut unheard = Vec::new();
    take_in(desk, ears, &mut unheard);
    if let Some(old) = line {
        // What it said last may not have been read yet.
        let _frozen = timeout(LAST_WORDS, old.rest()).await;
        if hear(desk, line, false, &mut unheard) == Next::End {
            return Next::End;
        }
    }
    desk.renewed(hello.hold);
    let Some(version) = desk.version(&hello) else {
        new.put(&Up { welcome: Some(Welcome::default()), words: Vec::new() });
        let _too_late = timeout(LAST_WORDS, flush(&mut new)).await;
        return Next::Go;
    };
    let mut swept = pin!(desk.sweep(hello));
    let swept = loop {
        tokio::select! {
            swept = &mut swept => break swept,
            () = sleep(FENCE_EVERY) => {
                take_in(desk, ears, &mut unheard);
                desk.fence();
            }
        }
    };
    take_in(desk, ears, &mut unheard);
    desk.welcome(version, swept).iter().for_each(|up| new.put(up));
    *line = Some(new);
    Next::Go
}

/// What became of orders by now.
fn take_in(desk: &mut Desk, ears: &mut Ears, words: &mut Vec<Heard>) {
    for _ in 0..BURST {
        let Ok(event) = ears.events.try_recv() else { break };
        desk.event(event, words);
    }
}

/// Takes what the agent said.
fn hear(desk: &mut Desk, line: &mut Option<Line>, holds: bool, words: &mut Vec<Heard>) -> Next {
    let mut next = Next::Go;
    let Some(open) = line else { return next };
    let mut is_sane = true;
    loop {
        match open.take::<Down>() {
            Ok(Some(down)) if next == Next::Go => next = desk.say(down, words),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                warn!(%error, "what an agent says cannot be read");
                is_sane = false;
                break;
            }
        }
    }
    if !holds || !is_sane {
        *line = None;
        desk.left();
    }
    next
}

/// Says all that is new. Without an agent nothing is lost: the next one hears what counts at its welcome.
fn tell(desk: &Desk, line: &mut Option<Line>, words: &mut Vec<Heard>) {
    let Some(open) = line else { return words.clear() };
    if open.waiting() < ENOUGH {
        desk.news(words);
    }
    for part in message::parts(words.drain(..)) {
        open.put(&Up { welcome: None, words: part });
    }
    if let Err(error) = open.send() {
        warn!(%error, "the agent cannot be told");
    }
}

async fn flush(line: &mut Line) {
    while line.waiting() > 0 && line.moves().await.is_ok_and(|holds| holds) {}
}

/// Takes connections in until the loop ends.
async fn accept(listener: UnixListener, greeted: mpsc::Sender<(Line, Hello)>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let greeted = greeted.clone();
                // Ends within its limit.
                tokio::spawn(async move {
                    match timeout(HELLO_LIMIT, greet(stream)).await {
                        Ok(Ok(agent)) => drop(greeted.send(agent).await),
                        Ok(Err(error)) => warn!(%error, "a connection was refused"),
                        Err(_) => warn!("a connection said nothing"),
                    }
                });
            }
            Err(error) => {
                warn!(%error, "no connection can be accepted now");
                sleep_until(Instant::now() + LOOK).await;
            }
        }
    }
}

/// Hears who it is.
async fn greet(stream: UnixStream) -> std::io::Result<(Line, Hello)> {
    let mut line = Line::new(stream);
    super::check_peer(&line)?;
    loop {
        let holds = line.moves().await?;
        if let Some(down) = line.take::<Down>()? {
            let hello = down.hello.ok_or_else(|| std::io::Error::other("it did not say who it is"))?;
            return Ok((line, hello));
        }
        if !holds {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
