//! The safe's own life: starts a keeper, keeps what it brings, and starts another one when it dies without a word.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use muster_common::clock::Clock;
use muster_core::time::Mono;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{
    LIMIT,
    message::{Begin, Down, Ended, Said, Up, Word},
    post::{Came, Post},
    store::Store,
};
use crate::{
    cgroup,
    exec::{
        guard::{HEAR_WITHIN, LOOKS, SWEEP_LIMIT, complain},
        os::{self, Status},
    },
};

/// The word that makes this program a keeper.
const KEEPER: &str = "keeper";
/// So many keepers in a row that did not get as far as to listen, and there will be none.
const UNREADY_MAX: u32 = 3;
/// One that lived for less is likely to have died of what it found.
const SHORT: Duration = Duration::from_secs(1);
/// So many of those in a row.
const SHORT_MAX: u32 = 50;
/// Another one may look at the lock for a moment.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Who is killed is dead after so many pauses, also one with much memory.
const DYING_TRIES: u32 = 500;

/// The whole life of the process; `args` are those of the keeper.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match Life::begin(args.collect()).and_then(Life::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Life {
    args: Vec<OsString>,
    cookie: String,
    lock: File,
    clock: Clock,
    deaths: SignalFd,
    store: Store,
    /// Where the keeper notes its cgroups, and what it has noted.
    noted: PathBuf,
    cgroups: Vec<PathBuf>,
    /// How many files a keeper may have open, and tasks after it.
    files: u64,
    /// All files that came are whose we think.
    is_whole: bool,
    /// When leases end.
    ends: Option<Mono>,
}

/// A keeper.
struct Running {
    child: Child,
    pid: i32,
    post: Post,
    since: Mono,
    is_ready: bool,
    has_farewell: bool,
}

impl Life {
    fn begin(args: Vec<OsString>) -> anyhow::Result<Self> {
        os::guard_signals().context("cannot leave the agent's session")?;
        os::take_in_orphans().context("cannot take in processes whose parent dies")?;
        let files = os::allow_files(None);
        let data = args.iter().skip_while(|word| *word != "--data").nth(1);
        let data = PathBuf::from(data.context("the safe is started by an agent, with its keeper's arguments")?);
        std::fs::create_dir_all(data.join("run")).context("cannot use the data folder")?;
        let lock = take_lock(&data.join("run").join("keeper.lock"))?;
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block().context("cannot hear of processes that end")?;
        let deaths = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        Ok(Self {
            args,
            cookie: uuid::Uuid::new_v4().simple().to_string(),
            lock,
            clock: Clock::system_at(os::running_for()),
            deaths: deaths.context("cannot hear of processes that end")?,
            store: Store::default(),
            noted: data.join("run").join(cgroup::NOTED),
            cgroups: Vec::new(),
            files,
            is_whole: true,
            ends: None,
        })
    }

    /// One keeper after another.
    fn run(mut self) -> anyhow::Result<()> {
        let (mut generation, mut unready, mut short) = (0, 0, 0);
        loop {
            let mut keeper = self.start()?;
            let why = match self.hand_over(&keeper.post, generation) {
                Ok(()) => self.watch(&mut keeper),
                Err(error) => Err(error),
            };
            if let Err(error) = why {
                complain(&format!("the keeper is not heard any more: {error}"));
                let _dead_already = keeper.child.kill();
            }
            self.is_whole &= is_dead_soon(keeper.pid);
            let status = keeper.child.wait().context("the keeper cannot be waited for")?;
            self.listen_to_the_end(&mut keeper);
            if keeper.has_farewell {
                return self.sweep(1, None);
            }
            let is_first = generation == 0 && !keeper.is_ready;
            if is_first && status.success() {
                // There can be none, and it said so itself.
                return Ok(());
            }
            unready = if keeper.is_ready { 0 } else { unready + 1 };
            short = if self.clock.mono().since(keeper.since) < SHORT { short + 1 } else { 0 };
            if is_first || unready >= UNREADY_MAX || short >= SHORT_MAX || !self.is_whole {
                self.sweep(LOOKS, None)?;
                anyhow::ensure!(is_first, "the keeper ended ({status}) and cannot be replaced; what it ran is ended");
                anyhow::bail!("the keeper ended before it was ready ({status})");
            }
            complain(&format!("the keeper ended ({status}); another one goes on with what runs"));
            generation += 1;
        }
    }

    fn start(&self) -> anyhow::Result<Running> {
        let (ours, theirs) = UnixStream::pair().context("no line to a keeper can be made")?;
        // Not by its name: that may be another program since an upgrade.
        #[expect(clippy::disallowed_methods, reason = "the keeper starts processes; this starts the keeper")]
        let mut command = Command::new("/proc/self/exe");
        command.arg0(std::env::args_os().next().unwrap_or_default()).arg(KEEPER).args(&self.args);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::inherit());
        os::allow_files(Some(self.files));
        let child = command.spawn().context("the keeper cannot be started");
        os::allow_files(None);
        let child = child?;
        let pid = i32::try_from(child.id()).context("the keeper has no number")?;
        let (post, since) = (Post::new(ours), self.clock.mono());
        Ok(Running { child, pid, post, since, is_ready: false, has_farewell: false })
    }

    fn hand_over(&self, post: &Post, generation: u32) -> io::Result<()> {
        let send = |said, files: &[OwnedFd]| post.send(&Up { said: Some(said) }, files, LIMIT);
        let lock = OwnedFd::from(self.lock.try_clone()?);
        send(Said::Begin(Begin { cookie: self.cookie.clone(), generation }), &[lock])?;
        for kept in self.store.all() {
            let (kept, files) = kept?;
            send(Said::Entry(kept), &files)?;
        }
        send(Said::Begun(true), &[])
    }

    /// Until the keeper is dead. `Err`: it must be ended.
    fn watch(&mut self, keeper: &mut Running) -> io::Result<()> {
        loop {
            let wait = self.ends.map(|at| at.since(self.clock.mono()));
            let wait = wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
            let mut both = [
                PollFd::new(keeper.post.stream().as_fd(), PollFlags::POLLIN),
                PollFd::new(self.deaths.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut both, wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while let Ok(Some(_)) = self.deaths.read_signal() {}
            let came = keeper.post.look()?;
            self.obey(keeper)?;
            if came == Came::End || !self.reap(keeper.pid) {
                return Ok(());
            }
            if self.ends.is_some_and(|at| at <= self.clock.mono()) {
                self.ends = None;
                complain("the keeper did not end attempts when their leases did; they are killed");
                let _said = self.sweep(LOOKS, Some(keeper.pid)).map_err(|error| complain(&error.to_string()));
            }
        }
    }

    /// What it said before it died counts.
    fn listen_to_the_end(&mut self, keeper: &mut Running) {
        while let Ok(Came::Something) = keeper.post.look() {
            if self.obey(keeper).is_err() {
                return;
            }
        }
    }

    fn obey(&mut self, keeper: &mut Running) -> io::Result<()> {
        while let Some(down) = keeper.post.take::<Down>()? {
            self.is_whole &= keeper.post.is_whole;
            match down.word {
                Some(Word::Put(put)) => {
                    let count = usize::try_from(put.files).unwrap_or(0);
                    let files = keeper.post.files(count);
                    // Without its files nobody could go on with it.
                    if files.len() == count {
                        self.store.put(put, files);
                    }
                }
                Some(Word::Note(note)) => self.store.note(note),
                Some(Word::Close(close)) => self.store.close(close),
                Some(Word::TakeOut(key)) => self.store.take_out(key),
                Some(Word::Ask(pid)) => {
                    let said = Some(Said::Ended(ended(pid)));
                    keeper.post.send(&Up { said }, &[], LIMIT)?;
                }
                Some(Word::Reap(pid)) => {
                    let pid = i32::try_from(pid).unwrap_or(0);
                    os::reap(pid);
                    self.store.settle(pid);
                }
                Some(Word::Hold(hold)) => {
                    let ends = hold.ms.map(|ms| self.clock.mono().after(Duration::from_millis(ms) + HEAR_WITHIN));
                    self.ends = ends;
                }
                Some(Word::Ready(_)) => {
                    keeper.is_ready = true;
                    // Not when it is needed: the disk may stand still then.
                    self.cgroups = cgroup::noted(&self.noted);
                }
                Some(Word::Farewell(_)) => keeper.has_farewell = true,
                None => {}
            }
        }
        Ok(())
    }

    /// Buries orphans, but for those of whom somebody will ask. Whether the keeper lives.
    fn reap(&self, keeper: i32) -> bool {
        while let Some(pid) = os::dead_child() {
            if pid == keeper {
                return false;
            }
            if !self.store.has(pid) {
                os::reap(pid);
                continue;
            }
            // The same one is named again and again, and hides the others.
            let others = os::children();
            others.into_iter().filter(|pid| *pid != keeper && !self.store.has(*pid)).for_each(os::reap);
            return os::peek(keeper).is_none();
        }
        true
    }

    /// Ends everything that was ever started under our cookie. Who took another environment is found by its cgroup, as far as
    /// there are any; the keeper, whose threads stand there, is not ended.
    fn sweep(&mut self, looks: u32, keeper: Option<i32>) -> anyhow::Result<()> {
        cgroup::kill_all(&self.cgroups, keeper, SWEEP_LIMIT);
        let left = os::sweep_blocking(self.clock, &self.cookie, looks, SWEEP_LIMIT);
        anyhow::ensure!(left == 0, "{left} processes of agent instance {} could not be killed", self.cookie);
        Ok(())
    }
}

/// One that lives on after its line is broken has given us up: what we know of its work grows old.
fn is_dead_soon(keeper: i32) -> bool {
    (0..DYING_TRIES).any(|_| {
        let is_dead = os::peek(keeper).is_some();
        if !is_dead {
            std::thread::sleep(LOCK_PAUSE);
        }
        is_dead
    })
}

fn ended(pid: u32) -> Ended {
    let found = i32::try_from(pid).ok().and_then(os::peek);
    let Some((status, spent)) = found else { return Ended { pid, ..Ended::default() } };
    let (exit, signal) = match status {
        Status::Exit(code) => (Some(code), None),
        Status::Signal(number) => (None, Some(number)),
    };
    Ended {
        pid,
        exit,
        signal,
        memory_peak: spent.memory_peak,
        user_us: spent.user_us,
        system_us: spent.system_us,
        read_bytes: spent.read_bytes,
        written_bytes: spent.written_bytes,
    }
}

fn take_lock(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    // Who can open it could lock it.
    let file = os::for_us_alone(options.create(true).truncate(false).write(true)).open(path);
    let file = file.with_context(|| format!("cannot use {}", path.display()))?;
    let mut tries = 1;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(_) if tries < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
            Err(error) => {
                return Err(error).with_context(|| format!("another keeper has {}", path.display()));
            }
        }
        tries += 1;
    }
}
