//! What a keeper puts into its safe of an attempt that runs, so that the next keeper can go on with it.
//!
//! Version 1. Fields are only added: the next keeper is the same program, but nobody should have to rely on that.

use std::{
    fs::File,
    io::{Seek, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use muster_common::proto::v1;
use muster_core::{
    id::{TaskId, Token},
    time::{Mono, Timestamp, micros},
    usage::Unenforced,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use prost::Message as _;

use super::{
    Estate, ExecEvent, Order, ProcessIdentity,
    attempt::Attempt,
    ending::{Cause, Stage, Step},
    os::{self, Input, Leader, Running, Sluice, Spent, Status},
    scratch::Folder,
};
use crate::{
    cgroup::Counts,
    keeper::{
        message::{self, Event, Kill, Process},
        orders::Orders,
    },
    link::down,
    safe::{Entry, Safe},
};

/// The form of records that we write.
const VERSION: u32 = 1;
/// The places of the files.
const STDIN: [u32; 2] = [3, 4];

/// What does not change while it runs. With it go its handle, its stdout, its stderr; its stdin and what is fed to it, if
/// anything is; and the file that tells the highest use of memory, if there is one.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    order: Option<v1::Leases>,
    #[prost(uint64, tag = "3")]
    started_us: u64,
    /// On the machine's own clock.
    #[prost(uint64, tag = "4")]
    began_us: u64,
    #[prost(message, optional, tag = "5")]
    process: Option<Process>,
    /// The number of its cgroups.
    #[prost(uint64, optional, tag = "6")]
    slot: Option<u64>,
    /// What they had counted before it began.
    #[prost(uint64, repeated, tag = "7")]
    counted: Vec<u64>,
    #[prost(string, optional, tag = "8")]
    scratch: Option<String>,
    #[prost(bool, tag = "9")]
    is_private: bool,
    #[prost(uint32, tag = "10")]
    unenforced: u32,
    #[prost(uint32, repeated, tag = "11")]
    gpus: Vec<u32>,
    #[prost(bool, tag = "12")]
    is_fed: bool,
    #[prost(bool, tag = "13")]
    has_peak: bool,
    /// The highest use of memory of the process that started it, which the kernel counts as its own, too.
    #[prost(uint64, tag = "14")]
    starters_peak: u64,
}

/// What changes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct State {
    /// Why it is being ended: 1 its time is over, 2 a wish, 3 it lacked memory.
    #[prost(uint32, tag = "1")]
    cause: u32,
    #[prost(uint64, tag = "2")]
    amount: u64,
    #[prost(message, optional, tag = "3")]
    wish: Option<Kill>,
    /// 0 it runs, 1 it was asked to end, 2 it was killed.
    #[prost(uint32, tag = "4")]
    step: u32,
    #[prost(uint64, optional, tag = "5")]
    due_us: Option<u64>,
    #[prost(message, optional, tag = "6")]
    exited: Option<Exited>,
    /// It is over, and this is to be told.
    #[prost(message, optional, tag = "7")]
    ended: Option<message::Ended>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exited {
    #[prost(int32, optional, tag = "1")]
    exit: Option<i32>,
    #[prost(int32, tag = "2")]
    signal: i32,
    #[prost(uint64, repeated, tag = "3")]
    spent: Vec<u64>,
}

/// Of one attempt, from the moment in which it is known to last.
pub(super) struct Deposit {
    safe: Safe,
    way: Arc<Sluice>,
    key: u64,
    pid: u32,
    is_adopted: bool,
    starters_peak: u64,
    /// What is fed to its stdin.
    fed: Mutex<Option<File>>,
    state: Mutex<State>,
}

impl Deposit {
    /// Puts `attempt` into the safe; none: there is no safe here, or the machine has no room for it.
    pub(super) fn make(attempt: &Attempt, running: &Running) -> Option<Self> {
        let Estate { safe, sluice, .. } = attempt.room.estate.as_ref()?;
        let made = record(attempt, running);
        let (record, files, fed) = made.map_err(|error| tracing::warn!(%error, "an attempt is not kept safe")).ok()?;
        let (key, pid) = (attempt.order.token.0, running.identity.pid);
        safe.put(key, pid, record.encode_to_vec(), files);
        Some(Self {
            safe: safe.clone(),
            way: Arc::clone(sluice),
            key,
            pid,
            is_adopted: false,
            starters_peak: record.starters_peak,
            fed: Mutex::new(fed),
            state: Mutex::default(),
        })
    }

    /// Of one that an earlier keeper put there, with what its stdin is still to be fed.
    pub(super) fn of(estate: &Estate, found: &Kept, fed: Option<File>) -> Self {
        Self {
            safe: estate.safe.clone(),
            way: Arc::clone(&estate.sluice),
            key: found.order.token.0,
            pid: found.identity.pid,
            is_adopted: true,
            starters_peak: found.starters_peak,
            fed: Mutex::new(fed),
            state: Mutex::new(found.state.clone()),
        }
    }

    pub(super) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Of one whose status nobody gave: whether it is dead, and nobody will.
    pub(super) fn is_unknown(&self, leader: &Leader) -> bool {
        self.is_adopted && leader.is_dead()
    }

    /// By which what it writes is read.
    pub(super) fn way(&self) -> Option<Arc<Sluice>> {
        Some(Arc::clone(&self.way))
    }

    /// Feeds its stdin, from where the last one who did was killed.
    pub(super) fn feed(&self, stdin: Input) -> BoxFuture<'static, ()> {
        let fed = self.fed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (safe, key) = (self.safe.clone(), self.key);
        Box::pin(async move {
            if let Some(file) = fed {
                stdin.feed(file).await;
            }
            // The task is to see the end of it.
            STDIN.into_iter().for_each(|file| safe.close(key, file));
        })
    }

    /// How far its ending is.
    pub(super) fn stage(&self, stage: Stage) {
        self.note(|state| {
            (state.cause, state.amount, state.wish) = match stage.cause {
                None => (0, 0, None),
                Some(Cause::Timeout(limit)) => (1, micros(limit), None),
                Some(Cause::Wish(reason)) => (2, 0, Some(Kill::new(Token(self.key), reason, Duration::ZERO))),
                Some(Cause::Oom) => (3, 0, None),
                Some(Cause::ScratchFull(bytes)) => (4, bytes, None),
            };
            state.step = match stage.step {
                Step::Runs => 0,
                Step::Asked => 1,
                Step::Killed => 2,
            };
            state.due_us = stage.due.map(|due| due.0);
        });
    }

    /// It is over, of which this tells.
    pub(super) fn ended(&self, event: &ExecEvent, task: TaskId) {
        if let Event::Ended(ended) = message::event(event.clone(), task) {
            self.note(|state| state.ended = Some(ended));
        }
    }

    /// How its first process ended, which is noted before the kernel forgets it; none: it has not, or nobody knows.
    pub(super) async fn reap(&self, leader: &mut Leader) -> Option<Status> {
        if !self.is_adopted {
            if let Some((status, spent)) = leader.peek() {
                self.note(|state| state.exited = Some(Exited::new(status, spent)));
            }
            return leader.reap();
        }
        let known = self.state.lock().unwrap_or_else(PoisonError::into_inner).exited.as_ref().map(Exited::status);
        let (status, spent) = match known {
            Some(known) => known,
            None if !leader.is_dead() => return None,
            None => {
                let (status, mut spent) = self.safe.end_of(self.pid).await?;
                if spent.memory_peak <= self.starters_peak {
                    spent.memory_peak = 0;
                }
                self.note(|state| state.exited = Some(Exited::new(status, spent)));
                (status, spent)
            }
        };
        self.safe.reap(self.pid);
        leader.reaped(status, spent);
        Some(status)
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        // Under the lock, so that the last change is noted last.
        self.safe.note(self.key, state.encode_to_vec());
    }
}

fn record(attempt: &Attempt, running: &Running) -> std::io::Result<(Record, Vec<OwnedFd>, Option<File>)> {
    let Attempt { room, order, confined, scratch, started, began, .. } = attempt;
    let mut files = vec![
        running.leader.handle().try_clone()?,
        running.stdout.as_fd().try_clone_to_owned()?,
        running.stderr.as_fd().try_clone_to_owned()?,
    ];
    let fed = match (&running.stdin, &order.spec.stdin) {
        (Some(pipe), Some(bytes)) => {
            let mut file = File::from(memfd_create("muster-stdin", MFdFlags::MFD_CLOEXEC)?);
            file.write_all(bytes)?;
            file.rewind()?;
            files.extend([pipe.as_fd().try_clone_to_owned()?, file.try_clone()?.into()]);
            Some(file)
        }
        _ => None,
    };
    let (slot, counted, peak) = match confined.place.as_ref().map(crate::cgroup::Place::remains) {
        Some((slot, from, peak)) => (slot, counts(from).to_vec(), peak),
        None => (None, Vec::new(), None),
    };
    let has_peak = peak.is_some();
    files.extend(peak.map(OwnedFd::from));
    let mut orders = Orders::default();
    orders.add(order);
    let record = Record {
        version: VERSION,
        order: orders.finish(),
        started_us: started.0,
        began_us: began.0,
        process: Some(Process::new(&running.identity)),
        slot,
        counted,
        scratch: scratch.as_ref().map(|folder| folder.path.to_string_lossy().into_owned()),
        is_private: scratch.as_ref().is_some_and(|folder| folder.is_private),
        unenforced: u32::from(confined.unenforced.0),
        gpus: room.base.gpus.lock().of(order.token),
        is_fed: fed.is_some(),
        has_peak,
        starters_peak: os::own_peak(),
    };
    Ok((record, files, fed))
}

fn counts(counts: &Counts) -> [u64; 4] {
    [counts.cpu_us, counts.user_us, counts.system_us, counts.oom_kills]
}

impl Exited {
    fn new(status: Status, spent: Spent) -> Self {
        let Spent { memory_peak, user_us, system_us, read_bytes, written_bytes } = spent;
        let (exit, signal) = match status {
            Status::Exit(code) => (Some(code), 0),
            Status::Signal(number) => (None, number),
        };
        Self { exit, signal, spent: vec![memory_peak, user_us, system_us, read_bytes, written_bytes] }
    }

    fn status(&self) -> (Status, Spent) {
        let status = self.exit.map_or(Status::Signal(self.signal), Status::Exit);
        let at = |place: usize| self.spent.get(place).copied().unwrap_or(0);
        let spent =
            Spent { memory_peak: at(0), user_us: at(1), system_us: at(2), read_bytes: at(3), written_bytes: at(4) };
        (status, spent)
    }
}

impl State {
    pub(super) fn stage(&self) -> Stage {
        let cause = match (self.cause, &self.wish) {
            (1, _) => Some(Cause::Timeout(Duration::from_micros(self.amount))),
            (2, Some(wish)) => Some(Cause::Wish(wish.reason())),
            (3, _) => Some(Cause::Oom),
            (4, _) => Some(Cause::ScratchFull(self.amount)),
            _ => None,
        };
        let step = match self.step {
            0 => Step::Runs,
            1 => Step::Asked,
            _ => Step::Killed,
        };
        Stage { cause, step, due: self.due_us.map(Mono) }
    }

    pub(super) fn spent(&self) -> Option<Spent> {
        self.exited.as_ref().map(|exited| exited.status().1)
    }
}

/// An attempt that an earlier keeper started, as it is found in the safe.
pub(crate) struct Kept {
    pub(crate) order: Arc<Order>,
    pub(crate) started: Timestamp,
    pub(crate) identity: ProcessIdentity,
    pub(super) began: Mono,
    pub(crate) slot: Option<u64>,
    pub(super) from: Counts,
    pub(super) scratch: Option<Folder>,
    pub(super) unenforced: Unenforced,
    pub(super) gpus: Vec<u32>,
    pub(super) starters_peak: u64,
    pub(super) state: State,
    pub(super) files: Files,
}

/// Those of a [`Kept`].
pub(super) struct Files {
    pub(super) handle: OwnedFd,
    pub(super) outputs: [OwnedFd; 2],
    /// None: all was fed.
    pub(super) stdin: Option<(OwnedFd, File)>,
    pub(super) peak: Option<File>,
}

impl Kept {
    /// `None`: it cannot be gone on with.
    pub(crate) fn read(entry: Entry) -> Option<Self> {
        let record = Record::decode(&*entry.record).ok().filter(|record| record.version == VERSION)?;
        let state = State::decode(&*entry.note).ok()?;
        let order = down::orders(record.order?).last()?.ok()?;
        let mut files = entry.files.into_iter();
        let mut next = || files.next().flatten();
        let (handle, outputs) = (next()?, [next()?, next()?]);
        let stdin = if record.is_fed { next().zip(next()).map(|(pipe, fed)| (pipe, File::from(fed))) } else { None };
        let peak = if record.has_peak { next().map(File::from) } else { None };
        let counted = |place: usize| record.counted.get(place).copied().unwrap_or(0);
        Some(Self {
            order,
            started: Timestamp(record.started_us),
            identity: record.process?.identity(),
            began: Mono(record.began_us),
            slot: record.slot,
            from: Counts {
                cpu_us: counted(0),
                user_us: counted(1),
                system_us: counted(2),
                oom_kills: counted(3),
                ..Counts::default()
            },
            scratch: record.scratch.map(|path| Folder::again(path.into(), record.is_private)),
            unenforced: Unenforced(u8::try_from(record.unenforced).unwrap_or(0)),
            gpus: record.gpus,
            starters_peak: record.starters_peak,
            state,
            files: Files { handle, outputs, stdin, peak },
        })
    }

    /// How it ended, if it did; it was told to nobody who remembers it.
    pub(crate) fn end(&self) -> Option<ExecEvent> {
        message::ended(self.state.ended.clone()?, self.started)
    }

    /// Where it works, if it has a folder of its own.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.scratch.as_ref().map(|folder| folder.path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use muster_core::{id::JobId, spec::TaskSpec, state::End};

    use super::*;
    use crate::exec::KillReason;

    fn record() -> Record {
        let mut orders = Orders::default();
        orders.add(&Arc::new(Order::plain(5, TaskId::new(JobId(1), 2), 3, TaskSpec::default())));
        let identity = ProcessIdentity { boot: "b".into(), pid: 77, start: 8, group: 77 };
        Record {
            version: VERSION,
            order: orders.finish(),
            started_us: 11,
            began_us: 12,
            process: Some(Process::new(&identity)),
            slot: Some(4),
            counted: vec![1, 2, 3, 4],
            scratch: Some("/somewhere/9".into()),
            is_private: true,
            unenforced: 2,
            gpus: vec![0, 3],
            is_fed: true,
            has_peak: true,
            starters_peak: 9,
        }
    }

    fn entry(record: &Record, state: &State, files: usize) -> Entry {
        let file = || File::open("/dev/null").ok().map(OwnedFd::from);
        let files = (0..files).map(|_| file()).collect();
        Entry { key: 5, record: record.encode_to_vec(), note: state.encode_to_vec(), files }
    }

    #[test]
    fn what_was_put_in_is_taken_out_as_it_was() {
        let kept = Kept::read(entry(&record(), &State::default(), 6)).expect("whole");
        assert_eq!((kept.order.token, kept.identity.pid, kept.began), (Token(5), 77, Mono(12)));
        assert_eq!((kept.slot, kept.from.cpu_us, kept.from.oom_kills), (Some(4), 1, 4));
        assert_eq!(kept.scratch.as_ref().map(|folder| folder.is_private), Some(true));
        assert_eq!((kept.unenforced, &kept.gpus[..]), (Unenforced(2), &[0, 3][..]));
        assert!(kept.files.stdin.is_some() && kept.files.peak.is_some());
        assert!(kept.end().is_none());
        // All was fed: its files were closed.
        let mut fed = entry(&record(), &State::default(), 6);
        (fed.files[3], fed.files[4]) = (None, None);
        assert!(Kept::read(fed).is_some_and(|kept| kept.files.stdin.is_none() && kept.files.peak.is_some()));
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_nothing() {
        assert!(Kept::read(entry(&record(), &State::default(), 2)).is_none(), "a pipe is missing");
        assert!(
            Kept::read(entry(&Record { version: 2, ..record() }, &State::default(), 6)).is_none(),
            "of a newer form"
        );
        let torn = Entry { record: vec![0xff; 9], ..entry(&record(), &State::default(), 6) };
        assert!(Kept::read(torn).is_none());
    }

    #[tokio::test]
    async fn every_stage_of_an_end_comes_back() {
        let causes = [
            None,
            Some(Cause::Timeout(Duration::from_millis(1500))),
            Some(Cause::Wish(KillReason::Cancelled)),
            Some(Cause::Wish(KillReason::Dropped)),
            Some(Cause::Oom),
            Some(Cause::ScratchFull(1 << 40)),
        ];
        let (sluice, safe) = (Arc::new(Sluice::new(0).expect("none")), Safe::nowhere());
        for cause in causes {
            for step in [Step::Runs, Step::Asked, Step::Killed] {
                let deposit = Deposit {
                    safe: safe.clone(),
                    way: Arc::clone(&sluice),
                    key: 5,
                    pid: 77,
                    is_adopted: false,
                    starters_peak: 0,
                    fed: Mutex::default(),
                    state: Mutex::default(),
                };
                let stage = Stage { cause, step, due: Some(Mono(9)) };
                deposit.stage(stage);
                let state = deposit.state.into_inner().expect("not poisoned");
                let state = State::decode(&*state.encode_to_vec()).expect("whole");
                assert_eq!(state.stage(), stage);
            }
        }
    }

    #[test]
    fn how_it_ended_comes_back() {
        let spent = Spent { memory_peak: 1, user_us: 2, system_us: 3, read_bytes: 4, written_bytes: 5 };
        for status in [Status::Exit(0), Status::Exit(255), Status::Signal(9), Status::Signal(35)] {
            assert_eq!(Exited::new(status, spent).status(), (status, spent));
        }
        let event = ExecEvent::Ended {
            token: Token(5),
            end: End::Exit(3),
            why: Some("why".into()),
            started: Timestamp(1),
            ended: Timestamp(2),
            result: None,
            usage: None,
            next: None,
        };
        let Event::Ended(ended) = message::event(event.clone(), TaskId::new(JobId(1), 2)) else { panic!("an end") };
        let state = State { ended: Some(ended), ..State::default() };
        assert_eq!(Kept::read(entry(&record(), &state, 6)).and_then(|kept| kept.end()), Some(event));
    }
}
