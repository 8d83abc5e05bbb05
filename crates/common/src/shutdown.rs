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

/// What a daemon is asked for from outside, for as long as it lives: a request that comes while nobody waits for one, since
/// another is being served, is the next one.
#[cfg(unix)]
#[derive(Debug)]
pub struct Requests {
    interrupt: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
    /// And what it asks for.
    hangup: Option<(tokio::signal::unix::Signal, Asked)>,
}

#[cfg(unix)]
impl Requests {
    /// From now on. Where there is a configuration file (`rereads`), SIGHUP asks to read that again; else all is as
    /// [`signal`] has it.
    pub fn listen(rereads: bool) -> Self {
        use tokio::signal::unix::{SignalKind, signal};

        let hear = |kind, name| {
            let told = |error: &_| tracing::error!(%error, name, "cannot listen to a signal; it will end this process");
            signal(kind).inspect_err(told).ok()
        };
        let asks = if rereads { Asked::Reread } else { Asked::End("SIGHUP") };
        let hangup = (rereads || hears_hangup()).then(|| hear(SignalKind::hangup(), "SIGHUP")).flatten();
        Self {
            interrupt: hear(SignalKind::interrupt(), "SIGINT"),
            terminate: hear(SignalKind::terminate(), "SIGTERM"),
            hangup: hangup.map(|listener| (listener, asks)),
        }
    }

    /// The next one. Whoever asks to end goes first. Cancel safe.
    pub async fn next(&mut self) -> Asked {
        let hangup = async {
            match &mut self.hangup {
                Some((listener, asks)) => {
                    listener.recv().await;
                    *asks
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            asked = ends(&mut self.interrupt, &mut self.terminate) => Asked::End(asked),
            asked = hangup => asked,
        }
    }

    /// The next one to end, by SIGINT or SIGTERM; others stay for [`Self::next`]. Cancel safe.
    pub async fn end(&mut self) -> &'static str {
        ends(&mut self.interrupt, &mut self.terminate).await
    }
}

/// SIGINT or SIGTERM.
#[cfg(unix)]
async fn ends(
    interrupt: &mut Option<tokio::signal::unix::Signal>,
    terminate: &mut Option<tokio::signal::unix::Signal>,
) -> &'static str {
    let heard = async |listener: &mut Option<tokio::signal::unix::Signal>| match listener {
        Some(listener) => _ = listener.recv().await,
        // Then it ends this process at once.
        None => std::future::pending().await,
    };
    tokio::select! {
        () = heard(interrupt) => "SIGINT",
        () = heard(terminate) => "SIGTERM",
    }
}

/// What a daemon is asked for from outside.
#[cfg(windows)]
#[derive(Debug)]
pub struct Requests {}

#[cfg(windows)]
impl Requests {
    /// From the first wait on.
    pub fn listen(_rereads: bool) -> Self {
        Self {}
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        Asked::End(signal().await)
    }

    /// The next one to end.
    pub async fn end(&mut self) -> &'static str {
        signal().await
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

    /// A signal is for the whole process.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[tokio::test]
    async fn a_request_to_end_is_heard_by_its_name_and_again() {
        let _alone = ALONE.lock().await;
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
    async fn a_request_that_comes_while_another_is_served_is_not_lost() {
        let _alone = ALONE.lock().await;
        let mut requests = Requests::listen(true);
        let send = |signal| kill(Pid::this(), signal).unwrap();
        let mut next = async || tokio::time::timeout(Duration::from_secs(10), requests.next()).await;
        send(Signal::SIGHUP);
        assert_eq!(next().await, Ok(Asked::Reread));
        // Now the file is read, and nobody waits.
        send(Signal::SIGHUP);
        send(Signal::SIGTERM);
        assert_eq!(next().await, Ok(Asked::End("SIGTERM")), "who asks to end goes first");
        assert_eq!(next().await, Ok(Asked::Reread));
    }
}
