//! The caller's terminal while a command beside a task has one: its kind, its size and its keys. It is as it was afterwards,
//! however that is left.

use std::{
    io::{self, IsTerminal as _},
    sync::{Mutex, PoisonError},
};

use console::Term;
use muster_common::{
    proto::v1::{self, exec_request::Message},
    shutdown,
};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::of;
use crate::{error::Error, exit::Exit};

/// Rows and columns where nobody sees them.
const UNSEEN: (u16, u16) = (24, 80);

/// How the terminal was before it was taken; none: it is not.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The caller's terminal.
pub(super) struct Screen {
    /// Its keys go to the command, too.
    has_keys: bool,
}

/// While this is held, every key goes to the command, also those that mean a signal here.
pub(super) struct Taken;

impl Screen {
    /// Of whoever called us; without `has_keys` nothing of it is needed.
    pub(super) fn of(has_keys: bool) -> Result<Self, Error> {
        if has_keys && !io::stdin().is_terminal() {
            return Err(Error::new(
                Exit::USAGE,
                "standard input is no terminal, and `--tty` with `--stdin` hands on the keys of one",
            )
            .next("leave out `--tty` to send it what a file or a pipe holds, or `--stdin` if it is to read nothing"));
        }
        Ok(Self { has_keys })
    }

    /// What the command is to get.
    pub(super) fn describe(&self) -> v1::Terminal {
        v1::Terminal { name: std::env::var("TERM").unwrap_or_default(), size: Some(size()) }
    }

    /// Has the terminal hand on keys as they are pressed, until what is returned is dropped.
    pub(super) fn take(&self) -> Result<Option<Taken>, Error> {
        if !self.has_keys {
            return Ok(None);
        }
        let broken = |error: nix::Error| Error::new(Exit::FAULT, format!("the terminal cannot be used: {error}"));
        let before = tcgetattr(io::stdin()).map_err(broken)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let taken = Taken;
        // So that what a panic says can be read.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            usual(panic);
        }));
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(broken)?;
        Ok(Some(taken))
    }

    /// Tells of every new size, until a signal says that we are to end.
    pub(super) async fn until_left(&self, requests: mpsc::Sender<v1::ExecRequest>) -> Error {
        let sizes = async {
            let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
            // It may have changed before anybody listened.
            loop {
                let Ok(room) = requests.reserve().await else { return };
                room.send(of(Message::Resized(size())));
                if changes.recv().await.is_none() {
                    return;
                }
            }
        };
        let quit = async {
            match signal(SignalKind::quit()) {
                Ok(mut quit) => quit.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = shutdown::signal() => {}
            _ = quit => {}
            () = async { sizes.await; std::future::pending().await } => {}
        }
        Error::Quiet(Exit::INTERRUPTED)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// As it was, at once: one that stands still is given back, too.
fn give_back() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // One that is gone needs nothing.
        let _gone = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// Of whichever output is one.
fn size() -> v1::TerminalSize {
    let (rows, columns) = Term::stdout().size_checked().or_else(|| Term::stderr().size_checked()).unwrap_or(UNSEEN);
    v1::TerminalSize { columns: columns.into(), rows: rows.into() }
}
