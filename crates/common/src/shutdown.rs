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
}
