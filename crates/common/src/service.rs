//! Words to the service manager that started this process: it is ready, it is alive, it stops, and how it goes (sd_notify(3)).
//!
//! Where there is none, nothing is said. A word that cannot be sent is left out: no daemon ends or waits for that.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A start may take as long as it likes, as long as somebody says so this often…
const STARTING_EVERY: Duration = Duration::from_secs(5);
/// … and each time asks for so much more.
const STARTING_FOR: Duration = Duration::from_secs(60);
/// What people see of a daemon is not older than this.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Of the time after which a silent daemon is ended, so many looks fall into it: one that comes late costs nothing.
const LOOKS: u32 = 3;

/// The way to the service manager, if there is one. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Service(Option<Arc<Line>>);

/// How a daemon is, as it was found a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whether its main loop turns. One that stands still is ended and started again by the manager.
    pub turns: bool,
    /// For people: one line.
    pub status: String,
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there is no such manager elsewhere"))]
#[derive(Debug)]
struct Line {
    #[cfg(target_os = "linux")]
    socket: std::os::unix::net::UnixDatagram,
    /// It ends us after so long without a word; none: it does not.
    watchdog: Option<Duration>,
    /// The status that it knows.
    status: Mutex<String>,
    /// It was told that we end; whether we live is no question any more.
    stops: AtomicBool,
}

impl Service {
    /// The manager that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_environment() -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        // The words may be meant for the process that started us.
        let is_ours = env("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = env("WATCHDOG_USEC").filter(|_| is_ours).and_then(|text| text.parse().ok());
        env("NOTIFY_SOCKET").map_or_else(Self::default, |socket| Self::at(&socket, watchdog.map(Duration::from_micros)))
    }

    /// The manager at a socket: a path, or a name after `@` in the abstract space. It ends us after `watchdog` without a
    /// word, if that is given.
    #[cfg(target_os = "linux")]
    pub fn at(socket: &str, watchdog: Option<Duration>) -> Self {
        match line::connect(socket) {
            Ok(socket) => Self(Some(Arc::new(Line {
                socket,
                watchdog: watchdog.filter(|after| !after.is_zero()),
                status: Mutex::default(),
                stops: AtomicBool::new(false),
            }))),
            Err(error) => {
                tracing::warn!(%error, socket, "the service manager cannot be reached; it is told nothing");
                Self(None)
            }
        }
    }

    /// There is none on this system.
    #[cfg(not(target_os = "linux"))]
    pub fn at(_socket: &str, _watchdog: Option<Duration>) -> Self {
        Self(None)
    }

    /// `work` to its end, and meanwhile word that the start goes on: however long it takes, it is not given up.
    pub async fn starting<T>(&self, status: &str, work: impl Future<Output = T>) -> T {
        self.status(status);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(STARTING_EVERY) => {
                    self.say(&format!("EXTEND_TIMEOUT_USEC={}", STARTING_FOR.as_micros()));
                }
            }
        }
    }

    /// The start is over: who waits for this daemon may go on.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// It ends now, because it was asked to or cannot go on.
    pub fn stopping(&self, status: &str) {
        if let Some(line) = &self.0 {
            line.stops.store(true, Ordering::Relaxed);
        }
        self.say("STOPPING=1");
        self.status(status);
    }

    /// What ends now may take so long, which may be more than the manager waits by itself; it ends by itself within that.
    pub fn ends_within(&self, limit: Duration) {
        self.say(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    }

    /// How it goes, for people: `systemctl status` shows it. Said again only when it is another.
    pub fn status(&self, text: &str) {
        let Some(line) = &self.0 else { return };
        let text = text.replace(['\n', '\r'], " ");
        let mut known = line.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != text {
            self.say(&format!("STATUS={text}"));
            *known = text;
        }
    }

    /// Looks again and again, says how it goes, and that it lives only while the main loop turns. Cancel safe; never ends.
    pub async fn watch(&self, mut look: impl AsyncFnMut() -> Look) {
        let Some(every) = self.look_every() else { return std::future::pending().await };
        loop {
            self.saw(look().await);
            tokio::time::sleep(every).await;
        }
    }

    /// The same on a thread of its own, until it is told that we stop: a call that blocks one thread of a runtime can hold up
    /// all that waits on it, and then nobody would say what stands still.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn watch_apart(&self, mut look: impl FnMut() -> Look + Send + 'static) -> io::Result<()> {
        let (Some(every), Some(line)) = (self.look_every(), self.0.clone()) else { return Ok(()) };
        let service = self.clone();
        let work = move || {
            while !line.stops.load(Ordering::Relaxed) {
                service.saw(look());
                thread::sleep(every);
            }
        };
        thread::Builder::new().name("service".to_owned()).spawn(work).map(drop)
    }

    fn saw(&self, Look { turns, status }: Look) {
        if turns {
            self.say("WATCHDOG=1");
        }
        self.status(&status);
    }

    /// How often [`Service::watch`] looks; a main loop that may be idle has to turn as often. None: nobody wants to know.
    pub fn look_every(&self) -> Option<Duration> {
        let line = self.0.as_ref()?;
        Some(line.watchdog.map_or(LOOK_EVERY, |after| (after / LOOKS).min(LOOK_EVERY)))
    }

    #[cfg(target_os = "linux")]
    fn say(&self, word: &str) {
        if let Some(line) = &self.0
            && let Err(error) = line.socket.send(word.as_bytes())
        {
            tracing::debug!(%error, word, "the service manager did not take a word");
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn say(&self, _word: &str) {}
}

#[cfg(target_os = "linux")]
mod line {
    use std::{
        io,
        os::{
            linux::net::SocketAddrExt as _,
            unix::net::{SocketAddr, UnixDatagram},
        },
        time::Duration,
    };

    /// A manager that is busy for longer misses a word.
    const SEND_WITHIN: Duration = Duration::from_millis(100);

    pub(super) fn connect(name: &str) -> io::Result<UnixDatagram> {
        let address = match name.split_at_checked(1) {
            Some(("@", rest)) => SocketAddr::from_abstract_name(rest)?,
            Some(("/", _)) => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a path nor a name after `@`")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_write_timeout(Some(SEND_WITHIN))?;
        Ok(socket)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    };

    use tempfile::TempDir;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A manager that listens, and the way to it.
    fn manager(watchdog: Option<Duration>) -> (TempDir, UnixDatagram, Service) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let service = Service::at(path.to_str().unwrap(), watchdog);
        (folder, socket, service)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).expect("a word within the limit");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// All that was said up to now.
    fn all(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 512];
        let mut words = Vec::new();
        while let Ok(length) = socket.recv(&mut bytes) {
            words.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
        }
        socket.set_nonblocking(false).unwrap();
        words
    }

    #[test]
    fn each_word_arrives_as_the_manager_reads_it_and_a_status_only_when_it_is_new() {
        let (_folder, socket, service) = manager(None);
        service.status("loads\nits state");
        service.ready();
        service.status("loads its state");
        service.status("leads");
        service.stopping("ends what runs");
        service.ends_within(Duration::from_secs(7));
        let words = ["STATUS=loads its state", "READY=1", "STATUS=leads", "STOPPING=1", "STATUS=ends what runs"];
        assert_eq!(all(&socket), [&words[..], &["EXTEND_TIMEOUT_USEC=7000000"]].concat());
    }

    #[test]
    fn a_name_in_the_abstract_space_is_found() {
        let name = format!("muster-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Service::at(&format!("@{name}"), None).ready();
        assert_eq!(all(&socket), ["READY=1"]);
    }

    #[test]
    fn a_manager_that_is_not_there_or_goes_away_is_no_reason_to_fail() {
        for nobody in ["", "vsock:2:1", "@nobody-is-called-so", "/no/such/socket", "relative"] {
            let service = Service::at(nobody, Some(LIMIT));
            service.ready();
            assert_eq!(service.look_every(), None, "{nobody}");
        }
        let (_folder, socket, service) = manager(None);
        drop(socket);
        service.ready();
        service.status("on its own");
    }

    #[test]
    fn looks_fall_well_into_the_time_after_which_silence_is_death() {
        let after = |secs| manager(Some(Duration::from_secs(secs))).2.look_every();
        assert_eq!(after(3), Some(Duration::from_secs(1)));
        assert_eq!([after(0), after(600)], [Some(LOOK_EVERY); 2]);
        assert_eq!(manager(None).2.look_every(), Some(LOOK_EVERY));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_word_that_it_lives_ends_while_the_loop_stands_still_and_comes_back() {
        let (_folder, socket, service) = manager(Some(Duration::from_millis(15)));
        let stands = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stands);
        let listening = tokio::task::spawn_blocking(move || {
            while heard(&socket) != "WATCHDOG=1" {}
            stands.store(true, Ordering::SeqCst);
            while !heard(&socket).starts_with("STATUS=false") {}
            // Each look says its status: five looks, and nobody said that it lives.
            let words: Vec<_> = (0..5).map(|_| heard(&socket)).collect();
            assert!(words.iter().all(|word| word.starts_with("STATUS=false")), "{words:?}");
            stands.store(false, Ordering::SeqCst);
            while heard(&socket) != "WATCHDOG=1" {}
        });
        let mut looks = 0_u32;
        let look = async || {
            looks += 1;
            let turns = !seen.load(Ordering::SeqCst);
            Look { turns, status: format!("{turns} {looks}") }
        };
        tokio::select! {
            () = service.watch(look) => {}
            listened = listening => listened.unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_start_asks_for_more_time_until_it_is_over() {
        let (_folder, socket, service) = manager(None);
        service.starting("loads", tokio::time::sleep(STARTING_EVERY * 2 + STARTING_EVERY / 2)).await;
        service.ready();
        let more = "EXTEND_TIMEOUT_USEC=60000000";
        assert_eq!(all(&socket), ["STATUS=loads", more, more, "READY=1"]);
        assert!(STARTING_FOR > STARTING_EVERY * 2, "a late word must not be the end");
    }
}
