//! What an agent and its keeper say to one another, as bytes. Fields are only added: either may be the newer one.
//!
//! What comes from the other side is checked and refused here, never believed.

use std::time::Duration;

use muster_common::{
    proto::v1,
    wire::link::{report_from_proto, report_to_proto},
};
use muster_core::{
    event::{Report, What},
    id::{JobId, TaskId, Token},
    state::End,
    time::{Mono, Timestamp, micros},
};
use prost::Message as _;

use crate::{
    exec::{ExecEvent, KillReason, Leftover, ProcessIdentity, Swept},
    logs::{Head, Notice},
};

/// The newest form of this conversation that we know, and the oldest.
pub(super) const VERSIONS: (u32, u32) = (3, 1);
/// From here on agents know that a keeper may go on with another one's work.
pub(super) const HEIRS_SINCE: u32 = 2;
/// From here on agents know that a welcome may come in parts.
pub(super) const PARTS_SINCE: u32 = 3;
/// Words of one message, and their bytes: far below what a message may hold.
pub(super) const WORDS: usize = 1024;
pub(super) const ENOUGH: usize = 4 << 20;

/// From the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Down {
    /// The first message of a connection, and only that.
    #[prost(message, optional, tag = "1")]
    pub(super) hello: Option<Hello>,
    /// What the words of this message refer to.
    #[prost(message, optional, tag = "2")]
    pub(super) orders: Option<v1::Leases>,
    #[prost(message, repeated, tag = "3")]
    pub(super) words: Vec<Said>,
}

/// From the keeper.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Up {
    /// The answer to a hello.
    #[prost(message, optional, tag = "1")]
    pub(super) welcome: Option<Welcome>,
    #[prost(message, repeated, tag = "2")]
    pub(super) words: Vec<Heard>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(super) newest: u32,
    #[prost(uint32, tag = "2")]
    pub(super) oldest: u32,
    /// What the agent's memory says was not over.
    #[prost(message, repeated, tag = "3")]
    pub(super) leftovers: Vec<Left>,
    /// When leases were renewed last, if the agent knows.
    #[prost(message, optional, tag = "4")]
    pub(super) hold: Option<Hold>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Left {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) process: Option<Process>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Process {
    #[prost(string, tag = "1")]
    pub(super) boot: String,
    #[prost(uint32, tag = "2")]
    pub(super) pid: u32,
    #[prost(uint64, tag = "3")]
    pub(super) start: u64,
    #[prost(uint32, tag = "4")]
    pub(super) group: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Welcome {
    /// What is spoken from here on; 0: there is no version that both know, and the connection ends.
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    /// Another one for each keeper's process.
    #[prost(string, tag = "2")]
    pub(super) instance: String,
    /// The program and the settings that it works with.
    #[prost(string, tag = "3")]
    pub(super) setup: String,
    /// Orders that are not over, or of whose end the agent has not said that it remembers it.
    #[prost(message, optional, tag = "4")]
    pub(super) orders: Option<v1::Leases>,
    /// Of those, whose process runs.
    #[prost(message, repeated, tag = "5")]
    pub(super) running: Vec<Started>,
    /// What became of the leftovers that are not among the orders.
    #[prost(message, repeated, tag = "6")]
    pub(super) swept: Vec<Found>,
    #[prost(message, optional, tag = "7")]
    pub(super) hold: Option<Hold>,
    /// Whose output files are not complete; words tell of them.
    #[prost(uint64, repeated, tag = "8")]
    pub(super) writing: Vec<u64>,
    /// What attempts are held to, and what not and why: for a log.
    #[prost(string, tag = "9")]
    pub(super) limits: String,
    /// There is no keeper, since limits cannot be enforced as its settings demand; it ends. Empty: there is one.
    #[prost(string, tag = "10")]
    pub(super) refused: String,
    /// The same as `limits`, for people who ask the controller.
    #[prost(message, repeated, tag = "11")]
    pub(super) enforced: Vec<v1::Enforced>,
    /// The same for all keepers that go on with one another's work; empty: of one that does not know of such.
    #[prost(string, tag = "12")]
    pub(super) cookie: String,
    /// More of it comes with the next message: orders, and what else is said of them.
    #[prost(bool, tag = "13")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Found {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint32, tag = "2")]
    pub(super) found: u32,
}

/// A word of the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Said {
    #[prost(oneof = "Word", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    pub(super) word: Option<Word>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Word {
    /// The place of an order in this message.
    #[prost(uint32, tag = "1")]
    Start(u32),
    #[prost(message, tag = "2")]
    Offer(Offer),
    #[prost(uint64, tag = "3")]
    Claim(u64),
    #[prost(uint64, tag = "4")]
    Withdraw(u64),
    #[prost(message, tag = "5")]
    Kill(Kill),
    /// A1: when leases were renewed last.
    #[prost(message, tag = "6")]
    Hold(Hold),
    /// Ends that the agent remembers.
    #[prost(message, tag = "7")]
    Forget(Tokens),
    #[prost(message, tag = "8")]
    Delivered(Delivered),
    /// So many bytes of output are with the controller, and their files are gone.
    #[prost(uint64, tag = "9")]
    Shipped(u64),
    /// Everything was ended: end, too.
    #[prost(bool, tag = "10")]
    Farewell(bool),
    /// End if nothing is yours to do; otherwise say so.
    #[prost(bool, tag = "11")]
    Retire(bool),
    /// What an earlier keeper left is remembered.
    #[prost(bool, tag = "12")]
    Settled(bool),
    /// The GPUs that the machine has now.
    #[prost(message, tag = "13")]
    Gpus(Gpus),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Gpus {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) all: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Offer {
    #[prost(uint32, tag = "1")]
    pub(super) order: u32,
    #[prost(uint64, tag = "2")]
    pub(super) until_us: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Kill {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint32, tag = "2")]
    pub(super) reason: u32,
    #[prost(uint64, tag = "3")]
    pub(super) grace_us: u64,
}

/// Without `from_us`: nothing is held by a lease.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Hold {
    #[prost(uint64, optional, tag = "1")]
    pub(super) from_us: Option<u64>,
    #[prost(uint64, tag = "2")]
    pub(super) ttl_us: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Tokens {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) tokens: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Delivered {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint64, tag = "2")]
    pub(super) bytes: u64,
    /// Why it could not be; empty: it was.
    #[prost(string, tag = "3")]
    pub(super) error: String,
}

/// A word of the keeper.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Heard {
    #[prost(oneof = "Event", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(super) event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Event {
    #[prost(message, tag = "1")]
    Started(Started),
    #[prost(message, tag = "2")]
    Ended(Ended),
    #[prost(uint64, tag = "3")]
    Withdrawn(u64),
    #[prost(message, tag = "4")]
    Spooled(Spooled),
    /// A result that is too large for a word lies in its file.
    #[prost(message, tag = "5")]
    Deliver(Deliver),
    /// The keeper ends; nothing that was said after [`Word::Retire`] was heard.
    #[prost(bool, tag = "6")]
    Retired(bool),
    /// It cannot end yet.
    #[prost(bool, tag = "7")]
    Busy(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Started {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint64, tag = "2")]
    pub(super) at_us: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) process: Option<Process>,
    /// How many descriptors come with it.
    #[prost(uint32, tag = "4")]
    pub(super) descriptors: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ended {
    /// As the journal and the link know it; its number means nothing here.
    #[prost(message, optional, tag = "1")]
    pub(super) report: Option<v1::Report>,
    /// What was begun in its place.
    #[prost(uint64, optional, tag = "2")]
    pub(super) next: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Spooled {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint64, tag = "2")]
    pub(super) job: u64,
    #[prost(uint32, tag = "3")]
    pub(super) task: u32,
    #[prost(uint32, tag = "4")]
    pub(super) attempt: u32,
    /// Bytes of whole records in the file.
    #[prost(uint64, tag = "5")]
    pub(super) end: u64,
    #[prost(bool, tag = "6")]
    pub(super) over: bool,
    /// Records that the disk did not take.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) memory: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Deliver {
    #[prost(uint64, tag = "1")]
    pub(super) token: u64,
    #[prost(uint64, tag = "2")]
    pub(super) job: u64,
    #[prost(uint32, tag = "3")]
    pub(super) task: u32,
}

/// Words, as many of them in each message as should go with it.
pub(super) fn parts(words: impl IntoIterator<Item = Heard>) -> Vec<Vec<Heard>> {
    let (mut parts, mut bytes) = (Vec::<Vec<Heard>>::new(), 0);
    for word in words {
        let length = word.encoded_len();
        match parts.last_mut().filter(|part| part.len() < WORDS && bytes + length <= ENOUGH) {
            Some(part) => part.push(word),
            None => {
                parts.push(vec![word]);
                bytes = 0;
            }
        }
        bytes += length;
    }
    parts
}

impl Process {
    pub(crate) fn new(identity: &ProcessIdentity) -> Self {
        let ProcessIdentity { boot, pid, start, group } = identity;
        Self { boot: boot.to_string(), pid: *pid, start: *start, group: *group }
    }

    pub(crate) fn identity(self) -> ProcessIdentity {
        ProcessIdentity { boot: self.boot.into(), pid: self.pid, start: self.start, group: self.group }
    }
}

impl Left {
    pub(super) fn new(leftover: &Leftover) -> Self {
        Self { token: leftover.token.0, process: leftover.identity.as_ref().map(Process::new) }
    }

    pub(super) fn leftover(self) -> Leftover {
        // Whose it is matters to nobody who looks for processes.
        let task = TaskId::new(JobId(0), 0);
        Leftover { token: Token(self.token), task, identity: self.process.map(Process::identity) }
    }
}

impl Hold {
    pub(super) fn new(hold: Option<(Mono, Duration)>) -> Self {
        let (from, ttl) = hold.map_or((None, Duration::ZERO), |(from, ttl)| (Some(from.0), ttl));
        Self { from_us: from, ttl_us: micros(ttl) }
    }

    pub(super) fn hold(self) -> Option<(Mono, Duration)> {
        self.from_us.map(|from| (Mono(from), Duration::from_micros(self.ttl_us)))
    }
}

impl Kill {
    pub(crate) fn new(token: Token, reason: KillReason, grace: Duration) -> Self {
        let reason = match reason {
            KillReason::Cancelled => 0,
            KillReason::LeaseExpired => 1,
            KillReason::Shutdown => 2,
            KillReason::Dropped => 3,
        };
        Self { token: token.0, reason, grace_us: micros(grace) }
    }

    /// A reason that a newer agent added is none that could be told wrongly.
    pub(crate) fn reason(&self) -> KillReason {
        match self.reason {
            0 => KillReason::Cancelled,
            1 => KillReason::LeaseExpired,
            2 => KillReason::Shutdown,
            _ => KillReason::Dropped,
        }
    }
}

impl Found {
    pub(super) fn new(token: Token, swept: Swept) -> Self {
        let found = match swept {
            Swept::Dead => 0,
            Swept::Survives => 1,
            Swept::NeverBegun => 2,
            Swept::Rebooted => 3,
        };
        Self { token: token.0, found }
    }

    pub(super) fn swept(&self) -> Swept {
        match self.found {
            1 => Swept::Survives,
            2 => Swept::NeverBegun,
            3 => Swept::Rebooted,
            _ => Swept::Dead,
        }
    }
}

impl Started {
    pub(super) fn new(token: Token, at: Timestamp, identity: &ProcessIdentity) -> Self {
        Self { token: token.0, at_us: at.0, process: Some(Process::new(identity)), descriptors: 0 }
    }
}

impl Spooled {
    pub(super) fn new(notice: Notice) -> Self {
        let Notice { head, end, over, memory } = notice;
        Self {
            token: head.token.0,
            job: head.task.job.0,
            task: head.task.index,
            attempt: head.attempt,
            end,
            over,
            memory,
        }
    }

    pub(super) fn notice(self) -> Notice {
        let task = TaskId::new(JobId(self.job), self.task);
        let head = Head { token: Token(self.token), task, attempt: self.attempt };
        Notice { head, end: self.end, over: self.over, memory: self.memory }
    }
}

/// An event of `task` as bytes.
pub(crate) fn event(event: ExecEvent, task: TaskId) -> Event {
    match event {
        ExecEvent::Started { token, at, identity } => Event::Started(Started::new(token, at, &identity)),
        ExecEvent::Withdrawn { token } => Event::Withdrawn(token.0),
        ExecEvent::Ended { token, end, why, started, ended, result, usage, next } => {
            let what = What::Ended { end, why, started, ended, result, usage };
            let report = report_to_proto(&Report { seq: 0, token, task, what });
            Event::Ended(Ended { report: Some(report), next: next.map(|next| next.0) })
        }
    }
}

/// The end of an attempt; one in words that we do not know is lost, as of `now`. `None`: it does not say of which.
pub(crate) fn ended(ended: Ended, now: Timestamp) -> Option<ExecEvent> {
    let (report, next) = (ended.report?, ended.next.map(Token));
    let token = Token(report.token);
    Some(match report_from_proto(report).map(|report| report.what) {
        Ok(What::Ended { end, why, started, ended, result, usage }) => {
            ExecEvent::Ended { token, end, why, started, ended, result, usage, next }
        }
        Ok(_) | Err(_) => {
            let why = Some("its keeper tells of its end in words that this agent does not know".into());
            let (end, started, ended) = (End::Lost, Timestamp(0), now);
            ExecEvent::Ended { token, end, why, started, ended, result: None, usage: None, next }
        }
    })
}

#[cfg(test)]
mod tests {
    use muster_core::{
        record::TaskResult,
        state::End,
        usage::{Amount, Unenforced, Usage},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::link::down;

    #[test]
    fn words_go_in_messages_that_hold_them() {
        let long = |n: u32| Heard {
            event: Some(Event::Spooled(Spooled { task: n, memory: vec![0; 1 << 20], ..Spooled::default() })),
        };
        let short = |n: u64| Heard { event: Some(Event::Withdrawn(n)) };
        let all: Vec<_> = (0..9).map(long).chain((0..3000).map(short)).collect();
        let parts = parts(all.iter().cloned());
        assert!(
            parts
                .iter()
                .all(|part| part.len() <= WORDS && part.iter().map(Heard::encoded_len).sum::<usize>() <= ENOUGH)
        );
        assert_eq!(parts.concat(), all);
        assert_eq!(super::parts([long(1), long(2)]).len(), 1);
    }

    #[test]
    fn words_of_both_sides_mean_what_was_said() {
        for reason in [KillReason::Cancelled, KillReason::LeaseExpired, KillReason::Shutdown, KillReason::Dropped] {
            let kill = Kill::new(Token(1), reason, Duration::from_millis(1500));
            assert_eq!((kill.reason(), kill.grace_us), (reason, 1_500_000));
        }
        for swept in [Swept::Dead, Swept::Survives, Swept::NeverBegun, Swept::Rebooted] {
            assert_eq!(Found::new(Token(1), swept).swept(), swept);
        }
        for hold in [None, Some((Mono(5), Duration::ZERO)), Some((Mono(0), Duration::from_secs(15)))] {
            assert_eq!(Hold::new(hold).hold(), hold);
        }
        let head = Head { token: Token(7), task: TaskId::new(JobId(8), 9), attempt: 10 };
        let notice = Notice { head, end: 11, over: true, memory: vec![1, 2] };
        assert_eq!(Spooled::new(notice.clone()).notice(), notice);
        let identity = ProcessIdentity { boot: "b".into(), pid: 2, start: 3, group: 4 };
        let left = Leftover { token: Token(5), task: TaskId::new(JobId(0), 0), identity: Some(identity) };
        assert_eq!(Left::new(&left).leftover(), left);
    }

    #[test]
    fn ends_come_back_as_they_were() {
        let usage = Usage {
            memory_peak: Amount::new(64 << 20),
            cpu_user_us: Amount::new(1),
            cpu_system_us: Amount::new(2),
            read_bytes: Amount::new(3),
            written_bytes: Amount::new(4),
            unenforced: Unenforced::PIDS,
            has_output: Some(true),
        };
        let ends = [
            (End::Oom, Some("its limit of 64 MiB"), None),
            (End::Succeeded, None, Some(TaskResult::Inline(b"{}"[..].into()))),
            (End::Exit(3), Some("why"), None),
            (End::Signal(9), None, Some(TaskResult::Stored(1 << 30))),
            (End::KillFailed, Some("still alive"), None),
        ];
        for (end, why, result) in ends {
            let event_of = |next| ExecEvent::Ended {
                token: Token(1),
                end,
                why: why.map(Into::into),
                started: Timestamp(2),
                ended: Timestamp(3),
                result: result.clone(),
                usage: (end != End::KillFailed).then_some(usage),
                next,
            };
            for next in [None, Some(Token(9))] {
                let Event::Ended(said) = event(event_of(next), TaskId::new(JobId(4), 5)) else { panic!("an end") };
                assert_eq!(ended(said, Timestamp(0)), Some(event_of(next)));
            }
        }
        assert_eq!(ended(Ended { report: None, next: None }, Timestamp(0)), None, "what says nothing is no end");
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(down) = Down::decode(&*bytes) {
                let _any = down::orders(down.orders.unwrap_or_default());
            }
            if let Ok(up) = Up::decode(&*bytes) {
                for heard in up.words {
                    if let Some(Event::Ended(said)) = heard.event {
                        let _any = ended(said, Timestamp(0));
                    }
                }
            }
        }
    }
}
