//! When the operating system or a person asks this process to end.

/// Returns when the process is asked to end, with the name of what asked: SIGINT, SIGTERM, or SIGHUP (its terminal is
/// gone) where that was not ignored when it started, as nohup(1) arranges; on Windows Ctrl-C, Ctrl-Break, a closed console, log-off or shutdown (a service wrapper ends its
/// service by one of these).
///
/// From its first poll on, the request no longer ends the process by itself, for good. Cancel safe,
/// and may be called again: a second request is how a person says that it takes too long.
#[cfg(unix)]
pub async fn signal() -> &'static str {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    async fn next(listener: std::io::Result<Signal>, name: &'static str) -> &'static str {
        match listener {
            Ok(mut listener) => {
                listener.recv().await;
                name
            }
            Err(error) => {
                tracing::error!(%error, name, "cannot listen to a signal; it will end this process at once");
                std::future::pending().await
            }
        }
    }

    // All listen from the first poll on.
    let hears_hangup = hears_hangup();
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let hangup = hears_hangup.then(|| signal(SignalKind::hangup()));
    let hangup = async move {
        match hangup {
            Some(listener) => next(listener, "SIGHUP").await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        name = next(interrupt, "SIGINT") => name,
        name = next(terminate, "SIGTERM") => name,
        name = hangup => name,
    }
}

/// What a daemon is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To end, by this.
    End(&'static str),
    /// To read its configuration file again.
    Reread,
}

/// The same as [`signal`] for a daemon; where it has a configuration file (`rereads`), SIGHUP asks it to read that again.
#[cfg(unix)]
pub async fn daemon(rereads: bool) -> Asked {
    use tokio::signal::unix::{SignalKind, signal as listen};

    // Listens before anything is waited for, and from then on a hangup ends nothing.
    let hangup = if rereads { listen(SignalKind::hangup()).ok() } else { None };
    let Some(mut hangup) = hangup else { return Asked::End(signal().await) };
    tokio::select! {
        asked = ends() => Asked::End(asked),
        _ = hangup.recv() => Asked::Reread,
    }
}

/// The same as [`signal`] for a daemon.
#[cfg(windows)]
pub async fn daemon(_rereads: bool) -> Asked {
    Asked::End(signal().await)
}

/// SIGINT or SIGTERM.
#[cfg(unix)]
async fn ends() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal as listen};

    let (Ok(mut interrupt), Ok(mut terminate)) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()))
    else {
        // Then they end this process at once.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

/// Whether SIGHUP is for this process: who started it under nohup(1) wants it to outlive the terminal.
#[cfg(unix)]
fn hears_hangup() -> bool {
    // Asked once: listening changes the answer.
    static HEARS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // proc(5): a mask in hexadecimal, the lowest bit is signal 1. Where there is no such file, nothing is ignored.
    *HEARS.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_none_or(|mask| mask & 1 == 0)
    })
}

/// Returns when the process is asked to end, with the name of what asked: SIGINT, SIGTERM, or SIGHUP (its terminal is
/// gone) where that was not ignored when it started, as nohup(1) arranges; on Windows Ctrl-C, Ctrl-Break, a closed console, log-off or shutdown (a service wrapper ends its
/// service by one of these).
///
/// From its first poll on, the request no longer ends the process by itself, for good. Cancel safe,
/// and may be called again: a second request is how a person says that it takes too long.
#[cfg(windows)]
pub async fn signal() -> &'static str {
    use tokio::signal::windows;

    macro_rules! next {
        ($make:path, $name:literal) => {{
            let listener = $make();
            async move {
                match listener {
                    Ok(mut listener) => {
                        listener.recv().await;
                        $name
                    }
                    Err(error) => {
                        tracing::error!(%error, name = $name, "cannot listen; it will end this process at once");
                        std::future::pending().await
                    }
                }
            }
        }};
    }

    let (c, stop) = (next!(windows::ctrl_c, "Ctrl-C"), next!(windows::ctrl_break, "Ctrl-Break"));
    let (close, logoff) = (next!(windows::ctrl_close, "console close"), next!(windows::ctrl_logoff, "log-off"));
    let shutdown = next!(windows::ctrl_shutdown, "system shutdown");
    tokio::select! {
        name = c => name,
        name = stop => name,
        name = close => name,
        name = logoff => name,
        name = shutdown => name,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{pin::pin, time::Duration};

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;

    #[tokio::test]
    async fn a_request_to_end_is_heard_by_its_name_and_again() {
        // The runner of this test may ignore it.
        let hangup = hears_hangup().then_some((Signal::SIGHUP, "SIGHUP"));
        let requests = [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT"), (Signal::SIGTERM, "SIGTERM")];
        for (request, name) in requests.into_iter().chain(hangup) {
            let mut heard = pin!(signal());
            assert!(futures::poll!(&mut heard).is_pending(), "nobody asked yet");
            kill(Pid::this(), request).unwrap();
            let heard = tokio::time::timeout(Duration::from_secs(10), heard).await;
            assert_eq!(heard, Ok(name));
        }
    }

    #[tokio::test]
    async fn a_daemon_with_a_file_is_asked_by_a_hangup_to_read_it_again() {
        for (request, wanted) in [(Signal::SIGHUP, Asked::Reread), (Signal::SIGTERM, Asked::End("SIGTERM"))] {
            let mut heard = pin!(daemon(true));
            assert!(futures::poll!(&mut heard).is_pending(), "nobody asked yet");
            kill(Pid::this(), request).unwrap();
            assert_eq!(tokio::time::timeout(Duration::from_secs(10), heard).await, Ok(wanted));
        }
    }
}
